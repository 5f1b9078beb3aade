meta:
  id: guest_memfd_luo
  title: Preserved guest_memfd
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kvm
    - kexec-handover
    - liveupdate
  endian: le
  imports:
    - folio_entry
    - kho_vmalloc
doc: File handler `guest_memfd_luo_v1`, development only.
-orig-id: struct guest_memfd_luo_ser
-generations:
  - kvm-guest-memfd-v1
  - kvm-caretaker
seq:
  - id: size
    type: u8
  - id: flags
    type: u8
    doc: 1 mmap, 2 initially shared.
  - id: nr_folios
    type: u8
  - id: vm_token
    type: u8
    doc: LUO token of the VM file that the memory belongs to.
  - id: folios
    type: kho_vmalloc
    doc: Area of nr_folios `folio_entry`.
types:
  folio_list:
    params:
      - id: num_folios
        type: u8
    seq:
      - id: folios
        type: folio_entry
        repeat: expr
        repeat-expr: num_folios
