"""What a kernel took over, as files of its own: from consumer to producer of the next update.

Memory files, virtual machines and mounts are what was restored. An iommufd and its devices
are new ones, as after a hotswap: user space has moved every device to page tables of the new
kernel, which translate what the old ones did, and has given them the same tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from abi.errors import UsageError
from abi.iommu import IommuGeneration
from abi.pagetable import Permission
from inspector import pagetable
from inspector.kernel.incoming.device_files import RestoredIommufd, RestoredVfio
from inspector.kernel.incoming.guest_files import (
    RestoredGuestMemfd,
    RestoredHugeMemfd,
    RestoredMount,
    RestoredVcpu,
    RestoredVm,
)
from inspector.kernel.incoming.memory_file import RestoredFolios, RestoredMemfd
from inspector.kernel.machine.hardware import Unit, UnitType
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.ioas import Hwpt, Ioas
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.kvm import AttributeRange, GuestMemfd, KvmVm
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.outgoing.tmpfs import TmpfsMount
from inspector.memory.base import U64Array

if TYPE_CHECKING:
    from inspector.kernel.incoming.consumer import Consumer
    from inspector.kernel.incoming.device_state import Devices
    from inspector.kernel.outgoing.kernel import Kernel

#: Kinds of files as scenarios call them, by what the consumer restores.
KINDS: dict[type, str] = {
    RestoredMemfd: "memfd",
    RestoredVm: "kvm-vm",
    RestoredVcpu: "kvm-vcpu",
    RestoredGuestMemfd: "guest-memfd",
    RestoredHugeMemfd: "huge-memfd",
    RestoredMount: "tmpfs-mount",
    RestoredIommufd: "iommufd",
    RestoredVfio: "vfio-pci",
}
_HARDWARE = ("iommufd", "vfio-pci")
#: Session name -> token -> file, in the order of the image.
Files = dict[str, dict[int, Any]]


@dataclass(slots=True)
class _Table:
    """What a HWPT of the old kernel translated: rows of (iova, pa, size, permissions)."""

    token: int
    domain: int
    unit: int
    first_stage: bool
    rows: list[tuple[int, int, int, int]] = field(repr=False)


class Inheritance:
    """Everything that a consumer has retrieved.

    Page tables are read here, at once: their memory is free already, and the next allocation may
    take it.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.sessions: dict[str, dict[int, Any]] = {}
        self._tables: dict[str, list[_Table]] = {}
        for entry in consumer.luo.sessions if consumer.luo is not None else ():
            name = entry.name.decode("utf-8", "surrogateescape")
            files = {f.token: f.file for f in entry.files if f.file is not None}
            self.sessions[name] = files
            for file in files.values():
                if isinstance(file, RestoredIommufd) and consumer.devices is not None:
                    self._tables[file.path] = list(_tables(consumer.devices, file))

    def take(self, kernel: Kernel, kinds: Collection[str] | None = None) -> Files:
        """The files, as files of ``kernel``, of all kinds or of some; call it once.

        Raises UsageError for what the machine or the image lacks, KernelErrno as the kernel does.
        """
        wanted = set(KINDS.values()) if kinds is None else set(kinds)
        made: Files = {}
        for name, files in self.sessions.items():
            own = made[name] = _memory_of(kernel, name, files)
            for token, file in files.items():
                if isinstance(file, RestoredIommufd) and "iommufd" in wanted:
                    own[token] = self._iommufd(kernel, file, own)
            for token, file in files.items():
                if isinstance(file, RestoredVfio) and "vfio-pci" in wanted:
                    own[token] = self._device(kernel, file, files, own)
            made[name] = {t: own[t] for t in files if t in own and KINDS[type(files[t])] in wanted}
        if kernel.drivers is not None:
            kernel.drivers.settle()
        return made

    # -- hardware ---------------------------------------------------------------------------

    def _iommufd(self, kernel: Kernel, file: RestoredIommufd, own: dict[int, Any]) -> Iommufd:
        opened = kernel.iommufd()
        memory = _Runs([f for f in own.values() if isinstance(f, Memfd)])
        spaces: list[tuple[list[tuple[int, int, int, int]], Ioas]] = []
        for table in self._tables.get(file.path, ()):
            space = next((s for rows, s in spaces if rows == table.rows), None)
            if space is None:
                space = opened.ioas_alloc()
                for area in memory.areas(table.rows):
                    _map(space, *area)
                spaces.append((table.rows, space))
            unit = _unit(kernel, table.unit)
            made = opened.hwpt_alloc(unit, space, first_stage=table.first_stage)
            opened.mark(made, table.token)
        return opened

    def _device(
        self, kernel: Kernel, file: RestoredVfio, files: dict[int, Any], own: dict[int, Any]
    ) -> Any:
        token, hwpt = self._owner(file, files, own)
        opened = own.get(token) if token is not None else None
        made = kernel.vfio(file.device.segment, file.device.bdf, opened)
        made.config = bytes(file.values.get("vconfig", b""))
        made.bars = tuple(file.values.get("rbar", made.bars))
        made.capabilities = list(file.capabilities)
        if opened is not None and hwpt is not None:
            opened.attach(made.device, hwpt)
        return made

    def _owner(
        self, file: RestoredVfio, files: dict[int, Any], own: dict[int, Any]
    ) -> tuple[int | None, Hwpt | None]:
        """The iommufd whose HWPT the device used, and that HWPT; else the one it names."""
        for token, other in files.items():
            if not isinstance(other, RestoredIommufd) or token not in own:
                continue
            for table, hwpt in zip(self._tables.get(other.path, ()), own[token].hwpts, strict=True):
                if file.domain is not None and table.domain == file.domain:
                    return token, hwpt
        named = file.values.get("token")
        return (named if named in own else None), None


