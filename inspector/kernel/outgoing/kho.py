"""Kexec HandOver on the producer's side: the root, the blobs, and what is preserved.

The operations are the kernel's own: ``preserve_folio``, ``preserve_pages`` with the greedy
cutting of ranges into blocks, ``preserve_vmalloc``, blobs by name, finalization by hand (6.16
to 6.18), in the reboot path (6.19, 7.0) or never (7.1 on). Errors are the kernel's.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from abi.fdt import FdtError
from abi.fdt_write import FdtEditor, FdtWriter
from abi.kho import KhoGeneration, MapKind
from abi.memory_map import RadixGeometry
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.frames import U64Array, runs
from inspector.kernel.outgoing.preserved import BitmapMap, BlockMap, RadixMap
from inspector.kernel.profile import Finalize, KernelProfile

#: Flags of a kho_vmalloc descriptor.
VM_ALLOC, VM_ALLOW_HUGE = 1, 2


@dataclass(frozen=True, slots=True)
class VmallocArea:
    """A virtually contiguous area: first frames of blocks of 2^order pages, in order."""

    frames: U64Array
    order: int
    flags: int
    size: int


@dataclass(frozen=True, slots=True)
class VmallocDescriptor:
    """What ``preserve_vmalloc`` hands out: the serialized form, and the pages it took."""

    first: int = 0
    total_pages: int = 0
    flags: int = 0
    order: int = 0
    chunks: tuple[int, ...] = ()

    @property
    def values(self) -> dict[str, int]:
        """Members of ``struct kho_vmalloc``."""
        return {
            "first": self.first,
            "total_pages": self.total_pages,
            "flags": self.flags,
            "order": self.order,
        }


@dataclass(slots=True)
class Blob:
    """A registered blob: where it lies, and its size."""

    address: int
    size: int


class Kho:
    """The handover state of one running kernel."""

    def __init__(self, machine: Machine, profile: KernelProfile) -> None:
        self.machine = machine
        self.profile = profile
        self.finalized = False
        self.blobs: dict[str, Blob] = {}
        self._orders: dict[int, int] = {}
        # Looked up once: there may be a hundred thousand folios.
        self._no_scratch = profile.scratch_overlap_checked
        self._by_hand = profile.finalize is Finalize.DEBUGFS
        generation = profile["kho"]
        assert isinstance(generation, KhoGeneration)
        self.generation = generation
        self.compatible = generation.strings[0]
        self.map = _block_map(machine, generation.map_kind)
        self.root = self.alloc_preserve(machine.page_size)
        self._editor: FdtEditor | None = None
        if profile.finalize is not Finalize.DEBUGFS:
            self._editor = FdtEditor(self._empty_root(), machine.page_size)
            self._editor.pack()
            self._store_root(self._editor.page())

    # -- pages ---------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.finalized and self._by_hand:
            raise KernelErrno("EBUSY", "the handover is finalized already")

    def _check_scratch(self, frame: int, count: int) -> None:
        shift = self.machine.page_shift
        if self._no_scratch and self.machine.in_scratch(frame << shift, frame + count << shift):
            raise KernelErrno("EINVAL", f"frame {frame:#x} lies in scratch")

    def preserve_folio(self, frame: int, order: int = 0) -> None:
        """Preserve a folio as one block. Raises EBUSY, EINVAL (scratch)."""
        self._check_open()
        self._check_scratch(frame, 1 << order)
        self.map.set_one(frame, order)

    def unpreserve_folio(self, frame: int, order: int = 0) -> None:
        """The opposite. Raises EBUSY."""
        self._check_open()
        self.map.clear(np.array([frame], np.uint64), order)

    def preserve_folios(self, frames: U64Array, order: int = 0) -> None:
        """Many folios of one order. Raises as :meth:`preserve_folio`, with nothing preserved."""
        self._check_open()
        if self._no_scratch and len(frames):
            shift = np.uint64(self.machine.page_shift)
            start = frames << shift
            end = (frames + np.uint64(1 << order)) << shift
            for base, size in self.machine.scratch:
                if ((start < base + size) & (end > base)).any():
                    raise KernelErrno("EINVAL", "a folio lies in scratch")
        self.map.set(frames, order)

    def unpreserve_folios(self, frames: U64Array, order: int = 0) -> None:
        """The opposite. Raises EBUSY."""
        self._check_open()
        self.map.clear(frames, order)

    def preserve_pages(self, frame: int, count: int) -> None:
        """Preserve ``count`` pages, cut into blocks. Raises EBUSY, EINVAL (scratch)."""
        self._check_open()
        self._check_scratch(frame, count)
        for order, first in self.cut(frame, count):
            self.map.set(np.array([first], np.uint64), order)

    def unpreserve_pages(self, frame: int, count: int) -> None:
        """The opposite, with the same cuts. Raises EBUSY."""
        self._check_open()
        for order, first in self.cut(frame, count):
            self.map.clear(np.array([first], np.uint64), order)

    def cut(self, frame: int, count: int) -> Iterator[tuple[int, int]]:
        """A range of frames as (order, first frame): the largest aligned blocks, greedily.

        From 7.1 on no block spans NUMA nodes.
        """
        end = frame + count
        nodes = self.profile.blocks_stay_on_node and len(self.machine.nodes) > 1
        while frame < end:
            order = (end - frame).bit_length() - 1
            if frame:
                order = min(order, (frame & -frame).bit_length() - 1)
            if nodes:
                here = self.machine.node_of(frame)
                while order and self.machine.node_of(frame + (1 << order) - 1) != here:
                    order -= 1
            yield order, frame
            frame += 1 << order

    # -- allocations -----------------------------------------------------------------------

    def alloc_preserve(self, size: int, content: bytes = b"") -> int:
        """A preserved folio for ``size`` bytes; its physical address. Raises ENOMEM.

        It holds ``content`` and zeros.
        """
        pages = -(-size // self.machine.page_size)
        order = (pages - 1).bit_length()
        frame = self.machine.alloc(order, content)
        try:
            self.preserve_folio(frame, order)
        except KernelErrno:
            self.machine.free(frame, order)
            raise
        pa = frame << self.machine.page_shift
        self._orders[pa] = order
        return pa

    def unpreserve_free(self, pa: int) -> None:
        """Give back what :meth:`alloc_preserve` gave. Its content stays, stale."""
        order = self._orders.pop(pa)
        frame = pa >> self.machine.page_shift
        self.unpreserve_folio(frame, order)
        self.machine.free(frame, order)

    def order_of(self, pa: int) -> int:
        """Order of a folio of :meth:`alloc_preserve`."""
        return self._orders[pa]

    # -- vmalloc ---------------------------------------------------------------------------

    def vmalloc(self, size: int, *, order: int = 0, flags: int = VM_ALLOC) -> VmallocArea:
        """Allocate an area of ``size`` bytes in blocks of 2^order pages. Raises ENOMEM."""
        block = self.machine.page_size << order
        frames = self.machine.alloc_many(-(-size // block), order)
        return VmallocArea(frames, order, flags, size)

    def vfree(self, area: VmallocArea) -> None:
        """Free an area."""
        self.machine.free_many(area.frames, area.order)

    def vmalloc_write(self, area: VmallocArea, data: bytes | npt.NDArray[np.generic]) -> None:
        """Store bytes at the start of an area."""
        source = np.frombuffer(data, np.uint8)
        block, shift = self.machine.page_size << area.order, self.machine.page_shift
        pages = 1 << area.order
        firsts, lengths = runs_of(area.frames, pages)
        at = 0
        for first, length in zip(firsts, lengths, strict=True):
            piece = source[at : at + length * block]
            if not len(piece):
                return
            self.machine.memory.write(first << shift, piece)
            at += length * block

    def preserve_vmalloc(self, area: VmallocArea) -> VmallocDescriptor:
        """Preserve an area. Raises EOPNOTSUPP for odd flags, and as ``preserve_folio``.

        A chunk that is full always gets a successor, which may stay empty.
        """
        if not self.profile.has("vmalloc"):
            raise UsageError(f"{self.profile} cannot preserve vmalloc areas")
        if area.flags & ~(VM_ALLOC | VM_ALLOW_HUGE):
            raise KernelErrno("EOPNOTSUPP", f"vmalloc flags {area.flags:#x}")
        self.preserve_folios(area.frames, area.order)
        page, memory = self.machine.page_size, self.machine.memory
        capacity = (page - 8) // 8
        addresses = area.frames << np.uint64(self.machine.page_shift)
        chunks: list[int] = []
        try:
            chunks.extend(self.alloc_preserve(page) for _ in range(len(addresses) // capacity + 1))
        except KernelErrno:
            for pa in reversed(chunks):
                self.unpreserve_free(pa)
            self.unpreserve_folios(area.frames, area.order)
            raise
        for i, pa in enumerate(chunks):
            part = addresses[i * capacity : (i + 1) * capacity]
            body = np.zeros(1 + len(part), np.uint64)
            body[0] = chunks[i + 1] if i + 1 < len(chunks) else 0
            body[1:] = part
            memory.write(pa, body)
        total = len(area.frames) << area.order
        return VmallocDescriptor(chunks[0], total, area.flags, area.order, tuple(chunks))

    def unpreserve_vmalloc(self, area: VmallocArea, descriptor: VmallocDescriptor) -> None:
        """The opposite: the area's pages, then the chunks."""
        self.unpreserve_folios(area.frames, area.order)
        for pa in descriptor.chunks:
            self.unpreserve_free(pa)

    # -- root ------------------------------------------------------------------------------

    def _empty_root(self) -> bytes:
        writer = FdtWriter(self.machine.page_size)
        writer.begin_node("")
        writer.property_string("compatible", self.compatible)
        address = self.map.write() if self.profile.finalize is Finalize.NONE else 0
        writer.property_u64(self.generation.map_property, address)
        writer.end_node()
        writer.finish()
        return writer.page()

    def _store_root(self, page: bytes) -> None:
        self.machine.memory.write(self.root, page)

    def _blob_properties(self, blob: Blob) -> dict[str, int]:
        properties = {self.generation.blob_property: blob.address}
        if self.generation.size_property is not None:
            properties[self.generation.size_property] = blob.size
        return properties

    def add_blob(self, name: str, address: int, size: int) -> None:
        """Register a blob. Raises EEXIST for a name in use, ENOMEM when the page is full."""
        if name in self.blobs:
            raise KernelErrno("EEXIST", f"a blob {name!r} is registered")
        blob = Blob(address, size)
        if self._editor is not None:
            editor = FdtEditor(self._editor.page(), self.machine.page_size)
            try:
                editor.add_node("/", name)
                for key, value in self._blob_properties(blob).items():
                    editor.set_property(f"/{name}", key, struct.pack("<Q", value))
            except FdtError as error:
                raise KernelErrno("ENOMEM", f"the root FDT is full: {error}") from None
            editor.pack()
            self._editor = editor
            self._store_root(editor.page())
        self.blobs[name] = blob

    def remove_blob(self, name: str) -> None:
        """Forget a blob."""
        del self.blobs[name]
        if self._editor is not None:
            editor = FdtEditor(self._editor.page(), self.machine.page_size)
            editor.delete_node(f"/{name}")
            editor.pack()
            self._editor = editor
            self._store_root(editor.page())

    def finalize(self) -> None:
        """Complete the root. Raises EEXIST when done already (6.16 to 6.18)."""
        rule = self.profile.finalize
        if rule is Finalize.DEBUGFS and self.finalized:
            raise KernelErrno("EEXIST", "the handover is finalized already")
        address = self.map.write()
        if self._editor is not None:
            if rule is Finalize.REBOOT:
                editor = FdtEditor(self._editor.page(), self.machine.page_size)
                at = struct.pack("<Q", address)
                editor.set_property("/", self.generation.map_property, at)
                editor.pack()
                self._editor = editor
                self._store_root(editor.page())
        else:
            writer = FdtWriter(self.machine.page_size)
            try:
                writer.begin_node("")
                writer.property_string("compatible", self.compatible)
                writer.property_u64(self.generation.map_property, address)
                for name, blob in self.blobs.items():
                    writer.begin_node(name)
                    for key, value in self._blob_properties(blob).items():
                        writer.property_u64(key, value)
                    writer.end_node()
                writer.end_node()
                writer.finish()
            except FdtError as error:
                raise KernelErrno("ENOMEM", f"the root FDT is full: {error}") from None
            self._store_root(writer.page())
        self.finalized = True

    def abort(self) -> None:
        """Undo the finalization. Raises ENOENT when there is none."""
        if not self.finalized:
            raise KernelErrno("ENOENT", "the handover is not finalized")
        self.finalized = False

    @property
    def handed_over(self) -> bool:
        """Whether a kexec image loaded now carries the root (before 6.19: if finalized)."""
        return self.finalized or self.profile.finalize is not Finalize.DEBUGFS


def _block_map(machine: Machine, kind: MapKind) -> BlockMap:
    if kind is MapKind.BITMAP_512:
        return BitmapMap(machine, 512)
    if kind is MapKind.BITMAP_PAGE:
        return BitmapMap(machine, machine.page_size)
    interim = kind is MapKind.RADIX_INTERIM
    return RadixMap(machine, RadixGeometry(machine.page_size, interim=interim))


def runs_of(frames: U64Array, pages: int) -> tuple[list[int], list[int]]:
    """Blocks of ``pages`` frames in their order, as runs: (first frames, blocks in the run)."""
    if len(frames) == 1:
        return [int(frames[0])], [1]
    if pages == 1 and len(frames) and (frames[1:] > frames[:-1]).all():
        first, length = runs(frames)
        return first.tolist(), length.tolist()
    cut = np.flatnonzero(frames[1:] != frames[:-1] + np.uint64(pages)) + 1
    edges = [0, *cut.tolist(), len(frames)]
    starts = [int(frames[a]) for a in edges[:-1]] if len(frames) else []
    lengths = [b - a for a, b in itertools.pairwise(edges)] if len(frames) else []
    return starts, lengths
