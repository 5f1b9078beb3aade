"""Flattened device trees (devicetree specification 0.4, chapter 5): parse and rebuild.

KHO's root, memblock's blob, the LUO blob of 6.19 to 7.1 and the device tree that arm64 boots
from are FDTs. Here the blob *is* the ABI, so a parsed blob is kept as the blocks it consists of
and :meth:`Fdt.build` returns the very bytes that were parsed: NOP tags, padding, the order
and position of blocks, shared strings and slack included. The tree (:attr:`Fdt.root`) is a view
of what those bytes say, as the kernel's libfdt reads them.

What breaks the framing raises :class:`FdtError`; what libfdt reads over (a property without a
usable name, a second property of the same name, ...) is listed in :attr:`Fdt.anomalies`.
Parsing takes linear time and memory, and is bounded by :class:`Limits`.

Building blobs as libfdt builds them is :mod:`abi.fdt_write`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from abi.fdt_structure import (
    DEFAULT_LIMITS,
    Anomaly,
    AnomalyKind,
    Limits,
    Node,
    Tag,
    Token,
    TreeParser,
    cell_counts,
    decode_tokens,
    encode_token,
)
from abi.fdt_values import FdtError, cells, native_u32, native_u64, stringlist

__all__ = [
    "DEFAULT_LIMITS",
    "HEADER_SIZE",
    "MAGIC",
    "MAGIC_BYTES",
    "Anomaly",
    "AnomalyKind",
    "Fdt",
    "FdtError",
    "FdtHeader",
    "Limits",
    "Node",
    "Reservation",
    "Tag",
    "Token",
    "cell_counts",
    "cells",
    "native_u32",
    "native_u64",
    "parse",
    "peek",
    "stringlist",
]

MAGIC = 0xD00DFEED
MAGIC_BYTES = b"\xd0\x0d\xfe\xed"
HEADER_SIZE = 40
FIRST_SUPPORTED_VERSION = 2
LAST_SUPPORTED_VERSION = 17

_HEADER = struct.Struct(">10I")
_RESERVATION = struct.Struct(">QQ")
_INT_MAX = 0x7FFF_FFFF


class FdtHeader(NamedTuple):
    """The ten big-endian words at the start (fewer in versions before 17)."""

    magic: int
    totalsize: int
    off_dt_struct: int
    off_dt_strings: int
    off_mem_rsvmap: int
    version: int
    last_comp_version: int
    boot_cpuid_phys: int
    size_dt_strings: int
    size_dt_struct: int

    @property
    def length(self) -> int:
        """Bytes that the header itself takes in this version."""
        if self.version >= 17:
            return 40
        return 36 if self.version >= 3 else 32

    def check(self) -> None:
        """Raise :class:`FdtError` where libfdt's ``fdt_check_header`` refuses."""
        if self.magic != MAGIC:
            raise FdtError(f"no device tree: magic is {self.magic:#010x}", 0)
        if self.version < FIRST_SUPPORTED_VERSION:
            raise FdtError(f"device tree version {self.version} is too old", 20)
        if self.last_comp_version > LAST_SUPPORTED_VERSION:
            raise FdtError(f"device tree needs a reader of version {self.last_comp_version}", 24)
        if self.version < self.last_comp_version:
            raise FdtError(
                f"version {self.version} is below last_comp_version {self.last_comp_version}", 20
            )
        total = self.totalsize
        if not self.length <= total <= _INT_MAX:
            raise FdtError(f"totalsize {total} is impossible", 4)
        self._check_block("reservation map", self.off_mem_rsvmap, 0, 16)
        self._check_block(
            "structure block",
            self.off_dt_struct,
            self.size_dt_struct if self.version >= 17 else 0,
            8,
        )
        self._check_block(
            "strings block",
            self.off_dt_strings,
            self.size_dt_strings if self.version >= 3 else 0,
            12,
        )

    def _check_block(self, what: str, offset: int, size: int, where: int) -> None:
        if not self.length <= offset <= self.totalsize or offset + size > self.totalsize:
            raise FdtError(
                f"{what} at {offset:#x}, {size} bytes, lies outside the {self.totalsize}-byte blob",
                where,
            )


