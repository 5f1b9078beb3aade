"""Radix keys, cutting of ranges and runs of bits against naive references."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import registry
from abi.memory_map import (
    RadixGeometry,
    bit_indices,
    bit_of_phys,
    bitmap_edges,
    bitmap_runs,
    cut_range,
    cut_ranges,
    phys_of_bits,
    top_bits,
    trailing_zeros,
)
from abi.schema import PAGE_SIZES

K4, K16, K64 = PAGE_SIZES
U64 = npt.NDArray[np.uint64]


def u64(values: list[int]) -> U64:
    return np.array(values, np.uint64)


@st.composite
def blocks(draw: st.DrawFn, page_size: int) -> tuple[int, int]:
    """(physical address, order) of a block that can exist."""
    shift = page_size.bit_length() - 1
    order = draw(st.integers(0, 64 - shift))
    return draw(st.integers(0, (1 << (64 - shift - order)) - 1)) << (shift + order), order


# -- radix tree -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page_size", "interim", "depth", "leaf_bits", "table_bits", "width"),
    [
        (K4, False, 6, 15, 9, 53),
        (K16, False, 5, 17, 11, 51),
        (K64, False, 4, 19, 13, 49),
        (K4, True, 6, 15, 9, 53),
        (K16, True, 4, 17, 11, 51),
        (K64, True, 4, 19, 13, 49),
    ],
)
def test_geometry(
    page_size: int, interim: bool, depth: int, leaf_bits: int, table_bits: int, width: int
) -> None:
    shape = RadixGeometry(page_size, interim)
    assert shape.depth == depth
    assert shape.leaf_bits == leaf_bits
    assert shape.table_bits == table_bits
    assert shape.key_width == width
    assert 1 << shape.leaf_bits == 8 * page_size
    assert 1 << shape.table_bits == page_size // 8
    assert (shape.reach >= width) == (not (interim and page_size == K16))


def test_geometry_is_what_the_registry_says() -> None:
    for generation, interim in (("kho-v2", True), ("kho-v3", False), ("kho-v4", False)):
        entry = registry.get("kho", generation)
        for page_size in PAGE_SIZES:
            shape = RadixGeometry(page_size, interim)
            assert entry.constant("KHO_TREE_MAX_DEPTH", page_size) == shape.depth
            assert entry.constant("KHO_BITMAP_SIZE_LOG2", page_size) == shape.leaf_bits
            assert entry.constant("KHO_TABLE_SIZE_LOG2", page_size) == shape.table_bits
            assert entry.constant("KHO_ORDER_0_LOG2", page_size) == shape.key_width - 1


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_key_examples(page_size: int) -> None:
    shape = RadixGeometry(page_size)
    shift = page_size.bit_length() - 1
    assert shape.key(0, 0) == 1 << (64 - shift)
    assert shape.key(5 * page_size, 0) == 1 << (64 - shift) | 5
    assert shape.key(6 * page_size, 1) == 1 << (63 - shift) | 3
    assert shape.decode(1) == (64 - shift, 0)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(data=st.data())
def test_key_round_trip(page_size: int, data: st.DataObject) -> None:
    shape = RadixGeometry(page_size)
    listed = data.draw(st.lists(blocks(page_size), max_size=20))
    keys = [shape.key(pa, order) for pa, order in listed]
    assert [shape.decode(key) for key in keys] == [(order, pa) for pa, order in listed]
    assert all(key < 1 << shape.key_width for key in keys)
    addresses = u64([pa for pa, _ in listed])
    orders = np.array([order for _, order in listed], np.uint8)
    assert shape.key(addresses, orders).tolist() == keys
    decoded, decoded_orders = shape.decode_keys(u64(keys))
    assert decoded.tolist() == addresses.tolist()
    assert decoded_orders.tolist() == orders.tolist()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(keys=st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_decode_refuses_what_is_no_key(page_size: int, keys: list[int]) -> None:
    shape = RadixGeometry(page_size)
    addresses, orders = shape.decode_keys(u64(keys))
    for key, pa, order in zip(keys, addresses.tolist(), orders.tolist(), strict=True):
        if 0 < key < 1 << shape.key_width:
            assert shape.decode(key) == (order, pa)
        else:
            assert (order, pa) == (255, 0)
            with pytest.raises(ValueError, match="is no key"):
                shape.decode(key)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(
    near=st.lists(st.tuples(st.integers(0, 66), st.integers(-3, 3)), max_size=12),
    far=st.lists(st.integers(0, (1 << 64) - 1), max_size=6),
)
def test_runs_of_keys(page_size: int, near: list[tuple[int, int]], far: list[int]) -> None:
    """A run gives what its keys give one by one; runs are drawn to lie around marker bits."""
    shape = RadixGeometry(page_size)
    ends = {(1 << bit) + by for bit, by in near} | set(far)
    borders = sorted(b for b in ends if 0 <= b < 1 << 64)
    borders = borders[: len(borders) // 2 * 2]
    runs = list(zip(borders[0::2], borders[1::2], strict=True))
    starts, counts, orders = shape.decode_runs(
        u64([low for low, _ in runs]), u64([high for _, high in runs])
    )
    pieces = []
    for low, high in runs:
        inside = [1 << bit for bit in range(shape.key_width + 1) if low < 1 << bit < high]
        pieces += list(pairwise([low, *inside, high]))
    assert counts.tolist() == [high - low for low, high in pieces]
    addresses, expected = shape.decode_keys(u64([low for low, _ in pieces]))
    assert starts.tolist() == addresses.tolist()
    assert orders.tolist() == expected.tolist()
    last, same = shape.decode_keys(u64([high - 1 for _, high in pieces]))
    assert orders.tolist() == same.tolist()
    for i, order in enumerate(orders.tolist()):
        if order != 255:
            assert int(last[i]) == int(starts[i]) + (int(counts[i]) - 1) * (page_size << order)


@pytest.mark.parametrize("interim", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(data=st.data())
def test_slots_make_up_the_key(page_size: int, interim: bool, data: st.DataObject) -> None:
    """Walking down by index() and back up by shift() gives the key, as far as the tree reaches."""
    shape = RadixGeometry(page_size, interim)
    key = shape.key(*data.draw(blocks(page_size)))
    rebuilt = sum(shape.index(key, level) << shape.shift(level) for level in range(shape.depth))
    assert rebuilt == key & (1 << shape.reach) - 1
    for level in range(shape.depth):
        bits = shape.table_bits if level else shape.leaf_bits
        assert shape.index(key, level) < 1 << bits
        assert shape.index(u64([key]), level).tolist() == [shape.index(key, level)]


def test_interim_16k_loses_the_marker_of_order_0() -> None:
    """Two blocks of kho-v2 with 16K pages lie in the same bit: the defect of that revision."""
    interim, fixed = RadixGeometry(K16, interim=True), RadixGeometry(K16)
    frame = 1 << 49
    small, large = interim.key(frame * K16, 0), interim.key(0, 1)
    assert small != large

    def path(shape: RadixGeometry, key: int) -> list[int]:
        return [shape.index(key, level) for level in range(shape.depth)]

    assert path(interim, small) == path(interim, large)
    assert path(fixed, small) != path(fixed, large)
    for page_size in (K4, K64):
        assert RadixGeometry(page_size, interim=True).depth == RadixGeometry(page_size).depth


@given(st.lists(st.integers(0, (1 << 64) - 1)))
def test_bit_positions(values: list[int]) -> None:
    assert top_bits(u64(values)).tolist() == [v.bit_length() - 1 for v in values]
    lowest = [(v & -v).bit_length() - 1 if v else 64 for v in values]
    assert trailing_zeros(u64(values)).tolist() == lowest


@pytest.mark.parametrize("bit", range(64))
def test_bit_positions_at_every_bit(bit: int) -> None:
    values = [1 << bit, (1 << bit + 1) - 1, (1 << 64) - (1 << bit)]
    assert top_bits(u64(values)).tolist() == [bit, bit, 63]
    assert trailing_zeros(u64(values)).tolist() == [bit, 0, bit]


# -- ranges -----------------------------------------------------------------------------------


def naive_cut(frame: int, count: int, nodes: list[int] | None) -> list[tuple[int, int]]:
    """Try orders from the largest down: aligned, fits, on one node."""
    found = []
    while count:
        order = next(
            order
            for order in range(64, -1, -1)
            if frame % (1 << order) == 0
            and 1 << order <= count
            and (nodes is None or nodes[frame] == nodes[frame + (1 << order) - 1])
        )
        found.append((frame, order))
        frame, count = frame + (1 << order), count - (1 << order)
    return found


@st.composite
def node_maps(draw: st.DrawFn) -> list[int]:
    """The NUMA node of each of 600 frames: a few stretches, interleaved at will."""
    borders = sorted(draw(st.sets(st.integers(1, 599), max_size=8)))
    edges = [0, *borders, 600]
    return [
        node for low, high in pairwise(edges) for node in [draw(st.integers(0, 2))] * (high - low)
    ]


ranges = st.tuples(st.integers(0, 300), st.integers(0, 300))


@given(listed=st.lists(ranges, max_size=6), nodes=st.none() | node_maps())
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_cut(page_size: int, listed: list[tuple[int, int]], nodes: list[int] | None) -> None:
    expected = [
        (frame * page_size, order, number)
        for number, (first, count) in enumerate(listed)
        for frame, order in naive_cut(first, count, nodes)
    ]
    if nodes is None:
        node_of = nodes_of = None
    else:
        table = np.array(nodes)

        def node_of(pa: int) -> int:
            return nodes[pa // page_size]

        def nodes_of(pa: U64) -> npt.NDArray[np.int64]:
            return table[(pa // np.uint64(page_size)).astype(np.int64)]

    one_by_one = [
        (pa, order, number)
        for number, (first, count) in enumerate(listed)
        for pa, order in cut_range(first * page_size, count, page_size, node_of)
    ]
    assert one_by_one == expected
    columns = cut_ranges(
        u64([first * page_size for first, _ in listed]),
        u64([count for _, count in listed]),
        page_size,
        nodes_of,
    )
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == expected


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 40))
def test_cut_covers_the_range(frame: int, count: int) -> None:
    at = frame * K4
    for pa, order in cut_range(frame * K4, count, K4):
        assert pa == at
        assert pa % (K4 << order) == 0
        at += K4 << order
    assert at == (frame + count) * K4


def test_cut_of_nothing() -> None:
    assert cut_range(0x1000, 0, K4) == []
    assert [c.tolist() for c in cut_ranges(u64([]), u64([]), K4)] == [[], [], []]


# -- bitmaps ----------------------------------------------------------------------------------


@st.composite
def bitmaps(draw: st.DrawFn) -> U64:
    """Words in stretches: empty, full, repeated, random."""
    parts = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, (1 << 64) - 1, 0x5555555555555555, 1, 1 << 63])
                | st.integers(0, (1 << 64) - 1),
                st.integers(1, 80),
            ),
            max_size=8,
        )
    )
    return u64([word for word, count in parts for _ in range(count)])


def naive_runs(words: U64, carry: bool) -> list[tuple[int, int]]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little").tolist()
    found, start = [], -1 if carry and bits and bits[0] else None
    for i, bit in enumerate(bits):
        if bit and start is None:
            start = i
        elif not bit and start is not None:
            found.append((start, i))
            start = None
    return found if start is None else [*found, (start, len(bits))]


@given(words=bitmaps(), carry=st.booleans())
def test_runs(words: U64, carry: bool) -> None:
    starts, ends = bitmap_runs(words, carry)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == naive_runs(words, carry)


@settings(max_examples=8)
@given(seed=st.integers(0, 1 << 30), density=st.sampled_from([0.001, 0.02, 0.3, 0.5, 0.99]))
def test_runs_of_large_bitmaps(seed: int, density: float) -> None:
    """More words than are worked on at a time."""
    rng = np.random.default_rng(seed)
    words = np.packbits(rng.random(64 * 40_000) < density, bitorder="little").view(np.uint64)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    change = np.flatnonzero(np.diff(bits, prepend=0, append=0))
    starts, ends = bitmap_runs(words)
    assert (starts == change[0::2]).all()
    assert (ends == change[1::2]).all()
    assert (bit_indices(words) == np.flatnonzero(bits)).all()


@given(words=bitmaps(), at=st.integers(0, 640))
def test_runs_in_two_pieces(words: U64, at: int) -> None:
    """The carry makes one run out of the two halves of a run."""
    at = min(at, len(words))
    first, second = words[:at], words[at:]
    carry = bool(at and words[at - 1] >> np.uint64(63))
    edges = np.concatenate((bitmap_edges(first), bitmap_edges(second, carry) + 64 * at))
    assert edges.tolist() == bitmap_edges(words).tolist()


@given(words=bitmaps())
def test_bit_indices(words: U64) -> None:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert bit_indices(words).tolist() == np.flatnonzero(bits).tolist()


def test_runs_leave_the_words_alone() -> None:
    words = u64([5, 0, (1 << 64) - 1])
    words.flags.writeable = False
    starts, ends = bitmap_runs(words[::1])
    assert starts.tolist() == [0, 2, 128]
    assert ends.tolist() == [1, 3, 192]
    assert bitmap_runs(words[::2])[0].tolist() == [0, 2, 64]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(data=st.data())
def test_bits_of_chunk_lists(page_size: int, data: st.DataObject) -> None:
    shift = page_size.bit_length() - 1
    order = data.draw(st.integers(0, 20))
    pa = data.draw(st.integers(0, (1 << (52 - shift - order)) - 1)) << (shift + order)
    for bitmap_bits in (4096, 8 * page_size):
        start, bit = bit_of_phys(pa, order, page_size, bitmap_bits)
        assert start % (bitmap_bits << (order + shift)) == 0
        assert 0 <= bit < bitmap_bits
        assert phys_of_bits(start, order, bit, page_size) == pa
        column = phys_of_bits(start, order, np.array([bit, bit]), page_size)
        assert column.tolist() == [pa, pa]
