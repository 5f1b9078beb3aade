"""Property values of the small clients: reserve_mem and the self test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi import kho_test, memblock, memfd
from abi.errors import CodecError
from abi.schema import PAGE_SIZES


@given(st.integers(0, (1 << 64) - 1))
def test_reserve_mem_values(value: int) -> None:
    assert memblock.decode(memblock.encode(value)) == value
    assert memblock.encode(value)[0] == value & 0xFF


@pytest.mark.parametrize("value", [b"", bytes(7), bytes(16)])
def test_reserve_mem_values_of_the_wrong_size(value: bytes) -> None:
    with pytest.raises(CodecError, match=f"has {len(value)} bytes, not 8"):
        memblock.decode(value)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(frame=st.integers(0, (1 << 40) - 1), order=st.integers(0, 20))
def test_folios_of_the_self_test(page_size: int, frame: int, order: int) -> None:
    item = kho_test.encode_folio(frame * page_size, order)
    assert kho_test.decode_folio(item, page_size) == (frame * page_size, order)


def test_sum_of_rfc_1071() -> None:
    """The example of RFC 1071, whose 0xddf2 is byte-swapped on a little-endian machine."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert kho_test.partial_sum(data) == 0xF2DD


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_sum_in_pieces(first: bytes, second: bytes) -> None:
    """What the kernel does: the sum of one folio is the start of the next."""
    first, second = first[: len(first) & ~1], second[: len(second) & ~1]
    in_pieces = kho_test.partial_sum(second, kho_test.partial_sum(first))
    assert in_pieces % 0xFFFF == kho_test.partial_sum(first + second) % 0xFFFF
    unfolded = sum(int.from_bytes(first[i : i + 2], "little") for i in range(0, len(first), 2))
    assert kho_test.partial_sum(b"", unfolded) == kho_test.partial_sum(first)


def test_names_of_seals() -> None:
    assert sum(memfd.SEALS.values()) == memfd.MEMFD_LUO_ALL_SEALS
    assert memfd.SEAL_NAMES == {
        "seal": 1, "shrink": 2, "grow": 4, "write": 8, "future-write": 16, "exec": 32,
    }  # fmt: skip
