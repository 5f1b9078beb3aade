meta:
  id: smmuv3_tables
  title: Arm SMMUv3 stream table and context descriptors
  license: MIT
  ks-version: 0.11
  tags:
    - iommu
    - arm
  endian: le
  bit-endian: le
doc: |
  Tables in memory that an Arm SMMUv3 walks for a stream.

  STRTAB_BASE_CFG says the form of the stream table (`strtab_base_cfg`): linear,
  2^LOG2SIZE entries; or two-level, 2^(LOG2SIZE - SPLIT) level-1 descriptors,
  by StreamID >> SPLIT.

  An address field is read in two pieces because the JavaScript runtime reads at
  most 32 bits at once; the instance without suffix is the address.

  The top-level type is one stream table entry.
doc-ref: Arm System MMU Architecture Specification, version 3 (IHI 0070), chapter 5
seq:
  - id: entry
    type: ste
types:
  strtab_base:
    doc: Register value.
    seq:
      - id: reserved
        type: b6
      - id: addr_lo
        type: b26
      - id: addr_hi
        type: b20
      - id: reserved_1
        type: b10
      - id: read_allocate
        -orig-id: RA
        type: b1
      - id: reserved_2
        type: b1
    instances:
      addr:
        value: '(addr_lo * 0x40 + addr_hi * 0x100000000).as<u8>'
  strtab_base_cfg:
    doc: Register value.
    seq:
      - id: log2size
        -orig-id: LOG2SIZE
        type: b6
      - id: split
        -orig-id: SPLIT
        type: b5
      - id: reserved
        type: b5
      - id: fmt
        -orig-id: FMT
        type: b2
        enum: strtab_fmt
      - id: reserved_1
        type: b14
      - id: reserved_2
        type: b32
        if: not _io.eof
  l1_desc:
    doc: Level-1 descriptor of a two-level stream table.
    seq:
      - id: span
        -orig-id: SPAN
        type: b5
        doc: 0 = invalid, else the level-2 table has 2^(span - 1) entries.
      - id: reserved
        type: b1
      - id: l2ptr_lo
        type: b26
      - id: l2ptr_hi
        type: b20
      - id: reserved_1
        type: b12
    instances:
      l2ptr:
        -orig-id: L2PTR
        value: '(l2ptr_lo * 0x40 + l2ptr_hi * 0x100000000).as<u8>'
  l1_table:
    params:
      - id: num_entries
        type: u4
    seq:
      - id: entries
        type: l1_desc
        repeat: expr
        repeat-expr: num_entries
  ste:
    doc: Stream table entry, 64 bytes.
    seq:
      - id: valid
        -orig-id: V
        type: b1
      - id: config
        -orig-id: Config
        type: b3
        enum: ste_config
      - id: s1_fmt
        -orig-id: S1Fmt
        type: b2
        enum: cd_format
      - id: s1_context_lo
        type: b26
      - id: s1_context_hi
        type: b20
      - id: reserved
        type: b7
      - id: s1_cdmax
        -orig-id: S1CDMax
        type: b5
        doc: log2 of the number of context descriptors.
      - id: s1_dss
        -orig-id: S1DSS
        type: b2
        doc: 0 terminate, 1 bypass, 2 use substream 0.
      - id: s1_cir
        -orig-id: S1CIR
        type: b2
      - id: s1_cor
        -orig-id: S1COR
        type: b2
      - id: s1_csh
        -orig-id: S1CSH
        type: b2
      - id: reserved_1
        type: b11
      - id: mev
        -orig-id: MEV
        type: b1
      - id: reserved_2
        type: b5
      - id: s2_fwb
        -orig-id: S2FWB
        type: b1
      - id: reserved_3
        type: b1
      - id: s1_stalld
        -orig-id: S1STALLD
        type: b1
      - id: eats
        -orig-id: EATS
        type: b2
      - id: strw
        -orig-id: STRW
        type: b2
      - id: reserved_4
        type: b12
      - id: shcfg
        -orig-id: SHCFG
        type: b2
      - id: reserved_5
        type: b18
      - id: s2_vmid
        -orig-id: S2VMID
        type: b16
      - id: reserved_6
        type: b16
      - id: s2_t0sz
        -orig-id: S2T0SZ
        type: b6
        doc: Input bits are 64 less this.
      - id: s2_sl0
        -orig-id: S2SL0
        type: b2
        doc: Start level; 4K - 2 less level, 16K and 64K - 3 less level.
      - id: s2_ir0
        -orig-id: S2IR0
        type: b2
      - id: s2_or0
        -orig-id: S2OR0
        type: b2
      - id: s2_sh0
        -orig-id: S2SH0
        type: b2
      - id: s2_tg
        -orig-id: S2TG
        type: b2
        enum: granule
      - id: s2_ps
        -orig-id: S2PS
        type: b3
        doc: Output bits 0 32, 1 36, 2 40, 3 42, 4 44, 5 48, 6 52.
      - id: s2_aa64
        -orig-id: S2AA64
        type: b1
      - id: s2_endi
        -orig-id: S2ENDI
        type: b1
      - id: reserved_7
        type: b1
      - id: s2_ptw
        -orig-id: S2PTW
        type: b1
      - id: reserved_8
        type: b2
      - id: s2_s
        -orig-id: S2S
        type: b1
      - id: s2_r
        -orig-id: S2R
        type: b1
      - id: reserved_9
        type: b5
      - id: reserved_10
        type: b4
      - id: s2_ttb_lo
        type: b28
      - id: s2_ttb_hi
        type: b20
      - id: reserved_11
        type: b12
      - id: rest
        size: 32
    instances:
      s1_context:
        -orig-id: S1ContextPtr
        value: '(s1_context_lo * 0x40 + s1_context_hi * 0x100000000).as<u8>'
      s2_ttb:
        -orig-id: S2TTB
        value: '(s2_ttb_lo * 0x10 + s2_ttb_hi * 0x100000000).as<u8>'
  stream_table:
    params:
      - id: num_entries
        type: u4
    seq:
      - id: entries
        type: ste
        repeat: expr
        repeat-expr: num_entries
  cd_l1_desc:
    doc: Level-1 descriptor of a two-level context descriptor table.
    seq:
      - id: valid
        -orig-id: V
        type: b1
      - id: reserved
        type: b11
      - id: l2ptr_lo
        type: b20
      - id: l2ptr_hi
        type: b20
      - id: reserved_1
        type: b12
    instances:
      l2ptr:
        -orig-id: L2PTR
        value: '(l2ptr_lo * 0x1000 + l2ptr_hi * 0x100000000).as<u8>'
  cd:
    doc: Context descriptor, 64 bytes.
    seq:
      - id: t0sz
        -orig-id: T0SZ
        type: b6
        doc: Input bits are 64 less this.
      - id: tg0
        -orig-id: TG0
        type: b2
        enum: granule
      - id: ir0
        -orig-id: IR0
        type: b2
      - id: or0
        -orig-id: OR0
        type: b2
      - id: sh0
        -orig-id: SH0
        type: b2
      - id: epd0
        -orig-id: EPD0
        type: b1
      - id: endi
        -orig-id: ENDI
        type: b1
      - id: reserved
        type: b14
      - id: epd1
        -orig-id: EPD1
        type: b1
      - id: valid
        -orig-id: V
        type: b1
      - id: ips
        -orig-id: IPS
        type: b3
        doc: Output bits 0 32, 1 36, 2 40, 3 42, 4 44, 5 48, 6 52.
      - id: reserved_1
        type: b3
      - id: tbi0
        -orig-id: TBI0
        type: b1
      - id: reserved_2
        type: b2
      - id: aa64
        -orig-id: AA64
        type: b1
      - id: hd
        -orig-id: HD
        type: b1
      - id: ha
        -orig-id: HA
        type: b1
      - id: s
        -orig-id: S
        type: b1
      - id: r
        -orig-id: R
        type: b1
      - id: a
        -orig-id: A
        type: b1
      - id: aset
        -orig-id: ASET
        type: b1
      - id: asid
        -orig-id: ASID
        type: b16
      - id: reserved_3
        type: b3
      - id: haft
        -orig-id: HAFT
        type: b1
      - id: ttb0_lo
        type: b28
      - id: ttb0_hi
        type: b20
      - id: reserved_4
        type: b12
      - id: reserved_5
        size: 8
      - id: mair
        -orig-id: MAIR
        type: u1
        repeat: expr
        repeat-expr: 8
        doc: Memory attributes by attribute index.
      - id: rest
        size: 32
    instances:
      ttb0:
        -orig-id: TTB0
        value: '(ttb0_lo * 0x10 + ttb0_hi * 0x100000000).as<u8>'
  cd_table:
    params:
      - id: num_entries
        type: u4
    seq:
      - id: entries
        type: cd
        repeat: expr
        repeat-expr: num_entries
enums:
  strtab_fmt:
    0: linear
    1: two_level
  ste_config:
    0: abort
    4: bypass
    5: stage_1
    6: stage_2
    7: nested
  cd_format:
    0: linear
    1: two_level_4k
    2: two_level_64k
  granule:
    0: g4k
    1: g64k
    2: g16k
