"""Virtual machines, their vCPUs and their memory, and what preserves them (never in a release).

What a kernel checks there is not known. The model takes from the layouts what they force: a
vCPU and a guest_memfd name the machine's file by its token, so it is preserved before them, in
the same session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi.guest_memfd import GUEST_MEMFD_LUO_FOLIO_UPTODATE
from abi.kvm import KVM_CARETAKER_INVALID_PCPU, VCPU_STRING, VM_STRING
from abi.registry import Generation
from abi.schema import Struct, resolve
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.outgoing import folio_array
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.kho import Kho, VmallocArea, VmallocDescriptor
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.record import has, pack


@dataclass(frozen=True, slots=True)
class AttributeRange:
    """Memory attributes of ``frames`` guest frames from ``gfn`` on."""

    gfn: int
    frames: int
    attributes: int


@dataclass(slots=True, eq=False)
class KvmVm:
    """A virtual machine. ``folios`` are (first frame, order) of pages of its own."""

    machine: Machine = field(repr=False)
    type: int = 0
    attributes: Sequence[AttributeRange] = ()
    folios: tuple[tuple[int, int], ...] = ()
    #: Numbers of its vCPUs.
    vcpus: set[int] = field(default_factory=set, repr=False)


@dataclass(slots=True, eq=False)
class KvmVcpu:
    """A vCPU. ``state`` is its registers as bytes whose layout is not known.

    ``control`` are members of the caretaker's control block and ``telemetry`` of what hangs off
    it; None: it runs under no caretaker.
    """

    vm: KvmVm
    vcpu_id: int
    state: bytes
    control: Mapping[str, int] | None = None
    telemetry: Mapping[str, int] | None = None


class GuestMemfd(Memfd):
    """A guest_memfd: memory that belongs to a machine and may have holes.

    ``stale`` is how many of its last folios are not up to date, ``outdated`` the first pages of
    others that are not.
    """

    def __init__(self, machine: Machine, vm: KvmVm, flags: int = 0, name: str = "gmem") -> None:
        super().__init__(machine, name)
        self.vm = vm
        self.flags = flags
        self.stale = 0
        self.outdated: frozenset[int] = frozenset()


def _vm_token(session: Session, vm: KvmVm) -> int:
    entry = session.find(vm)
    if entry is None:
        raise KernelErrno("EINVAL", "its virtual machine is not preserved in this session")
    return entry.token


@dataclass(slots=True)
class VmState:
    """What preserving a machine made."""

    ser: int
    area: VmallocArea | None = None
    descriptor: VmallocDescriptor = field(default_factory=VmallocDescriptor)
    listed: int = 0


class KvmVmHandler(FileHandler):
    """Preserves virtual machines in one of three forms."""

    compatible = VM_STRING

    def __init__(self, kho: Kho, generation: Generation) -> None:
        self.kho = kho
        self.generation = generation
        page = kho.machine.page_size
        self.layout: Struct = resolve(generation.layouts["kvm_luo_ser"], page)
        self.states: dict[int, VmState] = {}

    def can_preserve(self, file: Any) -> bool:
        """Virtual machines only."""
        return isinstance(file, KvmVm)

    def preserve(self, file: KvmVm, session: Session, token: int) -> int:
        """Write down what the form has room for. Raises ENOMEM, EBUSY, EINVAL."""
        state = VmState(self.kho.alloc_preserve(self.layout.size))
        values: dict[str, Any] = {"type": file.type}
        try:
            if has(self.layout, "mem_attrs"):
                rows = _attribute_rows(file.attributes)
                state.area, state.descriptor = folio_array.preserve_array(self.kho, rows)
                values |= {"nr_mem_attrs": len(rows), "mem_attrs": state.descriptor.values}
            if has(self.layout, "kho_folios"):
                values["kho_folios"] = state.listed = self._folios(file)
        except KernelErrno:
            self.kho.unpreserve_free(state.ser)
            raise
        self.states[id(file)] = state
        self.kho.machine.memory.write(state.ser, pack(self.layout, values))
        return state.ser

    def _folios(self, file: KvmVm) -> int:
        """A list of the machine's folios, which are preserved with it."""
        shift, done = self.kho.machine.page_shift, []
        words = [len(file.folios), *(frame << shift for frame, _ in file.folios)]
        try:
            for frame, order in file.folios:
                self.kho.preserve_folio(frame, order)
                done.append((frame, order))
            return self.kho.alloc_preserve(8 * len(words), np.array(words, "<u8").tobytes())
        except KernelErrno:
            for frame, order in reversed(done):
                self.kho.unpreserve_folio(frame, order)
            raise

    def unpreserve(self, file: KvmVm, data: int) -> None:
        """Undo; the machine lives on."""
        state = self.states.pop(id(file))
        if state.listed:
            self.kho.unpreserve_free(state.listed)
            for frame, order in reversed(file.folios):
                self.kho.unpreserve_folio(frame, order)
        folio_array.unpreserve(self.kho, (), state.area, state.descriptor)
        self.kho.unpreserve_free(state.ser)


