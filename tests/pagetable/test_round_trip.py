"""Random mappings, built by the reference, decoded by the engine: equal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SHAPES, Leaf, Tree, family, legal_rights, merged, sizes

from abi.pagetable import FORMATS, Permission
from inspector.pagetable import TranslationState, batch, runs, walk, walker
from inspector.pagetable import format_leaves as leaf_text

RIGHTS = {"r": Permission.READ, "w": Permission.WRITE, "rw": Permission.READ | Permission.WRITE}
#: Where mappings begin, as fractions of the input address space.
PLACES = (0.0, 0.25, 0.49999, 0.5, 0.75, 0.99)


def output_bits(name: str) -> int:
    match family(name):
        case "riscv":
            return 56
        case "lpae-4k" | "lpae-16k":
            return 48
    return 52


@st.composite
def trees(draw: st.DrawFn, name: str) -> tuple[Tree, list[Leaf], dict[str, object]]:
    """A tree, the leaves in it by rising IOVA, and how to walk it."""
    granule, bits, depths = SHAPES[name]
    depth = draw(st.sampled_from(depths))
    top_shift = granule + (depth - 1) * bits
    options: dict[str, object] = {}
    start = 1 << bits
    if name.startswith("lpae"):
        most = 16 << bits if "-s2-" in name else 1 << bits
        start = draw(st.sampled_from([n for n in (8, 32, 1 << bits, 2 << bits, most) if n <= most]))
        options["vasz"] = top_shift + start.bit_length() - 1
    space = min(64, top_shift + start.bit_length() - 1)
    signed = draw(st.booleans()) if space < 64 else False
    options["sign_extend"] = signed
    tree = Tree(name, depth, start, seed=draw(st.integers(0, 99)))
    usable = sizes(name, depth)
    rights = st.sampled_from(legal_rights(name))
    out: list[Leaf] = []
    cursor = 0
    budget = 2000  # entries
    for _ in range(draw(st.integers(0, 8))):
        where = int(draw(st.sampled_from(PLACES)) * (1 << space))
        size = draw(st.sampled_from(list(usable)))
        step = 1 << (granule + usable[size] * bits)
        run = draw(st.integers(1, 4) | st.integers(1, 700))
        run = max(1, min(run, budget * step // size))
        cost = run * size // step
        cursor = max(cursor, where) if draw(st.booleans()) else cursor
        cursor += draw(st.sampled_from([0, 0, size, 3 * size]))
        cursor = -(-cursor // size) * size
        if cost > budget or cursor + run * size > 1 << space:
            continue
        budget -= cost
        last = out[-1] if out else None
        follow = draw(st.booleans()) and last is not None and (last.pa + last.size) % size == 0
        top = (1 << output_bits(name)) // size - run
        if top < 0:
            continue
        pa = draw(st.integers(0, top) | st.just(top)) * size
        if follow and last.pa + last.size <= top * size:
            pa = last.pa + last.size
        right = draw(rights)
        stride = draw(st.sampled_from([1, 1, 1, 0, -1]))
        for n in range(run):
            at = pa + n * size if stride == 1 else pa if stride == 0 else pa + (run - 1 - n) * size
            if draw(st.integers(0, 200)) == 200 if run < 20 else n % 97 == 96:
                right = draw(rights) if run < 20 else right
                cursor += size  # a hole
                continue
            if cursor + size > 1 << space:
                break
            out.append(Leaf(cursor, at, size, right))
            cursor += size
    if signed:
        half, full = 1 << (space - 1), 1 << 64
        out = [
            dataclasses.replace(leaf, iova=leaf.iova + full - 2 * half)
            if leaf.iova >= half
            else leaf
            for leaf in out
        ]
    return tree, out, options


def check(tree: Tree, wanted: list[Leaf], options: dict[str, object]) -> None:
    entries = [tree.map(leaf) for leaf in wanted]
    memory = tree.memory()
    walked = walk(memory, tree.name, tree.root, tree.depth, **options)
    got = [row for chunk in walked.leaves() for row in chunk]
    assert got == [
        (leaf.iova, leaf.pa, leaf.size, entry) for leaf, entry in zip(wanted, entries, strict=True)
    ]
    text = b"".join(map(leaf_text, walked.leaves()))
    assert text == b"".join(b"%#x %#x %#x %#x\n" % row for row in got)
    ranges = [row for chunk in walked.ranges() for row in chunk]
    assert [(*row[:3], row[3] & 3) for row in ranges] == [
        (iova, pa, size, RIGHTS[right]) for iova, pa, size, right in merged(wanted)
    ]
    assert walked.findings.items == []
    stats = walked.stats
    assert stats.complete
    assert stats.mapped == sum(leaf.size for leaf in wanted)
    assert stats.ranges == len(ranges)
    by_size: dict[int, int] = {}
    for leaf in wanted:
        by_size[leaf.size] = by_size.get(leaf.size, 0) + 1
    assert stats.leaves_by_size == dict(sorted(by_size.items()))
    by_level: dict[int, int] = {}
    for _, level in tree.tables:
        by_level[level] = by_level.get(level, 0) + 1
    assert dict(stats.tables) == by_level
    assert walked.table_pages.tolist() == sorted(pa for pa, _ in tree.tables)
    check_points(walked, wanted)


def check_points(walked, wanted: list[Leaf]) -> None:
    """Translation of points, and back."""
    inside = [leaf.iova + offset for leaf in wanted for offset in (0, leaf.size // 2 + 1)]
    edges = [(leaf.iova + leaf.size) % (1 << 64) for leaf in wanted]
    asked = inside + edges + [0, 1 << 63, (1 << 64) - 1]
    starts = [leaf.iova for leaf in wanted]
    found = walked.translate(asked)
    for iova, pa, right, state in zip(
        asked, found.pa.tolist(), found.permissions.tolist(), found.state.tolist(), strict=True
    ):
        at = int(np.searchsorted(np.array(starts, np.uint64), np.uint64(iova), "right")) - 1
        if at >= 0 and iova < wanted[at].iova + wanted[at].size:
            assert state == TranslationState.MAPPED
            assert pa == wanted[at].pa + iova - wanted[at].iova
            assert right & 3 == RIGHTS[wanted[at].rights]
        else:
            assert state in (TranslationState.UNMAPPED, TranslationState.BEYOND)
    queries = [leaf.pa + 5 for leaf in wanted[:3]] + [12345]
    for few in (queries, queries * 4 + list(range(20))):
        back = walked.reverse(few)
        assert back.complete
        expected = {
            (pa, leaf.iova + pa - leaf.pa)
            for pa in few
            for leaf in wanted
            if leaf.pa <= pa < leaf.pa + leaf.size
        }
        assert set(zip(back.pa.tolist(), back.iova.tolist(), strict=True)) == expected
        assert len(back.pa) == len(expected)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    check(*data.draw(trees(name)))


@pytest.mark.parametrize("name", ["vtdss", "amdv1", "lpae-s2-4k", "riscv-sv39"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_small_batches(name: str, data: st.DataObject) -> None:
    """The same with batches of two tables, so that everything crosses a border."""
    tree, wanted, options = data.draw(trees(name))
    if tree.start_entries * 8 > 8192:
        return
    with pytest.MonkeyPatch.context() as patch:
        for module in (batch, walker):
            patch.setattr(module, "BATCH", 1024)
        for module in (batch, runs):
            patch.setattr(module, "ROWS", 256)
        patch.setattr(walker, "_BATCHES", (1024, 512, 512))
        check(tree, wanted, options)
