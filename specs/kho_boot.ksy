meta:
  id: kho_boot
  title: KHO boot parameters (x86 setup_data) and scratch array
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  How an x86 kernel is told where the KHO root is: one node of the list that
  starts at `boot_params.hdr.setup_data`, of type 10, holding `kho_data`.
  Unchanged from Linux 6.16 to 7.3. Device-tree machines use two properties of
  `/chosen` instead (`kho_fdt_props::chosen_range`).

  The top-level type is the whole node.
doc-ref: https://docs.kernel.org/arch/x86/boot.html
seq:
  - id: hdr
    type: setup_data_hdr
    valid:
      expr: _.type == setup_type::kexec_kho and _.len == 32
  - id: data
    type: kho_data
types:
  setup_data_hdr:
    -orig-id: struct setup_data_hdr
    -generations: &released
      - linux-6.16
      - linux-6.17
      - linux-6.18
      - linux-6.19
      - linux-7.0
      - linux-7.1
      - linux-7.2
      - linux-7.3
    seq:
      - id: next
        type: u8
        doc: Physical address of the next node, 0 at the end.
      - id: type
        type: u4
        enum: setup_type
      - id: len
        type: u4
        doc: Bytes of payload.
  kho_data:
    -orig-id: struct kho_data
    -generations: *released
    seq:
      - id: fdt_addr
        type: u8
        doc: Physical address of the root FDT.
      - id: fdt_size
        type: u8
        doc: One page in every image seen; 0 disables KHO.
      - id: scratch_addr
        type: u8
        doc: Physical address of the scratch array.
      - id: scratch_size
        type: u8
        doc: 16 times the number of areas; the kernel ignores a remainder.
  kho_scratch:
    -orig-id: struct kho_scratch
    -generations: *released
    doc: |
      A range of memory in which the next kernel may live until it knows what
      is preserved. Entry 0 is low memory, entry 1 global (its size is 0 where
      all memory is low), then one per NUMA node.
    seq:
      - id: addr
        type: u8
      - id: size
        type: u8
  scratch_array:
    params:
      - id: len_array
        type: u8
        doc: Size in bytes as handed over (`scratch_size`).
    seq:
      - id: areas
        type: kho_scratch
        repeat: expr
        repeat-expr: len_array / 16
enums:
  setup_type:
    0: none
    1: e820_ext
    2: dtb
    3: pci
    4: efi
    5: apple_properties
    6: jailhouse
    7: cc_blob
    8: ima
    9: rng_seed
    10: kexec_kho