def _attribute_rows(ranges: Sequence[AttributeRange]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    parts = []
    for each in ranges:
        part = np.empty((each.frames, 2), np.uint64)
        part[:, 0] = np.arange(each.frames, dtype=np.uint64) + np.uint64(each.gfn)
        part[:, 1] = each.attributes
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


@dataclass(slots=True)
class VcpuState:
    """What preserving a vCPU made: addresses, 0 where there is nothing."""

    ser: int
    arch: int
    control: int = 0
    telemetry: int = 0


class KvmVcpuHandler(FileHandler):
    """Preserves vCPUs of the caretaker tree."""

    compatible = VCPU_STRING

    def __init__(self, kho: Kho, generation: Generation) -> None:
        self.kho = kho
        self.generation = generation
        page = kho.machine.page_size
        self.layout: Struct = resolve(generation.layouts["kvm_vcpu_ser"], page)
        self.control: Struct = resolve(generation.layouts["kvm_caretaker_cb_ser"], page)
        telemetry = generation.layouts["kvm_caretaker_telemetry_ser"]
        self.telemetry: Struct = resolve(telemetry, page)
        self.states: dict[int, VcpuState] = {}

    def can_preserve(self, file: Any) -> bool:
        """vCPUs only."""
        return isinstance(file, KvmVcpu)

    def preserve(self, file: KvmVcpu, session: Session, token: int) -> int:
        """Preserve a vCPU. Raises EINVAL (its machine is not preserved here), ENOMEM."""
        vm_token = _vm_token(session, file.vm)
        made: list[int] = []
        try:
            made.append(self.kho.alloc_preserve(self.layout.size))
            made.append(self.kho.alloc_preserve(max(len(file.state), 1), file.state))
            if file.telemetry is not None:
                made.append(self.kho.alloc_preserve(self.telemetry.size))
            if file.control is not None:
                made.append(self.kho.alloc_preserve(self.control.size))
        except KernelErrno:
            for address in reversed(made):
                self.kho.unpreserve_free(address)
            raise
        state = VcpuState(made[0], made[1])
        write = self.kho.machine.memory.write
        if file.telemetry is not None:
            state.telemetry = made[2]
            write(state.telemetry, pack(self.telemetry, file.telemetry))
        if file.control is not None:
            state.control = made[-1]
            values = {"pcpu_id": KVM_CARETAKER_INVALID_PCPU, **file.control}
            values |= {"vcpu_id": file.vcpu_id, "telemetry": state.telemetry}
            write(state.control, pack(self.control, values))
        values = {
            "vcpu_id": file.vcpu_id,
            "flags": int(file.control is not None),
            "vm_token": vm_token,
            "arch_state": state.arch,
            "cb": state.control,
        }
        write(state.ser, pack(self.layout, values))
        self.states[id(file)] = state
        return state.ser

    def unpreserve(self, file: KvmVcpu, data: int) -> None:
        """Undo; the vCPU lives on."""
        state = self.states.pop(id(file))
        for address in (state.control, state.telemetry, state.arch, state.ser):
            if address:
                self.kho.unpreserve_free(address)


@dataclass(slots=True)
class GuestMemfdState:
    """What preserving a guest_memfd made."""

    ser: int
    area: VmallocArea | None
    descriptor: VmallocDescriptor


class GuestMemfdHandler(FileHandler):
    """Preserves guest memory: the folios that exist; holes stay holes."""

    def __init__(self, kho: Kho, generation: Generation) -> None:
        self.kho = kho
        self.generation = generation
        self.compatible = generation.file_strings[0]
        layout = generation.layouts["guest_memfd_luo_ser"]
        self.layout: Struct = resolve(layout, kho.machine.page_size)
        self.states: dict[int, GuestMemfdState] = {}

    def can_preserve(self, file: Any) -> bool:
        """Guest memory only."""
        return isinstance(file, GuestMemfd)

    def preserve(self, file: GuestMemfd, session: Session, token: int) -> int:
        """Preserve all folios. Raises EINVAL (its machine is not preserved here), ENOMEM."""
        vm_token = _vm_token(session, file.vm)
        ser = self.kho.alloc_preserve(self.layout.size)
        array = folio_array.entries(file.extents, GUEST_MEMFD_LUO_FOLIO_UPTODATE)
        fresh = max(len(array) - file.stale, 0)
        old = np.isin(array[:, 1], np.array(sorted(file.outdated), np.uint64))
        old[fresh:] = True
        array[old, 0] &= np.uint64((1 << 52) - 1)
        try:
            area, descriptor = folio_array.preserve(self.kho, file.extents, array)
        except KernelErrno:
            self.kho.unpreserve_free(ser)
            raise
        file.frozen = True
        self.states[id(file)] = GuestMemfdState(ser, area, descriptor)
        values = {
            "size": file.size,
            "flags": file.flags,
            "nr_folios": len(array),
            "vm_token": vm_token,
            "folios": descriptor.values,
        }
        self.kho.machine.memory.write(ser, pack(self.layout, values))
        return ser

    def unpreserve(self, file: GuestMemfd, data: int) -> None:
        """Undo; the file lives on."""
        state = self.states.pop(id(file))
        folio_array.unpreserve(self.kho, file.extents, state.area, state.descriptor)
        self.kho.unpreserve_free(state.ser)
        file.frozen = False
