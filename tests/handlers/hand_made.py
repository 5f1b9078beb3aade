"""State of development handlers as bytes, made without the declarations under test.

Sizes and orders of members are those of the measured layouts, written with :mod:`struct`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inspector.kernel.machine import small_machine
from inspector.kernel.outgoing.file_handler import FileHandler, Flb
from inspector.kernel.outgoing.kernel import Image, Kernel
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.luo import Session
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey

PAGE = 4096
#: A descriptor of an empty vmalloc area.
EMPTY = bytes(16)


class Memory:
    """A machine's memory, page by page."""

    def __init__(self, pages: int = 8192) -> None:
        self.memory = SparseMemory([(0, pages * PAGE)], page_size=PAGE, machine="x86_64")
        self._next = 16

    @property
    def survey(self) -> Survey:
        """A fresh survey of it."""
        return Survey(self.memory, PAGE)

    def frames(self, count: int = 1, order: int = 0) -> list[int]:
        """Frame numbers of fresh blocks, not neighbours, each aligned to its size."""
        found = []
        for _ in range(count):
            first = -(-self._next >> order) << order
            found.append(first)
            self._next = first + (1 << order) + 1
        return found

    def page(self, content: bytes, order: int = 0) -> int:
        """The address of a fresh block with this content and zeros."""
        address = self.frames(1, order)[0] * PAGE
        self.memory.write(address, content.ljust(PAGE << order, b"\0"))
        return address

    def vmalloc(self, content: bytes, total: int | None = None) -> bytes:
        """A descriptor {first, total_pages, flags, order} of an area with this content."""
        pages = [self.page(content[at : at + PAGE]) for at in range(0, len(content), PAGE)]
        return vmalloc(self.page, pages, total)


def vmalloc(page: Any, pages: Sequence[int], total: int | None = None) -> bytes:
    """A descriptor of these pages; ``page`` stores a chunk and says where."""
    if not pages:
        return EMPTY
    following = 0
    chunks = [pages[at : at + 511] for at in range(0, len(pages), 511)]
    for chunk in reversed(chunks):
        words = [following, *chunk]
        following = page(struct.pack(f"<{len(words)}Q", *words).ljust(PAGE, b"\0"))
    return struct.pack("<QIHH", following, len(pages) if total is None else total, 1, 0)


def folios(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """Entries of 16 bytes: frame in the low 52 bits, flags above, then the index."""
    return b"".join(struct.pack("<QQ", pfn | flags << 52, index) for pfn, flags, index in entries)


def guest_memfd(size: int, flags: int, count: int, token: int, area: bytes) -> bytes:
    """48 bytes."""
    return struct.pack("<QQQQ", size, flags, count, token) + area


def huge_memfd(size: int, pos: int, count: int, area: bytes, order: int) -> bytes:
    """41 bytes: nothing is padded."""
    return struct.pack("<QQQ", size, pos, count) + area + struct.pack("<B", order)


def pools(states: Sequence[tuple[int, int]], count: int | None = None) -> bytes:
    """37 bytes: four times {pages, order}, how many of them."""
    out = b"".join(struct.pack("<QB", pages, order) for pages, order in states)
    return out.ljust(36, b"\0") + struct.pack("<B", len(states) if count is None else count)


def early_pools(states: Sequence[tuple[int, int, bytes]]) -> bytes:
    """136 bytes: a count, padding, four times {pages, order, reserved, descriptor}."""
    out = struct.pack("<H6x", len(states))
    for pages, order, area in states:
        out += struct.pack("<QII", pages, order, 0) + area
    return out.ljust(136, b"\0")


def vm_with_attributes(kind: int, count: int, area: bytes) -> bytes:
    """32 bytes."""
    return struct.pack("<QQ", kind, count) + area


def vm_with_folios(kind: int, address: int) -> bytes:
    """16 bytes."""
    return struct.pack("<QQ", kind, address)


def vm_minimal(kind: int) -> bytes:
    """8 bytes."""
    return struct.pack("<Q", kind)


def folio_list(addresses: Sequence[int], count: int | None = None) -> bytes:
    """A count, then addresses."""
    number = len(addresses) if count is None else count
    return struct.pack(f"<{1 + len(addresses)}Q", number, *addresses)


def vcpu(number: int, flags: int, token: int, state: int, control: int) -> bytes:
    """32 bytes."""
    return struct.pack("<IIQQQ", number, flags, token, state, control)


def control_block(state: int, cpu: int, number: int, telemetry: int, reserved: int = 0) -> bytes:
    """24 bytes."""
    return struct.pack("<IIIIQ", state, cpu, number, reserved, telemetry)


def mount(blocks: int, mode: int, flags: int) -> bytes:
    """16 bytes."""
    return struct.pack("<QII", blocks, mode, flags)


# -- whole images -------------------------------------------------------------------------------


@dataclass(eq=False)
class Raw:
    """A file whose handler keeps ``data``, whatever it is."""

    string: str
    data: int


class RawHandler(FileHandler):
    """Hands over what a file says, under its string."""

    def __init__(self, string: str) -> None:
        self.compatible = string

    def can_preserve(self, file: Any) -> bool:
        """Files with its string."""
        return isinstance(file, Raw) and file.string == self.compatible

    def preserve(self, file: Raw, session: Session, token: int) -> int:
        """The data."""
        return file.data

    def unpreserve(self, file: Raw, data: int) -> None:
        """Nothing to undo."""


class RawFlb(Flb):
    """An FLB with some data."""

    def __init__(self, name: str, address: int) -> None:
        super().__init__(name)
        self.address = address

    def preserve(self) -> int:
        """The data."""
        return self.address

    def unpreserve(self, data: int) -> None:
        """Nothing to undo."""


class HandMade:
    """A kernel of a release that hands over files and FLBs made of bytes."""

    def __init__(self) -> None:
        self.kernel = Kernel("linux-7.3", small_machine(64 << 20))
        self.sessions: dict[str, Session] = {}

    @property
    def kho(self) -> Kho:
        """Its preserved memory."""
        return self.kernel.kho

    def block(self, content: bytes, order: int = 0) -> int:
        """The address of a preserved block of this order with this content."""
        return self.kho.alloc_preserve(PAGE << order, content)

    def vmalloc(self, content: bytes) -> bytes:
        """A descriptor of a preserved area with this content."""
        pages = [self.block(content[at : at + PAGE]) for at in range(0, len(content), PAGE)]
        return vmalloc(self.block, pages)

    def file(self, session: str, token: int, string: str, data: int) -> None:
        """A file in a session, which is made with its first one."""
        if session not in self.sessions:
            self.sessions[session] = self.kernel.luo.create_session(session)
        if not any(h.compatible == string for h in self.kernel.luo.handlers):
            self.kernel.luo.register(RawHandler(string))
        self.sessions[session].preserve(Raw(string, data), token)

    def flb(self, name: str, data: int, users: int = 1) -> None:
        """An FLB."""
        flb = RawFlb(name, data)
        flb.data, flb.count = data, users
        self.kernel.luo.flbs.append(flb)

    def image(self) -> Image:
        """Hand over."""
        return self.kernel.kexec()
