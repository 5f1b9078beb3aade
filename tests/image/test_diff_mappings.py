"""Mappings are compared window by window, with the result that one look at all would have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inspector.diff import Kind, mappings
from inspector.diff.mappings import _Changes, _windows
from inspector.passthrough.mappings import Mappings, Side

PAGE = 4096
#: Gap before a range, its length, where it leads, its rights.
RANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3)),
    max_size=24,
)


def made(ranges: list[tuple[int, int, int, int]]) -> Mappings:
    rows, at = [], 0
    for gap, length, where, rights in ranges:
        at += gap
        # The page behind what is mapped before leads elsewhere: no two ranges are one.
        rows.append((at * PAGE, (at + where * 100) * PAGE, length * PAGE, rights))
        at += length
    columns = np.array(rows, np.uint64).reshape(-1, 4).T
    return Mappings(columns[0], columns[1], columns[2], columns[3].astype(np.uint8))


def chunks(maps: Mappings, size: int) -> Iterator[Mappings]:
    for at in range(0, len(maps), size):
        part = slice(at, at + size)
        yield Mappings(maps.iova[part], maps.pa[part], maps.size[part], maps.rights[part])


def by_page(maps: Mappings) -> dict[int, tuple[int, int]]:
    return {
        iova + i * PAGE: (pa + i * PAGE, rights)
        for iova, pa, size, rights in zip(
            maps.iova.tolist(), maps.pa.tolist(), maps.size.tolist(), maps.rights.tolist(),
            strict=True,
        )
        for i in range(size // PAGE)
    }  # fmt: skip


def expected(one: Mappings, other: Mappings) -> dict[Kind, set[int]]:
    """Which pages are in which kind of change, page by page."""
    before, after = by_page(one), by_page(other)
    found: dict[Kind, set[int]] = {k: set() for k in _Changes("x")._found}
    for page in before.keys() | after.keys():
        old, new = before.get(page), after.get(page)
        if old is None or new is None:
            found[Kind.ADDED if old is None else Kind.REMOVED].add(page)
        elif old[1] != new[1]:
            found[Kind.CHANGED].add(page)
        elif old != new:
            found[Kind.MOVED].add(page)
    return found


def compared(one: Mappings, other: Mappings, window: int, size: int) -> _Changes:
    changes = _Changes("x")
    held = mappings.WINDOW
    mappings.WINDOW = window
    try:
        for left, right in _windows(chunks(one, size), chunks(other, size)):
            changes.add(left, right)
    finally:
        mappings.WINDOW = held
    return changes


@given(RANGES, RANGES, st.integers(1, 5), st.integers(1, 5))
def test_windows_change_nothing(
    left: list[tuple[int, int, int, int]],
    right: list[tuple[int, int, int, int]],
    window: int,
    size: int,
) -> None:
    one, other = made(left), made(right)
    whole = compared(one, other, 1 << 20, 1 << 20)
    assert compared(one, other, window, size)._found == whole._found
    for kind, pages in expected(one, other).items():
        said = [p for d in whole._found[kind] for p in range(d.start, d.end, PAGE)]
        assert len(said) == len(set(said))
        assert set(said) == pages


@given(RANGES, st.integers(1, 5))
def test_the_same_is_no_change(ranges: list[tuple[int, int, int, int]], window: int) -> None:
    one = made(ranges)
    assert not list(compared(one, one, window, 3).all())


def test_a_stream_is_read_as_far_as_needed() -> None:
    maps = made([(1, 1, 0, 3)] * 100)
    taken = 0

    def counted() -> Iterator[Mappings]:
        nonlocal taken
        for chunk in chunks(maps, 10):
            taken += 1
            yield chunk

    side = Side(counted())
    last = side.fill(15)
    assert taken == 2
    assert last is not None
    assert len(side.take(last)) == 20
    assert len(side.held) == 0