def _unit(kernel: Kernel, base: int) -> Unit:
    hardware = kernel.machine.spec.hardware
    unit = hardware.unit(base) or (hardware.units[0] if hardware.units and not base else None)
    if unit is None:
        raise UsageError(f"the machine has no IOMMU at {base:#x}")
    return unit


def _map(space: Ioas, file: Memfd | None, at: int, iova: int, size: int, rights: int) -> None:
    if file is None:
        space.map_user(at, iova, size, Permission(rights))
    else:
        space.map_file(file, at, iova, size, Permission(rights))


def _tables(devices: Devices, file: RestoredIommufd) -> Iterator[_Table]:
    """What the page tables of an iommufd's HWPTs translate."""
    state, view = devices.iommu, devices.boot.view
    if state is None:
        return
    units = dict(
        zip(
            state.devices.column("domain_phys").tolist(),
            state.devices.column("iommu_phys").tolist(),
            strict=True,
        )
    )
    assert isinstance(state.generation, IommuGeneration)
    for hwpt in file.hwpts.values():
        domain = state.domains.at(hwpt.domain)
        if domain is None or domain.deleted:
            continue
        unit = state.units.at(int(units.get(hwpt.domain, 0)))
        used = devices.domains.get(hwpt.domain)
        arm = any(u.type == UnitType.ARM_SMMUV3 for u in ([unit] if unit else state.units.live()))
        format_ = f"lpae-s2-{view.page_size >> 10}k" if arm else "vtdss"
        if used is not None:
            format_ = used.format
        elif domain.get("sign_extend"):
            format_ = "x86-64"
        walk = pagetable.walk(
            view.memory, format_, domain.top_table_phys, domain.levels, vasz=domain.vasz
        )
        rows = [row for chunk in walk.ranges() for row in chunk]
        yield _Table(
            hwpt.token,
            hwpt.domain,
            0 if unit is None else unit.token,
            format_ == "x86-64",
            [(iova, pa, size, int(rights)) for iova, pa, size, rights in rows],
        )


class _Runs:
    """Which file, and where in it, a physical address belongs to."""

    def __init__(self, files: list[Memfd]) -> None:
        rows: list[tuple[int, int, int, Memfd]] = []
        for file in files:
            shift = file.machine.page_shift
            for extent in file.extents:
                step = np.uint64(1 << extent.order)
                cut = np.flatnonzero(extent.frames[1:] != extent.frames[:-1] + step) + 1
                for a, b in itertools.pairwise([0, *cut.tolist(), len(extent.frames)]):
                    at = int(extent.frames[a]) << shift
                    offset = extent.index + (a << extent.order) << shift
                    rows.append((at, (b - a) << extent.order << shift, offset, file))
        self._rows = sorted(rows, key=lambda row: row[0])
        self._starts = np.array([row[0] for row in self._rows], np.uint64)

    def areas(
        self, rows: list[tuple[int, int, int, int]]
    ) -> Iterator[tuple[Memfd | None, int, int, int, int]]:
        """(file, offset, iova, size, permissions); without a file the offset is the address.

        What goes on in both the file and the address space is one area.
        """
        held: tuple[Memfd | None, int, int, int, int] | None = None
        for iova, pa, size, rights in rows:
            for piece in self._pieces(iova, pa, size, rights):
                file, at, start, length, rights_ = piece
                if (
                    held is not None
                    and file is held[0]
                    and rights_ == held[4]
                    and at == held[1] + held[3]
                    and start == held[2] + held[3]
                ):
                    held = (file, held[1], held[2], held[3] + length, rights_)
                    continue
                if held is not None:
                    yield held
                held = piece
        if held is not None:
            yield held

    def _pieces(
        self, iova: int, pa: int, size: int, rights: int
    ) -> Iterator[tuple[Memfd | None, int, int, int, int]]:
        while size:
            i = int(np.searchsorted(self._starts, np.uint64(pa), "right")) - 1
            inside = i >= 0 and pa < self._rows[i][0] + self._rows[i][1]
            if inside:
                start, length, offset, file = self._rows[i]
                step = min(size, start + length - pa)
                yield file, offset + pa - start, iova, step, rights
            else:
                later = self._rows[i + 1][0] - pa if i + 1 < len(self._rows) else size
                step = min(size, later)
                yield None, pa, iova, step, rights
            iova, pa, size = iova + step, pa + step, size - step


