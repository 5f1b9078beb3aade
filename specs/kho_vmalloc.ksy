meta:
  id: kho_vmalloc
  title: KHO preserved vmalloc area
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  Descriptor (top-level type, 16 bytes, embedded in the structs of the clients)
  and list of chunks of a preserved vmalloc area. Linux 6.18 and later; not
  versioned by itself.

  The area's content is that of the blocks of 2^order pages that the chunks
  list, one after the other. A full chunk always has a successor, which may be
  empty; generators in the wild also write a full last chunk with next = 0.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
-orig-id: struct kho_vmalloc
-generations: &vmalloc_kernels
  - linux-6.18
  - linux-6.19
  - linux-7.0
  - kho-v2-mainline-interim
  - linux-7.1
  - linux-7.2
  - linux-7.3
  - memfd-v2-early
  - kvm-guest-memfd-v1
  - kvm-caretaker
  - luo-features-dev
  - hugetlb-v1
  - hugetlb-early
seq:
  - id: first
    type: u8
    doc: Physical address of the first chunk, 0 for an empty area.
  - id: total_pages
    type: u4
    doc: In base pages; equals the number of entries times 2^order.
  - id: flags
    type: u2
    doc: 1 allocated pages, 2 huge mappings allowed; unknown bits are ignored.
  - id: order
    type: u2
instances:
  is_alloc:
    value: flags % 2 == 1
  is_huge_vmap:
    value: flags / 2 % 2 == 1
types:
  chunk_hdr:
    -orig-id: struct kho_vmalloc_hdr
    -generations: *vmalloc_kernels
    seq:
      - id: next
        type: u8
        doc: Physical address of the next chunk, 0 at the end.
  chunk:
    -orig-id: struct kho_vmalloc_chunk
    -generations: *vmalloc_kernels
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: chunk_hdr
      - id: phys
        type: u8
        repeat: expr
        repeat-expr: (page_size - 8) / 8
        doc: Physical addresses of blocks; the first 0 ends the list.
