"""Page tables: the streaming walk, translation and printing against C in the same run.

    python benchmarks/pagetable.py [--mixes abcds] [--rounds 7]

Mixes, all VT-d second stage with 4 levels, tables in random order in memory:

a  64 GiB of 4 KiB pages, physically random: 16.8 M ranges
b  64 GiB in contiguous runs of 2 MiB
c  1 TiB of 2 MiB leaves, physically random
d  runs of 8, holes, accessed and dirty noise, bad entries, leaves of all sizes
s  tables that are 5 % full

The contestants take turns; the ratio is that of the medians. Before the rounds, both sides'
ranges are compared by count and checksum.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.pagetable import RangeColumns, format_ranges, walk

LEVELS = 4
K1, K2, K3 = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
#: Most that a ratio may be (the issue's limits).
LIMITS = {"a": 1.5, "b": 1.1, "c": 1.6, "d": 1.6, "s": 1.8, "translate": 3.0, "print": 1.5}


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
        """Mix d: 2 MiB leaves instead of some tables, and 1 GiB leaves behind."""
        for where, numbers in (placed[1],):
            for row in range(0, len(where), 1):
                hit = np.flatnonzero(self.random.random(512) < 0.05)
                leaves = self.random.integers(0, 1 << 20, len(hit), np.uint64)
                self.frames[where[row], hit] = leaves << np.uint64(21) | np.uint64(0x83)
            del numbers
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


def build(directory: str) -> ctypes.CDLL:
    source = Path(__file__).with_suffix(".c")
    target = Path(directory) / "pagetable.so"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O2", "-march=native", "-shared", "-fPIC", "-o", target, source]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


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


def interleaved(
    rounds: int, one: Callable[[], Any], other: Callable[[], Any]
) -> tuple[float, float]:
    """Median seconds of both, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            (one, other)[which]()
            times[which].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def scratch(tree: Tree) -> int:
    """Bytes that a walk has allocated at its worst moment."""
    drain(tree)
    tracemalloc.start()
    drain(tree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def show(name: str, c: float, ours: float, note: str) -> bool:
    ratio, limit = ours / c, LIMITS[name]
    verdict = "ok" if ratio <= limit else "SLOW"
    print(
        f"{name:10} C {c * 1e3:8.1f} ms  ours {ours * 1e3:8.1f} ms  "
        f"ratio {ratio:5.2f} (at most {limit})  {verdict:4}  {note}",
        flush=True,
    )
    return ratio <= limit


def write_ranges(tree: Tree, path: str) -> None:
    with open(path, "wb") as file:
        for chunk in walk(tree.memory, "vtdss", tree.root, LEVELS).ranges():
            file.write(format_ranges(chunk))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", default="abcds")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as directory:
        library = build(directory)
        for mix in options.mixes:
            tree = Tree(mix)
            baseline = Baseline(tree, library)
            expected, got = baseline.walk(check=True), fold(tree)
            if expected != got:
                print(f"{mix}: results differ: C {expected}, ours {got}")
                return 1
            c, ours = interleaved(options.rounds, baseline.walk, lambda t=tree: drain(t))
            entries = got[3]
            peak = scratch(tree)
            read, seconds = per_entry(tree, 512)
            pure = seconds / read * entries
            note = (
                f"{entries / ours / 1e6:5.0f} M entries/s, {got[0]} ranges, {got[2]} bad, "
                f"scratch {peak / 2**20:.1f} MiB, plain Python {pure / ours:.0f} x ours"
            )
            good &= show(mix, c, ours, note)
            good &= peak <= 4 << 20
            if mix == "a":
                good &= points(tree, baseline, options.rounds)
                good &= printing(tree, baseline, options.rounds)
    return 0 if good else 1


def points(tree: Tree, baseline: Baseline, rounds: int) -> bool:
    iovas = tree.random.integers(0, 64 << 30, 1_000_000, np.uint64)
    walked = walk(tree.memory, "vtdss", tree.root, LEVELS)
    if not np.array_equal(baseline.translate(iovas), walked.translate(iovas).pa):
        print("translate: results differ")
        return False
    c, ours = interleaved(
        rounds, lambda: baseline.translate(iovas), lambda: walked.translate(iovas)
    )
    return show("translate", c, ours, f"{1e6 / ours / 1e6:.1f} M addresses/s")


def printing(tree: Tree, baseline: Baseline, rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        one, other = f"{directory}/c", f"{directory}/ours"
        baseline.walk(text=one)
        write_ranges(tree, other)
        same = subprocess.run(["cmp", "-s", one, other], check=False).returncode == 0
        size = os.path.getsize(other)
        os.unlink(one)
        os.unlink(other)
    if not same:
        print("print: texts differ")
        return False
    c, ours = interleaved(
        max(3, rounds // 2),
        lambda: baseline.walk(text=os.devnull),
        lambda: write_ranges(tree, os.devnull),
    )
    return show("print", c, ours, f"{size / 2**20:.0f} MiB of text")


if __name__ == "__main__":
    sys.exit(main())
