meta:
  id: memfd_luo
  title: Preserved memory file (memfd)
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
    - liveupdate
  endian: le
  imports:
    - folio_entry
    - kho_vmalloc
    - luo
doc: |
  What `data` of a LUO file points to when its handler is a memfd handler.

  | handler | kernel | type | bytes |
  |---------|--------|------|-------|
  | memfd-v1 | 6.19 | ser_v1 | 40 |
  | memfd-v2 | 7.1 to 7.3 | ser_v2 (top level) | 48 |
  | memfd-v2 | early development | ser_v2_early | 48 |
  | memfd | feature development | ser_features | 176 |

  `folios` is a vmalloc area of nr_folios `folio_entry`. The order of a folio
  is that of its block in the preserved-memory map.
doc-ref: https://docs.kernel.org/mm/memfd_preservation.html
seq:
  - id: ser
    type: ser_v2
types:
  ser_v1:
    -orig-id: struct memfd_luo_ser
    -generations:
      - linux-6.19
    doc: Has no field for the seals; they are lost.
    seq:
      - id: pos
        type: u8
      - id: size
        type: u8
      - id: nr_folios
        type: u8
      - id: folios
        type: kho_vmalloc
  ser_v2:
    -orig-id: struct memfd_luo_ser
    -generations:
      - linux-7.1
      - linux-7.2
      - linux-7.3
    seq:
      - id: pos
        type: u8
        doc: File position.
      - id: size
        type: u8
        doc: File size in bytes.
      - id: seals
        type: u4
        doc: |
          F_SEAL_ bits: 1 seal, 2 shrink, 4 grow, 8 write, 0x10 future write,
          0x20 exec. The kernel refuses others.
      - id: flags
        type: u4
        doc: Must be 0.
      - id: nr_folios
        type: u8
      - id: folios
        type: kho_vmalloc
  ser_v2_early:
    -orig-id: struct memfd_luo_ser
    -generations:
      - memfd-v2-early
    doc: Eight bits of seals and 56 reserved ones where v2 has two words.
    seq:
      - id: pos
        type: u8
      - id: size
        type: u8
      - id: seals
        type: u1
      - id: reserved
        -orig-id: __reserved
        size: 7
      - id: nr_folios
        type: u8
      - id: folios
        type: kho_vmalloc
  ser_features:
    -orig-id: struct memfd_luo_ser
    -generations:
      - luo-features-dev
    seq:
      - id: features
        type: luo::feature_hdr
      - id: pos
        type: u8
      - id: size
        type: u8
      - id: seals
        type: u4
      - id: flags
        type: u4
      - id: nr_folios
        type: u8
      - id: folios
        type: kho_vmalloc
  folio_list:
    doc: Content of the vmalloc area (or of a piece of it).
    params:
      - id: num_folios
        type: u8
    seq:
      - id: folios
        type: folio_entry
        repeat: expr
        repeat-expr: num_folios
