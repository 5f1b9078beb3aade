meta:
  id: amd_iommu_tables
  title: AMD IOMMU device table entry
  license: MIT
  ks-version: 0.11
  tags:
    - iommu
    - x86
  endian: le
  bit-endian: le
doc: |
  32 bytes for each device, by (bus << 8) | devfn. No KHO series for AMD is
  known; given for images that hold such a machine.

  An address field is read in pieces because the JavaScript runtime reads at
  most 32 bits at once; the instance without suffix is the address.
doc-ref: AMD I/O Virtualization Technology (IOMMU) Specification (48882), section 2.2.2
seq:
  - id: valid
    -orig-id: V
    type: b1
  - id: translation_valid
    -orig-id: TV
    type: b1
  - id: reserved
    type: b5
  - id: had
    -orig-id: HAD
    type: b2
    doc: Host access and dirty.
  - id: mode
    -orig-id: Mode
    type: b3
    doc: Levels of the host table, 0 = no translation, 7 reserved.
  - id: host_table_lo
    type: b20
  - id: host_table_hi
    type: b20
  - id: ppr
    -orig-id: PPR
    type: b1
  - id: gprp
    -orig-id: GPRP
    type: b1
  - id: giov
    -orig-id: GIoV
    type: b1
  - id: guest_valid
    -orig-id: GV
    type: b1
  - id: glx
    -orig-id: GLX
    type: b2
    doc: Levels of the GCR3 table, less 1.
  - id: gcr3_a
    type: b3
  - id: ir
    -orig-id: IR
    type: b1
  - id: iw
    -orig-id: IW
    type: b1
  - id: reserved_1
    type: b1
  - id: domain_id
    -orig-id: DomainID
    type: b16
  - id: gcr3_b
    type: b16
  - id: device_tlb
    -orig-id: I
    type: b1
  - id: suppress
    -orig-id: SE, SA, IOCTL
    type: b4
  - id: reserved_2
    type: b3
  - id: sys_mgt
    -orig-id: SysMgt
    type: b2
  - id: reserved_3
    type: b1
  - id: gcr3_c
    type: b21
  - id: int_valid
    -orig-id: IV
    type: b1
  - id: int_tab_len
    -orig-id: IntTabLen
    type: b4
    doc: The table has 2^n entries.
  - id: reserved_4
    type: b1
  - id: int_table_lo
    type: b26
  - id: int_table_hi
    type: b20
  - id: reserved_5
    type: b2
  - id: guest_paging_mode
    type: b2
  - id: init_pass
    -orig-id: InitPass
    type: b1
  - id: eint_pass
    -orig-id: EIntPass
    type: b1
  - id: nmi_pass
    -orig-id: NMIPass
    type: b1
  - id: reserved_6
    type: b1
  - id: int_ctl
    -orig-id: IntCtl
    type: b2
  - id: lint0_pass
    -orig-id: Lint0Pass
    type: b1
  - id: lint1_pass
    -orig-id: Lint1Pass
    type: b1
  - id: attributes
    size: 8
instances:
  host_table:
    value: '(host_table_lo * 0x1000 + host_table_hi * 0x100000000).as<u8>'
  gcr3_table:
    value: '(gcr3_a * 0x1000 + gcr3_b * 0x8000 + gcr3_c * 0x80000000).as<u8>'
    doc: Guest page table root.
  int_table:
    value: '(int_table_lo * 0x40 + int_table_hi * 0x100000000).as<u8>'
