"""Page tables: the streaming walk, translation and printing against C in the same run.

Mixes, all VT-d second stage with 4 levels, tables in random order in memory:

a  64 GiB of 4 KiB pages, physically random: 16.8 M ranges
b  64 GiB in contiguous runs of 2 MiB
c  1 TiB of 2 MiB leaves, physically random
d  runs of 8, holes, accessed and dirty noise, bad entries, leaves of all sizes
s  tables that are 5 % full

Before the rounds, both sides' ranges are compared by count and checksum, and the memory
that a walk allocates is measured. ``KHO_BENCH_MIXES`` names the mixes to run.
"""

from __future__ import annotations

import ctypes
import dataclasses
import filecmp
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np

from benchmarks.common import Result, compare, compile_c, work_directory
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.pagetable import RangeColumns, format_ranges, walk

LEVELS = 4
K1, K2, K3 = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
#: Most that a ratio may be, and bytes that a walk may allocate.
LIMITS = {"a": 1.5, "b": 1.1, "c": 1.6, "d": 1.6, "s": 1.8, "translate": 3.0, "print": 1.5}
SCRATCH = 4 << 20


class Tree:
    """Tables in random order in one buffer, that stands for memory from address 0."""

    def __init__(self, mix: str, seed: int = 7) -> None:
        self.random = np.random.default_rng(seed)
        tops = {
            "a": self.mix_a,
            "b": self.mix_b,
            "c": self.mix_c,
            "d": self.mix_d,
            "s": self.mix_s,
        }
        level, tables, slots = tops[mix]()
        layers = [(tables, slots)]
        while level < LEVELS - 1:
            level += 1
            parents = np.unique(slots >> 9)
            above = np.zeros((len(parents), 512), np.uint64)
            layers.append((above, parents))
            slots = parents
        total = sum(len(tables) for tables, _ in layers) + 1
        self.frames = np.zeros((total, 512), np.uint64)
        order = self.random.permutation(total - 1) + 1
        used = 0
        placed = []
        for tables, numbers in layers:
            where = order[used : used + len(tables)]
            used += len(tables)
            if placed:
                below, below_numbers = placed[-1]
                row = np.searchsorted(numbers, below_numbers >> 9)
                tables[row, below_numbers & 511] = (below.astype(np.uint64) << 12) | 3
            self.frames[where] = tables
            placed.append((where, numbers))
        if hasattr(self, "extra"):
            self.extra(placed)
        self.root = int(placed[-1][0][0]) << 12
        data = memoryview(self.frames.reshape(-1)).cast("B")
        last = self.frames.nbytes - 1
        table = from_segments([Segment(0, last, Kind.STORED, 0)])
        self.memory = MappedMemory(table, data)

    def scattered(self, count: int) -> np.ndarray:
        return self.random.permutation(count).astype(np.uint64)

    def mix_a(self) -> tuple[int, np.ndarray, np.ndarray]:
        count = 64 << 30 >> 12
        entries = (self.scattered(count) + np.uint64(0x100000)) << np.uint64(12) | np.uint64(3)
        return 0, entries.reshape(-1, 512), np.arange(count // 512)

    def mix_b(self) -> tuple[int, np.ndarray, np.ndarray]:
        count = 64 << 30 >> 21
        runs = (self.scattered(count) + np.uint64(0x800)) << np.uint64(21)
        pages = np.arange(512, dtype=np.uint64) << np.uint64(12)
        return 0, runs[:, None] + pages | np.uint64(3), np.arange(count)

    def mix_c(self) -> tuple[int, np.ndarray, np.ndarray]:
        count = 1 << 40 >> 21
        entries = (self.scattered(count) + np.uint64(0x800)) << np.uint64(21) | np.uint64(0x83)
        return 1, entries.reshape(-1, 512), np.arange(count // 512)

    def mix_d(self) -> tuple[int, np.ndarray, np.ndarray]:
        tables = 16384
        groups = tables * 64
        runs = (self.scattered(groups) + np.uint64(0x10000)) << np.uint64(15)
        pages = np.arange(8, dtype=np.uint64) << np.uint64(12)
        entries = (runs[:, None] + pages | np.uint64(3)).reshape(-1)
        noise = self.random.integers(0, 4, len(entries), np.uint64) << np.uint64(8)
        entries |= noise
        entries[self.random.random(len(entries)) < 0.05] = 0
        readonly = np.repeat(self.random.random(groups) < 0.1, 8)
        entries[readonly & (entries != 0)] &= ~np.uint64(2)
        bad = self.random.integers(0, len(entries), len(entries) // 4096)
        entries[bad] = np.uint64(0x400)
        self.extra = self.large_leaves
        return 0, entries.reshape(-1, 512), np.arange(tables)

    def large_leaves(self, placed: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Mix d: a stretch of 2 MiB leaves in each table of level 1, and 1 GiB leaves behind."""
        for row in placed[1][0]:
            first, length = int(self.random.integers(0, 480)), 32
            runs = self.random.integers(0, 1 << 17, length // 8, np.uint64) << np.uint64(24)
            pages = np.arange(8, dtype=np.uint64) << np.uint64(21)
            leaves = (runs[:, None] + pages | np.uint64(0x83)).reshape(-1)
            self.frames[row, first : first + length] = leaves
        slots = np.arange(256, 384)
        leaves = self.random.permutation(128).astype(np.uint64) << np.uint64(30)
        self.frames[placed[2][0][0], slots] = leaves | np.uint64(0x83)

    def mix_s(self) -> tuple[int, np.ndarray, np.ndarray]:
        tables = 32768
        full = self.random.random((tables, 512)) < 0.05
        entries = self.scattered(tables * 512).reshape(tables, 512) << np.uint64(12) | np.uint64(3)
        entries[~full] = 0
        return 0, entries, np.arange(tables)


class Baseline:
    """The C side."""

    def __init__(self, tree: Tree, library: ctypes.CDLL) -> None:
        self.library, self.tree = library, tree
        library.pagetable_walk_size.restype = ctypes.c_uint64
        self.state = ctypes.create_string_buffer(library.pagetable_walk_size())
        self.words = ctypes.c_void_p(tree.frames.ctypes.data)
        self.bytes = ctypes.c_uint64(tree.frames.nbytes)
        self.root = ctypes.c_uint64(tree.root)

    def walk(self, check: bool = False, text: str | None = None) -> list[int]:
        """Ranges, leaves, bad entries, entries, checksum."""
        out = (ctypes.c_uint64 * 5)()
        path = text.encode() if text else None
        self.library.pagetable_walk(
            self.words, self.bytes, self.root, LEVELS, int(check), path, self.state, out
        )
        return list(out)

    def translate(self, iovas: np.ndarray) -> np.ndarray:
        out = np.empty_like(iovas)
        self.library.pagetable_translate(
            self.words,
            self.bytes,
            self.root,
            LEVELS,
            ctypes.c_void_p(iovas.ctypes.data),
            ctypes.c_uint64(len(iovas)),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out


def drain(tree: Tree) -> int:
    """The contestant: all ranges, as columns."""
    ranges = 0
    for chunk in walk(tree.memory, "vtdss", tree.root, LEVELS).ranges():
        ranges += len(chunk)
    return ranges


def fold(tree: Tree) -> list[int]:
    """What :meth:`Baseline.walk` returns, of the contestant."""
    walked = walk(tree.memory, "vtdss", tree.root, LEVELS)
    checksum = 0
    for chunk in walked.ranges():
        checksum += chunk_sum(chunk)
    stats, findings = walked.stats, walked.findings
    bad = len(findings.items) + sum(findings.suppressed.values())
    return [stats.ranges, stats.leaves.total(), bad, stats.entries, checksum & (1 << 64) - 1]


def chunk_sum(chunk: RangeColumns) -> int:
    mixed = (chunk.iova * K1 ^ chunk.pa * K2) + chunk.size
    return int((mixed * K3 + chunk.permissions).sum(dtype=np.uint64))


def per_entry(tree: Tree, tables: int) -> tuple[int, float]:
    """A walker in plain Python: entries read, seconds. Stops after so many tables."""
    words = memoryview(tree.frames.reshape(-1)).cast("B").cast("Q")
    ranges: list[list[int]] = []
    done = 0

    def visit(pa: int, level: int, iova: int) -> None:
        nonlocal done
        shift = 12 + 9 * level
        done += 1
        for index in range(512):
            entry = words[pa // 8 + index]
            if not entry & 3:
                continue
            at, to = iova + (index << shift), entry & 0xFFFFFFFFFF000
            if level and not entry & 0x80:
                if done < tables:
                    visit(to, level - 1, at)
                continue
            last = ranges[-1] if ranges else None
            if last and last[0] + last[2] == at and last[1] + last[2] == to:
                last[2] += 1 << shift
            else:
                ranges.append([at, to, 1 << shift])

    start = time.perf_counter()
    visit(tree.root, LEVELS - 1, 0)
    return done * 512, time.perf_counter() - start


def scratch(tree: Tree) -> int:
    """Bytes that a walk has allocated at its worst moment."""
    drain(tree)
    tracemalloc.start()
    drain(tree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def write_ranges(tree: Tree, path: str) -> None:
    with open(path, "wb") as file:
        for chunk in walk(tree.memory, "vtdss", tree.root, LEVELS).ranges():
            file.write(format_ranges(chunk))


def run() -> list[Result]:
    """All mixes; with a, translation and printing too."""
    library = compile_c(Path(__file__).with_name("pagetable.c").read_text())
    cpu = bool(os.environ.get("KHO_BENCH_CPU"))
    results = []
    for mix in os.environ.get("KHO_BENCH_MIXES", "abcds"):
        tree = Tree(mix)
        baseline = Baseline(tree, library)
        expected, got = baseline.walk(check=True), fold(tree)
        if expected != got:
            raise AssertionError(f"mix {mix}: C found {expected}, kho {got}")
        peak = scratch(tree)
        if peak > SCRATCH:
            raise AssertionError(f"mix {mix}: {peak} bytes of scratch memory")
        read, seconds = per_entry(tree, 512)
        result = compare(
            f"pagetable {mix}",
            lambda tree=tree: drain(tree),
            lambda baseline=baseline: baseline.walk()[0],
            limit=LIMITS[mix],
            cpu=cpu,
        )
        pure = seconds / read * got[3] / result.seconds
        note = (
            f"{got[3] / result.seconds / 1e6:.0f} M entries/s, {got[0]} ranges, {got[2]} bad, "
            f"scratch {peak / 2**20:.1f} MiB, plain Python {pure:.0f} x as long"
        )
        results.append(dataclasses.replace(result, note=note))
        if mix == "a":
            results += [points(tree, baseline, cpu), printing(tree, baseline, cpu)]
    return results


def points(tree: Tree, baseline: Baseline, cpu: bool) -> Result:
    """Translate a million random addresses."""
    iovas = tree.random.integers(0, 64 << 30, 1_000_000, np.uint64)
    walked = walk(tree.memory, "vtdss", tree.root, LEVELS)
    return compare(
        "pagetable translate",
        lambda: walked.translate(iovas).pa,
        lambda: baseline.translate(iovas),
        equal=np.array_equal,
        limit=LIMITS["translate"],
        cpu=cpu,
        note="1,000,000 addresses",
    )


def printing(tree: Tree, baseline: Baseline, cpu: bool) -> Result:
    """Walk and print all ranges of mix a."""
    one, other = work_directory() / "c.txt", work_directory() / "kho.txt"
    baseline.walk(text=str(one))
    write_ranges(tree, str(other))
    if not filecmp.cmp(one, other, shallow=False):
        raise AssertionError("the texts differ")
    size = other.stat().st_size
    one.unlink()
    other.unlink()
    return compare(
        "pagetable print",
        lambda: write_ranges(tree, os.devnull),
        lambda: baseline.walk(text=os.devnull),
        equal=lambda one, other: True,
        limit=LIMITS["print"],
        cpu=cpu,
        note=f"{size / 2**20:.0f} MiB of text",
    )
