meta:
  id: vtd_tables
  title: Intel VT-d root, context and PASID tables
  license: MIT
  ks-version: 0.11
  tags:
    - iommu
    - x86
  endian: le
  bit-endian: le
doc: |
  Tables in memory that an Intel IOMMU walks for a device, and that the hw
  object of a preserved IOMMU points to. Whether the unit is in legacy or in
  scalable mode is bit 10 of its root address register, not in the tables.

  An address field is read in two pieces because the JavaScript runtime reads at
  most 32 bits at once; the instance without suffix is the address.

  The top-level type is a root table of legacy mode.
doc-ref: Intel Virtualization Technology for Directed I/O, Architecture Specification, chapter 9
seq:
  - id: table
    type: root_table_legacy
types:
  root_entry_legacy:
    seq:
      - id: present
        type: b1
      - id: reserved
        type: b11
      - id: context_table_lo
        type: b20
      - id: context_table_hi
        type: b32
      - id: reserved_hi
        type: u8
    instances:
      context_table:
        value: '(context_table_lo * 0x1000 + context_table_hi * 0x100000000).as<u8>'
  root_table_legacy:
    doc: One page, by bus.
    seq:
      - id: entries
        type: root_entry_legacy
        repeat: expr
        repeat-expr: 256
  root_half_scalable:
    seq:
      - id: present
        type: b1
      - id: reserved
        type: b11
      - id: context_table_lo
        type: b20
      - id: context_table_hi
        type: b32
    instances:
      context_table:
        value: '(context_table_lo * 0x1000 + context_table_hi * 0x100000000).as<u8>'
  root_entry_scalable:
    seq:
      - id: lower
        type: root_half_scalable
        doc: devfn 0 to 0x7f
      - id: upper
        type: root_half_scalable
        doc: devfn 0x80 to 0xff
  root_table_scalable:
    seq:
      - id: entries
        type: root_entry_scalable
        repeat: expr
        repeat-expr: 256
  context_entry_legacy:
    seq:
      - id: present
        type: b1
      - id: fault_disable
        -orig-id: FPD
        type: b1
      - id: translation_type
        -orig-id: TT
        type: b2
        enum: translation_type
      - id: reserved
        type: b8
      - id: second_stage_lo
        type: b20
      - id: second_stage_hi
        type: b32
      - id: address_width
        -orig-id: AW
        type: b3
        doc: Levels of the second stage, less 2.
      - id: software
        type: b4
      - id: reserved_1
        type: b1
      - id: domain_id
        -orig-id: DID
        type: b16
      - id: reserved_2
        type: b8
      - id: reserved_3
        type: b32
    instances:
      second_stage:
        -orig-id: SLPTPTR
        value: '(second_stage_lo * 0x1000 + second_stage_hi * 0x100000000).as<u8>'
  context_table_legacy:
    doc: One page, by devfn.
    seq:
      - id: entries
        type: context_entry_legacy
        repeat: expr
        repeat-expr: 256
  context_entry_scalable:
    seq:
      - id: present
        type: b1
      - id: fault_disable
        -orig-id: FPD
        type: b1
      - id: device_tlb
        -orig-id: DTE
        type: b1
      - id: pasid_enable
        -orig-id: PASIDE
        type: b1
      - id: page_requests
        -orig-id: PRE
        type: b1
      - id: reserved
        type: b4
      - id: pasid_dir_size
        -orig-id: PDTS
        type: b3
        doc: The directory has 2^(value + 7) entries.
      - id: pasid_dir_lo
        type: b20
      - id: pasid_dir_hi
        type: b32
      - id: rid_pasid
        -orig-id: RID_PASID
        type: b20
        doc: PASID of requests without one.
      - id: rid_priv
        -orig-id: RID_PRIV
        type: b1
      - id: reserved_1
        type: b11
      - id: reserved_2
        type: b32
      - id: reserved_3
        size: 16
    instances:
      pasid_dir:
        -orig-id: PASIDDIRPTR
        value: '(pasid_dir_lo * 0x1000 + pasid_dir_hi * 0x100000000).as<u8>'
  context_table_scalable:
    doc: One page, by devfn modulo 128.
    seq:
      - id: entries
        type: context_entry_scalable
        repeat: expr
        repeat-expr: 128
  pasid_dir_entry:
    seq:
      - id: present
        type: b1
      - id: fault_disable
        -orig-id: FPD
        type: b1
      - id: reserved
        type: b10
      - id: pasid_table_lo
        type: b20
      - id: pasid_table_hi
        type: b32
    instances:
      pasid_table:
        value: '(pasid_table_lo * 0x1000 + pasid_table_hi * 0x100000000).as<u8>'
  pasid_dir:
    doc: By PASID / 64; max_pasid / 64 entries.
    params:
      - id: num_entries
        type: u4
    seq:
      - id: entries
        type: pasid_dir_entry
        repeat: expr
        repeat-expr: num_entries
  pasid_entry:
    seq:
      - id: present
        type: b1
      - id: fault_disable
        -orig-id: FPD
        type: b1
      - id: address_width
        -orig-id: AW
        type: b3
        doc: Levels of the second stage, less 2.
      - id: execute
        -orig-id: SLEE
        type: b1
      - id: translation_type
        -orig-id: PGTT
        type: b3
        enum: pasid_translation_type
      - id: access_dirty
        -orig-id: SSADE
        type: b1
      - id: reserved
        type: b2
      - id: second_stage_lo
        type: b20
      - id: second_stage_hi
        type: b32
      - id: domain_id
        -orig-id: DID
        type: b16
      - id: reserved_1
        type: b7
      - id: page_walk_snoop
        -orig-id: PWSNP
        type: b1
      - id: page_snoop
        -orig-id: PGSNP
        type: b1
      - id: reserved_2
        type: b7
      - id: reserved_3
        type: b32
      - id: supervisor_requests
        -orig-id: SRE
        type: b1
      - id: reserved_4
        type: b1
      - id: first_stage_mode
        -orig-id: FSPM
        type: b2
        doc: 0 four levels, 1 five levels.
      - id: write_protect
        -orig-id: WPE
        type: b1
      - id: reserved_5
        type: b2
      - id: extended_access
        -orig-id: EAFE
        type: b1
      - id: reserved_6
        type: b4
      - id: first_stage_lo
        type: b20
      - id: first_stage_hi
        type: b32
      - id: rest
        size: 40
    instances:
      second_stage:
        -orig-id: SLPTPTR
        value: '(second_stage_lo * 0x1000 + second_stage_hi * 0x100000000).as<u8>'
      first_stage:
        -orig-id: FSPTPTR
        value: '(first_stage_lo * 0x1000 + first_stage_hi * 0x100000000).as<u8>'
  pasid_table:
    doc: One page, by PASID modulo 64.
    seq:
      - id: entries
        type: pasid_entry
        repeat: expr
        repeat-expr: 64
enums:
  translation_type:
    0: second_stage
    1: second_stage_device_tlb
    2: pass_through
    3: reserved
  pasid_translation_type:
    1: first_stage
    2: second_stage
    3: nested
    4: pass_through
