"""1,000,000 folio entries of a memory file, out of vmalloc pages into columns.

The pages are scattered; they are gathered a batch at a time into one buffer, and the fields go
from there into columns. First the primitive alone, into two columns that are there
already, then the decoder as it is used (frame number, flags, index), where both sides
allocate their columns.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np

from benchmarks.common import Result, compare, compile_c, map_file, work_directory
from inspector import memory
from inspector.survey import Survey
from inspector.walk.vmalloc import BATCH, FolioColumns, Vmalloc, folio_columns

_FOLIOS = 1_000_000
_PER_PAGE = 256
_AT_ONCE = BATCH
_IMAGE_PAGES = 1 << 14

_SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
struct folio { uint64_t pfn_flags, index; };
void folios(const unsigned char *p, const uint64_t *pages, long n, uint64_t *a, uint64_t *b)
{
    for (long done = 0; done < n; pages++) {
        const struct folio *f = (const struct folio *)(p + *pages);
        long count = n - done < 256 ? n - done : 256;
        for (long i = 0; i < count; i++) {
            a[done + i] = f[i].pfn_flags;
            b[done + i] = f[i].index;
        }
        done += count;
    }
}
uint64_t columns(const unsigned char *p, const uint64_t *pages, long n)
{
    uint64_t *pfn = malloc(n * 8), *index = malloc(n * 8);
    uint16_t *flags = malloc(n * 2);
    uint64_t sum = 0;
    for (long done = 0; done < n; pages++) {
        const struct folio *f = (const struct folio *)(p + *pages);
        long count = n - done < 256 ? n - done : 256;
        for (long i = 0; i < count; i++) {
            pfn[done + i] = f[i].pfn_flags & ((1ul << 52) - 1);
            flags[done + i] = f[i].pfn_flags >> 52;
            index[done + i] = f[i].index;
        }
        done += count;
    }
    for (long i = 0; i < n; i += 4099)
        sum += pfn[i] + index[i] + flags[i];
    free(pfn);
    free(index);
    free(flags);
    return sum;
}
"""


def _checksum(columns: FolioColumns) -> int:
    step = slice(None, None, 4099)
    total = columns.pfn[step].sum() + columns.index[step].sum()
    return int(total + columns.flags[step].sum(dtype=np.uint64))


def run() -> list[Result]:
    """16 MB of entries in 3907 scattered pages of a 64 MiB image."""
    library = compile_c(_SOURCE)
    library.columns.restype = ctypes.c_uint64
    count = -(-_FOLIOS // _PER_PAGE)
    rng = np.random.default_rng(3)
    image = rng.integers(0, 1 << 63, (_IMAGE_PAGES, 512), np.uint64)
    path = work_directory() / "folios.raw"
    image.tofile(path)
    del image
    base = map_file(path)
    chosen = random.Random(4).sample(range(_IMAGE_PAGES), count)
    pages = np.array(chosen, np.uint64) << np.uint64(12)
    c_columns = np.zeros((2, _FOLIOS), np.uint64)
    columns = np.zeros((2, _FOLIOS), np.uint64)
    where = (
        ctypes.c_void_p(base.address),
        ctypes.c_void_p(pages.ctypes.data),
        ctypes.c_long(_FOLIOS),
    )

    def primitive_in_c() -> None:
        first, second = (ctypes.c_void_p(column.ctypes.data) for column in c_columns)
        library.folios(*where, first, second)

    def primitive() -> None:
        first, second = columns
        done = 0
        for rows in source.batches(pages, 4096, _AT_ONCE):
            words = rows.reshape(-1).view("<u8").reshape(-1, 2)[: _FOLIOS - done]
            first[done : done + len(words)] = words[:, 0]
            second[done : done + len(words)] = words[:, 1]
            done += len(words)

    def decoder_in_c() -> int:
        total: int = library.columns(*where)
        return total

    def decoder() -> int:
        vmalloc = Vmalloc(0, count, 0, 0, pages[:0], pages, 4096, complete=True)
        return _checksum(folio_columns(Survey(source, 4096), vmalloc, _FOLIOS, "/bench"))

    with memory.open(path) as source:
        results = [
            compare("memfd folios, gather to columns", primitive, primitive_in_c),
            compare("memfd folios, decoder", decoder, decoder_in_c, limit=1.25),
        ]
    if not np.array_equal(columns, c_columns):
        raise AssertionError("the columns differ")
    return results
