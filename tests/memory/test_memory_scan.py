"""Searches against the plainest possible ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errors import UsageError
from inspector.memory import PhysicalMemory, Regions, find_bytes, find_words, scan
from inspector.memory.base import U8Array, U64Array
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments


class Pieces(PhysicalMemory):
    """An image that is nothing but extents."""

    def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
        self.pieces = pieces

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        for pa, data in self.pieces:
            yield pa, memoryview(data)

    @property
    def regions(self) -> Regions:
        raise NotImplementedError

    def read(self, pa: int, size: int) -> bytes:
        raise NotImplementedError

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        raise NotImplementedError

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        raise NotImplementedError


extents = st.lists(
    st.tuples(st.integers(0, 12), st.binary(min_size=1, max_size=60)), min_size=1, max_size=6
)


def laid_out(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    at, out = 0, []
    for gap, data in parts:
        out.append((at + gap, data))
        at += gap + len(data)
    return out


few = st.sampled_from([b"\0", b"\1", b"ab", b"abab", b"a"])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(few, max_size=20).map(b"".join)), max_size=6),
    st.lists(few, min_size=1, max_size=4).map(b"".join),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 24),
)
@settings(max_examples=400, deadline=None)
def test_bytes(parts: list[tuple[int, bytes]], pattern: bytes, align: int, chunk: int) -> None:
    pieces = [(pa, data) for pa, data in laid_out(parts) if data]
    if not pattern.strip(b"\0"):
        return
    memory: dict[int, int] = {}
    for pa, data in pieces:
        memory.update({pa + i: value for i, value in enumerate(data)})
    want = [
        pa
        for pa in sorted(memory)
        if pa % align == 0 and all(memory.get(pa + i) == v for i, v in enumerate(pattern))
    ]
    size = scan._CHUNK
    scan._CHUNK = chunk
    try:
        assert list(find_bytes(Pieces(pieces), pattern, align)) == want
    finally:
        scan._CHUNK = size


@given(
    extents,
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([8, 16, 32]),
    st.integers(0, 31),
    st.sampled_from([8, 16, 4096]),
)
@settings(max_examples=300, deadline=None)
def test_words(
    parts: list[tuple[int, bytes]], width: int, stride: int, offset: int, chunk: int
) -> None:
    pieces, offset = laid_out(parts), offset % stride
    places = [
        (pa + i, int.from_bytes(data[i : i + width], "little"))
        for pa, data in pieces
        for i in range(len(data) - width + 1)
        if (pa + i) % stride == offset
    ]
    size = scan._CHUNK
    scan._CHUNK = chunk
    try:
        for magic in {value for _, value in places if value} | {1}:
            want = [at for at, value in places if value == magic]
            got = find_words(Pieces(pieces), magic, stride, width=width, offset=offset)
            assert list(got) == want
    finally:
        scan._CHUNK = size


def test_boot_params_magic_at_its_odd_place() -> None:
    data = bytearray(16 * 4096)
    data[5 * 4096 + 0x202 : 5 * 4096 + 0x206] = b"HdrS"
    table = from_segments([Segment(1 << 20, (1 << 20) + len(data) - 1, Kind.STORED, 0)])
    memory = MappedMemory(table, memoryview(bytes(data)))
    magic = int.from_bytes(b"HdrS", "little")
    assert list(find_words(memory, magic, 4096, offset=0x202)) == [(1 << 20) + 0x5202]


def test_progress_adds_up_to_the_bytes() -> None:
    pieces = [(0, b"x" * 5000), (8192, b"y" * 100)]
    for search in (
        lambda told: find_words(Pieces(pieces), 5, progress=told),
        lambda told: find_bytes(Pieces(pieces), b"none", progress=told),
    ):
        steps: list[int] = []
        assert list(search(steps.append)) == []
        assert sum(steps) == 5100


def test_wrong_calls() -> None:
    none = Pieces([])
    for arguments in ((0, 4096), (1 << 32, 4096), (5, 100), (5, 2)):
        with pytest.raises(UsageError):
            list(find_words(none, *arguments))
    for pattern, align in ((b"", 1), (b"\0\0", 1), (b"x", 0), (b"x", 3)):
        with pytest.raises(UsageError):
            list(find_bytes(none, pattern, align))


def test_overlapping_matches() -> None:
    data = b"aaaa" * 3
    assert list(find_bytes(Pieces([(0, data)]), b"aa")) == list(range(11))
    assert list(find_bytes(Pieces([(7, data)]), b"aa", 4)) == [8, 12, 16]
