"""KVM: virtual machine files in three forms, and vCPUs of the caretaker tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from abi.kvm import KVM_VCPU_LUO_FLAG_CARETAKER
from abi.registry import Generation
from abi.schema import Struct, phys, resolve
from inspector.memory.base import U64Array
from inspector.survey import PHYSICAL_BITS, Survey
from inspector.walk.contiguous import counted_rows
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import Vmalloc, walk_vmalloc, word_columns

#: States of a caretaker, by value.
STATES = ("paused", "running", "stopping", "stopped")

_folio_pa = Struct("folio_pa", "pa" / phys("folio"), doc="An entry of a list of folios.")


@dataclass(frozen=True, slots=True)
class MemoryAttributes:
    """The memory attributes of a machine: columns ``gfn`` and ``attributes``, in file order."""

    vmalloc: Vmalloc
    count: int
    gfn: U64Array
    attributes: U64Array
    complete: bool

    def runs(self) -> tuple[U64Array, U64Array, U64Array]:
        """(first gfn, frames, attributes) of neighbouring entries that continue each other."""
        gfn, value = self.gfn, self.attributes
        if not len(gfn):
            return gfn, gfn, value
        fresh = np.r_[True, (gfn[1:] != gfn[:-1] + np.uint64(1)) | (value[1:] != value[:-1])]
        first = np.flatnonzero(fresh)
        lengths = np.diff(np.append(first, len(gfn))).astype(np.uint64)
        return gfn[first], lengths, value[first]


@dataclass(frozen=True, slots=True)
class MachineFolios:
    """The folios of a machine: addresses, and bytes of each as the preserved map has it."""

    address: int
    count: int
    folios: U64Array
    sizes: U64Array
    complete: bool


@dataclass(slots=True)
class KvmVm:
    """A virtual machine. ``attributes`` and ``folios`` are None where its form has none.

    ``memory`` and ``vcpus`` are the paths of the files whose token names it.
    """

    path: str
    generation: Generation
    address: int
    type: int
    attributes: MemoryAttributes | None = None
    folios_pa: int | None = None
    folios: MachineFolios | None = None
    memory: list[str] = field(default_factory=list)
    vcpus: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all that hangs off it could be read."""
        if self.folios_pa and self.folios is None:
            return False
        return all(part is None or part.complete for part in (self.attributes, self.folios))


