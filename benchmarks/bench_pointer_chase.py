"""Follow a chain of pages through memory, as walkers of linked blocks do.

Every hop is checked: the next address must be aligned and in present memory, and the
number of hops is limited. Both contestants walk a mapping of the same file.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np

from benchmarks.common import Result, compare, compile_c, map_file, work_directory
from inspector import memory

_PAGES = 1 << 16
_HOPS = 60_000
_LIMIT = 100_000

_SOURCE = r"""
#include <stdint.h>
#include <stddef.h>
long chase(const unsigned char *p, uint64_t size, uint64_t at, long limit)
{
    long n = 0;
    while (n < limit) {
        if (at & 7 || at > size - 8)
            break;
        at = *(const uint64_t *)(p + at);
        n++;
    }
    return n;
}
"""


def _by_span(source: memory.PhysicalMemory, at: int) -> int:
    start = end = 0
    words = memoryview(b"")
    for hops in range(_LIMIT):
        if at & 7 or not start <= at < end:
            span = None if at & 7 else source.span(at)
            if span is None:
                return hops
            start, end, words = span.start, span.end, span.words
        at = words[(at - start) >> 3]
    return _LIMIT


def _by_word(source: memory.PhysicalMemory, at: int) -> int:
    u64 = source.u64
    for hops in range(_LIMIT):
        if at & 7:
            return hops
        at = u64(at)
    return _LIMIT


def run() -> list[Result]:
    """60,000 hops over 256 MiB in random order."""
    library = compile_c(_SOURCE)
    library.chase.restype = ctypes.c_long
    order = list(range(1, _PAGES))
    random.Random(2).shuffle(order)
    order = order[:_HOPS]
    image = np.zeros((_PAGES, 512), np.uint64)
    image[order[:-1], 0] = np.array(order[1:], np.uint64) << np.uint64(12)
    image[order[-1], 0] = 1  # the chain ends with a misaligned pointer
    path = work_directory() / "chain.raw"
    image.tofile(path)
    del image
    first = order[0] << 12
    base = map_file(path)

    def in_c() -> int:
        hops: int = library.chase(
            ctypes.c_void_p(base.address),
            ctypes.c_uint64(base.size),
            ctypes.c_uint64(first),
            ctypes.c_long(_LIMIT),
        )
        return hops

    with memory.open(path) as source:
        return [
            compare("pointer chase, span()", lambda: _by_span(source, first), in_c, limit=2.3),
            compare("pointer chase, u64()", lambda: _by_word(source, first), in_c),
        ]
