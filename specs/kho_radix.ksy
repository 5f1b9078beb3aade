meta:
  id: kho_radix
  title: KHO preserved-memory map, radix tree (kho-v2, kho-v3, kho-v4)
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  From Linux 7.1 on the property `preserved-memory-map` holds the physical
  address of the root node. The key of a block of 2^order pages at physical
  address p is

      key = 2^(64 - PAGE_SHIFT - order) | (p >> (PAGE_SHIFT + order))

  so that the highest set bit tells the order. With T = log2(PAGE_SIZE / 8) and
  B = PAGE_SHIFT + 3, a leaf (level 0) is a page of bits indexed by the low B
  bits of the key, and a node of level l is a page of physical addresses indexed
  by the next T bits: (key >> ((l - 1) * T + B)) % 2^T. The root has level

      D - 1,  D = ceil((64 - PAGE_SHIFT + 1 - B) / T) + 1

  which is 5 / 4 / 3 with 4K / 16K / 64K pages. The interim revision `kho-v2`
  left the "+ 1" of the order bit out: with 16K pages its root has level 3.
  kho-v3 and kho-v4 are identical here.

  Nodes do not say their level: the reader counts. Empty nodes are legal. Node
  pages are not themselves in the map, and the next kernel reuses them after
  boot.

  The top-level type is a node of a 4K-page machine.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
seq:
  - id: node
    type: node(4096)
types:
  node:
    -orig-id: struct kho_radix_node
    -generations: &radix_kernels
      - kho-v2-mainline-interim
      - linux-7.1
      - linux-7.2
      - linux-7.3
    params:
      - id: page_size
        type: u4
    seq:
      - id: table
        type: u8
        repeat: expr
        repeat-expr: page_size / 8
        doc: Physical addresses of the nodes one level down, 0 = empty.
  leaf:
    -orig-id: struct kho_radix_leaf
    -generations: *radix_kernels
    params:
      - id: page_size
        type: u4
    seq:
      - id: bitmap
        size: page_size
        doc: Bit b is bit b % 8 of byte b / 8.
