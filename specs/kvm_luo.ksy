meta:
  id: kvm_luo
  title: Preserved KVM virtual machine
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kvm
    - kexec-handover
    - liveupdate
  endian: le
  imports:
    - kho_vmalloc
doc: |
  Development only. The handler string `kvm_vm_luo_v1` names three layouts:
  `vm` (32 bytes, top level), `vm_minimal` (8) and `vm_caretaker` (16).
  `kvm_vcpu_luo_v1` is `vcpu`; the layout of its architecture state is not
  published.
seq:
  - id: vm
    type: vm
types:
  vm:
    -orig-id: struct kvm_luo_ser
    -generations: &base
      - kvm-guest-memfd-v1
    seq:
      - id: type
        type: u8
      - id: nr_mem_attrs
        type: u8
      - id: mem_attrs
        type: kho_vmalloc
        doc: Area of nr_mem_attrs `mem_attr`.
  mem_attr:
    -orig-id: struct kvm_luo_mem_attr
    -generations: *base
    seq:
      - id: gfn
        type: u8
      - id: attributes
        type: u8
  vm_minimal:
    -orig-id: struct kvm_luo_ser
    -generations:
      - kvm-vm-v1-minimal
    seq:
      - id: type
        type: u8
  vm_caretaker:
    -orig-id: struct kvm_luo_ser
    -generations: &caretaker
      - kvm-caretaker
    seq:
      - id: type
        type: u8
      - id: kho_folios
        type: u8
        doc: Physical address of a `folio_list`.
  folio_list:
    -orig-id: struct kvm_kho_folios_ser
    -generations: *caretaker
    seq:
      - id: nr_folios
        type: u8
      - id: folios_pa
        type: u8
        repeat: expr
        repeat-expr: nr_folios
  vcpu:
    -orig-id: struct kvm_vcpu_ser
    -generations: *caretaker
    seq:
      - id: vcpu_id
        type: u4
      - id: flags
        type: u4
        doc: 1 = runs under the caretaker.
      - id: vm_token
        type: u8
        doc: LUO token of the VM file.
      - id: arch_state
        type: u8
        doc: Physical address.
      - id: cb
        type: u8
        doc: Physical address of a `control_block`.
  control_block:
    -orig-id: struct kvm_caretaker_cb_ser
    -generations: *caretaker
    seq:
      - id: state
        type: u4
        enum: caretaker_state
      - id: pcpu_id
        type: u4
        doc: 0xffffffff = none.
      - id: vcpu_id
        type: u4
      - id: reserved
        type: u4
      - id: telemetry
        type: u8
        doc: Physical address of a `telemetry`.
  telemetry:
    -orig-id: struct kvm_caretaker_telemetry_ser
    -generations: *caretaker
    seq:
      - id: total_runs
        type: u8
      - id: total_exits
        type: u8
      - id: stall_count
        type: u8
      - id: last_exit_reason
        type: u8
      - id: last_exit_rip
        type: u8
      - id: stall_exit_reason
        type: u8
      - id: stall_exit_rip
        type: u8
enums:
  caretaker_state:
    0: paused
    1: running
    2: stopping
    3: stopped
