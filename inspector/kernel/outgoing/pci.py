"""PCI state as file-lifecycle-bound data: which devices, and for how many endpoints."""

from __future__ import annotations

from typing import Any

from abi.pci import ArrayForm, PciGeneration
from abi.registry import Generation
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.hardware import Hardware, PciDevice
from inspector.kernel.outgoing.blocks import BlockList
from inspector.kernel.outgoing.file_handler import Flb
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.record import pack, pack_many


class PciFlb(Flb):
    """The FLB of the PCI core."""

    def __init__(self, kho: Kho, generation: Generation, hardware: Hardware) -> None:
        assert isinstance(generation, PciGeneration)
        super().__init__(generation.strings[0])
        self.kho = kho
        self.generation = generation
        self.hardware = hardware
        self.root = 0
        self.version = int(generation.constants.get("PCI_LUO_FLB_VERSION", 0))  # type: ignore[arg-type]
        #: Slots: [segment, bdf, endpoints]; a slot with 0 endpoints is free.
        self.slots: list[list[int]] = []
        self._where: dict[int, int] = {}
        self._free: list[int] = []
        self._blocks: BlockList | None = None
        self._endpoints: set[int] = set()
        bridges = {(d.segment, b) for d in hardware.devices for b in d.bridges}
        self.maximum = len(hardware.devices) + len(bridges)
        newest = generation.form is ArrayForm.BLOCKS and self.version >= 2
        #: Whether bridges are listed, with the number of endpoints below.
        self.counts_bridges = newest or (generation.has_refcount and self.name == "pci-v2")

    def preserve(self) -> int:
        """Allocate the root, with room for every device of the machine where it is an array."""
        root = self.generation.root
        size = root.size
        if self.generation.form is not ArrayForm.BLOCKS:
            size += self.maximum * self.generation.device.size
        self.root = self.kho.alloc_preserve(size)
        if self.generation.form is ArrayForm.BLOCKS:
            self._blocks = BlockList(self.kho, self.generation.device)
        return self.root

    def unpreserve(self, data: int) -> None:
        """Free it."""
        assert not self._endpoints, "a device is still preserved"
        self.sync()
        if self._blocks is not None:
            self._blocks.shrink(0)
            self._blocks = None
        self.kho.unpreserve_free(data)
        self.root = 0
        self.slots, self._where, self._free = [], {}, []

    # -- devices -----------------------------------------------------------------------------

    def add(self, device: PciDevice) -> None:
        """Preserve an endpoint and, in later forms, the bridges above it.

        Raises EINVAL (virtual function, isolation quirk, bridges in the first version-word form),
        EBUSY (twice), ENOSPC.
        """
        if device.virtual_function or device.quirk:
            raise KernelErrno("EINVAL", f"{device} cannot be preserved")
        if device.bridges and self.generation.form is ArrayForm.BLOCKS and not self.counts_bridges:
            raise KernelErrno("EINVAL", f"{device} is behind a bridge")
        if device.key in self._endpoints:
            raise KernelErrno("EBUSY", f"{device} is preserved already")
        keys = [device.key]
        if self.counts_bridges:
            keys += [device.segment << 16 | b for b in device.bridges]
        done: list[int] = []
        try:
            for key in keys:
                self._get(key)
                done.append(key)
        except KernelErrno:
            for key in reversed(done):
                self._put(key)
            raise
        self._endpoints.add(device.key)

    def remove(self, device: PciDevice) -> None:
        """Undo :meth:`add`."""
        self._endpoints.remove(device.key)
        if self.counts_bridges:
            for bdf in reversed(device.bridges):
                self._put(device.segment << 16 | bdf)
        self._put(device.key)

    def _get(self, key: int) -> None:
        at = self._where.get(key)
        if at is not None:
            self.slots[at][2] += 1
            return
        if self._free:
            at = self._free.pop(0)
        else:
            at = len(self.slots)
            if self._blocks is not None:
                self._blocks.reserve(at + 1)
            elif at >= self.maximum:
                raise KernelErrno("ENOSPC", "the list of PCI devices is full")
            self.slots.append([0, 0, 0])
        self.slots[at] = [key >> 16, key & 0xFFFF, 1]
        self._where[key] = at

    def _put(self, key: int) -> None:
        at = self._where[key]
        self.slots[at][2] -= 1
        if self.slots[at][2]:
            return
        del self._where[key]
        if self.generation.has_refcount:
            self._free.append(at)
            self._free.sort()
            return
        # Without reference counts the list has no holes: the later ones move up.
        self.slots.pop(at)
        for other, index in self._where.items():
            if index > at:
                self._where[other] = index - 1

    def entry_address(self, key: int) -> int:
        """Where the entry of a device lies."""
        at = self._where[key]
        if self._blocks is not None:
            return self._blocks.address(at)
        return self.root + self.generation.root.size + at * self.generation.device.size

    @property
    def keys(self) -> list[int]:
        """(segment << 16 | bdf) of everything that is listed."""
        return list(self._where)

    def _driver(self, segment: int, bdf: int) -> bytes:
        found = self.hardware.device(segment, bdf)
        return found.driver.encode() if found is not None else b"pcieport"

    def sync(self) -> None:
        """Write root and entries."""
        if not self.root:
            return
        device, root = self.generation.device, self.generation.root
        slots = self.slots
        if self.generation.form is ArrayForm.COUNTED:
            slots = sorted(slots)
        segments, bdfs, counts = zip(*slots, strict=True) if slots else ((), (), ())
        names = device.dtype.names or ()
        columns: dict[str, Any] = {}
        if "path" in names:
            columns["path"] = [s << 16 | b for s, b in zip(segments, bdfs, strict=True)]
        else:
            columns |= {"domain": list(segments), "bdf": list(bdfs)}
        if "refcount" in names:
            columns["refcount"] = list(counts)
        records = pack_many(device, len(slots), columns if slots else {})
        if "driver_name" in names and slots:
            size = device.field("driver_name").size
            records["driver_name"].view(f"S{size}").reshape(-1)[:] = [
                self._driver(segment, bdf)[: size - 1] for segment, bdf, _ in slots
            ]
        live = sum(1 for slot in slots if slot[2])
        values: dict[str, int] = {self.generation.count: live}
        if self.generation.maximum:
            values[self.generation.maximum] = self.maximum
        memory = self.kho.machine.memory
        if self._blocks is not None:
            self._blocks.write(records)
            values |= {"version": self.version, "devices": self._blocks.first}
            memory.write(self.root, pack(root, values))
            return
        memory.write(self.root, pack(root, values) + records.tobytes())
