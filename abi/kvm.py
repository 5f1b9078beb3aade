"""KVM: virtual machine files, and in the caretaker tree their vCPUs.

Never in a release. ``kvm_vm_luo_v1`` names three layouts of 8, 16 and 32 bytes. Nothing in
the struct tells them apart but what follows ``type``: a vmalloc descriptor behind a count,
one physical address, or nothing.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, enum, flags, phys, u32, u64
from abi.vmalloc import kho_vmalloc

VM_STRING = "kvm_vm_luo_v1"
VCPU_STRING = "kvm_vcpu_luo_v1"

KVM_VCPU_LUO_FLAG_CARETAKER = 1
#: ``pcpu_id`` of a vCPU that is bound to no CPU.
KVM_CARETAKER_INVALID_PCPU = 0xFFFFFFFF
#: States of a caretaker.
CARETAKER_STATES = {
    "KVM_CARETAKER_PAUSED": 0,
    "KVM_CARETAKER_RUNNING": 1,
    "KVM_CARETAKER_STOPPING": 2,
    "KVM_CARETAKER_STOPPED": 3,
}

_type = "type" / u64 * "machine type given to KVM_CREATE_VM"

kvm_luo_ser_minimal = Struct("kvm_luo_ser", _type, doc="A virtual machine, nothing but its type.")

kvm_luo_mem_attr = Struct(
    "kvm_luo_mem_attr",
    "gfn" / u64 * "guest frame number",
    "attributes" / u64 * "KVM_MEMORY_ATTRIBUTE_*",
    doc="The memory attributes of one guest frame.",
)

kvm_luo_ser = Struct(
    "kvm_luo_ser",
    _type,
    "nr_mem_attrs" / u64 * "entries in the array",
    "mem_attrs" / kho_vmalloc * "struct kvm_luo_mem_attr[nr_mem_attrs]",
    doc="A virtual machine with its memory attributes.",
)

kvm_kho_folios_ser = Struct(
    "kvm_kho_folios_ser",
    "nr_folios" / u64,
    tail=("folios_pa", phys("folio")),
    doc="Folios that belong to a virtual machine.",
)

kvm_luo_ser_folios = Struct(
    "kvm_luo_ser",
    _type,
    "kho_folios" / phys("struct kvm_kho_folios_ser"),
    doc="A virtual machine with folios of its own.",
)

kvm_caretaker_telemetry_ser = Struct(
    "kvm_caretaker_telemetry_ser",
    "total_runs" / u64,
    "total_exits" / u64,
    "stall_count" / u64,
    "last_exit_reason" / u64,
    "last_exit_rip" / u64,
    "stall_exit_reason" / u64,
    "stall_exit_rip" / u64,
    doc="What a caretaker saw while it ran a vCPU.",
)

kvm_caretaker_cb_ser = Struct(
    "kvm_caretaker_cb_ser",
    "state" / enum(u32, **CARETAKER_STATES),
    "pcpu_id" / u32 * "CPU that runs it; 0xffffffff: none",
    "vcpu_id" / u32,
    "reserved" / u32,
    "telemetry" / phys("struct kvm_caretaker_telemetry_ser"),
    doc="Control block of a caretaker.",
)

kvm_vcpu_ser = Struct(
    "kvm_vcpu_ser",
    "vcpu_id" / u32,
    "flags" / flags(u32, KVM_VCPU_LUO_FLAG_CARETAKER=KVM_VCPU_LUO_FLAG_CARETAKER),
    "vm_token" / u64 * "LUO token of the virtual machine's file",
    "arch_state" / phys("struct kvm_vcpu_arch_ser") * "layout not known",
    "cb" / phys("struct kvm_caretaker_cb_ser"),
    doc="A vCPU.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="kvm",
        id="kvm-vm-v1-minimal",
        strings=(VM_STRING,),
        layouts={"kvm_luo_ser": kvm_luo_ser_minimal},
        provenance="guest_memfd and KVM live update series, variant without attributes",
        date="2026-06",
        census=("kvm-vm-v1-minimal",),
    ),
    Generation(
        layer="kvm",
        id="kvm-guest-memfd-v1",
        strings=(VM_STRING,),
        layouts={"kvm_luo_mem_attr": kvm_luo_mem_attr, "kvm_luo_ser": kvm_luo_ser},
        provenance="guest_memfd and KVM live update series, RFC v2 to v3",
        date="2026-06-05",
        census=("kvm-guest-memfd-v1",),
    ),
    Generation(
        layer="kvm",
        id="kvm-caretaker",
        strings=(VM_STRING, VCPU_STRING),
        handlers=(VM_STRING, VCPU_STRING),
        layouts={
            "kvm_luo_ser": kvm_luo_ser_folios,
            "kvm_kho_folios_ser": kvm_kho_folios_ser,
            "kvm_vcpu_ser": kvm_vcpu_ser,
            "kvm_caretaker_cb_ser": kvm_caretaker_cb_ser,
            "kvm_caretaker_telemetry_ser": kvm_caretaker_telemetry_ser,
        },
        provenance="KVM caretaker development tree",
        date="2026-08 or later",
        constants={
            "KVM_VCPU_LUO_FLAG_CARETAKER": KVM_VCPU_LUO_FLAG_CARETAKER,
            "KVM_CARETAKER_INVALID_PCPU": KVM_CARETAKER_INVALID_PCPU,
            **CARETAKER_STATES,
        },
        census=("kvm-caretaker",),
    ),
)
