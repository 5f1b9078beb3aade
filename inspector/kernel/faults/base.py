"""Faults: what a fault is, and the tools that injectors work with.

An injector changes an image that a simulated kernel has handed over so that one invariant
no longer holds, and as far as possible no other. It first looks for what it needs
(:class:`Inapplicable` if the image has none of it), then writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi import fdt
from abi.errors import UsageError
from abi.fdt_write import FdtEditor
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.kernel import Image, Kernel
from inspector.kernel.outgoing.luo import Luo, PreservedFile, Session
from inspector.kernel.outgoing.memfd import MemfdHandler, MemfdState


class Inapplicable(UsageError):
    """The image has nothing that the fault could break."""


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes that an injector replaced."""

    address: int
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to break an image.

    ``invariant`` is the rule that no longer holds, by its number in the list of invariants of
    ``docs/scenarios.md``; 0 for changes of the hand-over itself that break none. ``doc`` says
    what is changed.
    """

    name: str
    invariant: int
    doc: str
    inject: Callable[[Target], None] = field(repr=False)

    def applies(self, image: Image) -> bool:
        """Whether the image has something to break. Changes nothing."""
        try:
            self.inject(Target(image, dry=True))
        except Inapplicable:
            return False
        return True


@dataclass(slots=True)
class Target:
    """An image under the hands of an injector. With ``dry`` nothing is written."""

    image: Image
    dry: bool = False
    changes: list[Change] = field(default_factory=list)

    @property
    def kernel(self) -> Kernel:
        """The kernel that wrote the image."""
        return self.image.kernel

    @property
    def page(self) -> int:
        """The page size."""
        return self.kernel.machine.page_size

    # -- bytes ---------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the image."""
        return self.image.memory.read(address, size)

    def u64(self, address: int) -> int:
        """A word of the image."""
        return self.image.memory.u64(address)

    def write(self, address: int, data: bytes) -> None:
        """Replace bytes."""
        if self.dry:
            return
        before = self.read(address, len(data))
        self.image.memory.write(address, data)
        self.changes.append(Change(address, before, data))

    def write_u64(self, address: int, value: int) -> None:
        """Replace a word."""
        self.write(address, value.to_bytes(8, "little"))

    def write_u32(self, address: int, value: int) -> None:
        """Replace a half word."""
        self.write(address, value.to_bytes(4, "little"))

    # -- the map -------------------------------------------------------------------------

    def set_block(self, frame: int, order: int, on: bool = True) -> None:
        """Mark or unmark a block, growing the map if need be."""
        if self.dry:
            return
        block_map, frames = self.kernel.kho.map, np.array([frame], np.uint64)
        (block_map.set if on else block_map.clear)(frames, order)
        old_root = self._map_root
        root = block_map.write()
        where = block_map.locate(frame, order)
        if where is not None:
            self.changes.append(Change(where[0], b"", b""))
        if root != old_root:
            name = self.kernel.kho.generation.map_property
            self.set_root_property("/", name, root.to_bytes(8, "little"))

    @property
    def _map_root(self) -> int:
        name = self.kernel.kho.generation.map_property.encode()
        value = fdt.parse(self.read(self.kernel.kho.root, self.page)).root.get(name)
        return fdt.native_u64(value) if value is not None else 0

    def set_root_property(self, path: str, name: str, value: bytes) -> None:
        """Replace a property of the root FDT by one of the same length, in place."""
        blob = self.read(self.kernel.kho.root, self.page)
        node = fdt.parse(blob).root
        for part in filter(None, path.split("/")):
            child = node.child(part.encode())
            assert child is not None
            node = child
        old = node.get(name.encode())
        assert old is not None
        assert len(old) == len(value)
        at = self.property_at(self.kernel.kho.root, name, old)
        assert at is not None
        self.write(at, value)

    def property_at(self, tree: int, name: str, value: bytes) -> int | None:
        """Where in memory a property of a device tree has its value; None if it is not there."""
        blob = self.read(tree, self.page)
        at = blob.find(len(value).to_bytes(4, "big"))
        while at >= 0 and not _is_property(blob, at, name, value):
            at = blob.find(len(value).to_bytes(4, "big"), at + 1)
        return tree + at + 8 if at >= 0 else None

    def edit_root(self, change: Callable[[FdtEditor], Any]) -> None:
        """Edit the root FDT; other things may move."""
        editor = FdtEditor(self.read(self.kernel.kho.root, self.page), self.page)
        change(editor)
        editor.pack()
        self.write(self.kernel.kho.root, editor.page())

    def preserved(self, frame: int, order: int) -> bool:
        """Whether this very block is in the map."""
        return self.kernel.kho.map.has(frame, order)

    def free_page(self) -> int:
        """The address of a page of RAM that nothing uses and nothing preserves."""
        if self.dry:
            return self.kernel.kho.root
        return self.kernel.machine.alloc_page()

    def kho_page(self, data: bytes = b"") -> int:
        """A fresh preserved page with this content."""
        if self.dry:
            return self.kernel.kho.root
        frame = self.kernel.machine.alloc()
        self.set_block(frame, 0)
        address = frame << self.kernel.machine.page_shift
        self.image.memory.write(address, data.ljust(self.page, b"\0"))
        return address

    # -- LUO -----------------------------------------------------------------------------

    @property
    def luo(self) -> Luo:
        """The orchestrator."""
        if self.kernel.luo_or_none is None:
            raise Inapplicable("the kernel has no live update orchestrator")
        return self.kernel.luo_or_none

    def sessions(self, files: int = 0, count: int = 1) -> list[Session]:
        """At least ``count`` sessions with at least ``files`` files each."""
        found = [s for s in self.luo.sessions if len(s.files) >= files]
        if len(found) < count:
            raise Inapplicable(f"needs {count} session(s) with {files} file(s) or more")
        return found

    def files(self, count: int = 1) -> list[tuple[int, PreservedFile]]:
        """(address of the entry, file) of at least ``count`` files of one session."""
        for session in self.luo.sessions:
            if len(session.files) >= count:
                return list(self.entries(session))
        raise Inapplicable(f"needs a session with {count} file(s)")

    def entries(self, session: Session) -> Iterator[tuple[int, PreservedFile]]:
        """(address of the entry, file) of every file of a session."""
        for i, entry in enumerate(session.files.values()):
            yield session.entry_address(i), entry

    def all_files(self) -> Iterator[tuple[int, PreservedFile]]:
        """(address of the entry, file) of every file."""
        for session in self.luo.sessions:
            yield from self.entries(session)

    def of(self, handler: type[FileHandler]) -> list[tuple[int, PreservedFile]]:
        """The files of a handler; Inapplicable if there are none."""
        found = [(at, f) for at, f in self.all_files() if isinstance(f.handler, handler)]
        if not found:
            raise Inapplicable(f"the image has no file of {handler.__name__}")
        return found

    def memfds(self, folios: int = 0, count: int = 1) -> list[MemfdState]:
        """Preserved memory files with at least ``folios`` folios, at least ``count`` of them."""
        found = []
        for _, entry in self.all_files():
            if isinstance(entry.handler, MemfdHandler):
                state = entry.handler.states[id(entry.file)]
                have = state.area.size // 16 if state.area is not None else 0
                if have >= folios:
                    found.append(state)
        if len(found) < count:
            raise Inapplicable(f"needs {count} memory file(s) of {folios} folio(s) or more")
        return found


def _is_property(blob: bytes, at: int, name: str, value: bytes) -> bool:
    """Whether the length at ``at`` is that of the property with this name and value."""
    strings = int.from_bytes(blob[12:16], "big")
    name_at = strings + int.from_bytes(blob[at + 4 : at + 8], "big")
    wanted = name.encode() + b"\0"
    return (
        blob[at - 4 : at] == b"\0\0\0\3"
        and blob[name_at : name_at + len(wanted)] == wanted
        and blob[at + 8 : at + 8 + len(value)] == value
    )


Injector = Callable[[Target], None]


class Library:
    """Faults by name, in the order of their definition."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}

    def __call__(self, name: str, invariant: int, doc: str) -> Callable[[Injector], Injector]:
        """Decorator: define a fault."""

        def add(inject: Injector) -> Injector:
            assert name not in self.faults, name
            self.faults[name] = Fault(name, invariant, doc, inject)
            return inject

        return add
