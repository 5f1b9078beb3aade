meta:
  id: kho_bitmaps
  title: KHO preserved-memory map, list of bitmaps (kho-v1)
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
doc: |
  Linux 6.16 to 7.0: the property `preserved-memory-map` holds the physical
  address of the first chunk; chunks are linked by `next`. All blocks of a
  chunk have its order. Bit b of a bitmap says that this block is preserved:

      phys_start + (b << (order + PAGE_SHIFT))

  One string, two layouts: a bitmap has 512 bytes in 6.16 and 6.17 and a page
  from 6.18 on, both under `kho-v1`.

  Chunks and bitmaps are not themselves in the map.

  The top-level type is a chunk of a 4K-page machine.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
seq:
  - id: chunk
    type: chunk(4096)
types:
  chunk:
    -orig-id: struct khoser_mem_chunk
    -generations: &bitmap_kernels
      - linux-6.16
      - linux-6.17
      - linux-6.18
      - linux-6.19
      - linux-7.0
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: chunk_hdr(capacity)
      - id: bitmaps
        type: bitmap_ptr
        repeat: expr
        repeat-expr: hdr.num_elms
    instances:
      capacity:
        value: (page_size - 16) / 16
  chunk_hdr:
    -orig-id: struct khoser_mem_chunk_hdr
    -generations: *bitmap_kernels
    params:
      - id: capacity
        type: u4
    seq:
      - id: next
        type: u8
        doc: Physical address of the next chunk, 0 at the end.
      - id: order
        type: u4
        valid:
          max: 51
      - id: num_elms
        type: u4
        valid:
          max: capacity
  bitmap_ptr:
    -orig-id: struct khoser_mem_bitmap_ptr
    -generations: *bitmap_kernels
    seq:
      - id: phys_start
        type: u8
        doc: |
          Address of the block of bit 0: a multiple of (bits << order) pages.
          One that is not a multiple of the larger span proves 512-byte bitmaps.
      - id: bitmap
        type: u8
        doc: |
          Physical address of the bitmap. 512-byte bitmaps come from a slab and
          need not be page aligned.
  bits:
    -orig-id: struct kho_mem_phys_bits
    -generations: *bitmap_kernels
    params:
      - id: len_bitmap
        type: u4
        doc: 512 (6.16, 6.17) or the page size (6.18 and later).
    seq:
      - id: preserve
        size: len_bitmap
        doc: Bit b is bit b % 8 of byte b / 8.
