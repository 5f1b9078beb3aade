"""Follow physical pointers with nothing but the Kaitai parsers.

A Kaitai parser sees one stream; the structures of an image are linked by physical
addresses. :class:`Follower` reads the bytes behind an address, parses them, and goes on.
It is deliberately separate from the codec of :mod:`abi`, so that the two can be compared.

What an image says wrong never raises: it becomes a :class:`Problem`, and the walk goes on
with the rest. Every walk has a budget and refuses to visit a page twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from abi.errors import KhoError

from . import PARSE_ERRORS, Fdt, KhoBitmaps, KhoBoot, KhoRadix, KhoVmalloc, parse


class Memory(Protocol):
    """Physical memory; ``inspector.memory.PhysicalMemory`` is one."""

    def read(self, pa: int, size: int, /) -> bytes:
        """``size`` bytes at ``pa``; raises a :class:`abi.errors.KhoError` if it has none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work a hostile image may cause, for all walks of one follower together."""

    #: Structures (pages, blobs) read.
    structures: int = 1 << 20
    #: Blocks of the preserved-memory map, entries of lists and arrays.
    entries: int = 1 << 22
    #: Pages of one list; the kernel's own limit.
    list_pages: int = 10_000
    #: Bytes of one device tree.
    fdt_bytes: int = 1 << 20
    #: Bytes of a vmalloc area that are read at once.
    area_bytes: int = 1 << 28


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that could not be followed.

    ``kind`` is ``refused`` (a parser refuses the bytes), ``hole`` (memory not in the
    image), ``cycle``, ``budget`` or ``inconsistent``.
    """

    kind: str
    where: str
    address: int
    message: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a device tree; property values are raw."""

    name: bytes
    properties: dict[bytes, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: bytes) -> Node | None:
        """The first child of that name."""
        return next((c for c in self.children if c.name == name), None)


class Follower:
    """Follows pointers through ``memory``, whose pages have ``page_size`` bytes."""

    def __init__(self, memory: Memory, page_size: int = 4096, limits: Limits | None = None) -> None:
        if page_size not in (4096, 16384, 65536):
            raise KhoError(f"page size {page_size} is not 4096, 16384 or 65536")
        self.memory = memory
        self.page_size = page_size
        self.limits = limits or Limits()
        self.problems: list[Problem] = []
        self._structures = 0
        self._entries = 0

    # Primitives

    def problem(self, kind: str, where: str, address: int, message: object) -> None:
        """Record a problem; at most a thousand are kept."""
        if len(self.problems) < 1000:
            self.problems.append(Problem(kind, where, address, str(message)))

    def read(self, where: str, pa: int, size: int) -> bytes | None:
        """Bytes at a physical address, or None and a problem."""
        self._structures += 1
        if self._structures > self.limits.structures:
            self.problem("budget", where, pa, "too many structures")
            return None
        if pa < 0 or pa + size > 1 << 64:
            self.problem("hole", where, pa, "beyond the address space")
            return None
        try:
            return bytes(self.memory.read(pa, size))
        except KhoError as error:
            self.problem("hole", where, pa, error)
            return None

    def struct(self, where: str, pa: int, size: int, parser: Any, *params: Any) -> Any:
        """Parse the ``size`` bytes at ``pa``, or return None and record a problem."""
        data = self.read(where, pa, size)
        if data is None:
            return None
        return self.parse(where, pa, data, parser, *params)

    def parse(self, where: str, pa: int, data: bytes, parser: Any, *params: Any) -> Any:
        """Parse bytes that came from ``pa``, or return None and record a problem."""
        try:
            return parse(parser, data, *params)
        except PARSE_ERRORS as error:
            self.problem("refused", where, pa, error)
            return None

    def spend(self, where: str, pa: int) -> bool:
        """Count one entry; False and a problem when the budget is used up."""
        self._entries += 1
        if self._entries == self.limits.entries + 1:
            self.problem("budget", where, pa, "too many entries")
        return self._entries <= self.limits.entries

    def pages(
        self,
        where: str,
        first: int,
        parser: Any,
        following: Callable[[Any], int],
        *params: Any,
        size: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Pages of a linked list as (physical address, parsed page).

        ``following`` gives the address of the next page, 0 at the end. The parser gets
        ``params``, by default the page size.
        """
        seen: set[int] = set()
        pa = first
        while pa:
            if pa in seen:
                self.problem("cycle", where, pa, "the list returns to a page it has visited")
                return
            if len(seen) == self.limits.list_pages:
                self.problem("budget", where, pa, "too many pages in a list")
                return
            seen.add(pa)
            page = self.struct(
                where, pa, size or self.page_size, parser, *(params or (self.page_size,))
            )
            if page is None:
                return
            yield pa, page
            pa = following(page)

    def entries(
        self,
        where: str,
        pages: Iterator[tuple[int, Any]],
        attribute: str,
        header_size: int,
        entry_size: int,
    ) -> Iterator[tuple[int, Any]]:
        """Entries of such pages as (physical address, entry)."""
        for pa, page in pages:
            for i, entry in enumerate(getattr(page, attribute)):
                at = pa + header_size + i * entry_size
                if not self.spend(where, at):
                    return
                yield at, entry

    # Roots

    def tree(self, pa: int, where: str = "fdt") -> Node | None:
        """The device tree at ``pa``. Its own total size decides how much is read."""
        head = self.read(where, pa, 8)
        if head is None:
            return None
        size = int.from_bytes(head[4:8], "big")
        if size > self.limits.fdt_bytes:
            # Not a tree, or one that nobody should parse: let the parser judge the magic.
            size = 40
        fdt = self.struct(where, pa, max(size, 40), Fdt)
        if fdt is None:
            return None
        top = Node(b"")
        path = [top]
        try:
            for token in fdt.structure.tokens:
                if token.kind == Fdt.TokenKind.begin_node:
                    node = Node(token.node_name)
                    path[-1].children.append(node)
                    path.append(node)
                    if len(path) > 64:
                        self.problem("budget", where, pa, "device tree too deep")
                        return None
                elif token.kind == Fdt.TokenKind.end_node:
                    path.pop()
                    if not path:
                        break
                elif token.kind == Fdt.TokenKind.prop:
                    path[-1].properties.setdefault(token.prop_name, token.value)
        except PARSE_ERRORS as error:
            self.problem("refused", where, pa, error)
            return None
        if len(path) != 1 or len(top.children) != 1:
            self.problem("inconsistent", where, pa, "nodes of the device tree do not nest")
            return None
        return top.children[0]

    def setup_data(self, pa: int) -> Any:
        """``kho_data`` of the setup_data node at ``pa``."""
        node = self.struct("setup_data", pa, 48, KhoBoot)
        return node and node.data

    def scratch(self, pa: int, size: int) -> list[tuple[int, int]]:
        """(address, size) of the scratch areas of the array at ``pa``, ``size`` bytes long."""
        if size > self.page_size:
            self.problem("inconsistent", "scratch", pa, f"array of {size} bytes")
            return []
        array = self.struct("scratch", pa, size, KhoBoot.ScratchArray, size)
        return [(a.addr, a.size) for a in array.areas] if array else []

    # The preserved-memory map: blocks as (physical address, order)

    def _set_bits(self, where: str, pa: int, bits: bytes) -> Iterator[int]:
        for at in range(0, len(bits), 8):
            word = int.from_bytes(bits[at : at + 8], "little")
            while word:
                low = word & -word
                if not self.spend(where, pa):
                    return
                yield at * 8 + low.bit_length() - 1
                word ^= low

    def bitmap_blocks(self, first: int, bitmap_size: int) -> Iterator[tuple[int, int]]:
        """Blocks of the kho-v1 map. ``bitmap_size`` is 512 (6.16, 6.17) or the page size."""
        shift = self.page_size.bit_length() - 1
        chunks = self.pages("chunk", first, KhoBitmaps.Chunk, lambda c: c.hdr.next)
        for _, chunk in chunks:
            order = chunk.hdr.order
            for entry in chunk.bitmaps:
                bits = self.struct(
                    "bitmap", entry.bitmap, bitmap_size, KhoBitmaps.Bits, bitmap_size
                )
                if bits is None:
                    continue
                for bit in self._set_bits("bitmap", entry.bitmap, bits.preserve):
                    yield (entry.phys_start + (bit << (order + shift))) % (1 << 64), order

    def radix_blocks(self, root: int, *, interim: bool = False) -> Iterator[tuple[int, int]]:
        """Blocks of the radix tree, by ascending key. ``interim`` is the depth of kho-v2."""
        shift = self.page_size.bit_length() - 1
        leaf_bits, table_bits = shift + 3, shift - 3
        key_bits = 64 - shift + (0 if interim else 1)
        top = -(-(key_bits - leaf_bits) // table_bits)
        seen: set[int] = set()
        todo = [(root, top, 0)] if root else []
        while todo:
            pa, level, prefix = todo.pop()
            if pa in seen:
                self.problem("cycle", "radix", pa, "node is reached twice")
                continue
            seen.add(pa)
            if level:
                node = self.struct("radix", pa, self.page_size, KhoRadix.Node, self.page_size)
                if node is None:
                    continue
                step = (level - 1) * table_bits + leaf_bits
                children = [
                    (child, level - 1, prefix | index << step)
                    for index, child in enumerate(node.table)
                    if child
                ]
                todo.extend(reversed(children))
                continue
            leaf = self.struct("radix", pa, self.page_size, KhoRadix.Leaf, self.page_size)
            if leaf is None:
                continue
            for bit in self._set_bits("radix", pa, leaf.bitmap):
                key = prefix | bit
                order = 64 - shift - (key.bit_length() - 1)
                if key == 0 or order < 0:
                    self.problem("inconsistent", "radix", pa, f"key {key:#x} encodes no order")
                    continue
                yield (key << (shift + order)) % (1 << 64), order

    # Areas

    def vmalloc(self, area: Any) -> list[int]:
        """Physical addresses of the blocks of a ``kho_vmalloc`` descriptor, in order.

        Empty, with a problem, when they do not add up to ``total_pages``.
        """
        blocks: list[int] = []
        chunks = self.pages("vmalloc", area.first, KhoVmalloc.Chunk, lambda c: c.hdr.next)
        for pa, chunk in chunks:
            for block in chunk.phys:
                if not block:
                    break
                if not self.spend("vmalloc", pa):
                    return []
                blocks.append(block)
        if area.order > 51 or len(blocks) << area.order != area.total_pages:
            self.problem(
                "inconsistent",
                "vmalloc",
                area.first,
                f"{len(blocks)} blocks of order {area.order} for {area.total_pages} pages",
            )
            return []
        return blocks

    def vmalloc_bytes(self, area: Any, size: int) -> bytes | None:
        """The first ``size`` bytes of a vmalloc area, or None and a problem."""
        block_size = self.page_size << min(area.order, 51)
        blocks = self.vmalloc(area) if size else []
        if size > len(blocks) * block_size:
            self.problem("inconsistent", "vmalloc", area.first, f"area is shorter than {size}")
            return None
        if size > self.limits.area_bytes:
            self.problem("budget", "vmalloc", area.first, f"area of {size} bytes")
            return None
        pieces: list[bytes] = []
        for block in blocks:
            if not size:
                break
            piece = self.read("vmalloc", block, min(size, block_size))
            if piece is None:
                return None
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
