"""The preserved-memory map: a radix tree in a raw image, walked into runs of blocks.

1 TiB of 4 KiB frames: 8192 leaves of bits below 20 tables. Three mixes: long runs (what
kernels write; leaves as an idle machine's allocator hands them out, one behind the other, and
scattered), sparse (single frames, one in 256) and, over 128 GiB, random bits. Both sides
check every node address, walk from the root and write columns of (address, number of
blocks, order), runs joined across leaves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from abi import registry
from abi.kho import KhoGeneration
from abi.memory_map import RadixGeometry
from benchmarks.common import Result, compare, compile_c, map_file, work_directory
from inspector import memory
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map

_PAGE = 4096
_LEAF_BITS = 8 * _PAGE
_TIB_LEAVES = (1 << 40) // _PAGE // _LEAF_BITS

U64 = npt.NDArray[np.uint64]

_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#define SHIFT 12
#define LEAF_BITS 15
#define TABLE_BITS 9
struct walk {
    const unsigned char *memory;
    uint64_t size, open, next;
    uint64_t *starts, *counts;
    unsigned char *orders;
    long n, room, nodes, bad;
    int running;
};
static void grow(struct walk *w)
{
    w->room = w->room ? w->room * 2 : 4096;
    w->starts = realloc(w->starts, w->room * 8);
    w->counts = realloc(w->counts, w->room * 8);
    w->orders = realloc(w->orders, w->room);
    if (!w->starts || !w->counts || !w->orders)
        abort();
}
static void end_run(struct walk *w)
{
    if (w->running) {
        int order = __builtin_clzll(w->open) + 1 - SHIFT;
        if (w->n == w->room)
            grow(w);
        w->starts[w->n] = w->open << (SHIFT + order);
        w->counts[w->n] = w->next - w->open;
        w->orders[w->n++] = order;
        w->running = 0;
    }
}
static void run(struct walk *w, uint64_t first, uint64_t end)
{
    if (w->running && w->next == first) {
        w->next = end;
        return;
    }
    end_run(w);
    w->open = first;
    w->next = end;
    w->running = 1;
}
static void leaf(struct walk *w, const uint64_t *words, uint64_t key)
{
    for (int i = 0; i < 512; i++, key += 64) {
        uint64_t v = words[i];
        if (v == ~0ULL) {
            run(w, key, key + 64);
            continue;
        }
        for (int at = 0; v; ) {
            int zeros = __builtin_ctzll(v);
            v >>= zeros;
            at += zeros;
            int ones = __builtin_ctzll(~v);
            v >>= ones;
            run(w, key + at, key + at + ones);
            at += ones;
        }
    }
}
static void node(struct walk *w, uint64_t pa, int level, uint64_t key)
{
    if (pa & 4095 || pa >= w->size) {
        w->bad++;
        return;
    }
    w->nodes++;
    const uint64_t *words = (const uint64_t *)(w->memory + pa);
    if (!level) {
        leaf(w, words, key);
        return;
    }
    for (uint64_t i = 0; i < 512; i++)
        if (words[i])
            node(w, words[i], level - 1, key | i << ((level - 1) * TABLE_BITS + LEAF_BITS));
}
/* The columns live until the next call. */
long walk(const unsigned char *memory, uint64_t size, uint64_t root, void **columns)
{
    static struct walk w;
    free(w.starts);
    free(w.counts);
    free(w.orders);
    w = (struct walk){ .memory = memory, .size = size };
    node(&w, root, 5, 0);
    end_run(&w);
    columns[0] = w.starts;
    columns[1] = w.counts;
    columns[2] = w.orders;
    return w.bad ? -1 : w.n;
}
"""


@dataclass(frozen=True, slots=True)
class _Mix:
    name: str
    leaves: int
    bits: Callable[[np.random.Generator, int], U64]
    limit: float | None
    scattered: bool = True
    note: str = ""


