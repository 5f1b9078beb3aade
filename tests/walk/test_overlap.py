"""Blocks of damaged maps that overlap, against a dictionary of pages written block by block.

The dictionary is what early boot does to the first page of each block; decoder and consumer
have to say the same of every page.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import registry
from abi.kho import KhoGeneration
from abi.memory_map import RadixGeometry
from inspector.kernel.incoming.restore import Marks, marks_of, read_map
from inspector.kernel.incoming.view import View
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map
from tests.walk.test_preserved import Builder, radix, set_bit

PAGE = 0x1000
#: Frames that blocks are taken from: around the places where tables of marks change.
REACH = 1 << 12
BASES = [0, (1 << 15) - (1 << 11)]
Block = tuple[int, int]


@st.composite
def overlapping(draw: st.DrawFn) -> list[Block]:
    """(frame, order) of aligned blocks, singly and in stretches, each once, in a random order."""
    base = draw(st.sampled_from(BASES))
    found: dict[Block, None] = {}
    for _ in range(draw(st.integers(1, 10))):
        order = draw(st.sampled_from([0, 0, 1, 2, 3, 8, 9, 10, 11]))
        count = draw(st.sampled_from([1, 1, 2, 5, 100])) if order < 4 else draw(st.integers(1, 2))
        at = base + (draw(st.integers(0, REACH - 1)) >> order << order)
        at = draw(st.sampled_from([at, base]))
        found.update(dict.fromkeys((at + (i << order), order) for i in range(count)))
    return draw(st.permutations(list(found)))


def chunk_list(blocks: Iterable[Block], size: int, builder: Builder) -> int:
    """Chunks in the order of the blocks: one for each stretch of one order."""
    first = previous = 0
    for order, group in groupby(blocks, key=lambda block: block[1]):
        chunk = builder.page()
        spans: dict[int, int] = {}
        for frame, _ in group:
            span, bit = divmod(frame >> order, size * 8)
            if span not in spans:
                spans[span] = builder.page()
            set_bit(builder.pages[spans[span]], bit)
        words = builder.pages[chunk]
        words[1] = order | len(spans) << 32
        unit = size * 8 * PAGE << order
        words[2 : 2 + 2 * len(spans)] = np.array([(s * unit, p) for s, p in spans.items()]).ravel()
        if previous:
            builder.pages[previous][0] = chunk
        first, previous = first or chunk, chunk
    return first


def built(generation: str, blocks: list[Block]) -> tuple[SparseMemory, KhoGeneration, int]:
    builder = Builder(PAGE, 1)
    entry = cast("KhoGeneration", registry.get("kho", generation))
    if generation == "kho-v4":
        root = radix([(f * PAGE, o) for f, o in blocks], RadixGeometry(PAGE), builder)
    else:
        root = chunk_list(blocks, 512 if "512" in generation else PAGE, builder)
    return builder.finish(), entry, root


def written(generation: str, blocks: list[Block]) -> dict[int, int]:
    """First frame -> order, the way early boot leaves it."""
    if generation == "kho-v4":
        blocks = sorted(blocks, key=lambda block: -block[1])
    return dict(blocks)


def pages(found: PreservedMap) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    low, high = int(found.starts.min()), int(found.ends.max())
    return np.arange(max(low - 2 * PAGE, 0), high + 2 * PAGE, PAGE, dtype=np.uint64)


GENERATIONS = ["kho-v1-bitmap512", "kho-v1-bitmap-page", "kho-v4"]


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=60)
@given(blocks=overlapping())
def test_pages_begin_what_was_written_last(generation: str, blocks: list[Block]) -> None:
    memory, entry, root = built(generation, blocks)
    expected = written(generation, blocks)
    decoded = walk_map(Survey(memory, PAGE), entry, root)
    inherited = read_map(View(memory, PAGE, None), entry, root)
    assert not inherited.fatal
    marks = marks_of(inherited.preserved)
    assert decoded.disjoint == (not marks.overlapping)

    addresses = pages(decoded)
    frames = (addresses // np.uint64(PAGE)).tolist()
    orders, found = decoded.orders_at(addresses)
    begins = decoded.heads_at(addresses)
    assert [f for f, b in zip(frames, begins.tolist(), strict=True) if b] == sorted(expected)
    held = {f + i for f, o in blocks for i in range(1 << o)}
    assert [f for f, here in zip(frames, found.tolist(), strict=True) if here] == sorted(held)
    at = dict(zip(frames, orders.tolist(), strict=True))
    for frame, order in expected.items():
        assert at[frame] == order
    for frame in held - expected.keys():
        assert any(frame >> o << o == f and at[frame] == o for f, o in blocks), hex(frame)

    assert {frame: marks.peek(frame) for frame in frames} == {
        frame: expected.get(frame, -1) for frame in frames
    }
    left = {f: o for fs, os in marks.left() for f, o in zip(fs.tolist(), os.tolist(), strict=True)}
    assert left == expected


def test_a_radix_tree_gives_the_smallest_and_a_list_the_last() -> None:
    blocks = [(8, 0), (8, 3), (8, 1)]
    for generation, order in [("kho-v4", 0), ("kho-v1-bitmap-page", 1), ("kho-v1-bitmap512", 1)]:
        memory, entry, root = built(generation, blocks)
        found = walk_map(Survey(memory, PAGE), entry, root)
        assert found.orders_at(np.array([8 * PAGE], np.uint64))[0].tolist() == [order]


def test_a_bitmap_of_one_order_comes_back_after_another() -> None:
    """The same order twice in a list, with another between: runs of one order overlap."""
    memory, entry, root = built("kho-v1-bitmap-page", [(8, 1), (8, 0), (8, 1), (10, 0)])
    found = walk_map(Survey(memory, PAGE), entry, root)
    at = np.array([8, 9, 10], np.uint64) * np.uint64(PAGE)
    assert found.orders_at(at)[0].tolist() == [1, 1, 0]
    assert found.heads_at(at).tolist() == [True, False, True]


def test_disjoint_blocks_know_where_they_begin() -> None:
    memory, entry, root = built("kho-v4", [(8, 3), (16, 0), (17, 0)])
    found = walk_map(Survey(memory, PAGE), entry, root)
    at = np.array([7, 8, 9, 16, 17, 18], np.uint64) * np.uint64(PAGE)
    assert found.heads_at(at).tolist() == [False, True, False, True, True, False]


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "run", "clear", "take"]),
            st.integers(0, 1 << 11),
            st.integers(1, 40),
            st.sampled_from([0, 1, 3, 9, 10]),
        ),
        max_size=30,
    )
)
def test_marks_against_a_dictionary(steps: list[tuple[str, int, int, int]]) -> None:
    """Marks at any frame, aligned or not: a list of bitmaps may begin anywhere."""
    marks, expected = Marks(overlapping=True), dict[int, int]()
    for what, frame, count, order in steps:
        blocks = [frame + (i << order) for i in range(count)]
        if what == "put":
            marks.put(np.array(blocks, np.uint64), order)
            expected |= dict.fromkeys(blocks, order)
        elif what == "run":
            marks.put_run(frame, count, order)
            expected |= dict.fromkeys(blocks, order)
        elif what == "clear":
            marks.clear(frame, count << order)
            expected = {
                f: o for f, o in expected.items() if not blocks[0] <= f < frame + (count << order)
            }
        else:
            got = marks.take(np.array(blocks, np.uint64)).tolist()
            assert got == [expected.pop(f, -1) for f in blocks]
    assert {f: marks.peek(f) for f in expected} == expected
    left = [f for frames, _ in marks.left() for f in frames.tolist()]
    assert sorted(left) == sorted(expected)
