"""Writable memory against a dictionary, alone and laid over an image."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_model import Model, check

from abi.errors import UsageError
from inspector.memory import MemoryFault, PageState, find_words
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.memory.sparse import SparseMemory

PAGE = 4096
PAGES = 1100  # more than two leaves of the directory


def paged_model(pages: dict[int, bytes | None], probes: list[int]) -> Model:
    """A model of the pages around some addresses only: a dictionary of all would be slow."""
    cells: dict[int, int | None] = {}
    for pa in probes:
        for pfn in (pa // PAGE - 1, pa // PAGE, pa // PAGE + 1):
            if pfn in pages:
                page = pages[pfn]
                for i in range(PAGE):
                    cells[pfn * PAGE + i] = None if page is None else page[i]
    return Model(cells)


operation = st.one_of(
    st.tuples(
        st.just("write"),
        st.integers(0, PAGES * PAGE - 1),
        st.integers(0, 3 * PAGE),
        st.integers(0, 255),
    ),
    st.tuples(st.just("pages"), st.integers(0, PAGES - 1), st.integers(1, 700), st.integers(0, 9)),
    st.tuples(st.just("zero"), st.integers(0, PAGES - 1), st.integers(1, 700), st.just(0)),
    st.tuples(st.just("fill"), st.integers(0, PAGES - 1), st.integers(1, 5), st.integers(0, 255)),
    st.tuples(st.just("exclude"), st.integers(0, PAGES - 1), st.integers(1, 700), st.just(0)),
)


@given(st.lists(operation, max_size=8), st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_any_operations(
    operations: list[tuple[str, int, int, int]], over: bool, data: st.DataObject
) -> None:
    pages: dict[int, bytes | None] = dict.fromkeys(range(PAGES))
    if over:
        blob = np.random.default_rng(1).integers(0, 256, 300 * PAGE, np.uint8).tobytes()
        table = from_segments(
            [
                Segment(100 * PAGE, 400 * PAGE - 1, Kind.STORED, 0),
                Segment(0, PAGES * PAGE - 1, Kind.EXCLUDED),
            ]
        )
        base = MappedMemory(table, memoryview(blob))
        memory = SparseMemory.over(base)
        pages.update({100 + i: blob[i * PAGE : (i + 1) * PAGE] for i in range(300)})
    else:
        memory = SparseMemory([(0, PAGES * PAGE)])
    touched = [0, 100 * PAGE, 400 * PAGE - 4, PAGES * PAGE - 4]
    for what, at, size, fill in operations:
        if what == "write":
            payload = bytes((fill + i) & 0xFF for i in range(min(size, PAGES * PAGE - at)))
            memory.write(at, payload)
            done = 0
            while done < len(payload):
                pfn, offset = divmod(at + done, PAGE)
                part = payload[done : done + PAGE - offset]
                old = bytearray(pages[pfn] or bytes(PAGE))
                old[offset : offset + len(part)] = part
                pages[pfn] = bytes(old)
                done += len(part)
            touched += [at, at + size]
            continue
        count = min(size, PAGES - at)
        touched += [at * PAGE, (at + count) * PAGE - 4]
        if what == "pages":
            blob = b"".join(bytes([fill, i & 0xFF]) * (PAGE // 2) for i in range(count))
            memory.write(at * PAGE, np.frombuffer(blob, np.uint64))
            pages.update({at + i: blob[i * PAGE : (i + 1) * PAGE] for i in range(count)})
        elif what == "zero":
            memory.mark_zero(at * PAGE, count * PAGE)
            pages.update(dict.fromkeys(range(at, at + count), bytes(PAGE)))
        elif what == "fill":
            content = bytes([fill]) * (count * PAGE * fill // 255)
            memory.fill(at * PAGE, count * PAGE, content)
            blob = content.ljust(count * PAGE, b"\0")
            pages.update({at + i: blob[i * PAGE : (i + 1) * PAGE] for i in range(count)})
        else:
            memory.exclude(at * PAGE, count * PAGE)
            pages.update(dict.fromkeys(range(at, at + count)))
        if data.draw(st.booleans()):
            assert len(memory.regions) >= 1  # builds the table, which must not go stale
    model = paged_model(pages, touched)
    for pa in touched:
        for size in (1, 8, 16, 100):
            missing = model.first_missing(pa, size) if pa + size < PAGES * PAGE else None
            if pa + size >= PAGES * PAGE:
                continue
            assert memory.state(pa, size) == model.state(pa, size)
            if missing is None:
                assert memory.read(pa, size) == model.read(pa, size)
            else:
                with pytest.raises(MemoryFault) as caught:
                    memory.read(pa, size)
                assert (caught.value.address, caught.value.state) == missing
    every = np.arange(PAGES, dtype=np.uint64) * np.uint64(PAGE)
    rows, states = memory.gather(every, PAGE), memory.states(every, PAGE)
    small = memory.gather(every + np.uint64(1000), 24)
    for pfn, page in pages.items():
        assert states[pfn] == (PageState.EXCLUDED if page is None else PageState.PRESENT)
        assert rows[pfn].tobytes() == (page or bytes(PAGE))
        assert small[pfn].tobytes() == (page or bytes(PAGE))[1000:1024]
    left = {pfn for pfn, page in pages.items() if page and any(page)}
    end = 0
    for pa, piece in memory.extents():
        assert pa >= end
        end = pa + len(piece)
        for at in range(pa, end, PAGE):
            assert bytes(piece[at - pa : at - pa + PAGE]) == (pages[at // PAGE] or b"")
            left.discard(at // PAGE)
    assert not left


def test_small_pages_hold_the_whole_contract() -> None:
    memory = SparseMemory([(0, 3 * PAGE), (5 * PAGE, PAGE)])
    memory.write(PAGE + 7, b"hello")
    memory.mark_zero(2 * PAGE, PAGE)
    cells: dict[int, int | None] = dict.fromkeys([*range(3 * PAGE), *range(5 * PAGE, 6 * PAGE)])
    cells.update(dict.fromkeys(range(PAGE, 3 * PAGE), 0))
    cells.update({PAGE + 7 + i: value for i, value in enumerate(b"hello")})
    probes = [(PAGE + 5, 9), (2 * PAGE - 4, 8), (0, 8), (3 * PAGE - 2, 4), (5 * PAGE, 1), (9, 0)]
    probes += [(PAGE, 2 * PAGE), (0, 2 * PAGE), (PAGE, 2 * PAGE + 1), (PAGE + 8, PAGE)]
    check(memory, Model(cells), probes)


def test_unwritten_ram_may_be_zero() -> None:
    memory = SparseMemory([(1 << 30, 1 << 20)], unwritten=PageState.PRESENT, page_size=65536)
    assert memory.page_size == 65536
    assert memory.read((1 << 30) + 5, 100_000) == bytes(100_000)
    assert list(memory.extents()) == []
    memory.write((1 << 30) + 65536, b"x")
    assert [(pa, len(piece)) for pa, piece in memory.extents()] == [((1 << 30) + 65536, 65536)]


def test_writes_outside_ram_change_nothing() -> None:
    memory = SparseMemory([(0, 8 * PAGE)])
    for pa, size in ((8 * PAGE, 1), (8 * PAGE - 1, 2), (1 << 63, 8), (-1, 1)):
        with pytest.raises(MemoryFault) as caught:
            memory.write(pa, bytes(size))
        assert caught.value.state == PageState.OUTSIDE
    assert memory.regions[0].state is PageState.EXCLUDED
    assert len(memory.regions) == 1
    memory.write(0, b"")
    for call in (memory.mark_zero, memory.exclude):
        with pytest.raises(UsageError):
            call(1, PAGE)
    with pytest.raises(UsageError):
        SparseMemory([(0, 100)])
    with pytest.raises(UsageError):
        SparseMemory([(0, 8192), (4096, 4096)])
    with pytest.raises(UsageError):
        SparseMemory([((1 << 64) - 4096, 8192)])
    with pytest.raises(UsageError):
        SparseMemory([], page_size=1000)


def test_an_overlay_never_changes_its_base() -> None:
    base = SparseMemory([(0, 1 << 20)])
    base.write(0, b"\x11" * PAGE * 3)
    over = SparseMemory.over(base)
    over.write(PAGE, b"\x22" * 8)
    over.exclude(2 * PAGE, PAGE)
    assert base.read(PAGE, 8) == b"\x11" * 8
    assert over.read(PAGE, 16) == b"\x22" * 8 + b"\x11" * 8
    assert [(r.start, r.size, int(r.state)) for r in over.regions] == [
        (0, 2 * PAGE, 2),
        (2 * PAGE, (1 << 20) - 2 * PAGE, 1),
    ]
    assert base.state(2 * PAGE, PAGE) is PageState.PRESENT
    span = over.span(PAGE + 8)
    assert span is not None
    over.write(PAGE + 8, b"\x33" * 8)
    assert span.words[1] == 0x3333333333333333, "a span is a live view"


def test_the_top_page_of_the_address_space() -> None:
    top = (1 << 64) - PAGE
    memory = SparseMemory([(top, PAGE)])
    memory.write(top + 4088, b"lastword")
    assert memory.u64((1 << 64) - 8) == int.from_bytes(b"lastword", "little")
    assert memory.states(np.array([top], np.uint64), PAGE).tolist() == [2]
    assert [(pa, len(piece)) for pa, piece in memory.extents()] == [(top, PAGE)]


def test_a_large_machine_is_cheap() -> None:
    """10,000 memory files of 256 pages in 1 TiB: time and space for what is written only."""
    start = time.process_time()
    memory = SparseMemory([(0, 1 << 40)])
    for i in range(10_000):
        memory.mark_zero((2 * i + 1) << 20, 1 << 20)
        memory.write(i << 21, b"\xd0\x0d\xfe\xed" * 4)
    pfns = np.arange(0, 10_000 * 512, dtype=np.uint64)
    states = memory.states(pfns << np.uint64(12), PAGE)
    assert int((states == 2).sum()) == 10_000 * 257
    assert sum(1 for _ in find_words(memory, 0xEDFE0DD0)) == 10_000
    assert memory.state(0, 1 << 40) is PageState.EXCLUDED
    assert memory.state(1, 1 << 40) is PageState.OUTSIDE
    memory.mark_zero(1 << 39, 1 << 38)
    assert memory.state((1 << 39) + 5, (1 << 38) - 5) is PageState.PRESENT
    with pytest.raises(MemoryFault) as caught:
        memory.read(1 << 39, 1 << 39)
    assert caught.value.address == 3 << 38
    assert time.process_time() - start < 10
