"""Virtual machines, guest memory, huge pages and mounts as JSON and in the object tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from abi.guest_memfd import GUEST_MEMFD_LUO_FLAG_INIT_SHARED, GUEST_MEMFD_LUO_FLAG_MMAP
from abi.kvm import KVM_CARETAKER_INVALID_PCPU
from inspector.text import size_text
from inspector.tree import Facts, Node
from inspector.views import Details
from inspector.walk.folio_file import FolioFile
from inspector.walk.guest_memfd import GuestMemfd
from inspector.walk.hugetlb import HugeMemfd, Hugetlb, Pool
from inspector.walk.kvm import ControlBlock, KvmVcpu, KvmVm, MachineFolios, MemoryAttributes
from inspector.walk.tmpfs import TmpfsMount

#: Addresses of folios that JSON lists; the rest is counted.
LISTED = 1024
_GUEST_FLAGS = {"mmap": GUEST_MEMFD_LUO_FLAG_MMAP, "init-shared": GUEST_MEMFD_LUO_FLAG_INIT_SHARED}


# -- JSON ---------------------------------------------------------------------------------------


def guest_memfd(state: GuestMemfd) -> dict[str, Any]:
    """A guest memory file."""
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "size": state.size,
        "flags": hex(state.flags),
        "nr_folios": state.nr_folios,
        "complete": state.folios.complete and state.sized,
        "uptodate": state.uptodate,
        "vm_token": hex(state.vm_token),
        "vm": state.vm,
    }


def huge_memfd(state: HugeMemfd) -> dict[str, Any]:
    """A memory file of huge pages."""
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "size": state.size,
        "pos": state.pos,
        "order": state.order,
        "nr_folios": state.nr_folios,
        "complete": state.folios.complete,
    }


def kvm_vm(vm: KvmVm) -> dict[str, Any]:
    """A virtual machine; null for what its form does not keep."""
    return {
        "generation": vm.generation.id,
        "address": hex(vm.address),
        "type": hex(vm.type),
        "nr_mem_attrs": None if vm.attributes is None else vm.attributes.count,
        "mem_attrs": None if vm.attributes is None else list(_attribute_runs(vm.attributes)),
        "kho_folios": None if vm.folios_pa is None else hex(vm.folios_pa),
        "nr_folios": None if vm.folios is None else vm.folios.count,
        "folios": None
        if vm.folios is None
        else [hex(pa) for pa in vm.folios.folios[:LISTED].tolist()],
        "complete": vm.complete,
        "guest_memfds": vm.memory,
        "vcpus": vm.vcpus,
    }


def _attribute_runs(attributes: MemoryAttributes) -> Iterator[dict[str, Any]]:
    columns = (column.tolist() for column in attributes.runs())
    for gfn, frames, value in zip(*columns, strict=True):
        yield {"gfn": hex(gfn), "frames": frames, "attributes": hex(value)}


def kvm_vcpu(vcpu: KvmVcpu) -> dict[str, Any]:
    """A vCPU."""
    return {
        "generation": vcpu.generation.id,
        "address": hex(vcpu.address),
        "vcpu_id": vcpu.vcpu_id,
        "flags": hex(vcpu.flags),
        "vm_token": hex(vcpu.vm_token),
        "vm": vcpu.vm,
        "arch_state": hex(vcpu.arch_state),
        "control": None if vcpu.control is None else _control(vcpu.control),
    }


def _control(control: ControlBlock) -> dict[str, Any]:
    told = control.telemetry
    return {
        "address": hex(control.address),
        "state": control.state,
        "pcpu_id": None if control.pcpu_id == KVM_CARETAKER_INVALID_PCPU else control.pcpu_id,
        "vcpu_id": control.vcpu_id,
        "telemetry": told
        and {
            "address": hex(control.telemetry_pa),
            **{k: hex(v) if k.endswith(("rip", "reason")) else v for k, v in told.items()},
        },
    }


def tmpfs_mount(mount: TmpfsMount) -> dict[str, Any]:
    """A mount."""
    return {
        "generation": mount.generation.id,
        "address": hex(mount.address),
        "max_blocks": mount.max_blocks,
        "mode": hex(mount.mode),
        "flags": hex(mount.flags),
    }


def hugetlb(state: Hugetlb) -> dict[str, Any]:
    """The pools of huge pages."""
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "nr_hstates": state.nr_hstates,
        "pools": [_pool(pool) for pool in state.pools],
    }


def _pool(pool: Pool) -> dict[str, Any]:
    pages = pool.pages
    return {
        "address": hex(pool.address),
        "path": pool.path,
        "order": pool.order,
        "nr_pages": pool.nr_pages,
        "free": None if pages is None else int(pages.free.sum()),
        "complete": None if pages is None else pages.complete,
    }


def file_state(state: Any) -> dict[str, Any]:
    """The keys of a file's entry that its state fills."""
    for kind, key, encode in _FILES:
        if isinstance(state, kind):
            return {key: encode(state)}
    return {}


