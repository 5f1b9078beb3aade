"""Building device trees byte for byte as the kernel's libfdt does.

KHO, LUO and memblock write a blob in one go (:class:`FdtWriter`, libfdt's sequential write);
KHO from 6.19 on, and kexec on arm64, edit a finished one in place (:class:`FdtEditor`, libfdt's
read-write functions). Both leave traces in the bytes: where the blocks lie, the order of the
strings, a new child in front of older ones, stale bytes in padding. A simulated producer that
leaves the same traces cannot be told from a real one.

The behaviour is that of libfdt 1.6 and later, which Linux 6.16 to 7.3 carry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from abi.fdt import (
    HEADER_SIZE,
    MAGIC,
    Fdt,
    FdtError,
    FdtHeader,
    Node,
    Reservation,
    Tag,
    parse,
)

_U32 = struct.Struct(">I")
_PROPERTY = struct.Struct(">III")
_RESERVATION = struct.Struct(">QQ")
_HEADER = struct.Struct(">10I")
#: Sequential write aligns the reservation map to its entries, packing only to 8 bytes.
_WRITER_HEADER = 48

_Name = bytes | str


def _bytes(name: _Name) -> bytes:
    data = name.encode() if isinstance(name, str) else bytes(name)
    if b"\0" in data:
        raise FdtError(f"a NUL inside the name {data!r}")
    return data


def _aligned(length: int) -> int:
    return length + 3 & ~3


class FdtWriter:
    """libfdt's sequential write: ``fdt_create`` ... ``fdt_finish`` in a buffer of ``size``.

    >>> writer = FdtWriter(4096)
    >>> writer.begin_node("")
    >>> writer.property("compatible", b"kho-v1\\0")
    >>> writer.end_node()
    >>> len(writer.finish())
    107

    Every method raises :class:`~abi.fdt.FdtError` where libfdt returns an error.
    """

    def __init__(self, size: int = 4096) -> None:
        if size < _WRITER_HEADER:
            raise FdtError(f"a buffer of {size} bytes holds no device tree")
        self._size = size
        self._reservations = bytearray()
        self._structure = bytearray()
        # Sequential write grows the strings downwards from the end of the buffer, and refers to
        # them by their distance from it until the end.
        self._strings = b""
        self._references: list[int] = []
        self._depth = 0
        self._blob = b""
        self._finished = False

    def _grow(self, length: int) -> None:
        if self._finished:
            raise FdtError("the device tree is finished")
        used = _WRITER_HEADER + len(self._reservations) + 16 + len(self._structure)
        if used + len(self._strings) + length > self._size:
            raise FdtError(f"no space left in {self._size} bytes", used)

    def reserve(self, address: int, size: int) -> None:
        """Add an entry to the reservation map; only before the first node."""
        if self._structure:
            raise FdtError("reservations come before the first node")
        self._grow(16)
        self._reservations += _RESERVATION.pack(address, size)

    def begin_node(self, name: _Name) -> None:
        """Open a node; the root's name is empty."""
        data = _bytes(name)
        padded = _aligned(len(data) + 1)
        self._grow(4 + padded)
        self._structure += _U32.pack(Tag.BEGIN_NODE) + data.ljust(padded, b"\0")
        self._depth += 1

    def end_node(self) -> None:
        """Close the innermost node."""
        if not self._depth:
            raise FdtError("no node is open")
        self._grow(4)
        self._structure += _U32.pack(Tag.END_NODE)
        self._depth -= 1

    def property(self, name: _Name, value: bytes) -> None:
        """Add a property to the innermost node."""
        if not self._depth:
            raise FdtError("no node is open")
        text = _bytes(name) + b"\0"
        at = self._strings.find(text)
        self._grow(12 + _aligned(len(value)) + (len(text) if at < 0 else 0))
        if at < 0:
            self._strings = text + self._strings
            at = 0
        distance = len(self._strings) - at
        self._references.append(len(self._structure) + 8)
        self._structure += _PROPERTY.pack(Tag.PROP, len(value), distance)
        self._structure += bytes(value).ljust(_aligned(len(value)), b"\0")

    def property_u64(self, name: _Name, value: int, byteorder: str = "little") -> None:
        """Add a 64-bit number in native order, the form of KHO's own properties."""
        order = "<Q" if byteorder == "little" else ">Q"
        self.property(name, struct.pack(order, value))

    def property_string(self, name: _Name, value: _Name) -> None:
        """Add a string with its NUL."""
        self.property(name, _bytes(value) + b"\0")

    def finish(self) -> bytes:
        """Close the tree and return the blob, ``totalsize`` bytes."""
        if self._depth or not self._structure:
            raise FdtError("the tree is not complete")
        self._grow(4)
        self._finished = True
        self._structure += _U32.pack(Tag.END)
        strings = len(self._strings)
        for at in self._references:
            (distance,) = _U32.unpack_from(self._structure, at)
            _U32.pack_into(self._structure, at, strings - distance)
        reservations = bytes(self._reservations) + bytes(16)
        structure_at = _WRITER_HEADER + len(reservations)
        strings_at = structure_at + len(self._structure)
        header = FdtHeader(
            magic=MAGIC,
            totalsize=strings_at + strings,
            off_dt_struct=structure_at,
            off_dt_strings=strings_at,
            off_mem_rsvmap=_WRITER_HEADER,
            version=17,
            last_comp_version=16,
            boot_cpuid_phys=0,
            size_dt_strings=strings,
            size_dt_struct=len(self._structure),
        )
        head = _HEADER.pack(*header).ljust(_WRITER_HEADER, b"\0")
        self._blob = b"".join((head, reservations, self._structure, self._strings))
        return self._blob

    def page(self) -> bytes:
        """The whole buffer after :meth:`finish`: at its end is a stale copy of the strings."""
        if not self._finished:
            raise FdtError("the device tree is not finished")
        stale = self._strings.rjust(self._size, b"\0")
        return self._blob + stale[len(self._blob) :]


