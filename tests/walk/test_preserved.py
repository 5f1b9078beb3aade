"""The walk over maps built bit by bit, against the list of blocks they were built from."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import registry
from abi.kho import KhoGeneration
from abi.memory_map import RadixGeometry, bit_of_phys
from abi.schema import PAGE_SIZES
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map
from inspector.walk.runs import RunColumns, cut_runs, merge_runs

Blocks = dict[int, int]


@st.composite
def frames(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Disjoint blocks as (frame, order): single ones and stretches, far apart and touching."""
    found: list[tuple[int, int]] = []
    at = draw(st.integers(0, 1 << 12))
    for _ in range(draw(st.integers(0, 12))):
        order = draw(st.sampled_from([0, 0, 0, 1, 3, 9, 10]))
        at = (at + (1 << order) - 1) >> order << order
        for _ in range(draw(st.sampled_from([1, 1, 2, 63, 64, 200]))):
            found.append((at, order))
            at += 1 << order
        at += draw(st.sampled_from([0, 1, 5, 1 << 9, 1 << 15, (1 << 17) + 3]))
    return found


class Builder:
    """Pages handed out one by one, from a place that the blocks never reach."""

    def __init__(self, page_size: int, seed: int) -> None:
        self.page_size = page_size
        self.base = 1 << 44
        self.memory = SparseMemory([(self.base, page_size << 16)], page_size=page_size)
        self.pages: dict[int, np.ndarray[tuple[int], np.dtype[np.uint64]]] = {}
        self.free = np.random.default_rng(seed).permutation(1 << 10).tolist()

    def page(self) -> int:
        address = self.base + int(self.free.pop()) * self.page_size
        self.pages[address] = np.zeros(self.page_size // 8, np.uint64)
        return address

    def finish(self) -> SparseMemory:
        for address, words in self.pages.items():
            self.memory.write(address, words)
        return self.memory


def set_bit(words: np.ndarray[tuple[int], np.dtype[np.uint64]], bit: int) -> None:
    words[bit >> 6] |= np.uint64(1 << (bit & 63))


def radix(blocks: list[tuple[int, int]], shape: RadixGeometry, builder: Builder) -> int:
    root = builder.page()
    for pa, order in blocks:
        key, at = shape.key(pa, order), root
        for level in range(shape.depth - 1, 0, -1):
            slot = shape.index(key, level)
            below = int(builder.pages[at][slot])
            if not below:
                below = builder.page()
                builder.pages[at][slot] = below
            at = below
        set_bit(builder.pages[at], shape.index(key, 0))
    return root


def chunks(blocks: list[tuple[int, int]], bitmap_bytes: int, builder: Builder) -> int:
    """One chunk for each order; bitmaps of 512 bytes share pages."""
    page = builder.page_size
    bitmaps: dict[tuple[int, int], tuple[int, int]] = {}
    room: list[tuple[int, int]] = []
    for pa, order in blocks:
        start, bit = bit_of_phys(pa, order, page, 8 * bitmap_bytes)
        if (order, start) not in bitmaps:
            if not room:
                address = builder.page()
                room = [(address, at) for at in range(0, page, bitmap_bytes)]
            bitmaps[order, start] = room.pop()
        address, at = bitmaps[order, start]
        set_bit(builder.pages[address], 8 * at + bit)
    first = 0
    for order in sorted({order for order, _ in bitmaps}, reverse=True):
        chunk = builder.page()
        words = builder.pages[chunk]
        mine = [(start, sum(place)) for (o, start), place in bitmaps.items() if o == order]
        words[0], words[1] = first, order | len(mine) << 32
        words[2 : 2 + 2 * len(mine)] = np.array(mine, np.uint64).ravel()
        first = chunk
    return first


def walked(builder: Builder, generation: str, root: int) -> tuple[PreservedMap, Survey]:
    survey = Survey(builder.finish(), builder.page_size)
    entry = cast("KhoGeneration", registry.get("kho", generation))
    return walk_map(survey, entry, root), survey


def listed(found: PreservedMap) -> list[tuple[int, int]]:
    return [
        (int(pa), int(order))
        for addresses, orders in found.blocks()
        for pa, order in zip(addresses, orders, strict=True)
    ]


@pytest.mark.parametrize("generation", ["kho-v1-bitmap512", "kho-v1-bitmap-page", "kho-v4"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@settings(max_examples=12)
@given(wanted=frames(), seed=st.integers(0, 99))
def test_walk(generation: str, page_size: int, wanted: list[tuple[int, int]], seed: int) -> None:
    blocks = [(frame * page_size, order) for frame, order in wanted]
    builder = Builder(page_size, seed)
    if generation == "kho-v4":
        root = radix(blocks, RadixGeometry(page_size), builder)
    else:
        root = chunks(blocks, 512 if "512" in generation else page_size, builder)
    found, survey = walked(builder, generation, root)
    assert listed(found) == blocks
    assert found.complete
    assert found.disjoint
    assert found.block_count == len(blocks)
    assert found.page_count == sum(1 << order for _, order in blocks)
    assert survey.findings.items == []
    touching = found.ends[:-1] == found.starts[1:]
    assert not (touching & (found.orders[1:] == found.orders[:-1])).any(), "runs are joined"
    anywhere = [pa + (page_size << order) - 1 for pa, order in blocks]
    assert found.covers(np.array(anywhere, np.uint64)).all()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_overlap_of_orders(page_size: int) -> None:
    builder = Builder(page_size, 1)
    blocks = [(8 * page_size, 0), (9 * page_size, 0), (8 * page_size, 3)]
    root = radix(blocks, RadixGeometry(page_size), builder)
    found, survey = walked(builder, "kho-v4", root)
    assert not found.disjoint
    assert [f.code for f in survey.findings.items] == ["KHO-MAP-005"]
    assert sorted(listed(found)) == sorted(blocks)


def test_impossible_keys() -> None:
    """Bit 0 of the first leaf is no key, the bits after it are orders beyond all memory."""
    builder = Builder(0x1000, 1)
    shape = RadixGeometry(0x1000)
    root = radix([(0x5000, 0)], shape, builder)
    node = root
    for level in range(shape.depth - 1, 0, -1):
        words = builder.pages[node]
        node = builder.page()
        words[0] = node
        assert level
    builder.pages[node][0] = 7
    found, survey = walked(builder, "kho-v4", root)
    assert listed(found) == [(0x5000, 0)]
    assert {f.code for f in survey.findings.items} == {"KHO-MAP-006"}
    assert not found.complete


@given(
    pieces=st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5), max_size=6
    ),
    order=st.integers(0, 2),
    through_bits=st.booleans(),
)
def test_columns(pieces: list[list[tuple[int, int]]], order: int, through_bits: bool) -> None:
    """Runs given in pieces, through either door, come out joined and ascending."""
    columns, expected, at = RunColumns(0x1000), [], 0
    for piece in pieces:
        first, behind = [], []
        for number, (gap, count) in enumerate(piece):
            at += max(gap, 1) if number else gap
            first.append(at)
            behind.append(at + count)
            at += count
        expected += list(zip(first, behind, strict=True))
        low, high = np.array(first, np.int64), np.array(behind, np.int64)
        if through_bits:
            columns.add_bits(low, high, 0, order)
        else:
            starts = low.astype(np.uint64) << np.uint64(12 + order)
            orders = np.full(len(low), order, np.uint8)
            columns.add(starts, (high - low).astype(np.uint64), orders)
    joined: list[list[int]] = []
    for low_bit, high_bit in expected:
        if joined and joined[-1][1] == low_bit:
            joined[-1][1] = high_bit
        else:
            joined.append([low_bit, high_bit])
    found, counts, found_orders, turns = columns.columns()
    assert turns is None
    assert columns.ordered
    assert len(columns) == len(joined)
    assert found.tolist() == [low << (12 + order) for low, _ in joined]
    assert counts.tolist() == [high - low for low, high in joined]
    assert set(found_orders.tolist()) <= {order}


def test_columns_out_of_order() -> None:
    columns = RunColumns(0x1000)
    one, order = np.array([1], np.uint64), np.array([0], np.uint8)
    for pa in (0x9000, 0x3000, 0x3000):
        columns.add(np.array([pa], np.uint64), one, order)
    assert not columns.ordered
    starts, _, _, turns = columns.columns()
    assert starts.tolist() == [0x3000, 0x3000, 0x9000]
    assert turns is not None
    assert turns.tolist() == [1, 2, 0]


def test_many_columns_grow() -> None:
    columns = RunColumns(0x1000)
    first = np.arange(0, 20_000, 2)
    for base in range(5):
        columns.add_bits(first, first + 1, base << 32, 0)
    starts, counts, _, _ = columns.columns()
    assert len(columns) == len(starts) == 50_000
    assert counts.tolist() == [1] * 50_000
    assert (starts[1:] > starts[:-1]).all()


def test_cut_and_merge() -> None:
    first, behind = cut_runs(np.array([3, 60, 200]), np.array([9, 130, 201]), 64)
    assert list(zip(first.tolist(), behind.tolist(), strict=True)) == [
        (3, 9), (60, 64), (64, 128), (128, 130), (200, 201),
    ]  # fmt: skip
    low, high = merge_runs(first.astype(np.uint64), behind.astype(np.uint64))
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == [(3, 9), (60, 130), (200, 201)]
