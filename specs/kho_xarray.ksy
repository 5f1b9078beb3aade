meta:
  id: kho_xarray
  title: XArray over KHO (development)
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  A tree of page-size nodes over keys of 54 bits, never in a release. As with
  the radix tree, a node does not say its level.
-orig-id: struct kho_xarray
-generations: &xarray
  - kho-xarray
seq:
  - id: root
    type: u8
    doc: Physical address of the root node, 0 = empty.
types:
  node:
    -orig-id: struct kho_xarray_node
    -generations: *xarray
    params:
      - id: page_size
        type: u4
    seq:
      - id: table
        type: u8
        repeat: expr
        repeat-expr: page_size / 8
  leaf:
    -orig-id: struct kho_xarray_leaf
    -generations: *xarray
    params:
      - id: page_size
        type: u4
    seq:
      - id: values
        type: u8
        repeat: expr
        repeat-expr: page_size / 8