class FdtEditor:
    """libfdt's read-write functions on one buffer: ``fdt_open_into`` ... ``fdt_pack``.

    The buffer starts with ``data`` (a blob, with or without the rest of its page) and is
    ``size`` bytes long. Every method raises :class:`~abi.fdt.FdtError` where libfdt returns an
    error, and leaves the buffer as it was then.
    """

    def __init__(self, data: bytes, size: int = 4096) -> None:
        fdt = parse(data)
        header = fdt.header
        reservations, structure = len(fdt.reservations), len(fdt.structure)
        ordered = (
            header.off_mem_rsvmap >= HEADER_SIZE
            and header.off_dt_struct >= header.off_mem_rsvmap + reservations
            and header.off_dt_strings >= header.off_dt_struct + structure
        )
        need = header.totalsize
        if not ordered:
            need = HEADER_SIZE + reservations + structure + len(fdt.strings)
        if need > size:
            raise FdtError(f"{need} bytes do not fit in {size}", 4)
        self._buffer = bytearray(data[:size].ljust(size, b"\0"))
        if not ordered:
            packed = bytes(HEADER_SIZE) + fdt.reservations + fdt.structure + fdt.strings
            self._buffer[: len(packed)] = packed
            at = HEADER_SIZE + reservations
            header = header._replace(
                off_mem_rsvmap=HEADER_SIZE,
                off_dt_struct=at,
                off_dt_strings=at + structure,
                last_comp_version=16,
            )
        self._header = header._replace(
            totalsize=size,
            version=17,
            size_dt_struct=structure,
            size_dt_strings=len(fdt.strings),
        )
        self._store()

    def _store(self) -> None:
        self._buffer[:HEADER_SIZE] = _HEADER.pack(*self._header)

    def blob(self) -> bytes:
        """The blob as it is, ``totalsize`` bytes (all of the buffer until :meth:`pack`)."""
        return bytes(self._buffer[: self._header.totalsize])

    def page(self) -> bytes:
        """The whole buffer, with the stale bytes that follow a packed blob."""
        return bytes(self._buffer)

    def _word(self, offset: int) -> int:
        value: int = _U32.unpack_from(self._buffer, self._header.off_dt_struct + offset)[0]
        return value

    def _next(self, offset: int) -> int:
        """The offset of the tag after the one at ``offset``, inside the structure block."""
        tag = self._word(offset)
        if tag == Tag.BEGIN_NODE:
            start = self._header.off_dt_struct
            return _aligned(self._buffer.index(b"\0", start + offset + 4) - start + 1)
        if tag == Tag.PROP:
            return offset + 12 + _aligned(self._word(offset + 4))
        return offset + 4

    def _name(self, offset: int) -> bytes:
        start = self._header.off_dt_struct + offset + 4
        return bytes(self._buffer[start : self._buffer.index(b"\0", start)])

    def _string(self, offset: int) -> bytes:
        start = self._header.off_dt_strings + offset
        return bytes(self._buffer[start : self._buffer.index(b"\0", start)])

    def _find(self, path: _Name) -> int:
        """The offset of the BEGIN_NODE of a path."""
        offset = 0
        while self._word(offset) == Tag.NOP:
            offset += 4
        for name in _bytes(path).split(b"/"):
            if name:
                found = self._child(offset, name)
                if found is None:
                    raise FdtError(f"no node {name!r}", self._header.off_dt_struct + offset)
                offset = found
        return offset

    def _child(self, parent: int, name: bytes) -> int | None:
        offset, depth = self._next(parent), 0
        while True:
            tag = self._word(offset)
            if tag == Tag.BEGIN_NODE:
                if depth == 0 and self._name(offset) == name:
                    return offset
                depth += 1
            elif tag == Tag.END_NODE:
                depth -= 1
                if depth < 0:
                    return None
            offset = self._next(offset)

    def _property(self, node: int, name: bytes) -> int | None:
        offset = self._next(node)
        while True:
            tag = self._word(offset)
            if tag == Tag.PROP:
                if self._string(self._word(offset + 8)) == name:
                    return offset
            elif tag != Tag.NOP:
                return None
            offset = self._next(offset)

    def _splice(self, at: int, old: int, new: int) -> None:
        """Make room: ``at`` in the buffer, ``old`` bytes become ``new`` (not cleared) ones."""
        end = self._header.off_dt_strings + self._header.size_dt_strings
        if end - old + new > self._header.totalsize:
            raise FdtError(f"no space left in {self._header.totalsize} bytes", at)
        self._buffer[at + new : end - old + new] = self._buffer[at + old : end]

    def _splice_structure(self, offset: int, old: int, new: int) -> None:
        self._splice(self._header.off_dt_struct + offset, old, new)
        self._header = self._header._replace(
            size_dt_struct=self._header.size_dt_struct + new - old,
            off_dt_strings=self._header.off_dt_strings + new - old,
        )
        self._store()

    def _intern(self, name: bytes) -> tuple[int, bool]:
        """The offset of a string, and whether it had to be added."""
        text = name + b"\0"
        start, size = self._header.off_dt_strings, self._header.size_dt_strings
        found = self._buffer.find(text, start, start + size)
        if found >= 0:
            return found - start, False
        self._splice(start + size, 0, len(text))
        self._buffer[start + size : start + size + len(text)] = text
        self._header = self._header._replace(size_dt_strings=size + len(text))
        self._store()
        return size, True

    def add_node(self, parent: _Name, name: _Name) -> None:
        """Add an empty child: behind the parent's properties, before its other children."""
        node, text = self._find(parent), _bytes(name)
        if self._child(node, text) is not None:
            raise FdtError(f"node {text!r} exists", self._header.off_dt_struct + node)
        offset = self._next(node)
        while self._word(offset) in (Tag.PROP, Tag.NOP):
            offset = self._next(offset)
        padded = _aligned(len(text) + 1)
        self._splice_structure(offset, 0, 8 + padded)
        at = self._header.off_dt_struct + offset
        self._buffer[at : at + 8 + padded] = (
            _U32.pack(Tag.BEGIN_NODE) + text.ljust(padded, b"\0") + _U32.pack(Tag.END_NODE)
        )

    def set_property(self, path: _Name, name: _Name, value: bytes) -> None:
        """Change a property in place, or add it in front of the node's others."""
        node, text = self._find(path), _bytes(name)
        offset = self._property(node, text)
        length = len(value)
        if offset is None:
            offset = self._next(node)
            reference, added = self._intern(text)
            try:
                self._splice_structure(offset, 0, 12 + _aligned(length))
            except FdtError:
                if added:
                    size = self._header.size_dt_strings - len(text) - 1
                    self._header = self._header._replace(size_dt_strings=size)
                    self._store()
                raise
            at = self._header.off_dt_struct + offset
            self._buffer[at : at + 12] = _PROPERTY.pack(Tag.PROP, length, reference)
        else:
            self._splice_structure(offset + 12, _aligned(self._word(offset + 4)), _aligned(length))
            at = self._header.off_dt_struct + offset
            self._buffer[at + 4 : at + 8] = _U32.pack(length)
        self._buffer[at + 12 : at + 12 + length] = value

    def delete_property(self, path: _Name, name: _Name) -> bool:
        """Remove a property; False if there is none. Its name stays among the strings."""
        offset = self._property(self._find(path), _bytes(name))
        if offset is None:
            return False
        self._splice_structure(offset, self._next(offset) - offset, 0)
        return True

    def delete_node(self, path: _Name) -> None:
        """Remove a node with all below it."""
        start = self._find(path)
        offset, depth = start, 0
        while True:
            tag = self._word(offset)
            depth += (tag == Tag.BEGIN_NODE) - (tag == Tag.END_NODE)
            offset = self._next(offset)
            if depth == 0:
                break
        self._splice_structure(start, offset - start, 0)

    def pack(self) -> bytes:
        """Close the gaps between the blocks, cut the slack off, and return the blob."""
        header = self._header
        blocks = [
            self._buffer[header.off_mem_rsvmap : self._reservations_end()],
            self._buffer[header.off_dt_struct :][: header.size_dt_struct],
            self._buffer[header.off_dt_strings :][: header.size_dt_strings],
        ]
        structure_at = HEADER_SIZE + len(blocks[0])
        strings_at = structure_at + len(blocks[1])
        packed = b"".join(blocks)
        self._buffer[HEADER_SIZE : HEADER_SIZE + len(packed)] = packed
        self._header = header._replace(
            off_mem_rsvmap=HEADER_SIZE,
            off_dt_struct=structure_at,
            off_dt_strings=strings_at,
            totalsize=strings_at + header.size_dt_strings,
        )
        self._store()
        return self.blob()

    def _reservations_end(self) -> int:
        at = self._header.off_mem_rsvmap
        while any(self._buffer[at : at + 16]):
            at += 16
        return at + 16


def new(
    root: Node | Mapping[bytes, bytes],
    *,
    size: int = 1 << 20,
    reservations: Iterable[Reservation | tuple[int, int]] = (),
) -> Fdt:
    """A tree as sequential write lays it out. ``root`` is a node, or the root's properties.

    :raises FdtError: a name holds a NUL, or the blob exceeds ``size`` bytes.
    """
    writer = FdtWriter(size)
    for address, length in reservations:
        writer.reserve(address, length)

    def write(node: Node) -> None:
        writer.begin_node(node.name)
        for name, value in node.properties.items():
            writer.property(name, value)
        for child in node.children:
            write(child)
        writer.end_node()

    write(root if isinstance(root, Node) else Node(b"", root))
    return parse(writer.finish())
