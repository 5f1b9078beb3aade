"""Tables of pieces: overlap, merging, and bulk states against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errors import UnreadableError
from inspector.memory import segments
from inspector.memory.segments import Kind, Segment, SegmentTable, from_segments, layer

TOP = 1 << 64

pieces = st.lists(
    st.builds(
        lambda first, size, kind, offset: Segment(first, first + size - 1, kind, offset),
        st.integers(0, 60),
        st.integers(1, 25),
        st.sampled_from(list(Kind)),
        st.integers(0, 1000),
    ),
    max_size=12,
)


def cells(segments: list[Segment]) -> dict[int, tuple[Kind, int]]:
    """What each address is, if the first piece given wins."""
    out: dict[int, tuple[Kind, int]] = {}
    for piece in segments:
        for at in range(piece.first, piece.last + 1):
            offset = piece.offset + at - piece.first if piece.kind == Kind.STORED else -1
            out.setdefault(at, (piece.kind, offset))
    return out


def of_table(table: SegmentTable) -> dict[int, tuple[Kind, int]]:
    out: dict[int, tuple[Kind, int]] = {}
    end = -1
    for i in range(len(table)):
        piece = table[i]
        assert piece.first > end
        end = piece.last
        for at in range(piece.first, piece.last + 1):
            offset = piece.offset + at - piece.first if piece.kind == Kind.STORED else -1
            out[at] = (piece.kind, offset)
    return out


@given(pieces)
@settings(max_examples=300)
def test_the_first_piece_wins(segments: list[Segment]) -> None:
    table = from_segments(segments)
    want = cells(segments)
    assert of_table(table) == want
    for at in range(-1, 90):
        index = table.find(at)
        assert (index >= 0) == (at in want)
        if index >= 0:
            assert table[index].first <= at <= table[index].last


@given(pieces, pieces)
def test_layer_is_the_dictionary_union(top: list[Segment], below: list[Segment]) -> None:
    table = layer(from_segments(top), from_segments(below))
    assert of_table(table) == cells(below) | cells(top)


@given(pieces, st.integers(0, 40))
def test_states_are_the_lowest_of_the_range(segments: list[Segment], size: int) -> None:
    table = from_segments(segments)
    want = cells(segments)
    addresses = np.arange(0, 90, dtype=np.uint64)
    got = table.states(addresses, size).tolist()
    for at in range(90):
        found = [min(want[i][0], 2) if i in want else 0 for i in range(at, at + size)]
        assert got[at] == min(found, default=2), at
        assert table.state(at, size) == got[at]
        missing = table.first_missing(at, size)
        assert (missing is None) == (min(found, default=2) == 2)
        if missing is not None:
            assert found[missing[0] - at] == missing[1] < 2
            assert min(found[: missing[0] - at], default=2) == 2


@given(pieces, st.integers(0, 90), st.integers(0, 90))
def test_overlapping_yields_the_parts_inside(
    segments: list[Segment], start: int, size: int
) -> None:
    table = from_segments(segments)
    parts = list(table.overlapping(start, start + size))
    got = cells(parts)
    assert got == {a: c for a, c in cells(segments).items() if start <= a < start + size}


def test_the_top_of_the_address_space() -> None:
    table = from_segments(
        [Segment(TOP - 4096, TOP - 1, Kind.STORED, 0), Segment(TOP - 8192, TOP - 1, Kind.ZERO)]
    )
    assert [tuple(table[i]) for i in range(len(table))] == [
        (TOP - 8192, TOP - 4097, Kind.ZERO, 0),
        (TOP - 4096, TOP - 1, Kind.STORED, 0),
    ]
    assert table.states(np.array([TOP - 1, TOP - 2], np.uint64), 2).tolist() == [0, 2]
    assert table.find(TOP) == -1
    over = layer(from_segments([Segment(TOP - 1, TOP - 1, Kind.EXCLUDED)]), table)
    assert over[len(over) - 1] == Segment(TOP - 1, TOP - 1, Kind.EXCLUDED, 0)
    assert over.states(np.array([TOP - 2], np.uint64), 2).tolist() == [1]


def test_contiguous_pieces_are_merged() -> None:
    table = from_segments([Segment(i * 10, i * 10 + 9, Kind.STORED, i * 10) for i in range(50)])
    assert len(table) == 1
    table = from_segments([Segment(i * 10, i * 10 + 9, Kind.STORED, 0) for i in range(50)])
    assert len(table) == 50
    assert len(table.regions()) == 1


def test_too_many_overlapping_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MAX_OVERLAPPING", 10)
    with pytest.raises(UnreadableError, match="11 overlapping pieces"):
        from_segments([Segment(i, 100, Kind.ZERO) for i in range(11)])


def test_many_overlapping_pieces_stay_cheap() -> None:
    count = 20_000
    nested = [Segment(i, 10 * count - i, Kind.STORED, 7 * i) for i in range(count)]
    assert len(from_segments(nested[::-1])) == 2 * count - 1
    assert len(from_segments(nested)) == 1
    apart = [Segment(i * 100, i * 100 + 9, Kind.STORED, 0) for i in range(count)]
    assert len(from_segments([*apart, Segment(50, 160, Kind.ZERO)])) == count + 2


@given(pieces)
@settings(max_examples=300)
def test_what_lies_in_the_file_once(parts: list[Segment]) -> None:
    """Against the plainest way: of each byte of the file, the lowest address."""
    table = from_segments(parts)
    seen: dict[int, int] = {}
    for at, (kind, offset) in sorted(of_table(table).items()):
        if kind == Kind.STORED:
            seen.setdefault(offset, at)
    stored = [offset for kind, offset in of_table(table).values() if kind == Kind.STORED]
    found = segments.distinct(table)
    assert (found is None) == (len(stored) == len(seen))
    if found is not None:
        want = {at: (Kind.STORED, offset) for offset, at in seen.items()}
        assert of_table(found) == want
