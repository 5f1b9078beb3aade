"""Broken and hostile tables: what is said of them, and that the walk ends."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SHAPES, Leaf, Tree, family, leaf_entry, table_entry

from abi.errors import UsageError
from abi.pagetable import FORMATS, Permission
from inspector.findings import Severity
from inspector.memory.base import PageState
from inspector.memory.sparse import SparseMemory
from inspector.pagetable import CODES, Limits, TranslationState, Walk, walk

K, M, G = 1 << 10, 1 << 20, 1 << 30


def image(words: dict[int, int], size: int = 1 << 24) -> SparseMemory:
    memory = SparseMemory([(0, size)], unwritten=PageState.PRESENT)
    pages: dict[int, np.ndarray] = {}
    for address, word in words.items():
        page = pages.setdefault(address >> 12, np.zeros(512, "<u8"))
        page[address % 4096 // 8] = word
    for pfn, page in pages.items():
        memory.write(pfn << 12, page)
    return memory


def codes(walked: Walk) -> list[str]:
    return [finding.code for finding in walked.findings.items]


def small(name: str, entry: int, *, slot: int = 5, depth: int | None = None) -> Walk:
    """A tree whose only leaf table holds one entry."""
    tree = Tree(name, depth or SHAPES[name][2][-1])
    tree.words[tree.slot(slot << tree.granule, 0)] = entry
    return walk(tree.memory(), name, tree.root, tree.depth)


# -- single entries ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry", "code", "mapped"),
    [
        ("vtdss", 0x400, "KHO-PT-010", 0),
        ("vtdss", 0x1234004, "KHO-PT-010", 0),
        ("amdv1", 0x1 | 1 << 52 | 3 << 61, "KHO-PT-001", 4096),
        ("amdv1", 0x1 | 2 << 9, "KHO-PT-008", 0),
        ("lpae-s1-4k", 0x1F41, "KHO-PT-008", 0),
        ("lpae-s1-4k", 0x1B43, "KHO-PT-014", 4096),
        ("lpae-s2-4k", 0x17FF | 1 << 49, "KHO-PT-001", 4096),
        ("lpae-s2-16k", 0x17FF, "KHO-PT-001", 16384),
        ("riscv-sv39", 0x1, "KHO-PT-008", 0),
        ("riscv-sv39", 0x5, "KHO-PT-008", 0),
        ("riscv-sv39", 0x57 | 3 << 61, "KHO-PT-001", 4096),
        ("riscv-sv39", 0x57 | 1 << 55, "KHO-PT-001", 4096),
        ("riscv-sv39", 0x57 | 1 << 63, "KHO-PT-013", 0),
        ("riscv-sv39", 0x57 | 1 << 63 | 8 << 10, "KHO-PT-009", 4096),
        ("amdv1", 0x1E01 | 3 << 61, "KHO-PT-009", 4096),
        ("amdv1", 0x1 | 7 << 9 | 0xFFFFFFFFFF << 12, "KHO-PT-013", 0),
    ],
)
def test_one_entry(name: str, entry: int, code: str, mapped: int) -> None:
    walked = small(name, entry)
    assert codes(walked) == [code]
    finding = walked.findings.items[0]
    assert finding.severity is CODES[code][0]
    assert finding.data == entry.to_bytes(8, "little")
    assert finding.address is not None
    assert finding.address % 4096 == 5 * 8
    assert f"{5 << SHAPES[name][0]:#x}" in finding.message
    assert walked.stats.mapped == mapped
    assert sum(len(chunk) for chunk in walked.leaves()) == (mapped > 0)
    assert codes(walked) == [code]
    state = walked.translate([5 << SHAPES[name][0]]).state[0]
    assert (state == TranslationState.MAPPED) == (mapped > 0)


@pytest.mark.parametrize(
    ("name", "level", "entry", "code"),
    [
        ("vtdss", 1, 0x201083, "KHO-PT-002"),
        ("vtdss", 3, 0x200083, "KHO-PT-008"),
        ("x86-64", 1, 0x2020E7, "KHO-PT-002"),
        ("x86-64", 4, 0xE7, "KHO-PT-008"),
        ("amdv1", 1, 0x201001 | 3 << 61, "KHO-PT-002"),
        ("amdv1", 3, 1 | 3 << 61, "KHO-PT-013"),
        ("amdv1", 5, 1 | 3 << 61, "KHO-PT-008"),
        ("amdv1", 2, 1 | 3 << 9, "KHO-PT-008"),
        ("lpae-s2-4k", 1, 0x2017FD, "KHO-PT-002"),
        ("lpae-s2-4k", 3, 0x7FD, "KHO-PT-008"),
        ("lpae-s2-16k", 2, 0x7FD, "KHO-PT-008"),
        ("riscv-sv48", 1, 0x457, "KHO-PT-002"),
        ("riscv-sv48", 1, 0x57 | 1 << 63, "KHO-PT-001"),
        ("riscv-sv48", 1, 0x00 | 1 | 1 << 6, "KHO-PT-001"),
    ],
)
def test_one_entry_above(name: str, level: int, entry: int, code: str) -> None:
    tree = Tree(name, SHAPES[name][2][-1])
    tree.words[tree.slot(3 << tree.shift(level) if level < 5 else 0, level)] = entry
    walked = walk(tree.memory(), name, tree.root, tree.depth)
    assert code in codes(walked)


def test_pat_of_large_leaves_is_at_its_place() -> None:
    tree = Tree("x86-64", 4)
    tree.map(Leaf(0, 0, 2 * M))
    tree.words[tree.slot(0, 1)] |= 1 << 12
    for n in range(512):
        tree.map(Leaf(2 * M + n * 4 * K, 2 * M + n * 4 * K, 4 * K))
        tree.words[tree.slot(2 * M + n * 4 * K, 0)] |= 1 << 7
    walked = walk(tree.memory(), "x86-64", tree.root, 4)
    (only,) = [chunk for chunk in walked.ranges() if len(chunk)]
    assert only.size.tolist() == [4 * M]
    assert int(only.attributes[0]) & 0x80


@pytest.mark.parametrize(
    ("name", "dirty", "clean"),
    [("lpae-s1-4k", 1 << 51, 1 << 51 | 1 << 7), ("lpae-s2-4k", 1 << 51 | 1 << 7, 1 << 51)],
)
def test_dirty_modifier_is_a_right_to_write(name: str, dirty: int, clean: int) -> None:
    tree = Tree(name, 4)
    for n in range(1024):
        at = Leaf(n * 4 * K, n * 4 * K, 4 * K, "r")
        tree.map(at)
        tree.words[tree.slot(at.iova, 0)] &= ~(1 << 7)
        tree.words[tree.slot(at.iova, 0)] |= (dirty, clean)[n % 3 == 1]
    walked = walk(tree.memory(), name, tree.root, 4)
    rows = [row for chunk in walked.ranges() for row in chunk]
    assert [row[:3] for row in rows] == [(0, 0, 4 * M)]
    assert rows[0][3] & 3 == 3
    assert walked.translate([4096]).permissions[0] & 3 == 3


def test_rights_are_narrowed_by_tables() -> None:
    tree = Tree("vtdss", 3)
    for n in range(1024):
        tree.map(Leaf(n * 4 * K, n * 4 * K, 4 * K))
    tree.words[tree.slot(2 * M, 1)] &= ~2
    tree.map(Leaf(G, 0, 2 * M))
    tree.words[tree.slot(G, 2)] &= ~1
    walked = walk(tree.memory(), "vtdss", tree.root, 3)
    rows = [row for chunk in walked.ranges() for row in chunk]
    rw = Permission.READ | Permission.WRITE
    assert rows == [
        (0, 0, 2 * M, rw),
        (2 * M, 2 * M, 2 * M, Permission.READ),
        (G, 0, 2 * M, Permission.WRITE),
    ]
    assert walked.translate([0, 2 * M, G]).permissions.tolist() == [3, 1, 2]
    assert codes(walked) == []


@pytest.mark.parametrize(
    ("bit", "rights"), [(62, Permission.READ | Permission.EXECUTE), (60, Permission(3))]
)
def test_rights_are_narrowed_by_lpae_tables(bit: int, rights: Permission) -> None:
    tree = Tree("lpae-s1-4k", 3)
    tree.map(Leaf(0, 0, 4 * K))
    tree.words[tree.slot(0, 2)] |= 1 << bit
    walked = walk(tree.memory(), "lpae-s1-4k", tree.root, 3)
    assert [row[3] for chunk in walked.ranges() for row in chunk] == [rights]


def test_rights_are_narrowed_by_x86_tables() -> None:
    tree = Tree("x86-64", 4)
    for n in range(3):
        tree.map(Leaf(n * 2 * M, 0, 4 * K))
    tree.words[tree.slot(2 * M, 1)] |= 1 << 63
    tree.words[tree.slot(4 * M, 1)] &= ~2
    walked = walk(tree.memory(), "x86-64", tree.root, 4)
    assert [int(row[3]) for chunk in walked.ranges() for row in chunk] == [7, 3, 5]


NOISE = {
    "vtdss": 0x7FF0000000000700,
    "x86-64": 0x7FF0000000000F60,
    "amdv1": 0x80000000000001FE,
    "lpae-s1-4k": 0xFF80000000000800,
    "lpae-s2-4k": 0xFF80000000000800,
    "lpae-s2-64k": 0xFF80000000000800,
    "riscv-sv39": 0x3E0,
}
NOISE["vtdss"] &= ~(1 << 62)


@pytest.mark.parametrize("name", NOISE)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 30), holes=st.sampled_from([0, 3, 200]))
def test_bits_without_meaning_change_nothing(name: str, seed: int, holes: int) -> None:
    rng = np.random.default_rng(seed)
    tree = Tree(name, 3 if name == "amdv1" else SHAPES[name][2][0])
    granule = 1 << tree.granule
    wanted = []
    for n in range(1100):
        if n % 64 == 63 or rng.random() < holes / 256:
            continue
        leaf = Leaf(n * granule, (n + 16 * (n // 100)) * granule, granule)
        tree.map(leaf)
        noise = int(rng.integers(0, 1 << 63)) << 1 & NOISE[name]
        tree.words[tree.slot(leaf.iova, 0)] ^= noise
        wanted.append(leaf)
    walked = walk(tree.memory(), name, tree.root, tree.depth)
    from reference import merged

    got = [row[:3] for chunk in walked.ranges() for row in chunk]
    assert got == [row[:3] for row in merged(wanted)]
    assert codes(walked) == []


def test_addresses_cross_bit_48() -> None:
    """64 KiB pages: bits 51:48 stand in bits 15:12."""
    tree = Tree("lpae-s2-64k", 2)
    start = (1 << 48) - 3 * 64 * K
    for n in range(6):
        tree.map(Leaf(n * 64 * K, start + n * 64 * K, 64 * K))
    walked = walk(tree.memory(), "lpae-s2-64k", tree.root, 2)
    assert [row[:3] for chunk in walked.ranges() for row in chunk] == [(0, start, 6 * 64 * K)]


def test_addresses_wrap() -> None:
    """The last page of memory is not continued by the first."""
    tree = Tree("x86-64", 4)
    tree.map(Leaf(0, (1 << 52) - 4 * K, 4 * K))
    tree.map(Leaf(4 * K, 0, 4 * K))
    tree.words[tree.slot(4 * K, 0)] |= 1 << 52
    walked = walk(tree.memory(), "x86-64", tree.root, 4)
    assert sum(len(chunk) for chunk in walked.ranges()) == 2


# -- pointers ----------------------------------------------------------------------------


def test_pointer_outside_and_to_excluded_pages() -> None:
    words = {0x1000: 0x2003, 0x1008: 0x70000003, 0x1010: 0x3003, 0x2000: 0x200083}
    memory = image(words)
    memory.exclude(0x3000, 0x1000)
    walked = walk(memory, "vtdss", 0x1000, 3)
    assert Counter(codes(walked)) == {"KHO-PT-003": 1, "KHO-PT-004": 1}
    assert not walked.stats.complete
    assert walked.stats.mapped == 2 * M
    assert walked.translate([0, G, 2 * G]).state.tolist() == [
        TranslationState.MAPPED,
        TranslationState.MISSING,
        TranslationState.MISSING,
    ]


@pytest.mark.parametrize(("root", "code"), [(0x70000000, "KHO-PT-003"), (0x3000, "KHO-PT-004")])
def test_root_is_missing(root: int, code: str) -> None:
    memory = image({})
    memory.exclude(0x3000, 0x1000)
    walked = walk(memory, "vtdss", root, 3)
    assert codes(walked) == [code]
    assert list(walked.ranges()) == []
    assert not walked.stats.complete
    assert walked.translate([0, 1 << 40]).state.tolist() == [
        TranslationState.MISSING,
        TranslationState.BEYOND,
    ]


def test_root_is_not_aligned() -> None:
    walked = walk(image({0x1808: 0x3003}), "vtdss", 0x1800, 3)
    assert "KHO-PT-015" in codes(walked)


def test_beyond_the_address_size() -> None:
    words = {0x1000: 0x83, 0x1000 + 300 * 8: 0x83}
    for sign_extend, vasz, expected in (
        (False, 39, []),
        (False, 38, ["KHO-PT-011"]),
        (True, 39, []),
        (True, 37, ["KHO-PT-011"]),
    ):
        walked = walk(image(words), "vtdss", 0x1000, 3, vasz=vasz, sign_extend=sign_extend)
        assert codes(walked) == expected
        assert walked.stats.mapped == 2 * G
        last = [row[0] for chunk in walked.ranges() for row in chunk][-1]
        assert last == (300 << 30) + (((1 << 64) - (1 << 39)) if sign_extend else 0)


def test_amd_level_5_has_128_entries() -> None:
    tree = Tree("amdv1", 6)
    tree.map(Leaf((1 << 64) - 4 * K, 0, 4 * K))
    tree.words[tree.root + 128 * 8] = 0x3001
    walked = walk(tree.memory(), "amdv1", tree.root, 6)
    assert codes(walked) == ["KHO-PT-011"]
    assert [row[0] for chunk in walked.ranges() for row in chunk] == [(1 << 64) - 4 * K]


def test_skipped_levels() -> None:
    words = {
        0x1000: 0x2000 | 1 | 1 << 9 | 3 << 61,  # from level 2 to level 0
        0x1008: 0x3000 | 1 | 2 << 9 | 3 << 61,
        0x2000 + 7 * 8: 0x9000 | 1 | 3 << 61,
        0x3000: 0x200000 | 1 | 3 << 61,
    }
    walked = walk(image(words), "amdv1", 0x1000, 3)
    assert [row[:3] for chunk in walked.ranges() for row in chunk] == [
        (7 * 4 * K, 0x9000, 4 * K),
        (G, 2 * M, 2 * M),
    ]
    assert codes(walked) == ["KHO-PT-007"]
    assert walked.findings.items[0].severity is Severity.WARNING
    found = walked.translate([0x7123, 0x7123 + 2 * M, G + 5])
    assert found.state.tolist() == [1, 0, 1]
    assert found.pa.tolist() == [0x9123, 0, 2 * M + 5]


def test_broken_hint_groups() -> None:
    tree = Tree("lpae-s2-4k", 3)
    tree.map(Leaf(0, 1 * M, 64 * K))
    tree.map(Leaf(64 * K, 2 * M, 64 * K))
    tree.words[tree.slot(64 * K + 3 * 4 * K, 0)] ^= 1 << 20
    walked = walk(tree.memory(), "lpae-s2-4k", tree.root, 3)
    leaves = [row[:3] for chunk in walked.leaves() for row in chunk]
    assert leaves[0] == (0, 1 * M, 64 * K)
    assert len(leaves) == 17
    assert set(codes(walked)) == {"KHO-PT-009"}
    assert walked.stats.leaves_by_size == {4 * K: 16, 64 * K: 1}


def test_broken_size_groups() -> None:
    tree = Tree("amdv1", 3)
    tree.map(Leaf(0, 1 * M, 32 * K))
    del tree.words[tree.slot(3 * 4 * K, 0)]
    walked = walk(tree.memory(), "amdv1", tree.root, 3)
    rows = [row[:3] for chunk in walked.leaves() for row in chunk]
    assert rows == [(0, 1 * M, 12 * K), (16 * K, 1 * M + 16 * K, 16 * K)]
    assert codes(walked) == ["KHO-PT-009"] * 2
    assert walked.translate([12 * K, 17 * K]).state.tolist() == [0, 1]


def test_output_bits() -> None:
    tree = Tree("vtdss", 3)
    tree.map(Leaf(0, 1 << 46, 4 * K))
    assert codes(walk(tree.memory(), "vtdss", tree.root, 3, output_bits=47)) == []
    assert codes(walk(tree.memory(), "vtdss", tree.root, 3, output_bits=46)) == ["KHO-PT-001"]


def test_usage() -> None:
    memory = image({})
    for wrong in (
        {"format": "nonsense", "root": 0, "levels": 3},
        {"format": "vtdss", "root": 0, "levels": 2},
        {"format": "vtdss", "root": 4, "levels": 3},
        {"format": "vtdss", "root": -8, "levels": 3},
        {"format": "vtdss", "root": 0, "levels": 3, "vasz": 99},
        {"format": "lpae-s1-4k", "root": 0, "levels": 3, "vasz": 40},
        {"format": "lpae-s2-4k", "root": 0, "levels": 3, "start_entries": 3},
        {"format": "lpae-s2-4k", "root": 0, "levels": 3, "vasz": 44},
    ):
        with pytest.raises(UsageError):
            walk(memory, **wrong)


# -- hostile -----------------------------------------------------------------------------


def finish(walked: Walk, seconds: float = 10.0, peak: int = 16 << 20) -> Counter[str]:
    """Walk twice within bounds; return how often each code was found."""
    tracemalloc.start()
    begin = time.process_time()
    for _ in walked.leaves():
        pass
    for _ in walked.ranges():
        pass
    assert time.process_time() - begin < seconds
    assert tracemalloc.get_traced_memory()[1] < peak
    tracemalloc.stop()
    found = Counter(codes(walked))
    found.update(walked.findings.suppressed)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_table_points_to_itself(name: str) -> None:
    depth = SHAPES[name][2][-1]
    size = 8 << SHAPES[name][1]
    root = 1 << 20
    words = {root + n: table_entry(name, depth - 1, root) for n in range(0, size, 8)}
    walked = walk(image(words), name, root, depth)
    found = finish(walked)
    assert found["KHO-PT-005"] >= (128 if name == "amdv1" else size // 8)
    if name != "amdv1":  # which names the level of the table in the pointer
        assert found["KHO-PT-012"] > 0
        assert not walked.stats.complete


@pytest.mark.parametrize("name", FORMATS)
def test_leaves_by_aliasing(name: str) -> None:
    """Five levels of tables, each with every entry pointing to the same one: 2^45 leaves."""
    depth = SHAPES[name][2][-1]
    count = 1 << SHAPES[name][1]
    words = {}
    for level in range(depth):
        table = (level + 1) << 20
        if level:
            entry = table_entry(name, level, level << 20)
        else:
            entry = leaf_entry(name, 0, 0, 1 << SHAPES[name][0], "rw")
        words |= {table + n * 8: entry for n in range(count)}
    walked = walk(image(words), name, depth << 20, depth)
    found = finish(walked)
    assert found["KHO-PT-012"] > 0
    assert not walked.stats.complete
    assert walked.stats.leaves.total() <= count * (Limits().repeats + 1)
    assert len(walked.table_pages) == depth
    assert walked.translate([1 << 30]).state.tolist() == [TranslationState.MAPPED]
    back = walked.reverse([0], limit=100)
    assert len(back.pa) == 100
    assert not back.complete


def test_random_words() -> None:
    """Tables of noise that point all over a small memory."""
    for seed, name in enumerate(FORMATS):
        rng = np.random.default_rng(seed)
        words = rng.integers(0, 1 << 63, (64, 512), np.uint64) << np.uint64(1)
        address = rng.integers(0, 64, words.shape, np.uint64) << np.uint64(12)
        mask = np.uint64(0xFFFFFFFFFFFF0000 >> 8 << 8) & np.uint64(0x000FFFFFFFFFF000)
        shaped = rng.random(words.shape) < 0.8
        if family(name) == "riscv":
            address >>= np.uint64(2)
            mask = np.uint64(0x003FFFFFFFFFFC00)
        words = np.where(shaped, (words & ~mask) | address, words)
        memory = SparseMemory([(0, 64 << 12)], unwritten=PageState.PRESENT)
        memory.write(0, words)
        walked = walk(memory, name, 0, SHAPES[name][2][-1], limits=Limits(repeats=200))
        finish(walked)
        walked.translate(rng.integers(0, 1 << 63, 1000, np.uint64))
        walked.reverse(rng.integers(0, 1 << 40, 100, np.uint64))


def test_alternating_levels() -> None:
    """A tree that breaks every batch into single tables."""
    rng = np.random.default_rng(1)
    count = 4096
    words = np.zeros((count, 512), np.uint64)
    child = rng.permutation(np.arange(1, count)).astype(np.uint64) << np.uint64(12)
    for n in range(count // 512):
        levels = 1 + (np.arange(511) + n) % (5 - min(n, 3))
        pas = child[n * 511 : n * 511 + 511]
        words[n, : len(pas)] = pas | np.uint64(1) | levels[: len(pas)].astype(np.uint64) << 9
    memory = SparseMemory([(0, count << 12)], unwritten=PageState.PRESENT)
    memory.write(0, words)
    walked = walk(memory, "amdv1", 0, 6, limits=Limits(skips=100))
    found = finish(walked)
    assert found["KHO-PT-007"]
    assert found["KHO-PT-012"]


def test_table_budget() -> None:
    tree = Tree("vtdss", 3)
    for n in range(100):
        tree.map(Leaf(n * 2 * M, 0, 4 * K))
    walked = walk(tree.memory(), "vtdss", tree.root, 3, limits=Limits(tables=50))
    found = finish(walked)
    assert found["KHO-PT-012"] > 0
    assert not walked.stats.complete
    assert walked.stats.leaves.total() < 50


@pytest.mark.parametrize("spoil", [None, "hole", "fault", "noise", "odd"])
def test_long_runs(spoil: str | None) -> None:
    """Many tables with few runs, which are judged together unless one of them is spoilt."""
    tables = 600
    entries = (np.arange(tables * 512, dtype=np.uint64) << np.uint64(12)) | np.uint64(3)
    entries = np.where(np.arange(len(entries)) >= 300 * 512, entries + np.uint64(1 << 40), entries)
    where = 450 * 512 + 77
    word = {None: None, "hole": 0, "fault": 0x400, "noise": int(entries[where]) | 0x300}
    word["odd"] = int(entries[where]) & ~2
    if spoil is not None:
        entries[where] = np.uint64(word[spoil] or 0)
    memory = SparseMemory([(0, 1 << 24)], unwritten=PageState.PRESENT)
    memory.write(1 << 20, entries)
    pointers = (np.arange(tables, dtype=np.uint64) << np.uint64(12)) + np.uint64((1 << 20) | 3)
    memory.write(0x2000, pointers)
    memory.write(0x1000, np.array([0x2003, 0x3003], np.uint64))
    walked = walk(memory, "vtdss", 0x1000, 3)
    got = [row for chunk in walked.ranges() for row in chunk]
    rw, half, end = Permission.READ | Permission.WRITE, 300 << 21, tables << 21
    high = half + (1 << 40)
    at = where << 12
    expected = [(0, 0, half, rw), (half, high, end - half, rw)]
    if spoil in ("hole", "fault", "odd"):
        rest = (at + 4096, at + 4096 + (1 << 40), end - at - 4096, rw)
        expected = [expected[0], (half, high, at - half, rw), rest]
    if spoil == "odd":
        expected.insert(2, (at, at + (1 << 40), 4096, Permission.READ))
    assert got == expected
    assert codes(walked) == (["KHO-PT-010"] if spoil == "fault" else [])
    assert walked.stats.entries == 603 * 512
    assert walked.stats.mapped == sum(row[2] for row in expected)


def test_every_page_of_the_start_table_is_to_be_preserved() -> None:
    tree = Tree("lpae-s2-4k", 3, start_entries=2048)
    memory = tree.memory()
    for missing, expected in ((3, ["KHO-PT-006"]), (4, [])):
        gone = tree.root + missing * 4096
        walked = walk(
            memory,
            "lpae-s2-4k",
            tree.root,
            3,
            vasz=41,
            preserved=lambda pas, gone=gone: pas != np.uint64(gone),
        )
        assert codes(walked) == expected