def walk_vm(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> KvmVm | None:
    """The machine whose struct lies at ``address``; None if the struct cannot be read.

    Findings ``KHO-KVM-*``: 001 fewer memory attributes or folios than counted could be read,
    002 a frame has attributes twice, 003 an address of the folio list is none.
    """
    layout = resolve(generation.layouts["kvm_luo_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vm = KvmVm(path, generation, address, values["type"])
    if "nr_mem_attrs" in values:
        vmalloc = walk_vmalloc(survey, layout.nested(values, "mem_attrs"), path)
        _attributes(survey, vm, vmalloc, values["nr_mem_attrs"])
    if "kho_folios" in values:
        vm.folios_pa = values["kho_folios"]
        listed = resolve(generation.layouts["kvm_kho_folios_ser"], survey.page_size)
        _folios(survey, vm, listed, preserved)
    return vm


def _attributes(survey: Survey, vm: KvmVm, vmalloc: Vmalloc, count: int) -> None:
    known = survey.wanting
    rows, complete = word_columns(survey, vmalloc, 2, count, vm.path)
    vm.attributes = MemoryAttributes(vmalloc, count, rows[:, 0], rows[:, 1], complete)
    if not complete and vmalloc.complete and survey.wanting == known:
        survey.findings.error(
            "KHO-KVM-001",
            f"{count} memory attributes are counted, {len(rows)} can be read",
            path=vm.path,
            address=vm.address + 8,
        )
    unique, first = np.unique(rows[:, 0], return_index=True)
    if len(unique) < len(rows):
        again = np.ones(len(rows), np.bool_)
        again[first] = False
        example = int(rows[np.flatnonzero(again)[0], 0])
        survey.findings.error(
            "KHO-KVM-002",
            f"{len(rows) - len(unique)} memory attributes are of a frame that had some already,"
            f" such as {example:#x}",
            path=vm.path,
            address=vm.address,
        )


def _folios(survey: Survey, vm: KvmVm, layout: Struct, preserved: PreservedMap | None) -> None:
    address, own = vm.folios_pa, f"{vm.path}/folios"
    if not address or not survey.pointer(address, own, layout.cname, align=8):
        return
    values = survey.unpack(layout, address, own)
    if values is None or not survey.enter(address, own, "list of folios"):
        return
    count, known = values["nr_folios"], survey.wanting
    rows, addresses = counted_rows(survey, address + layout.size, count, _folio_pa, own)
    survey.claim("struct", own, address, layout.size + len(addresses) * _folio_pa.size)
    folios = rows.reshape(-1).view("<u8").astype(np.uint64)
    good = (folios % np.uint64(survey.page_size) == 0) & (folios != 0)
    good &= folios >> np.uint64(PHYSICAL_BITS) == 0
    for i in np.flatnonzero(~good)[:16].tolist():
        survey.findings.error(
            "KHO-KVM-003", f"{int(folios[i]):#x} is the address of no folio",
            path=own, address=int(addresses[i]),
        )  # fmt: skip
    orders = np.zeros(len(folios), np.uint64)
    if preserved is not None:
        orders = preserved.orders_at(folios)[0].astype(np.uint64)
    sizes = np.uint64(survey.page_size) << orders
    survey.claim("folio", own, folios[good], sizes[good])
    if len(folios) != count and survey.wanting == known:
        survey.findings.error(
            "KHO-KVM-001", f"{count} folios are counted, {len(folios)} can be read",
            path=own, address=address,
        )  # fmt: skip
    vm.folios = MachineFolios(address, count, folios, sizes, len(folios) == count)


# -- vCPUs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ControlBlock:
    """What a caretaker and the kernel share about a vCPU. ``telemetry`` is None if unreadable."""

    address: int
    state: int
    pcpu_id: int
    vcpu_id: int
    telemetry_pa: int
    telemetry: dict[str, int] | None

    @property
    def state_name(self) -> str:
        """``running``, or the number if it is none of the states."""
        return STATES[self.state] if self.state < len(STATES) else str(self.state)


@dataclass(slots=True)
class KvmVcpu:
    """A vCPU. ``vm`` is the path of the file that ``vm_token`` names, if there is one."""

    path: str
    generation: Generation
    address: int
    vcpu_id: int
    flags: int
    vm_token: int
    arch_state: int
    cb: int
    control: ControlBlock | None = None
    vm: str | None = None

    @property
    def caretaker(self) -> bool:
        """Whether it runs under a caretaker."""
        return bool(self.flags & KVM_VCPU_LUO_FLAG_CARETAKER)


def walk_vcpu(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> KvmVcpu | None:
    """The vCPU whose struct lies at ``address``; None if the struct cannot be read.

    The layout of its architectural state is not known: the block that holds it is claimed.
    Findings ``KHO-KVM-*``: 010 unknown flags, 011 no architectural state, 012 unknown state of
    the caretaker, 013 the control block is another vCPU's, 014 reserved bits are set, 015 under
    a caretaker without a control block.
    """
    layout = resolve(generation.layouts["kvm_vcpu_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vcpu = KvmVcpu(
        path, generation, address, values["vcpu_id"], values["flags"], values["vm_token"],
        values["arch_state"], values["cb"],
    )  # fmt: skip
    if vcpu.flags & ~KVM_VCPU_LUO_FLAG_CARETAKER:
        survey.findings.error(
            "KHO-KVM-010", f"unknown flags in {vcpu.flags:#x}", path=path, address=address + 4
        )
    if not vcpu.arch_state:
        survey.findings.error(
            "KHO-KVM-011", "there is no architectural state", path=path, address=address + 16
        )
    elif survey.pointer(vcpu.arch_state, path, "struct kvm_vcpu_arch_ser", align=8):
        _claim_block(survey, vcpu, preserved)
    vcpu.control = _control(survey, generation, vcpu)
    if vcpu.caretaker and not vcpu.cb:
        survey.findings.error(
            "KHO-KVM-015", "a caretaker runs it, but there is no control block",
            path=path, address=address + 24,
        )  # fmt: skip
    return vcpu


def _claim_block(survey: Survey, vcpu: KvmVcpu, preserved: PreservedMap | None) -> None:
    """The rest of the preserved block, or of the page where the map does not tell."""
    order = 0
    if preserved is not None:
        order = int(preserved.orders_at(np.array([vcpu.arch_state], np.uint64))[0][0])
    size = survey.page_size << order
    rest = size - vcpu.arch_state % size
    survey.claim("guest-state", vcpu.path, vcpu.arch_state, rest)


def _control(survey: Survey, generation: Generation, vcpu: KvmVcpu) -> ControlBlock | None:
    layout = resolve(generation.layouts["kvm_caretaker_cb_ser"], survey.page_size)
    own = f"{vcpu.path}/control"
    if not vcpu.cb or not survey.pointer(vcpu.cb, own, layout.cname, align=8):
        return None
    values = survey.unpack(layout, vcpu.cb, own)
    if values is None:
        return None
    survey.claim("struct", own, vcpu.cb, layout.size)
    control = ControlBlock(
        vcpu.cb, values["state"], values["pcpu_id"], values["vcpu_id"], values["telemetry"],
        _telemetry(survey, generation, values["telemetry"], own),
    )  # fmt: skip
    findings = survey.findings
    if control.state >= len(STATES):
        findings.error(
            "KHO-KVM-012", f"the caretaker is in the unknown state {control.state}",
            path=own, address=vcpu.cb,
        )  # fmt: skip
    if control.vcpu_id != vcpu.vcpu_id:
        findings.error(
            "KHO-KVM-013",
            f"the control block is of vCPU {control.vcpu_id}, not {vcpu.vcpu_id}",
            path=own,
            address=vcpu.cb + 8,
        )
    if values["reserved"]:
        findings.warning(
            "KHO-KVM-014", f"a reserved word is {values['reserved']:#x}",
            path=own, address=vcpu.cb + 12,
        )  # fmt: skip
    return control


def _telemetry(
    survey: Survey, generation: Generation, address: int, path: str
) -> dict[str, int] | None:
    layout = resolve(generation.layouts["kvm_caretaker_telemetry_ser"], survey.page_size)
    if not address or not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is not None:
        survey.claim("struct", path, address, layout.size)
    return values
