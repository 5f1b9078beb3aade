"""Following next pointers through memory of several pieces, against a loop that checks each.

Chains are longer than what is followed at once; they lead from one piece of memory to another,
into nothing, to addresses that are no pages, and to themselves.
"""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.memory.base import PageState
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.survey import Survey
from inspector.walk.chain import follow

PAGE = 0x1000
#: Pages of each of two pieces, with a hole of as many between them.
PIECE = 4600
LOW, HIGH = 16 * PAGE, (16 + 2 * PIECE) * PAGE


class Chained:
    """Two pieces of memory whose pages are linked as the test says."""

    def __init__(self, start: int = LOW) -> None:
        self.pages = np.zeros((2 * PIECE, PAGE // 8), "<u8")
        self.starts = (start, HIGH)
        size = PIECE * PAGE
        pieces = [
            Segment(at, at + size - 1, Kind.STORED, i * size) for i, at in enumerate(self.starts)
        ]
        self.memory = MappedMemory(from_segments(pieces), memoryview(self.pages).cast("B"))

    def link(self, page: int, to: int) -> None:
        for i, start in enumerate(self.starts):
            if start <= page < start + PIECE * PAGE:
                self.pages[(page - start) // PAGE + i * PIECE, 0] = to
                return
        raise AssertionError("not in memory")

    def chain(self, pages: list[int], end: int) -> None:
        for page, to in zip(pages, [*pages[1:], end], strict=False):
            self.link(page, to)

    def everything(self) -> list[int]:
        return [start + i * PAGE for start in self.starts for i in range(PIECE) if start + i]


def reference(memory: MappedMemory, first: int, limit: int) -> tuple[list[int], str]:
    """The pages of a chain, and how it ended: ``end``, ``odd``, ``twice``, ``long``."""
    pages: dict[int, None] = {}
    at = first
    while at:
        if at % PAGE or at >> 52:
            return list(pages), "odd"
        if at in pages:
            return list(pages), "twice"
        if len(pages) >= limit:
            return list(pages), "long"
        if memory.state(at, 8) is not PageState.PRESENT:
            return list(pages), "odd"
        pages[at] = None
        at = memory.u64(at)
    return list(pages), "end"


CODES = {
    "end": set(),
    "odd": {"KHO-MEM-002", "KHO-MEM-003", "KHO-MEM-004"},
    "twice": {"KHO-LST-001"},
    "long": {"KHO-LST-004"},
}


@given(
    st.sampled_from([0, 1, 2, 63, 64, 65, 66, 700, 4095, 4160, 4161, 9000]),
    st.integers(0, 1 << 32),
    st.sampled_from(["one piece", "in turn", "mixed"]),
    st.one_of(
        st.just(0),
        st.sampled_from(["twice", "misaligned", "first"]),
        st.sampled_from([8, LOW - PAGE, LOW + PIECE * PAGE, 1 << 51, (1 << 64) - PAGE, 1 << 63]),
        st.integers(1, (1 << 64) - 1),
    ),
    st.sampled_from([1, 64, 5000, 1 << 16]),
    st.booleans(),
)
def test_a_chain_is_followed_as_a_careful_loop_would(
    length: int, seed: int, order: str, end: int | str, limit: int, from_zero: bool
) -> None:
    chained = Chained(0 if from_zero else LOW)
    choice = random.Random(seed)
    low, high = (
        [start + i * PAGE for i in choice.sample(range(1, PIECE), PIECE - 1)]
        for start in chained.starts
    )
    if order == "one piece":
        pages = low[:length]
    elif order == "in turn":
        pages = [page for pair in zip(low, high, strict=False) for page in pair][:length]
    else:
        pages = choice.sample(low + high, length)
    if end == "misaligned":
        end = low[-1] + 8
    elif isinstance(end, str):
        end = (pages[0] if end == "first" else choice.choice(pages)) if pages else 0
    chained.chain(pages, end)
    first = pages[0] if pages else end
    survey = Survey(chained.memory, PAGE)
    found = follow(survey, first, "/test", "test page", limit=limit)
    expected, how = reference(chained.memory, first, limit)
    assert found.pages.tolist() == expected
    assert found.complete == (how == "end")
    codes = {finding.code for finding in survey.findings.items}
    assert codes <= CODES[how]
    assert bool(codes) == (how != "end")
    assert set(expected) <= survey.nodes.keys()


@pytest.mark.parametrize("length", [1, 64, 200, 5000])
def test_a_page_of_another_chain_is_not_taken(length: int) -> None:
    chained = Chained()
    pages = chained.everything()[:length]
    other = chained.everything()[-1]
    chained.chain(pages, other)
    survey = Survey(chained.memory, PAGE)
    assert follow(survey, other, "/first", "page").complete
    found = follow(survey, pages[0], "/second", "page")
    assert found.pages.tolist() == pages
    assert not found.complete
    assert [finding.code for finding in survey.findings.items] == ["KHO-LST-002"]
    assert survey.nodes[other] == "/first"
    assert survey.nodes[pages[0]] == "/second"


def test_pieces_in_turn_cost_no_more_than_what_is_read() -> None:
    """Each pointer leads out of its piece, downwards and upwards: little is read for nothing."""
    chained = Chained()
    # Where a pointer below the piece leads a reader that does not look, chains go on for long.
    pages = chained.everything()
    chained.pages[:, 0] = np.roll(np.array(pages, np.uint64), 1)
    turns = [page for pair in zip(pages, pages[PIECE:], strict=False) for page in pair]
    chained.chain(turns, 0)
    start = time.process_time()
    found = follow(Survey(chained.memory, PAGE), turns[0], "/test", "page")
    assert found.complete
    assert len(found.pages) == 2 * PIECE
    assert time.process_time() - start < 2