# -- memory -------------------------------------------------------------------------------------


def _memory_of(kernel: Kernel, session: str, files: dict[int, Any]) -> dict[int, Any]:
    """Files of memory, virtual machines and mounts; machines first, for others name them."""
    made: dict[int, Any] = {}
    for machines in (True, False):
        for token, file in files.items():
            if KINDS[type(file)] not in _HARDWARE and isinstance(file, RestoredVm) is machines:
                made[token] = adopt(kernel, file, f"{session}/{token:#x}", made)
    return made


def adopt(kernel: Kernel, restored: Any, name: str, session: dict[int, Any] | None = None) -> Any:
    """A file that was retrieved, as a file of ``kernel``; devices and iommufds are not.

    ``session`` are the files of its session so far: a machine is found there by its token.
    Raises UsageError for what the image or the machine lacks.
    """
    machine = kernel.machine
    if isinstance(restored, RestoredMemfd):
        file = Memfd(machine, name)
        file.pos, file.seals = restored.pos, restored.seals_now
        return fill(file, restored)
    if isinstance(restored, RestoredGuestMemfd):
        guest = GuestMemfd(machine, _vm(session, restored.vm_token), restored.flags, name)
        guest.outdated = frozenset(restored.stale.tolist())
        return fill(guest, restored)
    if isinstance(restored, RestoredHugeMemfd):
        huge = kernel.huge_memfd(restored.order, name)
        assert isinstance(huge, HugeMemfd)
        huge.pos = restored.pos
        huge.pool.used += len(restored.frames)
        return fill(huge, restored)
    if isinstance(restored, RestoredVm):
        vm = kernel.kvm_vm(restored.type)
        vm.attributes = _ranges(restored.attributes)
        vm.folios = tuple(zip(restored.frames.tolist(), restored.orders.tolist(), strict=True))
        return vm
    if isinstance(restored, RestoredVcpu):
        if not restored.state:
            raise UsageError(f"{restored.path}: the registers are not in the image")
        vcpu = kernel.kvm_vcpu(_vm(session, restored.vm_token), restored.vcpu_id, restored.state)
        vcpu.control, vcpu.telemetry = restored.control, restored.telemetry
        return vcpu
    if isinstance(restored, RestoredMount):
        return TmpfsMount(restored.max_blocks, restored.mode, restored.flags)
    raise UsageError(f"{type(restored).__name__} is no memory: see Inheritance")


def _vm(session: dict[int, Any] | None, token: int) -> KvmVm:
    found = (session or {}).get(token)
    if not isinstance(found, KvmVm):
        raise UsageError(f"no virtual machine {token:#x} was taken over")
    return found


def fill(file: Any, restored: RestoredFolios) -> Any:
    """Put restored folios into the page cache of a file."""
    file.size = restored.size
    rank = np.argsort(restored.index, kind="stable")
    index, frames = restored.index[rank], restored.frames[rank]
    orders = np.asarray(restored.orders)[rank]
    step = np.uint64(1) << orders.astype(np.uint64)
    cut = np.flatnonzero((orders[1:] != orders[:-1]) | (index[1:] != index[:-1] + step[:-1]))
    edges = [0, *(cut + 1).tolist(), len(index)] if len(index) else [0]
    for a, b in itertools.pairwise(edges):
        file.adopt(int(index[a]), frames[a:b].copy(), int(orders[a]))
    return file


def _ranges(rows: U64Array | None) -> tuple[AttributeRange, ...]:
    """Attributes by frame as ranges, in the order they were in."""
    if rows is None or not len(rows):
        return ()
    gfn, values = rows[:, 0], rows[:, 1]
    cut = np.flatnonzero((gfn[1:] != gfn[:-1] + np.uint64(1)) | (values[1:] != values[:-1])) + 1
    return tuple(
        AttributeRange(int(gfn[a]), b - a, int(values[a]))
        for a, b in itertools.pairwise([0, *cut.tolist(), len(rows)])
    )