def flb_state(state: Any) -> dict[str, Any]:
    """The keys of an FLB's entry that its state fills."""
    return {"hugetlb": hugetlb(state)} if isinstance(state, Hugetlb) else {}


_FILES: tuple[tuple[type, str, Callable[[Any], dict[str, Any]]], ...] = (
    (GuestMemfd, "guest_memfd", guest_memfd),
    (HugeMemfd, "huge_memfd", huge_memfd),
    (KvmVm, "kvm_vm", kvm_vm),
    (KvmVcpu, "kvm_vcpu", kvm_vcpu),
    (TmpfsMount, "tmpfs_mount", tmpfs_mount),
)


# -- the tree -----------------------------------------------------------------------------------


def details(state: Any) -> Details:
    """What the tree shows of a file's or an FLB's state."""
    for kind, describe in _DETAILS:
        if isinstance(state, kind):
            return describe(state)
    return [], _nothing


def _nothing() -> Iterator[Node]:
    return iter(())


def _folio_facts(file: FolioFile) -> Facts:
    facts = [("folios", f"{file.nr_folios:,}")]
    if not file.folios.complete:
        facts.append(("readable folios", f"{len(file.folios.pfn):,}"))
    return facts


def _flags_text(value: int, names: dict[str, int]) -> str:
    known = [name for name, bit in names.items() if value & bit]
    return f"{value:#x}" + (f" ({', '.join(known)})" if known else "")


def _vm_text(token: int, vm: str | None) -> str:
    return f"{token:#x}" if vm is not None else f"{token:#x}?"


def _guest_memfd_details(file: GuestMemfd) -> Details:
    facts = [
        ("size", size_text(file.size)),
        ("flags", _flags_text(file.flags, _GUEST_FLAGS)),
        *_folio_facts(file),
    ]
    stale = int(file.used.sum()) - file.uptodate
    if stale:
        facts.append(("not up to date", f"{stale:,}"))
    facts.append(("vm", _vm_text(file.vm_token, file.vm)))
    return facts, _nothing


def _huge_memfd_details(file: HugeMemfd) -> Details:
    pages = size_text(file.page_size << file.order) if file.unit == file.order else "?"
    facts = [
        ("size", size_text(file.size)),
        ("pos", str(file.pos)),
        ("order", f"{file.order} ({pages})"),
        *_folio_facts(file),
    ]
    return facts, _nothing


def _vm_details(vm: KvmVm) -> Details:
    facts = [("generation", vm.generation.id), ("type", f"{vm.type:#x}")]
    if vm.attributes is not None:
        facts.append(("memory attributes", f"{vm.attributes.count:,}"))
    if vm.folios is not None:
        facts.append(("folios", f"{vm.folios.count:,}"))
    elif vm.folios_pa is not None:
        facts.append(("folios", "unreadable" if vm.folios_pa else "none"))
    facts += [
        (label, ", ".join(path.rpartition("/")[2] for path in paths[:8]) + _more(len(paths), 8))
        for label, paths in (("memory", vm.memory), ("vcpus", vm.vcpus))
        if paths
    ]

    def children() -> Iterator[Node]:
        if vm.attributes is not None and vm.attributes.count:
            yield _attributes_node(vm.attributes)
        if vm.folios is not None:
            yield _folios_node(vm.folios)

    return facts, children


def _more(count: int, shown: int) -> str:
    return f", ... ({count:,})" if count > shown else ""


