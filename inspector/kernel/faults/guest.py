"""Faults of virtual machines, guest memory, huge pages and mounts."""

from __future__ import annotations

from typing import Any

from abi.schema import Struct
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.hugetlb import HugeMemfdHandler, HugetlbFlb
from inspector.kernel.outgoing.kvm import GuestMemfdHandler, KvmVcpuHandler, KvmVmHandler
from inspector.kernel.outgoing.tmpfs import TmpfsHandler
from inspector.kernel.record import has

fault = Library()


def _member(target: Target, handler: type[FileHandler], name: str, nth: int = 0) -> int:
    """Address of a member of the struct of a handler's file number ``nth``."""
    files = target.of(handler)
    if nth >= len(files):
        raise Inapplicable(f"the image has no {nth + 1} files of {handler.__name__}")
    entry = files[nth][1]
    layout: Struct = entry.handler.layout  # type: ignore[attr-defined]
    if not has(layout, name):
        raise Inapplicable(f"this form has no {name}")
    return entry.data + layout.field(name).offset


def _state(target: Target, handler: type[FileHandler], needs: str) -> Any:
    """What preserving a handler's first file that has ``needs`` made."""
    for _, entry in target.of(handler):
        state = entry.handler.states[id(entry.file)]  # type: ignore[attr-defined]
        if getattr(state, needs):
            return state
    raise Inapplicable(f"the image has no file of {handler.__name__} with its {needs}")


def _vmalloc(state: Any, target: Target) -> int:
    """Address of the first byte of a file's array."""
    return int(state.area.frames[0]) * target.page


@fault("guest-vm-token", 21, "the token of a guest_memfd names no virtual machine")
def _vm_token(target: Target) -> None:
    target.write_u64(_member(target, GuestMemfdHandler, "vm_token"), 0xDEAD)


@fault("guest-memfd-flags", 21, "a guest_memfd has an unknown flag")
def _guest_flags(target: Target) -> None:
    at = _member(target, GuestMemfdHandler, "flags")
    target.write_u64(at, target.u64(at) | 1 << 40)


@fault("guest-folio-flags", 21, "a folio of a guest_memfd has an unknown flag")
def _guest_folio(target: Target) -> None:
    at = _vmalloc(_state(target, GuestMemfdHandler, "area"), target)
    target.write_u64(at, target.u64(at) | 1 << 60)


@fault("huge-memfd-order", 21, "the huge pages of a file are said to be twice as large")
def _huge_order(target: Target) -> None:
    at = _member(target, HugeMemfdHandler, "order")
    target.write(at, bytes([target.read(at, 1)[0] + 1]))


def _pools(target: Target) -> HugetlbFlb:
    flb = next((f for f in target.luo.flbs if isinstance(f, HugetlbFlb) and f.data), None)
    if flb is None:
        raise Inapplicable("the image has no pools of huge pages")
    return flb


@fault("hugetlb-pool-order", 21, "a pool that files use is of another order")
def _pool_order(target: Target) -> None:
    flb = _pools(target)
    at = flb.data + flb.layout.field("hstates").offset + flb.hstate.field("order").offset
    target.write(at, b"\x01")


@fault("hugetlb-pool-count", 6, "more pools are counted than there is room for")
def _pool_count(target: Target) -> None:
    flb = _pools(target)
    target.write(flb.data + flb.layout.field("nr_hstates").offset, b"\x05")


@fault("kvm-attributes-count", 6, "a machine counts more memory attributes than it lists")
def _attributes_count(target: Target) -> None:
    target.write_u64(_member(target, KvmVmHandler, "nr_mem_attrs"), 1 << 20)


@fault("kvm-attributes-twice", 21, "a guest frame has memory attributes twice")
def _attributes_twice(target: Target) -> None:
    at = _vmalloc(_state(target, KvmVmHandler, "area"), target)
    target.write_u64(at + 16, target.u64(at))


@fault("kvm-folio-address", 21, "an address in a machine's list of folios is none")
def _folio_address(target: Target) -> None:
    at = _state(target, KvmVmHandler, "listed").listed + 8
    target.write_u64(at, target.u64(at) + 8)


@fault("kvm-folio-count", 6, "a machine counts more folios than its list has")
def _folio_count(target: Target) -> None:
    at = _state(target, KvmVmHandler, "listed").listed
    target.write_u64(at, target.u64(at) + 1)


@fault("kvm-vcpu-twice", 21, "two vCPU files are the same vCPU")
def _vcpu_twice(target: Target) -> None:
    first = _member(target, KvmVcpuHandler, "vcpu_id")
    target.write(_member(target, KvmVcpuHandler, "vcpu_id", 1), target.read(first, 4))


@fault("kvm-control-block", 21, "the control block of a vCPU is another vCPU's")
def _control_block(target: Target) -> None:
    at = _state(target, KvmVcpuHandler, "control").control + 8
    target.write_u32(at, 77)


@fault("kvm-caretaker-state", 21, "a caretaker is in an unknown state")
def _caretaker_state(target: Target) -> None:
    target.write_u32(_state(target, KvmVcpuHandler, "control").control, 9)


@fault("tmpfs-mode", 21, "the mode of a mount is that of no directory")
def _mode(target: Target) -> None:
    target.write_u32(_member(target, TmpfsHandler, "mode"), 0o100644)
