"""100,000 objects of a chain of array pages: IOMMU domains, devices and units.

Both contestants follow the chain with every check (alignment, bounds, no page twice, count
within capacity) and end up with the objects side by side and the address of each. How many
there are is known at the end only.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np

from abi import registry
from abi.iommu import ArrayKind, IommuGeneration
from benchmarks.common import MappedFile, Result, compare, compile_c, map_file, work_directory
from inspector import memory
from inspector.memory.base import PhysicalMemory
from inspector.survey import Survey
from inspector.walk.paged_array import PagedArray, walk_paged_array

_OBJECTS = 100_000
_PAGE = 4096
_LIMIT = 1.25

_SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
long walk(const unsigned char *p, uint64_t size, uint64_t first, uint64_t object, long limit,
          unsigned char **objects, uint64_t **addresses)
{
    uint64_t capacity = (4096 - 16) / object, at = first;
    long n = 0, room = 0, hops = 0;
    unsigned char *seen = calloc(size / 4096 / 8 + 1, 1), *out = NULL;
    uint64_t *where = NULL;
    while (at) {
        if (at & 4095 || at > size - 4096 || hops++ >= limit)
            break;
        if (seen[at >> 15] & 1 << (at >> 12 & 7))
            break;
        seen[at >> 15] |= 1 << (at >> 12 & 7);
        uint64_t next = *(const uint64_t *)(p + at);
        uint64_t count = *(const uint64_t *)(p + at + 8);
        if (count > capacity)
            count = capacity;
        if (n + (long)count > room) {
            room = room ? room * 2 : 4096;
            out = realloc(out, room * object);
            where = realloc(where, room * sizeof(*where));
        }
        const unsigned char *from = p + at + 16;
        for (uint64_t i = 0; i < count; i++, n++) {
            memcpy(out + n * object, from + i * object, object);
            where[n] = at + 16 + i * object;
        }
        at = next;
    }
    free(seen);
    *objects = out;
    *addresses = where;
    return n;
}
void release(void *p) { free(p); }
"""


def _image(kind: ArrayKind, seed: int) -> tuple[MappedFile, PhysicalMemory, int]:
    """A file with the chain at random pages; the first page's address."""
    size = kind.objects.size
    capacity = (_PAGE - 16) // size
    count = -(-_OBJECTS // capacity)
    order = random.Random(seed).sample(range(1, 4 * count), count)
    pages = np.zeros((4 * count, _PAGE), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, (count, capacity * size), np.uint8)
    for i, page in enumerate(order):
        following = order[i + 1] * _PAGE if i + 1 < count else 0
        used = min(capacity, _OBJECTS - i * capacity)
        pages[page, :16] = np.array([following, used], np.uint64).view(np.uint8)
        pages[page, 16 : 16 + capacity * size] = noise[i]
    path = work_directory() / f"array-{size}.raw"
    pages.tofile(path)
    return map_file(path), memory.open(path), order[0] * _PAGE


def run() -> list[Result]:
    """Objects of 112, 72 and 40 bytes; three of four pages of the image are not in the chain."""
    library = compile_c(_SOURCE)
    library.walk.restype = ctypes.c_long
    generation = registry.get("iommu", "iommu-v4-version-field")
    assert isinstance(generation, IommuGeneration)
    units, domains, devices = generation.arrays
    return [
        _bench(library, units, 0, _LIMIT),
        _bench(library, devices, 1, _LIMIT),
        # Following the chain weighs more where a page holds less: no limit.
        _bench(library, domains, 2, None),
    ]


def _bench(library: ctypes.CDLL, kind: ArrayKind, seed: int, limit: float | None) -> Result:
    base, source, first = _image(kind, seed)
    size = kind.objects.size
    check = True

    def in_c() -> tuple[int, int]:
        objects, addresses = ctypes.c_void_p(), ctypes.c_void_p()
        found: int = library.walk(
            ctypes.c_void_p(base.address),
            ctypes.c_uint64(base.size),
            ctypes.c_uint64(first),
            ctypes.c_uint64(size),
            ctypes.c_long(1 << 16),
            ctypes.byref(objects),
            ctypes.byref(addresses),
        )
        digest = 0
        if check:
            raw = ctypes.string_at(objects, found * size)
            digest = hash(raw + ctypes.string_at(addresses, found * 8))
        library.release(objects)
        library.release(addresses)
        return found, digest

    def in_python() -> PagedArray:
        survey = Survey(source, _PAGE)
        return walk_paged_array(survey, first, kind.page, "/bench", "array")

    def equal(ours: object, theirs: object) -> bool:
        nonlocal check
        assert isinstance(ours, PagedArray)
        check = False
        return theirs == (len(ours), hash(ours.records.tobytes() + ours.addresses.tobytes()))

    name = f"array_objects, {size} B"
    return compare(name, in_python, in_c, equal=equal, limit=limit, rounds=25, cpu=True)
