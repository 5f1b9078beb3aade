"""Device trees as a kernel reads them: with libfdt, which looks at no more than it is asked for.

:mod:`abi.fdt` reads a tree as a whole and says everything that is wrong with it. libfdt walks
from the root to what is wanted and stops there; damage behind that point does no harm, and
neither do a second root or a size that only the header knows. Here are the calls that the
consumers of the hand-over make, with the checks of libfdt (all of them: ``FDT_ASSUME_MASK`` 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from abi.fdt import MAGIC_BYTES, FdtError

_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_INT_MAX = (1 << 31) - 1
#: The oldest and the newest format that libfdt reads.
_FIRST_VERSION, _LAST_VERSION = 2, 17
#: Header size by version; what is older than 2 is not read.
_HEADER_SIZES = {2: 32, 3: 36, **dict.fromkeys(range(4, 17), 36)}
_HEADER_SIZE = 40
#: A walk this long, or a name this long, has no end: nobody makes such trees.
_MAX_STEPS = 1 << 16
_MAX_NAME = 1 << 16
#: No property that anybody asks for is larger.
_MAX_VALUE = 1 << 21
_PIECE = 64

Read = Callable[[int, int], bytes]


class Blob:
    """A flattened tree in memory that may be damaged.

    ``read(address, size)`` returns the bytes at a physical address, and raises what it raises
    where there is no memory; that passes through all calls.
    """

    def __init__(self, read: Read, address: int) -> None:
        """Raises FdtError for what libfdt does not take for a tree at all."""
        self._memory, self._base = read, address
        head = self._read(0, _HEADER_SIZE)
        words = [int.from_bytes(head[i : i + 4], "big") for i in range(0, _HEADER_SIZE, 4)]
        self.total, self._struct, self._strings, self._reserved = words[1:5]
        self.version, last = words[5:7]
        self._strings_size, self._struct_size = words[8:10]
        if head[:4] != MAGIC_BYTES:
            raise FdtError("bad magic", 0)
        if self.version < _FIRST_VERSION or last > _LAST_VERSION:
            raise FdtError(f"version {self.version} (compatible with {last}) is not read", 20)
        if self.total >= _INT_MAX:
            raise FdtError(f"a size of {self.total:#x}", 4)
        self._last = last

    def _read(self, offset: int, size: int) -> bytes:
        return self._memory(self._base + offset, size)

    def check_header(self) -> None:
        """What ``fdt_check_header`` looks at besides. Raises FdtError."""
        if self._base % 8:
            raise FdtError("not aligned to 8 bytes", 0)
        header = _HEADER_SIZES.get(self.version, _HEADER_SIZE)
        if self.version < self._last:
            raise FdtError(f"version {self.version} below its own {self._last}", 20)
        if self.total < header:
            raise FdtError(f"a size of {self.total} bytes", 4)
        if self._reserved % 8:
            raise FdtError("the reservations are not aligned to 8 bytes", 16)
        blocks = [("reservations", self._reserved, 0), ("structure", self._struct, 0)]
        if self.version >= _LAST_VERSION:
            blocks[1] = ("structure", self._struct, self._struct_size)
        blocks.append(("strings", self._strings, self._strings_size))
        for what, start, size in blocks:
            if not header <= start <= self.total or start + size > self.total:
                raise FdtError(f"the {what} ({start:#x}+{size:#x}) leave the tree", start)

    # -- the structure ---------------------------------------------------------------------

    def _at(self, offset: int, size: int) -> bytes | None:
        """Bytes of the structure block, None where libfdt does not look."""
        at = offset + self._struct
        if offset < 0 or at + size > min(self.total, (1 << 32) - 1):
            return None
        if self.version >= _LAST_VERSION and offset + size > self._struct_size:
            return None
        return self._read(at, size)

    def _tag(self, offset: int) -> tuple[int, int]:
        """The tag at an offset and where the next one is; negative where that makes no sense."""
        raw = self._at(offset, 4)
        if raw is None:
            return _END, -1
        tag, at = int.from_bytes(raw, "big"), offset + 4
        if tag == _BEGIN_NODE:
            name = self._name(at)
            if name is None:
                return _END, -1
            at += len(name) + 1
        elif tag == _PROP:
            raw = self._at(at, 4)
            if raw is None:
                return _END, -1
            size = int.from_bytes(raw, "big")
            if size + at >= _INT_MAX:
                return _END, -1
            at += 8 + size
            if self.version < 16 and size >= 8 and (at - size) % 8:
                at += 4
        elif tag not in (_END_NODE, _NOP, _END):
            return _END, -1
        # The whole of it has to be inside; that it can be read is not tried.
        if not self._inside(offset, at - offset):
            return _END, -1
        return tag, (at + 3) & -4

    def _inside(self, offset: int, size: int) -> bool:
        if offset + self._struct + size > self.total:
            return False
        return self.version < _LAST_VERSION or offset + size <= self._struct_size

    def _name(self, offset: int) -> bytes | None:
        """The bytes up to a NUL; None if the block ends before."""
        found = bytearray()
        while len(found) < _MAX_NAME:
            # A read must not reach into a page that the name does not reach into.
            at = self._base + self._struct + offset + len(found)
            size = _PIECE - at % _PIECE
            while size and not self._inside(offset + len(found), size):
                size //= 2
            piece = self._at(offset + len(found), size) if size else None
            if not piece:
                return None
            end = piece.find(b"\0")
            if end >= 0:
                return bytes(found + piece[:end])
            found += piece
        raise FdtError("a name without an end", offset)

    def _node(self, offset: int) -> int:
        """Where the content of the node at an offset begins. Raises FdtError."""
        if offset >= 0 and offset % 4 == 0:
            tag, after = self._tag(offset)
            if tag == _BEGIN_NODE:
                return after
        raise FdtError("no node", offset)

    def name(self, node: int) -> bytes:
        """The name of a node. Raises FdtError."""
        self._node(node)
        found = self._name(node + 4) or b""
        return found.rpartition(b"/")[2] if self.version < 16 else found

    def children(self, node: int) -> Iterator[int]:
        """Offsets of the children of a node, as far as the walk gets."""
        at, depth = self._node(node), 0
        for _ in range(_MAX_STEPS):
            here = at
            tag, at = self._tag(here)
            if tag == _BEGIN_NODE:
                depth += 1
                if depth == 1:
                    yield here
            elif tag == _END_NODE:
                depth -= 1
            if tag == _END or depth < 0:
                return
        raise FdtError("a structure without an end", here)

    def ends(self) -> bool:
        """Whether the walk from the root gets to the end of the structure."""
        at, depth = 0, 0
        for _ in range(_MAX_STEPS):
            tag, at = self._tag(at)
            depth += (tag == _BEGIN_NODE) - (tag == _END_NODE)
            if tag == _END or depth < 0:
                return at >= 0 and depth == 0
            if depth == 0 and tag not in (_NOP, _END_NODE):
                return False
        return False

    def subnode(self, node: int, name: bytes) -> int | None:
        """``fdt_subnode_offset``. A name without ``@`` also means one that has a unit behind."""
        for child in self.children(node):
            found = self.name(child)
            if found == name or (b"@" not in name and found.startswith(name + b"@")):
                return child
        return None

    # -- properties ------------------------------------------------------------------------

    def properties(self, node: int) -> Iterator[tuple[int, int, int]]:
        """(offset of the value, size, offset of the name) of a node's properties."""
        at = self._node(node)
        for _ in range(_MAX_STEPS):
            here = at
            tag, at = self._tag(here)
            if tag == _PROP:
                raw = self._at(here + 4, 8) or bytes(8)
                size, name = int.from_bytes(raw[:4], "big"), int.from_bytes(raw[4:], "big")
                yield here + 12, size, name
            elif tag != _NOP:
                return
        raise FdtError("a node without an end", here)

    def get(self, node: int, name: bytes) -> bytes | None:
        """``fdt_getprop``: the value of the first property of this name."""
        for at, size, string in self.properties(node):
            if self._string_is(string, name):
                if self.version < 16 and (self._struct + at) % 8 and size >= 8:
                    at += 4
                return self._read(self._struct + at, min(size, _MAX_VALUE))
        return None

    def strings(self, node: int, name: bytes) -> tuple[bytes, ...]:
        """The terminated strings of a property.

        The NUL of the last one may be the byte behind the property, which the search for a
        string compares as well.
        """
        for at, size, string in self.properties(node):
            if self._string_is(string, name):
                value = self._read(self._struct + at, min(size, _MAX_VALUE))
                parts = value.split(b"\0")
                if parts[-1] and self._read(self._struct + at + size, 1) != b"\0":
                    parts.pop()
                return tuple(parts if parts[-1:] != [b""] else parts[:-1])
        return ()

    def _string_is(self, offset: int, wanted: bytes) -> bool:
        at = offset + self._strings
        room = self.total - at
        if self.version >= _LAST_VERSION:
            room = min(room, self._strings_size - offset)
        if offset > _INT_MAX or room <= len(wanted):
            return False
        return self._read(at, len(wanted) + 1) == wanted + b"\0"


class Node:
    """A node of a blob, with the calls of :class:`abi.fdt.Node` that consumers use."""

    def __init__(self, blob: Blob, offset: int = 0) -> None:
        """Raises FdtError if there is no node at ``offset``."""
        self._blob = blob
        self._offset = offset
        self.name = blob.name(offset)

    def get(self, name: bytes) -> bytes | None:
        """The value of a property, None if libfdt does not find it."""
        return self._blob.get(self._offset, name)

    def child(self, name: bytes) -> Node | None:
        """A subnode by name, None if libfdt does not find it."""
        found = self._blob.subnode(self._offset, name)
        return Node(self._blob, found) if found is not None else None

    @property
    def children(self) -> list[Node]:
        """The subnodes that a walk meets before it ends."""
        return [Node(self._blob, offset) for offset in self._blob.children(self._offset)]

    @property
    def compatible(self) -> tuple[bytes, ...]:
        """The terminated strings of ``compatible``."""
        return self._blob.strings(self._offset, b"compatible")
