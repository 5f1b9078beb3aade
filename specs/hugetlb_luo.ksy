meta:
  id: hugetlb_luo
  title: Preserved HugeTLB state
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
    - liveupdate
  endian: le
  bit-endian: le
  imports:
    - folio_entry
    - kho_vmalloc
doc: |
  Development only. FLB `hugetlb-v1` (top-level type, `ser`) with file handler
  `huge-memfd-v1` (`file`); before it an FLB `hugetlb`, unpacked and without a
  version (`ser_early`).
seq:
  - id: ser
    type: ser
types:
  hstate:
    -orig-id: struct hugetlb_hstate_ser
    -generations: &v1
      - hugetlb-v1
    seq:
      - id: nr_pages
        type: u8
      - id: order
        type: u1
  ser:
    -orig-id: struct hugetlb_ser
    -generations: *v1
    doc: The array always has four elements; `nr_hstates` of them are used.
    seq:
      - id: hstates
        type: hstate
        repeat: expr
        repeat-expr: 4
      - id: nr_hstates
        type: u1
        valid:
          max: 4
  file:
    -orig-id: struct hugemfd_ser
    -generations: *v1
    seq:
      - id: size
        type: u8
      - id: pos
        type: u8
      - id: nr_folios
        type: u8
      - id: folios
        type: kho_vmalloc
        doc: Area of nr_folios `folio_entry`.
      - id: order
        type: u1
  folio_early:
    -orig-id: struct hugetlb_folio_ser
    -generations: &early
      - hugetlb-early
    seq:
      - id: pfn_lo
        type: b32
      - id: pfn_hi
        type: b20
      - id: free
        type: b1
      - id: reserved
        type: b11
    instances:
      pfn:
        value: (pfn_lo + pfn_hi * 0x100000000).as<u8>
  hstate_early:
    -orig-id: struct hugetlb_hstate_ser
    -generations: *early
    seq:
      - id: nr_pages
        type: u8
      - id: order
        type: u4
      - id: reserved
        -orig-id: __reserved
        type: u4
      - id: folios
        type: kho_vmalloc
        doc: Area of nr_pages `folio_early`.
  ser_early:
    -orig-id: struct hugetlb_ser
    -generations: *early
    seq:
      - id: nr_hstates
        type: u2
        valid:
          max: 4
      - id: padding
        size: 6
      - id: hstates
        type: hstate_early
        repeat: expr
        repeat-expr: 4
  folio_list:
    params:
      - id: num_folios
        type: u8
    seq:
      - id: folios
        type: folio_entry
        repeat: expr
        repeat-expr: num_folios
