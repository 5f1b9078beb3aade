"""Property values of flattened device trees: strings, native numbers, big-endian cells."""

from __future__ import annotations

from typing import Literal

from abi.errors import CodecError


class FdtError(CodecError):
    """The bytes are no device tree that libfdt would read; ``offset`` is inside the blob."""


def stringlist(value: bytes) -> tuple[bytes, ...]:
    """The strings of a ``compatible``-like value.

    :raises FdtError: the last string has no NUL.
    """
    if not value:
        return ()
    if value[-1]:
        raise FdtError("string list without a final NUL", len(value))
    return tuple(value[:-1].split(b"\0"))


def native_u64(value: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """One 64-bit number in the producer's byte order, as KHO, LUO and memblock write them.

    :raises FdtError: the value is not 8 bytes long.
    """
    if len(value) != 8:
        raise FdtError(f"a 64-bit property has {len(value)} bytes", 0)
    return int.from_bytes(value, byteorder)


def native_u32(value: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """One 32-bit number in the producer's byte order.

    :raises FdtError: the value is not 4 bytes long.
    """
    if len(value) != 4:
        raise FdtError(f"a 32-bit property has {len(value)} bytes", 0)
    return int.from_bytes(value, byteorder)


def cells(value: bytes, *groups: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of big-endian cells, in rows: ``cells(reg, address_cells, size_cells)``.

    Each group is the number of 32-bit cells of one number (0 to 4).

    :raises FdtError: the length is no multiple of a row.
    """
    row = 4 * sum(groups)
    if not row or any(not 0 <= group <= 4 for group in groups):
        raise FdtError(f"cell counts {groups} make no sense", 0)
    if len(value) % row:
        raise FdtError(f"{len(value)} bytes are no rows of {row}", len(value) // row * row)
    rows = []
    for start in range(0, len(value), row):
        numbers = []
        at = start
        for group in groups:
            numbers.append(int.from_bytes(value[at : at + 4 * group], "big"))
            at += 4 * group
        rows.append(tuple(numbers))
    return tuple(rows)
