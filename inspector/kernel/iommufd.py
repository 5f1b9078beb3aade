"""iommufd: address spaces, hardware page tables, and the handler that preserves them.

An IOAS holds areas of memory files; paging HWPTs map all areas of their IOAS; a nested HWPT
sits on a parent. User space marks the paging HWPTs that are to survive with tokens, preserves
the memory files, and then the iommufd.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi.iommufd import HANDLER, IommufdGeneration
from abi.pagetable import READ_WRITE, Permission
from abi.registry import Generation
from inspector.kernel.errno import KernelErrno
from inspector.kernel.frames import U64Array
from inspector.kernel.hardware import Hardware, PciDevice, Unit, UnitType
from inspector.kernel.iommu import Domain, IommuFlb
from inspector.kernel.iopt import PageTable
from inspector.kernel.kho import Kho
from inspector.kernel.luo import FileHandler, Session
from inspector.kernel.machine import Machine
from inspector.kernel.memfd import DMA_SEALS, Memfd
from inspector.kernel.record import pack, pack_many
from inspector.kernel.smmuv3 import Smmuv3Unit
from inspector.kernel.vtd import VtdUnit

#: Runs of at least this many pages are mapped as ranges, shorter ones page by page.
_LONG_RUN = 64


class IommuDrivers:
    """The IOMMU drivers of a machine: one object per unit, made when it is first used."""

    def __init__(self, machine: Machine, kho: Kho, *, listed: bool = True) -> None:
        self.machine = machine
        self.kho = kho
        self._listed = listed
        self.hardware: Hardware = machine.spec.hardware
        self.units: dict[int, VtdUnit | Smmuv3Unit] = {}

    def of(self, base: int) -> VtdUnit | Smmuv3Unit:
        """The driver of a unit. Raises ENODEV."""
        driver = self.units.get(base)
        if driver is None:
            unit = self.hardware.unit(base)
            if unit is None:
                raise KernelErrno("ENODEV", f"no IOMMU at {base:#x}")
            if unit.type is UnitType.INTEL:
                driver = VtdUnit(self.machine, self.kho, unit, self.hardware)
            else:
                driver = Smmuv3Unit(self.machine, self.kho, unit, listed=self._listed)
                for device in self.hardware.devices:
                    if device.unit == base:
                        driver.probe(device)
            self.units[base] = driver
        return driver

    def new_domain(self, unit: Unit, *, first_stage: bool = False) -> Domain:
        """An empty domain for devices behind a unit. Raises EOPNOTSUPP, ENOMEM."""
        if unit.type is UnitType.ARM_SMMUV3:
            return Domain(_stage_2(self.machine, unit))
        if first_stage:
            if not unit.scalable:
                raise KernelErrno("EOPNOTSUPP", "first stage needs scalable mode")
            return Domain(PageTable(self.machine, "x86-64", 4, 48), sign_extend=True)
        bits = {3: 39, 4: 48, 5: 57}[unit.levels]
        return Domain(PageTable(self.machine, "vtdss", unit.levels, bits))


def _stage_2(machine: Machine, unit: Unit) -> PageTable:
    """A stage-2 table: start level by input size, concatenated where Linux must."""
    granule = machine.page_shift
    per_level = granule - 3
    levels = -(-(unit.input_bits - granule) // per_level)
    top_bits = unit.input_bits - granule - (levels - 1) * per_level
    if levels == 4 and top_bits <= 4 and (granule == 14 or unit.input_bits in (40, 42)):
        levels -= 1
    name = {12: "4k", 14: "16k", 16: "64k"}[granule]
    return PageTable(machine, f"lpae-s2-{name}", levels, unit.input_bits)


@dataclass(slots=True)
class Area:
    """Mapped input addresses: ``count`` pieces of ``size`` bytes, ``stride`` apart."""

    iova: int
    size: int
    file: Memfd | None
    offset: int
    permissions: Permission
    count: int = 1
    stride: int = 0
    pa: int = 0

    @property
    def end(self) -> int:
        """First address behind the last piece."""
        return self.iova + (self.count - 1) * self.stride + self.size

    def split(self, index: int) -> list[Area]:
        """The area without one of its pieces."""
        parts = []
        for first, count in ((0, index), (index + 1, self.count - index - 1)):
            if count:
                moved = first * self.size
                parts.append(
                    Area(
                        self.iova + first * self.stride, self.size, self.file,
                        self.offset + moved, self.permissions, count, self.stride,
                        self.pa + moved if self.pa else 0,
                    )
                )  # fmt: skip
        return parts


@dataclass(slots=True, eq=False)
class Ioas:
    """An I/O address space."""

    iommufd: Iommufd = field(repr=False)
    areas: list[Area] = field(default_factory=list)
    hwpts: list[Hwpt] = field(default_factory=list, repr=False)
    #: While preserved, nothing may be mapped or unmapped.
    immutable: bool = False
    _starts: list[int] = field(default_factory=list)

    def _overlaps(self, new: Area) -> bool:
        at = bisect.bisect_left(self._starts, new.end)
        for area in reversed(self.areas[:at]):
            if area.end <= new.iova:
                if area.count == 1 and new.count == 1:
                    break
                continue
            for i in range(area.count):
                start = area.iova + i * area.stride
                for j in range(new.count) if new.count < 64 else [None]:
                    if j is None:
                        first = (start - new.iova) // new.stride if new.stride else 0
                        near = [k for k in (first, first + 1) if 0 <= k < new.count]
                    else:
                        near = [j]
                    for k in near:
                        other = new.iova + k * new.stride
                        if start < other + new.size and other < start + area.size:
                            return True
        return False

    def map_file(
        self,
        file: Memfd,
        offset: int,
        iova: int,
        size: int,
        permissions: Permission = READ_WRITE,
        *,
        count: int = 1,
        stride: int = 0,
    ) -> None:
        """Map part of a memory file, ``count`` times at ``stride``, the file going on.

        Raises EBUSY (preserved), EINVAL, ERANGE, EEXIST.
        """
        self._map(Area(iova, size, file, offset, permissions, count, stride or size))

    def map_user(self, pa: int, iova: int, size: int, permissions: Permission = READ_WRITE) -> None:
        """Map memory that no file backs; such an IOAS cannot be preserved."""
        self._map(Area(iova, size, None, 0, permissions, 1, size, pa))

    def _map(self, area: Area) -> None:
        if self.immutable:
            raise KernelErrno("EBUSY", "the address space is preserved")
        if area.file is not None:
            total = area.size * area.count
            if area.offset + total > area.file.size:
                raise KernelErrno("EINVAL", "the mapping leaves the file")
            area.file.pin(area.offset, total)
        if self._overlaps(area):
            raise KernelErrno("EEXIST", f"{area.iova:#x} is mapped already")
        done: list[Hwpt] = []
        try:
            for hwpt in self.hwpts:
                hwpt.map(area)
                done.append(hwpt)
        except KernelErrno:
            for hwpt in done:
                hwpt.unmap(area)
            raise
        at = bisect.bisect_left(self._starts, area.iova)
        self.areas.insert(at, area)
        self._starts.insert(at, area.iova)

    def unmap(self, iova: int, size: int) -> None:
        """Unmap whole areas within a range. Raises EBUSY (preserved), ENOENT (cuts an area)."""
        if self.immutable:
            raise KernelErrno("EBUSY", "the address space is preserved")
        found: list[tuple[Area, int]] = []
        for area in self.areas:
            for i in range(area.count):
                start = area.iova + i * area.stride
                if start < iova + size and iova < start + area.size:
                    if start < iova or start + area.size > iova + size:
                        raise KernelErrno("ENOENT", f"{iova:#x}+{size:#x} cuts an area")
                    found.append((area, i))
        if not found:
            raise KernelErrno("ENOENT", f"nothing is mapped in {iova:#x}+{size:#x}")
        for area, i in reversed(found):
            for hwpt in self.hwpts:
                hwpt.domain.table.unmap(area.iova + i * area.stride, area.size)
            at = self.areas.index(area)
            self.areas[at : at + 1] = area.split(i)
        self._starts = [a.iova for a in self.areas]


@dataclass(slots=True, eq=False)
class Hwpt:
    """A hardware page table. ``parent`` makes it a nested one, which has no IOAS of its own."""

    iommufd: Iommufd = field(repr=False)
    domain: Domain
    unit: Unit
    ioas: Ioas | None = None
    parent: Hwpt | None = None
    token: int | None = None
    devices: set[int] = field(default_factory=set)

    @property
    def nested(self) -> bool:
        """Whether it sits on a parent."""
        return self.parent is not None

    def map(self, area: Area) -> None:
        """Map an area."""
        table = self.domain.table
        table.check(area.end - area.size, area.size)
        page = table.machine.page_size
        try:
            if area.file is None:
                table.map(area.iova, area.pa, area.size, area.permissions)
                return
            frames = file_frames(area.file, area.offset, area.size * area.count)
            if area.count == 1 or area.stride == area.size:
                map_frames(table, area.iova, frames, area.permissions)
            elif area.size == page:
                iovas = np.uint64(area.iova) + np.arange(area.count, dtype=np.uint64) * np.uint64(
                    area.stride
                )
                pas = frames << np.uint64(table.machine.page_shift)
                table.map_scattered(iovas, pas, area.permissions)
            else:
                each = area.size // page
                for i in range(area.count):
                    part = frames[i * each : (i + 1) * each]
                    map_frames(table, area.iova + i * area.stride, part, area.permissions)
        except KernelErrno:
            self.unmap(area)
            raise

    def unmap(self, area: Area) -> None:
        """Unmap an area."""
        for i in range(area.count):
            self.domain.table.unmap(area.iova + i * area.stride, area.size)


def file_frames(file: Memfd, offset: int, size: int) -> U64Array:
    """The frames behind a populated range of a file, page by page."""
    shift = file.machine.page_shift
    parts = [
        np.arange(pa >> shift, -(-(pa + length) >> shift), dtype=np.uint64)
        for pa, length in file.runs(offset, size)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def map_frames(table: PageTable, iova: int, frames: U64Array, permissions: Permission) -> None:
    """Map frames one after another: long runs with large leaves, the rest page by page."""
    shift = table.machine.page_shift
    cut = np.flatnonzero(frames[1:] != frames[:-1] + np.uint64(1)) + 1
    edges = [0, *cut.tolist(), len(frames)]
    at = 0
    while at < len(edges) - 1:
        first, last = edges[at], edges[at + 1]
        if last - first >= _LONG_RUN:
            start = iova + (first << shift)
            table.map(start, int(frames[first]) << shift, (last - first) << shift, permissions)
            at += 1
            continue
        upto = at + 1
        while upto < len(edges) - 1 and edges[upto + 1] - edges[upto] < _LONG_RUN:
            upto += 1
        part = frames[first : edges[upto]]
        iovas = np.uint64(iova) + (
            np.arange(first, edges[upto], dtype=np.uint64) << np.uint64(shift)
        )
        table.map_scattered(iovas, part << np.uint64(shift), permissions)
        at = upto


class Iommufd:
    """An open iommufd."""

    def __init__(self, drivers: IommuDrivers, core: IommuFlb | None) -> None:
        self.drivers = drivers
        self.core = core
        self.ioas: list[Ioas] = []
        self.hwpts: list[Hwpt] = []
        self.token: int | None = None
        self.devices: dict[int, Hwpt] = {}

    @property
    def preserves_devices(self) -> bool:
        """Whether this kernel keeps IOMMU state at all."""
        return self.core is not None

    # -- what user space does -------------------------------------------------------------------

    def ioas_alloc(self) -> Ioas:
        """A new address space."""
        space = Ioas(self)
        self.ioas.append(space)
        return space

    def hwpt_alloc(
        self,
        unit: Unit,
        ioas: Ioas | None = None,
        *,
        parent: Hwpt | None = None,
        first_stage: bool = False,
    ) -> Hwpt:
        """A paging HWPT on an IOAS, or a nested one on a parent. Raises EINVAL, ENOMEM."""
        if (ioas is None) == (parent is None):
            raise KernelErrno("EINVAL", "a HWPT is on an IOAS or on a parent")
        if parent is not None:
            if parent.nested or (unit.type is UnitType.INTEL and not unit.scalable):
                raise KernelErrno("EINVAL", "this HWPT cannot be a parent")
            hwpt = Hwpt(self, parent.domain, unit, None, parent)
        else:
            assert ioas is not None
            domain = self.drivers.new_domain(unit, first_stage=first_stage)
            hwpt = Hwpt(self, domain, unit, ioas)
            try:
                for area in ioas.areas:
                    hwpt.map(area)
            except KernelErrno:
                domain.table.free()
                raise
            ioas.hwpts.append(hwpt)
        self.hwpts.append(hwpt)
        return hwpt

    def attach(self, device: PciDevice, hwpt: Hwpt) -> None:
        """Attach a device, or replace what it is attached to. Raises EINVAL, ENODEV, ENOSPC."""
        if device.unit != hwpt.unit.base and not self._same_kind(device, hwpt):
            raise KernelErrno("EINVAL", f"{device} cannot use this page table")
        if device.key in self.drivers_device(device) and device.key not in self.devices:
            raise KernelErrno("EBUSY", f"{device} belongs to another iommufd")
        if self.core is not None and device.key in self.core.live_devices:
            raise KernelErrno("EBUSY", f"{device} is preserved")
        self.drivers.of(device.unit).attach(device, hwpt.domain)
        before = self.devices.get(device.key)
        if before is not None:
            before.devices.discard(device.key)
        hwpt.devices.add(device.key)
        self.devices[device.key] = hwpt

    def drivers_device(self, device: PciDevice) -> dict[int, Domain]:
        """Devices attached behind the unit of a device."""
        return self.drivers.of(device.unit).attached

    def _same_kind(self, device: PciDevice, hwpt: Hwpt) -> bool:
        other = self.drivers.hardware.unit(device.unit)
        return (
            other is not None
            and other.type == hwpt.unit.type
            and other.levels == hwpt.unit.levels
            and other.input_bits == hwpt.unit.input_bits
            and (other.scalable == hwpt.unit.scalable or not hwpt.nested)
        )

    def detach(self, device: PciDevice) -> None:
        """Detach a device. Raises EINVAL (not attached), EBUSY (preserved)."""
        if device.key not in self.devices:
            raise KernelErrno("EINVAL", f"{device} is not attached")
        if self.core is not None and device.key in self.core.live_devices:
            raise KernelErrno("EBUSY", f"{device} is preserved")
        self.drivers.of(device.unit).detach(device)
        self.devices.pop(device.key).devices.discard(device.key)

    def destroy(self, hwpt: Hwpt) -> None:
        """Destroy a HWPT. Raises EBUSY while it is in use or preserved."""
        if hwpt.devices or any(h.parent is hwpt for h in self.hwpts):
            raise KernelErrno("EBUSY", "the HWPT is in use")
        if not hwpt.nested and hwpt.domain.ser is not None:
            raise KernelErrno("EBUSY", "the HWPT is preserved")
        self.hwpts.remove(hwpt)
        if hwpt.ioas is not None:
            hwpt.ioas.hwpts.remove(hwpt)
            hwpt.domain.table.free()

    def destroy_ioas(self, ioas: Ioas) -> None:
        """Destroy an address space. Raises EBUSY while a HWPT is on it."""
        if ioas.hwpts:
            raise KernelErrno("EBUSY", "the address space is in use")
        self.ioas.remove(ioas)

    def mark(self, hwpt: Hwpt, token: int, *, bits: int = 64) -> None:
        """Mark a HWPT to be preserved, or change its token.

        Raises EINVAL (nested), EBUSY (preserved), EADDRINUSE (token).
        """
        if hwpt.nested:
            raise KernelErrno("EINVAL", "a nested HWPT cannot be preserved")
        if hwpt.domain.ser is not None:
            raise KernelErrno("EBUSY", "the HWPT is preserved")
        if not 0 <= token < 1 << bits:
            raise KernelErrno("EINVAL", f"the token has {bits} bits")
        if any(h.token == token for h in self.hwpts):
            raise KernelErrno("EADDRINUSE", f"token {token:#x} is in use")
        hwpt.token = token

    def unmark(self, hwpt: Hwpt) -> None:
        """Take the mark away again; only the second request for comments had that."""
        hwpt.token = None

    def domain_of(self, device: PciDevice) -> Domain | None:
        """The domain a device is attached to."""
        hwpt = self.devices.get(device.key)
        return hwpt.domain if hwpt is not None else None

    # -- preserving ---------------------------------------------------------------------------

    def preserve_device(self, device: PciDevice, token: int) -> None:
        """Preserve the IOMMU state of an attached device.

        Raises EINVAL if it is not attached here, or to something that is not preserved.
        """
        hwpt = self.devices.get(device.key)
        if hwpt is None or self.core is None:
            raise KernelErrno("EINVAL", f"DMA of {device} is not owned by this iommufd")
        if hwpt.nested and hwpt.unit.type is UnitType.INTEL:
            raise KernelErrno("EINVAL", f"{device} is attached to a nested page table")
        driver = self.drivers.of(device.unit)
        self.core.preserve_device(driver, device, hwpt.domain, token)

    def unpreserve_device(self, device: PciDevice) -> None:
        """Undo it."""
        assert self.core is not None
        self.core.unpreserve_device(self.drivers.of(device.unit), device)


@dataclass(slots=True)
class _State:
    ser: int
    hwpts: list[Hwpt]
    spaces: list[Ioas]


class IommufdHandler(FileHandler):
    """Preserves iommufds."""

    compatible = HANDLER

    def __init__(self, kho: Kho, generation: Generation, core: IommuFlb | None) -> None:
        assert isinstance(generation, IommufdGeneration)
        self.kho = kho
        self.generation = generation
        self.core = core
        self.flbs = () if core is None else (core,)
        self.states: dict[int, _State] = {}

    @property
    def token_bits(self) -> int:
        """Width of HWPT tokens."""
        entry = self.generation.entry
        return 64 if entry is None else entry.field("token").size * 8

    def can_preserve(self, file: Any) -> bool:
        """iommufds only."""
        return isinstance(file, Iommufd)

    def preserve(self, file: Iommufd, session: Session, token: int) -> int:
        """Preserve every marked HWPT with its domain; their address spaces become immutable.

        Raises EINVAL (a mapping without a file, or whose file lacks seals or is not preserved in
        this session), EBUSY, ENOMEM.
        """
        marked = [h for h in file.hwpts if h.token is not None]
        entry = self.generation.entry
        if entry is None:
            ser = self.kho.alloc_preserve(self.generation.root.size)
            self.states[id(file)] = _State(ser, [], [])
            file.token = token
            return ser
        spaces: list[Ioas] = []
        for hwpt in marked:
            assert hwpt.ioas is not None
            self._check(hwpt.ioas, session)
            if hwpt.ioas not in spaces:
                spaces.append(hwpt.ioas)
        size = self.generation.root.size + len(marked) * entry.size
        ser = self.kho.alloc_preserve(size)
        done: list[Hwpt] = []
        try:
            for hwpt in marked:
                if self.core is None:
                    raise KernelErrno("EOPNOTSUPP", "this kernel preserves no domains")
                self.core.preserve_domain(hwpt.domain)
                done.append(hwpt)
        except KernelErrno:
            for hwpt in reversed(done):
                assert self.core is not None
                self.core.unpreserve_domain(hwpt.domain)
            self.kho.unpreserve_free(ser)
            raise
        columns = {
            "domain_data": [h.domain.ser for h in marked],
            "token": [h.token for h in marked],
        }
        records = pack_many(entry, len(marked), columns if marked else {})
        head = pack(self.generation.root, {"nr_hwpts": len(marked)})
        self.kho.machine.memory.write(ser, head + records.tobytes())
        for space in spaces:
            space.immutable = True
        self.states[id(file)] = _State(ser, marked, spaces)
        file.token = token
        return ser

    def _check(self, space: Ioas, session: Session) -> None:
        for area in space.areas:
            if area.file is None:
                raise KernelErrno("EINVAL", f"no file backs the mapping at {area.iova:#x}")
            if area.file.seals & DMA_SEALS != DMA_SEALS:
                raise KernelErrno("EINVAL", f"{area.file.name} lacks seals")
            entry = session.luo.preserved.get(id(area.file))
            if entry is None or entry.token not in session.files:
                raise KernelErrno("EINVAL", f"{area.file.name} is not preserved in this session")

    def unpreserve(self, file: Iommufd, data: int) -> None:
        """Undo; the address spaces can change again."""
        state = self.states.pop(id(file))
        for hwpt in reversed(state.hwpts):
            assert self.core is not None
            self.core.unpreserve_domain(hwpt.domain)
        self.kho.unpreserve_free(state.ser)
        for space in state.spaces:
            space.immutable = False
        file.token = None

    def hwpts(self, file: Iommufd) -> list[Hwpt]:
        """The HWPTs that are preserved with a file, in the order of its entries."""
        return self.states[id(file)].hwpts
