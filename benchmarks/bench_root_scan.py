"""Search a raw image for the root: one word at the start of every page."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

from benchmarks.common import Result, compare, compile_c, map_file, within, work_directory
from inspector import memory
from inspector.locate import locate

_MAGIC = 0xEDFE0DD0  # d00dfeed, big endian, as a little-endian word
_DENSE = 512 << 20
_SPARSE = 8 << 30
_CAPTURE = Path(__file__).parents[1] / "corpus" / "linux-7.3.4-handoff.elf.zst"
_ROOT = 0x424000

_SOURCE = r"""
#include <stdint.h>
#include <stddef.h>
long scan(const unsigned char *p, size_t size, uint32_t magic, uint64_t *out, long room)
{
    long n = 0;
    for (size_t at = 0; at + 4 <= size; at += 4096)
        if (*(const uint32_t *)(p + at) == magic && n < room)
            out[n++] = at;
    return n;
}
"""


def _dense() -> tuple[Path, list[int]]:
    path = work_directory() / "dense.raw"
    block = random.Random(1).randbytes(1 << 20)
    hits = [0x1234000, _DENSE - 4096]
    with path.open("wb") as stream:
        for _ in range(_DENSE >> 20):
            stream.write(block)
        for hit in hits:
            stream.seek(hit)
            stream.write(b"\xd0\x0d\xfe\xed")
    return path, hits


def run() -> list[Result]:
    """Dense: against C on the same mapping. Sparse: CPU time, opening included."""
    library = compile_c(_SOURCE)
    library.scan.restype = ctypes.c_long
    path, hits = _dense()
    base = map_file(path)
    out = (ctypes.c_uint64 * 64)()

    def in_c() -> list[int]:
        found = library.scan(
            ctypes.c_void_p(base.address), ctypes.c_size_t(_DENSE), ctypes.c_uint32(_MAGIC), out, 64
        )
        return list(out[:found])

    sparse = work_directory() / "sparse.raw"
    with sparse.open("wb") as stream, memory.open(_CAPTURE) as capture:
        stream.truncate(_SPARSE)
        for region in capture.regions:
            stream.seek(region.start)
            stream.write(capture.read(region.start, region.size))

    def in_sparse() -> list[int]:
        with memory.open(sparse) as image:
            return [candidate.address for candidate in locate(image).candidates]

    if in_sparse() != [_ROOT]:
        raise AssertionError("the root of the sparse image is not found")
    with memory.open(path) as image:
        dense = compare(
            "root scan, 512 MiB dense",
            lambda: list(memory.find_words(image, _MAGIC, 4096)),
            in_c,
            equal=lambda a, b: a == b == hits,
            limit=1.3,
        )
    result = within("locate the root, 8 GiB sparse", in_sparse, 0.1, cpu=True)
    return [dense, result]