def _attributes_node(attributes: MemoryAttributes) -> Node:
    def nodes() -> Iterator[Node]:
        columns = (column.tolist() for column in attributes.runs())
        for gfn, frames, value in zip(*columns, strict=True):
            yield Node(f"{gfn:#x}", "", [("frames", f"{frames:,}"), ("attributes", f"{value:#x}")])

    return Node(
        "mem_attrs", "", [("count", f"{attributes.count:,}")], object=attributes, children=nodes
    )


def _folios_node(folios: MachineFolios) -> Node:
    def nodes() -> Iterator[Node]:
        pairs = zip(folios.folios.tolist(), folios.sizes.tolist(), strict=True)
        for i, (address, size) in enumerate(pairs):
            facts = [("address", f"{address:#x}"), ("size", size_text(size))]
            yield Node(str(i), "", facts, address, size)

    size = 8 + 8 * len(folios.folios)
    return Node("folios", "", [("count", f"{folios.count:,}")], folios.address, size, folios, nodes)


def _vcpu_details(vcpu: KvmVcpu) -> Details:
    facts = [
        ("vcpu", str(vcpu.vcpu_id)),
        ("flags", _flags_text(vcpu.flags, {"caretaker": 1})),
        ("vm", _vm_text(vcpu.vm_token, vcpu.vm)),
        ("state", f"{vcpu.arch_state:#x}, layout not known"),
    ]

    def children() -> Iterator[Node]:
        if vcpu.control is not None:
            yield _control_node(vcpu.control)

    return facts, children


def _control_node(control: ControlBlock) -> Node:
    cpu = "none" if control.pcpu_id == KVM_CARETAKER_INVALID_PCPU else str(control.pcpu_id)
    facts = [("address", f"{control.address:#x}"), ("state", control.state_name), ("cpu", cpu)]

    def children() -> Iterator[Node]:
        if control.telemetry is None:
            return
        told = [("address", f"{control.telemetry_pa:#x}")]
        for name, value in control.telemetry.items():
            text = f"{value:#x}" if name.endswith(("rip", "reason")) else f"{value:,}"
            told.append((name.replace("_", " "), text))
        yield Node("telemetry", "", told, control.telemetry_pa, 56, control.telemetry)

    return Node("control", "", facts, control.address, 24, control, children)


def _tmpfs_details(mount: TmpfsMount) -> Details:
    limit = f"{size_text(mount.limit)}" if mount.max_blocks else "none"
    return [
        ("limit", limit), ("mode", f"{mount.mode:#o}"), ("flags", f"{mount.flags:#x}"),
    ], _nothing  # fmt: skip


def _hugetlb_details(state: Hugetlb) -> Details:
    def nodes() -> Iterator[Node]:
        for pool in state.pools:
            yield _pool_node(state, pool)

    facts = [("generation", state.generation.id), ("pools", f"{state.nr_hstates:,}")]
    return facts, nodes


def _pool_node(state: Hugetlb, pool: Pool) -> Node:
    size = size_text(state.page_size << pool.order) if pool.order < 64 else "?"
    facts = [("order", f"{pool.order} ({size})"), ("pages", f"{pool.nr_pages:,}")]

    def pages() -> Iterator[Node]:
        if pool.pages is None:
            return
        pairs = zip(pool.pages.pfn.tolist(), pool.pages.free.tolist(), strict=True)
        for i, (pfn, free) in enumerate(pairs):
            address = pfn * state.page_size
            facts = [("address", f"{address:#x}"), *((("page", "free"),) if free else ())]
            bytes_ = state.page_size << pool.order if pool.order < 64 else None
            yield Node(str(i), "", facts, address, bytes_)

    if pool.pages is not None:
        facts.append(("free", f"{int(pool.pages.free.sum()):,}"))
    return Node(str(pool.index), "", facts, pool.address, pool.struct_size, pool, pages)


_DETAILS: tuple[tuple[type, Callable[[Any], Details]], ...] = (
    (GuestMemfd, _guest_memfd_details),
    (HugeMemfd, _huge_memfd_details),
    (KvmVm, _vm_details),
    (KvmVcpu, _vcpu_details),
    (TmpfsMount, _tmpfs_details),
    (Hugetlb, _hugetlb_details),
)
