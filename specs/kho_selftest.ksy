meta:
  id: kho_selftest
  title: Property values of the blob of the in-kernel KHO self test
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
  imports:
    - kho_vmalloc
doc: |
  The blob `kho_test` is a device tree: root `compatible` is `kho-test-v1`
  (`kho_fdt_props::kho_test_compatible`) with `magic`; the node `data` has
  `nr_folios`, `csum` (native 32-bit) and `folios_info`.

  The top-level type is the value of `magic`.
seq:
  - id: magic
    type: u4
    valid: 0x4b484f21
types:
  folios_info:
    doc: |
      Linux 6.18 and later: descriptor of a vmalloc area that holds one 64-bit
      `folio` for each of nr_folios.
    seq:
      - id: area
        type: kho_vmalloc
  folios_info_inline:
    doc: 'Linux 6.16 and 6.17: the array itself is the property.'
    params:
      - id: page_size
        type: u4
      - id: num_folios
        type: u4
    seq:
      - id: folios
        type: folio(page_size)
        repeat: expr
        repeat-expr: num_folios
  folio:
    params:
      - id: page_size
        type: u4
    seq:
      - id: entry
        type: u8
        doc: Physical address with the folio order in the low PAGE_SHIFT bits.
    instances:
      order:
        value: (entry % page_size).as<u8>
      phys:
        value: (entry - order).as<u8>
