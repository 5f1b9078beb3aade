"""Regions as columns behave as the tuple of regions that they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inspector.memory import PageState, Region, Regions

gaps = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99), st.sampled_from([1, 2])))


@given(gaps, st.booleans())
def test_as_a_tuple(parts: list[tuple[int, int, int]], high: bool) -> None:
    at, listed = 0, []
    for gap, size, state in parts:
        listed.append(Region(at + gap, size, PageState(state)))
        at += gap + size
    if high:
        listed.append(Region(1 << 63, 1 << 63))
    found = Regions.of(listed)
    assert list(found) == listed
    assert found == tuple(listed)
    assert tuple(listed) == found
    assert found == Regions.of(found)
    assert [found[i] for i in range(len(found))] == listed
    assert found[1:] == listed[1:]
    assert not listed or found != listed[1:]
    held = [r for r in listed if r.state is PageState.PRESENT]
    assert found.present == held
    assert found.present.bytes == sum(r.size for r in held)
    assert found != 5


def test_all_of_memory_and_how_it_looks() -> None:
    whole = Regions.of([Region(0, 1 << 64)])
    assert whole.bytes == 1 << 64
    assert whole[0] == Region(0, 1 << 64)
    assert repr(whole).startswith("Regions(Region(start=0")
    assert repr(Regions.of([Region(i * 10, 1) for i in range(5)])).endswith(", ...)")
