meta:
  id: kho_block
  title: KHO block list
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  A linked list of pages of equal entries (Linux 7.2 and later): sessions
  (80 bytes), files (64), devices of the last PCI layout (8). The format files
  of those clients have typed blocks; the top-level type gives raw entries.

  The kernel refuses a cycle, more than 10000 blocks, and a count of 0 or above
  capacity.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
params:
  - id: page_size
    type: u4
  - id: len_entry
    type: u4
seq:
  - id: hdr
    type: header((page_size - 16) / len_entry)
  - id: entries
    size: len_entry
    repeat: expr
    repeat-expr: hdr.count
types:
  header:
    -orig-id: struct kho_block_header_ser
    -generations:
      - linux-7.2
      - linux-7.3
      - luo-features-dev
      - pci-flb-version2-2026
    params:
      - id: capacity
        type: u4
    seq:
      - id: next
        type: u8
        doc: Physical address of the next block, 0 at the end.
      - id: count
        type: u8
        valid:
          max: capacity
