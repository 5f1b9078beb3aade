"""A running kernel that will hand over: the producer.

::

    kernel = Kernel("linux-7.3", small_machine())
    vm = kernel.luo.create_session("vm0")
    ram = kernel.memfd("ram")
    ram.write(0, b"hello")
    vm.preserve(ram, 0x10)
    image = kernel.kexec()
    write_core("vm0.elf.zst", image.memory)

Operations that a kernel would refuse raise
:class:`~inspector.kernel.errno.KernelErrno` and leave the state as the kernel leaves it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from abi.errors import UsageError
from abi.iommu import IommuGeneration
from abi.luo import LuoGeneration
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import CMA_ALIGNMENT, MAX_ORDERS, Machine, MachineSpec
from inspector.kernel.machine.frames import FrameSet
from inspector.kernel.machine.hardware import format_bdf
from inspector.kernel.outgoing import clients, handover
from inspector.kernel.outgoing.clients import KhoTest, ReserveMem
from inspector.kernel.outgoing.file_handler import ConstantFlb
from inspector.kernel.outgoing.handover import Segments
from inspector.kernel.outgoing.hugetlb import HugeMemfd, HugeMemfdHandler, HugetlbFlb
from inspector.kernel.outgoing.hugetlb import Pool as HugePool
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.kernel.outgoing.iommu import IommuFlb
from inspector.kernel.outgoing.iommu_drivers import IommuDrivers
from inspector.kernel.outgoing.iommufd import Iommufd, IommufdHandler
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.kvm import (
    GuestMemfd,
    GuestMemfdHandler,
    KvmVcpu,
    KvmVcpuHandler,
    KvmVm,
    KvmVmHandler,
)
from inspector.kernel.outgoing.luo import Luo
from inspector.kernel.outgoing.memfd import Memfd, MemfdHandler
from inspector.kernel.outgoing.pci import PciFlb
from inspector.kernel.outgoing.tmpfs import TmpfsHandler
from inspector.kernel.outgoing.vfio import VfioDevice, VfioHandler
from inspector.kernel.profile import Finalize, KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.record import has
from inspector.memory.sparse import SparseMemory

if TYPE_CHECKING:
    from inspector.kernel.incoming.consumer import Consumer
    from inspector.kernel.incoming.inheritance import Inheritance


class Moment(enum.StrEnum):
    """When the image is taken."""

    #: The old kernel, at the jump: the segments of the kexec image are not in place.
    OUTGOING = "outgoing"
    #: The entry of the new kernel.
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True)
class Image:
    """Memory at a moment of an update, and where the handover is."""

    memory: SparseMemory
    segments: Segments
    moment: Moment
    kernel: Kernel

    @property
    def root(self) -> int:
        """Physical address of the root FDT; 0 if the kexec image carries none."""
        return self.segments.root


@dataclass(frozen=True, slots=True, kw_only=True)
class KhoTestSpec:
    """The self test: pages in all, largest order."""

    pages: int = 64
    max_order: int = 4


class Kernel:
    """A kernel that runs on a machine.

    ``release`` is the full release string; ``live_updates`` and ``kexecs`` count those
    before; ``luo`` is None where the release has none. ``test_flbs`` registers the three FLBs
    of the kernel's self test with every handler. ``tables`` are those of IOMMUs that were taken
    over, by the base of the unit.
    """

    def __init__(
        self,
        profile: KernelProfile | str,
        machine: MachineSpec | Machine,
        *,
        release: str | None = None,
        reserve_mem: Sequence[ReserveMem] = (),
        kho_test: KhoTestSpec | None = None,
        test_flbs: bool = False,
        live_updates: int = 0,
        kexecs: int = 0,
        tables: Mapping[int, InheritedTables] | None = None,
    ) -> None:
        self.profile = find_profile(profile) if isinstance(profile, str) else profile
        self.release = release or f"{self.profile.release}.0"
        if isinstance(machine, MachineSpec):
            machine, reserve_mem = _boot(machine, self.profile, reserve_mem)
        self.machine = machine
        self.reserve_mem = tuple(reserve_mem)
        self.live_updates = live_updates
        self.kexecs = kexecs
        self.gone = False
        self.kho = Kho(machine, self.profile)
        self.kho_test: KhoTest | None = None
        self.luo_or_none: Luo | None = None
        self.iommu: IommuFlb | None = None
        self.pci: PciFlb | None = None
        self.drivers: IommuDrivers | None = None
        self._iommufds: list[Iommufd] = []
        self._tables = tables or {}
        self._inheritance: Inheritance | None = None
        pools = machine.spec.huge_pages
        self.huge_pools = {order: HugePool(order, pages) for order, pages in pools}
        if self.profile.has("kexec-metadata"):
            clients.preserve_metadata(self.kho, self.release, kexecs + 1)
        if kho_test is not None:
            self.kho_test = clients.preserve_kho_test(
                self.kho,
                seed=machine.spec.seed,
                pages=kho_test.pages,
                max_order=kho_test.max_order,
            )
        if self.profile.has("luo"):
            self._start_luo(test_flbs)
        clients.preserve_reserve_mem(self.kho, self.reserve_mem)

    def _start_luo(self, test_flbs: bool) -> None:
        generation = self.profile["luo"]
        assert isinstance(generation, LuoGeneration)
        self.luo_or_none = luo = Luo(self.kho, generation, number=self.live_updates + 1)
        if self.profile.has("memfd"):
            luo.register(MemfdHandler(self.kho, self.profile["memfd"]))
        self._start_guests(luo)
        self._start_iommu(luo)
        if test_flbs and generation.flb:
            flbs = tuple(ConstantFlb(i) for i in range(3))
            luo.flbs += flbs
            for handler in luo.handlers:
                handler.flbs = (*handler.flbs, *flbs)

    def _start_guests(self, luo: Luo) -> None:
        """Virtual machines, their memory, huge pages and mounts: development trees."""
        profile = self.profile
        if profile.has("hugetlb") and profile["hugetlb"].file_strings:
            flb = HugetlbFlb(self.kho, profile["hugetlb"], self.huge_pools)
            luo.register(HugeMemfdHandler(self.kho, profile["hugetlb"], flb))
        if profile.has("tmpfs"):
            luo.register(TmpfsHandler(self.kho, profile["tmpfs"]))
        if profile.has("kvm"):
            luo.register(KvmVmHandler(self.kho, profile["kvm"]))
            if "kvm_vcpu_ser" in profile["kvm"].layouts:
                luo.register(KvmVcpuHandler(self.kho, profile["kvm"]))
        if profile.has("guest-memfd"):
            luo.register(GuestMemfdHandler(self.kho, profile["guest-memfd"]))

    def _start_iommu(self, luo: Luo) -> None:
        """The IOMMU, PCI and VFIO layers of the out-of-tree series."""
        profile, machine = self.profile, self.machine
        core = None
        if profile.has("iommu"):
            generation = profile["iommu"]
            assert isinstance(generation, IommuGeneration)
            core = self.iommu = IommuFlb(self.kho, generation)
        listed = core is None or not has(core.unit_layout, "smmuv3.strtab_base")
        self.drivers = IommuDrivers(machine, self.kho, listed=listed, inherited=self._tables)
        if profile.has("iommufd"):
            luo.register(IommufdHandler(self.kho, profile["iommufd"], core))
        if profile.has("pci"):
            self.pci = PciFlb(self.kho, profile["pci"], machine.spec.hardware)
        if profile.has("vfio-pci"):
            luo.register(VfioHandler(self.kho, profile["vfio-pci"], self.pci))

    @classmethod
    def after(
        cls,
        consumer: Consumer,
        spec: MachineSpec,
        *,
        release: str | None = None,
        kho_test: KhoTestSpec | None = None,
        test_flbs: bool = False,
    ) -> Kernel:
        """The kernel that took an image over, as the producer of the next update.

        ``spec`` is the machine. What the consumer still holds stays allocated; what it freed may
        be used again. Raises UsageError if it did not come up.
        """
        if consumer.outcome in (Outcome.BOOT_FAILS, Outcome.CANNOT_TELL):
            raise UsageError(f"{consumer.kernel} did not come up: {consumer.outcome}")
        from inspector.kernel.incoming.inheritance import Inheritance

        inheritance = Inheritance(consumer)
        held = consumer.retained
        _forget(consumer, held)
        areas = tuple((base, size) for base, size in consumer.scratch)
        spec = replace(spec, scratch_areas=areas, seed=spec.seed + 1)
        machine = Machine(spec, scratch_align=spec.page_size, memory=consumer.memory, held=held)
        revived = consumer.clients.reserve_mem
        kernel = cls(
            consumer.kernel,
            machine,
            release=release,
            reserve_mem=[ReserveMem(n, size, start=at) for n, (at, size) in revived.items()],
            kho_test=kho_test,
            test_flbs=test_flbs,
            live_updates=consumer.liveupdate_num,
            kexecs=consumer.kexec_count,
            tables=consumer.devices.tables if consumer.devices is not None else None,
        )
        kernel._inheritance = inheritance
        return kernel

    def adopt(self, restored: Any, name: str = "memfd") -> Any:
        """A file of memory or a mount that was retrieved, as a file of this kernel.

        Raises UsageError for what is no such file: see :meth:`take_over`.
        """
        from inspector.kernel.incoming import inheritance

        return inheritance.adopt(self, restored, name)

    def take_over(self, kinds: Collection[str] | None = None) -> dict[str, dict[int, Any]]:
        """Everything that was retrieved, as files of this kernel: session -> token -> file.

        ``kinds`` as scenarios call them (``"iommufd"``), None for all. Call it once, before
        anything else. Raises UsageError for what the machine lacks, KernelErrno.
        """
        found, self._inheritance = self._inheritance, None
        return {} if found is None else found.take(self, kinds)

    @property
    def luo(self) -> Luo:
        """The orchestrator. Raises EOPNOTSUPP if this kernel has none."""
        if self.luo_or_none is None:
            raise KernelErrno("EOPNOTSUPP", f"{self.profile} has no live update orchestrator")
        return self.luo_or_none

    def memfd(self, name: str = "memfd", *, huge: bool = False) -> Memfd:
        """A new memory file."""
        return Memfd(self.machine, name, huge=huge)

    def huge_memfd(self, order: int, name: str = "memfd") -> HugeMemfd:
        """A new memory file of huge pages. Raises ENOENT without a pool of that order."""
        pool = self.huge_pools.get(order)
        if pool is None:
            raise KernelErrno("ENOENT", f"there is no pool of huge pages of order {order}")
        return HugeMemfd(self.machine, pool, name)

    def kvm_vm(self, type: int = 0) -> KvmVm:
        """A new virtual machine."""
        return KvmVm(self.machine, type)

    def kvm_vcpu(self, vm: KvmVm, vcpu_id: int, state: bytes) -> KvmVcpu:
        """A new vCPU; ``state`` is what its registers are as bytes. Raises EEXIST."""
        if vcpu_id in vm.vcpus:
            raise KernelErrno("EEXIST", f"the machine has a vCPU {vcpu_id:#x}")
        vm.vcpus.add(vcpu_id)
        return KvmVcpu(vm, vcpu_id, state)

    def guest_memfd(self, vm: KvmVm, flags: int = 0, name: str = "gmem") -> GuestMemfd:
        """Memory of a virtual machine."""
        return GuestMemfd(self.machine, vm, flags, name)

    def iommufd(self) -> Iommufd:
        """A newly opened iommufd. Raises EOPNOTSUPP without a machine for it."""
        if self.drivers is None:
            raise KernelErrno("EOPNOTSUPP", f"{self.profile} has no orchestrator")
        opened = Iommufd(self.drivers, self.iommu)
        self._iommufds.append(opened)
        return opened

    def vfio(self, segment: int, bdf: int, iommufd: Iommufd | None = None) -> VfioDevice:
        """A newly opened vfio-pci device. Raises ENODEV."""
        device = self.machine.spec.hardware.device(segment, bdf)
        if device is None:
            raise KernelErrno("ENODEV", f"no device at {format_bdf(segment, bdf)}")
        return VfioDevice(device, iommufd)

    # -- the reboot path -----------------------------------------------------------------

    def finalize(self) -> None:
        """``kho/out/finalize``: needed before 6.19. Raises EEXIST, and EOPNOTSUPP later."""
        if self.profile.finalize is not Finalize.DEBUGFS:
            raise KernelErrno("EOPNOTSUPP", f"{self.profile} is finalized in the reboot path")
        self.kho.finalize()

    def freeze(self) -> None:
        """Freeze LUO and complete the root. On failure all is as before, and it raises."""
        if self.luo_or_none is not None:
            self.luo_or_none.freeze()
        if self.profile.finalize is Finalize.REBOOT:
            try:
                self.kho.finalize()
            except KernelErrno as error:
                if self.luo_or_none is not None:
                    self.luo_or_none.unfreeze()
                raise KernelErrno("EAGAIN", f"finalization failed: {error.reason}") from error

    def _shutdown(self) -> None:
        """What drivers do in the reboot path: only preserved devices keep their DMA."""
        for opened in self._iommufds:
            for hwpt in opened.hwpts:
                if not hwpt.nested:
                    hwpt.domain.table.sync()
        if self.drivers is not None:
            live = set(self.iommu.live_devices) if self.iommu is not None else set()
            for driver in self.drivers.units.values():
                driver.shutdown(live)
                driver.sync()
        if self.iommu is not None:
            self.iommu.sync()
        if self.pci is not None:
            self.pci.sync()

    def kexec(
        self, moment: Moment | str = Moment.HANDOFF, *, command_line: str = "kho=on liveupdate=on"
    ) -> Image:
        """Jump to the next kernel; the memory at the moment asked for.

        Raises what freezing raises; the kernel then goes on. After success it is gone.
        """
        if self.gone:
            raise UsageError("this kernel has handed over already")
        moment = Moment(moment)
        self.freeze()
        self._shutdown()
        if self.profile.finalize is Finalize.NONE:
            self.kho.map.write()
        segments = handover.place(self.machine, self.kho.root if self.kho.handed_over else 0)
        if moment is Moment.HANDOFF:
            handover.fill(self.machine, segments, command_line)
        else:
            handover.clear(self.machine, segments)
        self.gone = True
        return Image(self.machine.memory, segments, moment, self)


def _boot(
    spec: MachineSpec, profile: KernelProfile, regions: Sequence[ReserveMem]
) -> tuple[Machine, tuple[ReserveMem, ...]]:
    """A machine for a kernel that boots cold: regions and scratch laid out."""
    if spec.page_size not in MAX_ORDERS:
        raise UsageError(f"pages of {spec.page_size} bytes: no machine with KHO has them")
    align = CMA_ALIGNMENT[spec.page_size]
    if profile.since("7.2"):
        align = spec.page_size << MAX_ORDERS[spec.page_size]
    machine = Machine(spec, scratch_align=align, reserve=[(r.size, r.align) for r in regions])
    placed = tuple(replace(r, start=at) for r, at in zip(regions, machine.reserved, strict=True))
    for region in placed:
        machine.memory.mark_zero(region.start, -(-region.size // spec.page_size) * spec.page_size)
    return machine, placed


def _forget(consumer: Consumer, held: FrameSet) -> None:
    """What the consumer was booted with is freed: nobody may take it for the next kernel's."""
    memory, page = consumer.memory, consumer.state.view.page_size
    shift = page.bit_length() - 1
    for record in consumer.state.location.handovers:
        for at in (record.address, record.parent):
            if at is not None and at >> shift not in held:
                memory.exclude(at >> shift << shift, page)
