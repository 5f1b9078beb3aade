meta:
  id: fdt
  title: Flattened device tree
  file-extension: dtb
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: be
doc: |
  The container of the root of Kexec HandOver (KHO), of the `memblock` and
  `kho_test` blobs, of LUO state up to Linux 7.1, and of the device tree that
  arm64 kernels are booted with.

  The framing is big endian, as everywhere. The *values* that KHO, LUO and
  memblock put into properties are not: they are 64-bit integers in the native
  order of the machine (see `kho_fdt_props`).

  The structure block is given as the flat list of its tokens; nesting follows
  from begin_node and end_node. The list ends with the token `end`; a block
  without it is refused.
doc-ref:
  - https://devicetree-specification.readthedocs.io/en/stable/flattened-format.html
  - https://docs.kernel.org/core-api/kho/index.html
seq:
  - id: magic
    contents: [0xd0, 0x0d, 0xfe, 0xed]
  - id: totalsize
    type: u4
    valid:
      min: 40
    doc: |
      Size of the whole tree. The kernel does not compare it with the size
      that was handed over beside it; a checker should.
  - id: off_dt_struct
    type: u4
  - id: off_dt_strings
    type: u4
  - id: off_mem_rsvmap
    type: u4
  - id: version
    type: u4
    valid:
      min: 16
  - id: last_comp_version
    type: u4
    valid:
      max: 17
  - id: boot_cpuid_phys
    type: u4
  - id: size_dt_strings
    type: u4
  - id: size_dt_struct
    type: u4
    if: version >= 17
instances:
  len_struct:
    value: 'version >= 17 ? size_dt_struct : totalsize - off_dt_struct'
  mem_rsvmap:
    pos: off_mem_rsvmap
    type: reserve_entry
    repeat: until
    repeat-until: _.address == 0 and _.size == 0
    doc: Memory reservation block with its all-zero terminator.
  strings:
    pos: off_dt_strings
    size: size_dt_strings
    type: strings_block
  structure:
    pos: off_dt_struct
    size: len_struct
    type: struct_block
types:
  reserve_entry:
    seq:
      - id: address
        type: u8
      - id: size
        type: u8
  strings_block:
    seq:
      - id: raw
        size-eos: true
        doc: Property names, each ended by NUL; they may overlap.
  struct_block:
    seq:
      - id: tokens
        type: token
        repeat: until
        repeat-until: _.kind == token_kind::end
  token:
    seq:
      - id: kind
        type: u4
        enum: token_kind
        valid:
          any-of:
            - token_kind::begin_node
            - token_kind::end_node
            - token_kind::prop
            - token_kind::nop
            - token_kind::end
      - id: node_name
        terminator: 0
        if: kind == token_kind::begin_node
        doc: Empty for the root.
      - id: len_value
        -orig-id: len
        type: u4
        if: kind == token_kind::prop
      - id: nameoff
        type: u4
        if: kind == token_kind::prop
        doc: Offset of the property's name in the strings block.
      - id: value
        size: len_value
        if: kind == token_kind::prop
      - id: padding
        size: (4 - _io.pos % 4) % 4
        doc: Tokens start at multiples of four.
    instances:
      prop_name:
        io: _root.strings._io
        pos: nameoff
        terminator: 0
        if: kind == token_kind::prop
enums:
  token_kind:
    1: begin_node
    2: end_node
    3: prop
    4: nop
    9: end
