"""1,000,000 folio entries of a memory file, out of vmalloc pages into columns.

The pages are scattered; they are gathered 64 at a time into one buffer, and the fields go
from there into preallocated columns.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np

from benchmarks.common import Result, compare, compile_c, map_file, work_directory
from inspector import memory

_FOLIOS = 1_000_000
_PER_PAGE = 256
_AT_ONCE = 64
_IMAGE_PAGES = 1 << 14

_ENTRY = np.dtype([("pfn_flags", "<u8"), ("index", "<u8")])

_SOURCE = r"""
#include <stdint.h>
#include <stddef.h>
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
"""


def run() -> list[Result]:
    """16 MB of entries in 3907 scattered pages of a 64 MiB image."""
    library = compile_c(_SOURCE)
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
    buffer = np.empty((_AT_ONCE, 4096), np.uint8)

    def in_c() -> bytes:
        library.folios(
            ctypes.c_void_p(base.address),
            ctypes.c_void_p(pages.ctypes.data),
            ctypes.c_long(_FOLIOS),
            ctypes.c_void_p(c_columns[0].ctypes.data),
            ctypes.c_void_p(c_columns[1].ctypes.data),
        )
        return b""

    def in_python() -> bytes:
        first, second = columns
        done = 0
        for at in range(0, count, _AT_ONCE):
            rows = source.gather(pages[at : at + _AT_ONCE], 4096, buffer)
            entries = rows.reshape(-1).view(_ENTRY)[: _FOLIOS - done]
            first[done : done + len(entries)] = entries["pfn_flags"]
            second[done : done + len(entries)] = entries["index"]
            done += len(entries)
        return b""

    with memory.open(path) as source:
        result = compare("1,000,000 memfd folios", in_python, in_c, limit=1.25, rounds=15)
    if not np.array_equal(columns, c_columns):
        raise AssertionError("the columns differ")
    return [result]