class Reservation(NamedTuple):
    """One entry of the memory reservation map."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Fdt:
    """A device tree blob, whole.

    ``reservations``, ``structure`` and ``strings`` are the blocks as they lie in the blob (the
    structure block with whatever follows its END tag), ``gaps`` the bytes outside of header and
    blocks with their offsets. Bytes after ``header.totalsize`` that were handed to :func:`parse`
    are the last gap.
    """

    header: FdtHeader
    root: Node
    reservations: bytes
    structure: bytes
    strings: bytes
    gaps: tuple[tuple[int, bytes], ...] = ()
    anomalies: tuple[Anomaly, ...] = ()

    def build(self) -> bytes:
        """The blob. Equals the parsed bytes unless a part was replaced.

        :raises FdtError: a replaced part does not fit at the place that the header gives it.
        """
        header = self.header
        end = header.totalsize
        if self.gaps:
            last, tail = self.gaps[-1]
            end = max(end, last + len(tail))
        out = bytearray(end)
        # Blocks may overlap in a hostile blob. They carry the same bytes then, so that the
        # order of writing does not matter.
        for offset, block in (
            *self.gaps,
            (header.off_mem_rsvmap, self.reservations),
            (header.off_dt_struct, self.structure),
            (header.off_dt_strings, self.strings),
            (0, _HEADER.pack(*header)[: header.length]),
        ):
            if offset + len(block) > end:
                raise FdtError(f"{len(block)} bytes at {offset:#x} do not fit in {end}", offset)
            out[offset : offset + len(block)] = block
        return bytes(out)

    @property
    def blob(self) -> bytes:
        """The blob without the bytes that follow ``totalsize``."""
        return self.build()[: self.header.totalsize]

    @property
    def reserved(self) -> tuple[Reservation, ...]:
        """The memory reservation map, without its terminator."""
        whole = len(self.reservations) // 16 * 16
        entries = [Reservation(*e) for e in _RESERVATION.iter_unpack(self.reservations[:whole])]
        if entries and entries[-1] == (0, 0):
            entries.pop()
        return tuple(entries)

    def node(self, path: bytes | str) -> Node | None:
        """The node at an absolute path such as ``/LUO``; unit addresses are part of the name."""
        if isinstance(path, str):
            path = path.encode()
        node: Node | None = self.root
        for name in path.split(b"/"):
            if node is None:
                return None
            if name:
                node = node.child(name)
        return node

    def tokens(self) -> tuple[Token, ...]:
        """The structure block tag by tag, up to and including END."""
        return tuple(decode_tokens(self.structure, self.header.version))

    def with_tokens(self, tokens: Iterable[Token]) -> Fdt:
        """A copy whose structure block is made of these tags, END's tail unchanged.

        The blob is laid out anew only as far as needed: what lies behind the structure block
        moves by the difference in length.
        """
        old = self.tokens()
        tail = self.structure[old[-1].offset + 4 :]
        block = b"".join(map(encode_token, tokens)) + tail
        header = self.header
        delta = len(block) - len(self.structure)
        start = header.off_dt_struct

        def moved(offset: int) -> int:
            return offset + delta if offset > start else offset

        header = header._replace(
            totalsize=header.totalsize + delta,
            off_dt_strings=moved(header.off_dt_strings),
            off_mem_rsvmap=moved(header.off_mem_rsvmap),
            size_dt_struct=len(block) if header.version >= 17 else header.size_dt_struct,
        )
        gaps = tuple((moved(offset), data) for offset, data in self.gaps)
        return parse(replace(self, header=header, structure=block, gaps=gaps).build())


def peek(data: bytes | bytearray | memoryview) -> FdtHeader | None:
    """The header, if these (at least 40) bytes start a plausible device tree; for scans."""
    if len(data) < HEADER_SIZE or data[:4] != MAGIC_BYTES:
        return None
    header = FdtHeader(*_HEADER.unpack_from(data))
    try:
        header.check()
    except FdtError:
        return None
    return header


def parse(
    data: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS, *, salvage: bool = False
) -> Fdt:
    """Parse a blob, which may be followed by other bytes (the rest of its page).

    ``salvage``: of a structure block that breaks off, or exceeds a budget, what lies before is
    returned with the anomaly CUT_SHORT, if there is a root node. libfdt never reads further than
    it must either. Such a tree has no :meth:`Fdt.tokens`.

    :raises FdtError: header refused by libfdt, blob cut short, broken structure block, or a
        budget of ``limits`` exceeded.
    """
    if len(data) < 4 or data[:4] != MAGIC_BYTES:
        raise FdtError("no device tree: the magic number is missing", 0)
    if len(data) < HEADER_SIZE:
        raise FdtError(f"device tree header cut short at {len(data)} bytes", len(data))
    header = FdtHeader(*_HEADER.unpack_from(data))
    header.check()
    total = header.totalsize
    if max(total, len(data)) > limits.size:
        raise FdtError(
            f"device tree of {total} bytes in {len(data)} exceeds the limit of {limits.size}", 4
        )
    if len(data) < total:
        raise FdtError(f"device tree of {total} bytes cut short at {len(data)}", len(data))
    blob = bytes(data)

    anomalies: list[Anomaly] = []
    reservations = _reservation_block(blob, header, limits, anomalies)
    start = header.off_dt_struct
    structure = blob[start : start + header.size_dt_struct if header.version >= 17 else total]
    start = header.off_dt_strings
    strings = blob[start : start + header.size_dt_strings if header.version >= 3 else total]
    parser = TreeParser(
        (header.off_dt_struct, structure),
        (header.off_dt_strings, strings),
        header.version,
        limits,
        anomalies,
        salvage,
    )
    root, end = parser.run()
    if header.version < 17:  # no length in the header: the block ends with its END tag
        structure = structure[:end]
    gaps = _gaps(blob, header, reservations, structure, strings, anomalies)
    return Fdt(header, root, reservations, structure, strings, gaps, tuple(anomalies))


def _reservation_block(
    blob: bytes, header: FdtHeader, limits: Limits, anomalies: list[Anomaly]
) -> bytes:
    start = position = header.off_mem_rsvmap
    last = header.totalsize - 16
    while position <= last:
        entry = blob[position : position + 16]
        position += 16
        if entry == b"\0" * 16:
            break
        if position - start > 16 * limits.reservations:
            raise FdtError(f"more than {limits.reservations} memory reservations", start)
    else:
        anomalies.append(
            Anomaly(
                AnomalyKind.RESERVATIONS_UNTERMINATED, start, "reservation map without terminator"
            )
        )
    return blob[start:position]


def _gaps(
    blob: bytes,
    header: FdtHeader,
    reservations: bytes,
    structure: bytes,
    strings: bytes,
    anomalies: list[Anomaly],
) -> tuple[tuple[int, bytes], ...]:
    gaps: list[tuple[int, bytes]] = []
    at = header.length
    for offset, block in sorted(
        (
            (header.off_mem_rsvmap, reservations),
            (header.off_dt_struct, structure),
            (header.off_dt_strings, strings),
        ),
        key=lambda item: (item[0], len(item[1])),
    ):
        if offset > at:
            gaps.append((at, blob[at:offset]))
        elif offset < at and block:
            anomalies.append(
                Anomaly(AnomalyKind.OVERLAPPING_BLOCKS, offset, f"blocks overlap at {offset:#x}")
            )
        at = max(at, offset + len(block))
    total = header.totalsize
    if at < total:
        gaps.append((at, blob[at:total]))
    if total < len(blob):
        gaps.append((total, blob[total:]))
    return tuple(gaps)