def _long(rng: np.random.Generator, leaves: int) -> U64:
    edges = np.cumsum(rng.integers(1, 60_000, leaves * _LEAF_BITS // 30_000))
    edges = edges[edges < leaves * _LEAF_BITS]
    change = np.zeros(leaves * _LEAF_BITS, np.uint8)
    change[edges] = 1
    return np.packbits(np.bitwise_xor.accumulate(change), bitorder="little").view(np.uint64)


def _sparse(rng: np.random.Generator, leaves: int) -> U64:
    words = np.zeros(leaves * _LEAF_BITS // 64, np.uint64)
    chosen = rng.integers(0, leaves * _LEAF_BITS, leaves * _LEAF_BITS // 256)
    np.bitwise_or.at(words, chosen >> 6, np.uint64(1) << (chosen & 63).astype(np.uint64))
    return words


def _random(rng: np.random.Generator, leaves: int) -> U64:
    return rng.integers(0, 1 << 64, leaves * _LEAF_BITS // 64, np.uint64)


_MIXES = (
    _Mix("long runs", _TIB_LEAVES, _long, 1.5, scattered=False),
    _Mix("long runs", _TIB_LEAVES, _long, None, note="scattered leaves"),
    _Mix("sparse", _TIB_LEAVES, _sparse, 3.0, note="scattered leaves"),
    _Mix("random", _TIB_LEAVES // 8, _random, 3.0, note="scattered leaves, 128 GiB"),
)


def _image(path: Path, mix: _Mix) -> int:
    """Write a raw image with the map alone; returns the address of its root."""
    rng = np.random.default_rng(5)
    shape = RadixGeometry(_PAGE)
    pages = mix.leaves + 64
    image = np.zeros((pages, _PAGE // 8), np.uint64)
    places = np.arange(64, pages)
    if mix.scattered:
        places = rng.permutation(places)
    image[places] = mix.bits(rng, mix.leaves).reshape(mix.leaves, -1)
    free = iter(range(1, 64))
    tables = {(shape.depth - 1, 0): next(free)}
    for number, place in enumerate(places.tolist()):
        key = shape.key(number * _LEAF_BITS * _PAGE, 0)
        at = tables[shape.depth - 1, 0]
        for level in range(shape.depth - 1, 1, -1):
            below = (level - 1, key >> shape.shift(level))
            if below not in tables:
                tables[below] = next(free)
            image[at, shape.index(key, level)] = tables[below] * _PAGE
            at = tables[below]
        image[at, shape.index(key, 1)] = place * _PAGE
    image.tofile(path)
    return tables[shape.depth - 1, 0] * _PAGE


def _bench(library: ctypes.CDLL, mix: _Mix) -> Result:
    path = work_directory() / "map.raw"
    root = _image(path, mix)
    base = map_file(path)
    columns = (ctypes.c_void_p * 3)()
    generation = cast("KhoGeneration", registry.get("kho", "kho-v4"))

    def in_c() -> int:
        found: int = library.walk(
            ctypes.c_void_p(base.address),
            ctypes.c_uint64(base.size),
            ctypes.c_uint64(root),
            columns,
        )
        return found

    def column(number: int, count: int, item: type[ctypes.c_uint64] | type[ctypes.c_uint8]) -> Any:
        return np.ctypeslib.as_array(
            ctypes.cast(columns[number] or 0, ctypes.POINTER(item)), (count,)
        )

    def equal(found: object, runs: object) -> bool:
        assert isinstance(found, PreservedMap)
        assert isinstance(runs, int)
        return (
            found.complete
            and np.array_equal(found.starts, column(0, runs, ctypes.c_uint64))
            and np.array_equal(found.counts, column(1, runs, ctypes.c_uint64))
            and np.array_equal(found.orders, column(2, runs, ctypes.c_uint8))
        )

    with memory.open(path) as source:
        return compare(
            f"preserved map, {mix.name}",
            lambda: walk_map(Survey(source, _PAGE), generation, root),
            in_c,
            equal=equal,
            limit=mix.limit,
            note=mix.note,
        )


def run() -> list[Result]:
    """One comparison for each mix."""
    library = compile_c(_SOURCE)
    library.walk.restype = ctypes.c_long
    return [_bench(library, mix) for mix in _MIXES]
