"""Columns as lines of hexadecimal numbers, without a Python object for each."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64
from inspector.pagetable.columns import LeafColumns, RangeColumns

#: Lines made together, so that their characters stay in the cache.
_LINES: Final = 1 << 13

Bytes = npt.NDArray[np.uint8]

#: The two hexadecimal digits of each byte, in the order in which they are printed.
_PAIRS: Final = np.frombuffer("".join(f"{n:02x}" for n in range(256)).encode(), np.uint16)
_RIGHTS: Final = np.frombuffer(
    "".join(
        ("r" if n & 1 else "-") + ("w" if n & 2 else "-") + ("x" if n & 4 else "-")
        for n in range(8)
    ).encode(),
    np.uint8,
).reshape(8, 3)


def format_leaves(leaves: LeafColumns) -> bytes:
    """Lines ``0x<iova> 0x<pa> 0x<size> 0x<entry>``, numbers without leading zeros."""
    return hex_lines((leaves.iova, leaves.pa, leaves.size, leaves.entry))


def format_ranges(ranges: RangeColumns) -> bytes:
    """Lines ``0x<iova> 0x<pa> 0x<size> rwx``, a right that is not there as ``-``."""
    rights = _RIGHTS[ranges.permissions & 7]
    return hex_lines((ranges.iova, ranges.pa, ranges.size), rights)


def hex_lines(columns: tuple[U64, ...], tail: Bytes | None = None) -> bytes:
    """Lines of hexadecimal numbers, one from each column, and of fixed characters behind."""
    count = len(columns[0])
    parts = []
    for first in range(0, count, _LINES):
        part = slice(first, first + _LINES)
        rest = None if tail is None else tail[part]
        parts.append(_some_lines(tuple(column[part] for column in columns), rest))
    return b"".join(parts)


def _some_lines(columns: tuple[U64, ...], tail: Bytes | None) -> bytes:
    count = len(columns[0])
    widths = [max(1, -(-int(column.max()).bit_length() // 4)) for column in columns]
    least = [max(1, -(-int(column.min()).bit_length() // 4)) for column in columns]
    ragged = widths != least
    width = sum(widths) + 3 * len(columns) + (0 if tail is None else tail.shape[1] + 1)
    lines = np.empty((count, width), np.uint8)
    keep = np.ones((count, width), np.bool_) if ragged else None
    at = 0
    for column, digits, fewest in zip(columns, widths, least, strict=True):
        lines[:, at] = ord("0")
        lines[:, at + 1] = ord("x")
        at += 2
        lines[:, at : at + digits] = _digits(column, digits)
        if keep is not None:
            for place in range(digits - fewest):
                bit = np.uint64(4 * (digits - 1 - place))
                np.not_equal(column >> bit, 0, out=keep[:, at + place])
        at += digits
        lines[:, at] = ord(" ")
        at += 1
    if tail is not None:
        lines[:, at : at + tail.shape[1]] = tail
        at += tail.shape[1] + 1
    lines[:, at - 1] = ord("\n")
    return lines.tobytes() if keep is None else lines[keep].tobytes()


def _digits(column: U64, digits: int) -> Bytes:
    """The last ``digits`` hexadecimal digits of numbers."""
    if not column.strides[0]:
        one = np.frombuffer(f"{int(column[0]):0{digits}x}".encode(), np.uint8)
        return np.broadcast_to(one, (len(column), digits))
    pairs = (digits + 1) // 2
    octets = column.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - pairs :]
    both = _PAIRS[octets].view(np.uint8).reshape(-1, 2 * pairs)
    return both[:, 2 * pairs - digits :]
