meta:
  id: kho_fdt_props
  title: Values of the device tree properties that KHO, LUO and memblock write
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  A property value cut out of an `fdt` is the stream here. The top-level type
  is the common case, a 64-bit integer in native order, that is little endian
  on the machines that have KHO. Only `/chosen` uses big-endian cells.

  | tree | node | property | type |
  |------|------|----------|------|
  | root, kho-v1 | / | compatible | kho_compatible |
  | root | / | preserved-memory-map | (top level) physical address |
  | root, kho-v1 | NAME | fdt | (top level) physical address of a tree |
  | root, kho-v2 and later | NAME | preserved-data | (top level) physical address |
  | root, kho-v3 and later | NAME | blob-size | (top level) bytes |
  | memblock | / | compatible | memblock_compatible |
  | memblock | REGION | compatible | reserve_mem_compatible |
  | memblock | REGION | start, size | (top level) |
  | LUO up to 7.1 | / | compatible | luo_compatible |
  | LUO up to 7.1 | / | liveupdate-number | (top level) |
  | LUO up to 7.1 | luo-session | luo-session-header | (top level) physical address |
  | LUO, luo-v2 | / | luo-abi-header | (top level) physical address of `luo::ser_v2` |
  | LUO 7.1 | luo-flb | luo-flb-header | (top level) physical address |
  | device tree | /chosen | linux,kho-fdt, linux,kho-scratch | chosen_range |

  The first radix-tree postings (2025-10) kept the strings `kho-v1` or `kho-v2`
  and used the property names `preserved-page-radix-tree` and
  `preserved-order-table` instead.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
seq:
  - id: value
    type: u8
types:
  native_u4:
    doc: The 32-bit properties of the kho_test tree.
    seq:
      - id: value
        type: u4
  kho_compatible:
    doc: The kernel compares the whole string with its own, nothing else.
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          any-of:
            - '"kho-v1"'
            - '"kho-v2"'
            - '"kho-v3"'
            - '"kho-v4"'
            - '"kho-v4;radix-v1"'
            - '"kho-v4;radix-v1;vmalloc-v1"'
  luo_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          any-of:
            - '"luo-v1"'
            - '"luo-v2"'
  luo_session_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          any-of:
            - '"luo-session-v1"'
            - '"luo-session-v2"'
  luo_flb_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          eq: '"luo-flb-v1"'
  memblock_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          eq: '"memblock-v1"'
  reserve_mem_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          eq: '"reserve-mem-v1"'
  kho_test_compatible:
    seq:
      - id: value
        type: strz
        encoding: ASCII
        valid:
          eq: '"kho-test-v1"'
  chosen_range:
    doc: |
      Address and size in big-endian cells, as many as the root node of the
      device tree says in `#address-cells` and `#size-cells` (1 or 2).
    params:
      - id: num_address_cells
        type: u4
      - id: num_size_cells
        type: u4
    seq:
      - id: check
        size: 0
        valid:
          expr: >-
            num_address_cells >= 1 and num_address_cells <= 2
            and num_size_cells >= 1 and num_size_cells <= 2
        doc: Refuses other numbers of cells; holds no bytes.
      - id: address_cells
        type: u4be
        repeat: expr
        repeat-expr: num_address_cells
      - id: size_cells
        type: u4be
        repeat: expr
        repeat-expr: num_size_cells
    instances:
      address:
        value: >-
          (num_address_cells == 1 ? address_cells[0]
          : (address_cells[0] * 0x100000000 + address_cells[1])).as<u8>
      size:
        value: >-
          (num_size_cells == 1 ? size_cells[0]
          : (size_cells[0] * 0x100000000 + size_cells[1])).as<u8>
