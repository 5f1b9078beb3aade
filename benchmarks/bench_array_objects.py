"""100,000 objects of a chain of array pages: IOMMU domains, devices and units.

Both contestants end up with the objects side by side and the address of each; how many there
are is known at the end only. First from pages that are known (count within capacity checked),
then from the first page alone, following the chain with every check (alignment, bounds, no page
twice). Each step of a chain waits for memory, in any language, and Python then still has to copy
what C copies while it is there: that is why the second ratio is the worse one. Its parts have
their limits, objects here and chains in ``pointer_chase``; together they have none.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator

import numpy as np

from abi import registry
from abi.iommu import ArrayKind, IommuGeneration
from benchmarks.common import MappedFile, Result, compare, compile_c, map_file, work_directory
from inspector import memory
from inspector.memory.base import PhysicalMemory
from inspector.survey import Survey
from inspector.walk.chain import follow
from inspector.walk.paged_array import PagedArray, gather_objects, walk_paged_array

_OBJECTS = 100_000
_PAGE = 4096
_LIMIT = 1.25

_SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
struct taken { unsigned char *objects; uint64_t *addresses; long n, room; };

static void take(struct taken *t, const unsigned char *p, uint64_t at, uint64_t object)
{
    uint64_t capacity = (4096 - 16) / object, count = *(const uint64_t *)(p + at + 8);
    const unsigned char *from = p + at + 16;
    if (count > capacity)
        count = capacity;
    if (t->n + (long)count > t->room) {
        t->room = t->room ? t->room * 2 : 4096;
        t->objects = realloc(t->objects, t->room * object);
        t->addresses = realloc(t->addresses, t->room * sizeof(*t->addresses));
    }
    unsigned char *to = t->objects + t->n * object;
    uint64_t *where = t->addresses + t->n;
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to + i * object, from + i * object, object);
        where[i] = at + 16 + i * object;
    }
    t->n += count;
}
void gather(struct taken *t, const unsigned char *p, const uint64_t *pages, long n,
            uint64_t object)
{
    memset(t, 0, sizeof(*t));
    for (long i = 0; i < n; i++)
        take(t, p, pages[i], object);
}
void walk(struct taken *t, const unsigned char *p, uint64_t size, uint64_t at, uint64_t object,
          long limit)
{
    unsigned char *seen = calloc(size / 4096 / 8 + 1, 1);
    memset(t, 0, sizeof(*t));
    for (long hops = 0; at; hops++) {
        if (at & 4095 || at > size - 4096 || hops >= limit)
            break;
        if (seen[at >> 15] & 1 << (at >> 12 & 7))
            break;
        seen[at >> 15] |= 1 << (at >> 12 & 7);
        uint64_t next = *(const uint64_t *)(p + at);
        take(t, p, at, object);
        at = next;
    }
    free(seen);
}
void release(struct taken *t)
{
    free(t->objects);
    free(t->addresses);
}
"""


class _Taken(ctypes.Structure):
    _fields_ = (
        ("objects", ctypes.c_void_p),
        ("addresses", ctypes.c_void_p),
        ("n", ctypes.c_long),
        ("room", ctypes.c_long),
    )


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
    generation = registry.get("iommu", "iommu-v4-version-field")
    assert isinstance(generation, IommuGeneration)
    units, domains, devices = generation.arrays
    return [
        *_bench(library, units, 0),
        *_bench(library, devices, 1),
        *_bench(library, domains, 2),
    ]


def _bench(library: ctypes.CDLL, kind: ArrayKind, seed: int) -> Iterator[Result]:
    base, source, first = _image(kind, seed)
    size = kind.objects.size
    chain = follow(Survey(source, _PAGE), first, "/bench", "array")
    memory_of = ctypes.c_void_p(base.address)
    check = True

    def in_c(run: Callable[..., None], *arguments: object) -> tuple[int, int]:
        taken = _Taken()
        run(ctypes.byref(taken), memory_of, *arguments)
        digest = 0
        if check:
            raw = ctypes.string_at(taken.objects, taken.n * size)
            digest = hash(raw + ctypes.string_at(taken.addresses, taken.n * 8))
        library.release(ctypes.byref(taken))
        return taken.n, digest

    def gather_in_c() -> tuple[int, int]:
        pages = ctypes.c_void_p(chain.pages.ctypes.data)
        count = ctypes.c_long(len(chain.pages))
        return in_c(library.gather, pages, count, ctypes.c_uint64(size))

    def walk_in_c() -> tuple[int, int]:
        words = (ctypes.c_uint64(number) for number in (base.size, first, size))
        return in_c(library.walk, *words, ctypes.c_long(1 << 16))

    def gather() -> PagedArray:
        return gather_objects(Survey(source, _PAGE), chain, kind.page, "/bench", "array")

    def walk() -> PagedArray:
        return walk_paged_array(Survey(source, _PAGE), first, kind.page, "/bench", "array")

    def equal(ours: object, theirs: object) -> bool:
        nonlocal check
        assert isinstance(ours, PagedArray)
        check = False
        return theirs == (len(ours), hash(ours.records.tobytes() + ours.addresses.tobytes()))

    yield compare(
        f"array objects, {size} B", gather, gather_in_c, equal=equal, limit=_LIMIT, rounds=25
    )
    check = True
    yield compare(f"  chain and objects, {size} B", walk, walk_in_c, equal=equal, rounds=25)
