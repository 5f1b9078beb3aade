meta:
  id: dma_alloc_luo
  title: Preserved coherent DMA allocation
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
    - liveupdate
  endian: le
doc: |
  Handle of DMA memory that the SMMUv3 extensions of the IOMMU series keep
  (stream tables, context descriptor tables). Development only; two layouts,
  a (top level) and b.
seq:
  - id: alloc
    type: alloc_a
types:
  alloc_a:
    -orig-id: struct dma_alloc_ser
    -generations:
      - dma-alloc-a
      - iommu-smmuv3-2026a
    seq:
      - id: page_phys
        type: u8
      - id: size
        type: u8
      - id: attrs
        type: u8
      - id: force_decrypted
        type: u1
      - id: padding
        size: 7
  alloc_b:
    -orig-id: struct dma_alloc_ser
    -generations:
      - dma-alloc-b
      - iommu-v4-version-field
    doc: |
      18 bytes, then physical addresses at odd places. How many there are when
      the allocation is contiguous was not established; the caller says.
    params:
      - id: num_page_phys
        type: u8
    seq:
      - id: iova
        type: u8
      - id: nr_pages
        type: u8
        valid:
          min: num_page_phys
      - id: is_folio
        type: u1
      - id: is_contiguous
        type: u1
      - id: page_phys
        type: u8
        repeat: expr
        repeat-expr: num_page_phys
