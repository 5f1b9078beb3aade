meta:
  id: iommu_luo
  title: Preserved IOMMU state
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - iommu
    - kexec-handover
    - liveupdate
  endian: le
  bit-endian: le
doc: |
  FLB data of `iommu-liveupdate-v1` (postings v2, v3 and the first SMMUv3
  extension) and of `iommu-liveupdate` with a version word (later). Never in a
  release up to Linux 7.3. For the postings before see `iommu_luo_rfc`.

  | posting | root | hw | domain | device |
  |---------|------|----|--------|--------|
  | v2 (2026-04) | flb | hw_v2 21 | domain_v2 34 | device_v2 37 |
  | v3 base (2026-06) | flb | hw_base 24 | domain_v3 37 | device_base 40 |
  | v3 with VT-d | flb | hw_v3 112 | domain_v3 37 | device_v3 56 |
  | SMMUv3 extension A | flb | hw_smmuv3_a 112 | domain_v3 37 | device_smmuv3_a 64 |
  | version word, base | flb_versioned | hw_base 24 | domain_v3 37 | device_base 40 |
  | version word | flb_versioned | hw_v4 112 | domain_v4 40 | device_v4 72 |

  The string does not tell v2, v3 and the extension apart, nor the version word
  its base and full form: a reader tries the strides, and keeps the one for
  which domain_phys and iommu_phys hit object boundaries.

  An array is a chain of pages {next_array_phys, nr_objects, objects}. Objects
  follow without gaps, whatever their alignment. Deleted slots are never reused.

  The top-level type is the root of the version-word revision.
seq:
  - id: flb
    type: flb_versioned
types:
  flb:
    -orig-id: struct iommu_flb_ser
    -generations:
      - iommu-v2-2026-04-base
      - iommu-v3-2026-06-base
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
    doc: None of the addresses is 0, even without objects.
    seq:
      - id: iommu_array_phys
        type: u8
        doc: Physical address of the first page of hw objects.
      - id: iommu_domain_array_phys
        type: u8
      - id: device_array_phys
        type: u8
  flb_versioned:
    -orig-id: struct iommu_flb_ser
    -generations:
      - iommu-v4-version-field-base
      - iommu-v4-version-field
    seq:
      - id: version
        type: u8
        valid: 1
      - id: iommu_array_phys
        type: u8
      - id: iommu_domain_array_phys
        type: u8
      - id: device_array_phys
        type: u8
  array_hdr:
    -orig-id: struct iommu_array_hdr_ser
    -generations: &all
      - iommu-v2-2026-04-base
      - iommu-v3-2026-06-base
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
      - iommu-v4-version-field-base
      - iommu-v4-version-field
    params:
      - id: capacity
        type: u4
    seq:
      - id: next_array_phys
        type: u8
        doc: Physical address of the next page, 0 at the end.
      - id: nr_objects
        type: u8
        valid:
          max: capacity
  hdr_v2:
    -orig-id: struct iommu_hdr_ser
    -generations: &v2
      - iommu-v2-2026-04-base
    doc: Five bytes.
    seq:
      - id: ref_count
        type: u4
      - id: deleted
        type: b1
      - id: incoming
        type: b1
      - id: unused
        type: b6
  hdr:
    -orig-id: struct iommu_hdr_ser
    -generations: &v3_on
      - iommu-v3-2026-06-base
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
      - iommu-v4-version-field-base
      - iommu-v4-version-field
    seq:
      - id: ref_count
        type: u4
      - id: flags
        type: u4
        doc: 1 deleted, 2 incoming (written by the consumer).
    instances:
      deleted:
        value: flags % 2 == 1
      incoming:
        value: flags / 2 % 2 == 1
  domain_v2:
    -orig-id: struct iommu_domain_ser
    -generations: *v2
    seq:
      - id: hdr
        type: hdr_v2
      - id: top_table_phys
        type: u8
      - id: top_level
        type: u8
      - id: vasz
        type: u4
      - id: sign_extend
        type: b1
      - id: unused
        type: b7
      - id: restored_domain
        type: u8
  domain_v3:
    -orig-id: struct iommu_domain_ser
    -generations:
      - iommu-v3-2026-06-base
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
      - iommu-v4-version-field-base
    seq:
      - id: hdr
        type: hdr
      - id: top_table_phys
        type: u8
        doc: Physical address of the top page table.
      - id: top_level
        type: u8
        doc: Zero-based; the number of levels is one more.
      - id: vasz
        type: u4
        doc: Bits of input address.
      - id: sign_extend
        type: b1
      - id: unused
        type: b7
      - id: restored_domain
        type: u8
        doc: Kernel pointer that only the consumer writes.
  domain_v4:
    -orig-id: struct iommu_domain_ser
    -generations: &v4
      - iommu-v4-version-field
    seq:
      - id: hdr
        type: hdr
      - id: top_table_phys
        type: u8
      - id: top_level
        type: u8
      - id: vasz
        type: u4
      - id: sign_extend
        type: u1
      - id: padding
        size: 3
      - id: restored_domain
        type: u8
  dev_map:
    -orig-id: struct iommu_dev_map_ser
    -generations: *all
    seq:
      - id: attachment_id
        type: u8
        doc: Domain id (DID) on VT-d.
      - id: domain_phys
        type: u8
        doc: Physical address of a domain object, inside an array page.
      - id: iommu_phys
        type: u8
        doc: Physical address of a hw object, inside an array page.
  device_v2:
    -orig-id: struct iommu_device_ser
    -generations: *v2
    seq:
      - id: hdr
        type: hdr_v2
      - id: devid
        type: u4
      - id: pci_domain_nr
        type: u4
      - id: domain_iommu_ser
        type: dev_map
  device_base:
    -orig-id: struct iommu_device_ser
    -generations: &bases
      - iommu-v3-2026-06-base
      - iommu-v4-version-field-base
    seq:
      - id: hdr
        type: hdr
      - id: devid
        type: u4
        doc: (bus << 8) | devfn
      - id: pci_domain_nr
        type: u4
      - id: domain_iommu_ser
        type: dev_map
  device_intel_v3:
    -orig-id: struct iommu_device_intel_ser
    -generations: &vtd
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
    seq:
      - id: pasid_table
        type: u8
        doc: Physical address of the PASID directory, 0 in legacy mode.
      - id: max_pasid
        type: u8
  device_v3:
    -orig-id: struct iommu_device_ser
    -generations: &v3
      - iommu-v3-2026-06
    seq:
      - id: hdr
        type: hdr
      - id: devid
        type: u4
      - id: pci_domain_nr
        type: u4
      - id: domain_iommu_ser
        type: dev_map
      - id: intel
        type: device_intel_v3
  device_smmuv3:
    -orig-id: struct iommu_master_smmuv3_ser
    -generations: &smmu
      - iommu-smmuv3-2026a
      - iommu-v4-version-field
    seq:
      - id: l1_cdtab_lu_state
        type: u8
        doc: Handle of the preserved level-1 (or linear) context descriptor table.
      - id: num_l2_cdtables
        type: u4
      - id: padding
        type: u4
      - id: l2_cdtab_lu_states_phys
        type: u8
        doc: Physical address of the array of handles of level-2 tables.
  device_smmuv3_a:
    -orig-id: struct iommu_device_ser
    -generations: &smmu_a
      - iommu-smmuv3-2026a
    seq:
      - id: hdr
        type: hdr
      - id: devid
        type: u4
      - id: pci_domain_nr
        type: u4
      - id: domain_iommu_ser
        type: dev_map
      - id: arch
        size: 24
        type: device_arch_a
        doc: Union by the type of the hw object.
    instances:
      intel:
        value: arch.intel
      smmuv3:
        value: arch.smmuv3
  device_arch_a:
    seq:
      - id: raw
        size-eos: true
    instances:
      intel:
        pos: 0
        type: device_intel_v3
      smmuv3:
        pos: 0
        type: device_smmuv3
  device_intel_v4:
    -orig-id: struct iommu_device_intel_ser
    -generations: *v4
    seq:
      - id: restored
        type: u1
        doc: Toggled by the consumer.
      - id: padding
        size: 7
      - id: pasid_table
        type: u8
      - id: max_pasid
        type: u8
  device_v4:
    -orig-id: struct iommu_device_ser
    -generations: *v4
    seq:
      - id: hdr
        type: hdr
      - id: devid
        type: u4
      - id: pci_domain_nr
        type: u4
      - id: dma_owner_token
        type: u8
        doc: LUO token of the iommufd file that owns DMA of the device.
      - id: domain_iommu_ser
        type: dev_map
      - id: arch
        size: 24
        type: device_arch_v4
        doc: Union by the type of the hw object.
    instances:
      intel:
        value: arch.intel
      smmuv3:
        value: arch.smmuv3
  device_arch_v4:
    seq:
      - id: raw
        size-eos: true
    instances:
      intel:
        pos: 0
        type: device_intel_v4
      smmuv3:
        pos: 0
        type: device_smmuv3
  hw_v2:
    -orig-id: struct iommu_hw_ser
    -generations: *v2
    seq:
      - id: hdr
        type: hdr_v2
      - id: token
        type: u8
      - id: type
        type: u8
        doc: A value of iommu_type.
  hw_base:
    -orig-id: struct iommu_hw_ser
    -generations: *bases
    seq:
      - id: hdr
        type: hdr
      - id: token
        type: u8
        doc: Physical address of the unit's registers.
      - id: type
        type: u8
        doc: A value of iommu_type.
  hw_intel:
    -orig-id: struct iommu_intel_ser
    -generations:
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
      - iommu-v4-version-field
    seq:
      - id: restored
        type: u1
        doc: Toggled by the consumer.
      - id: padding
        size: 7
      - id: phys_addr
        type: u8
        doc: Physical address of the registers.
      - id: root_table
        type: u8
        doc: Physical address of the root table (`vtd_tables`).
      - id: context_tables_bitmap
        size: 64
        doc: |
          512 bits: bit bus * 2 + half says that this half of the root entry has
          a context table. Legacy mode uses the even bits.
  hw_v3:
    -orig-id: struct iommu_hw_ser
    -generations: *v3
    seq:
      - id: hdr
        type: hdr
      - id: token
        type: u8
      - id: type
        type: u8
        doc: A value of iommu_type.
      - id: intel
        type: hw_intel
  hw_smmuv3_of_a:
    -orig-id: struct iommu_smmuv3_hw_ser
    -generations: *smmu_a
    seq:
      - id: phys_addr
        type: u8
      - id: strtab_base
        type: u8
      - id: strtab_base_cfg
        type: u8
      - id: l1_strtab_lu_state
        type: u8
      - id: num_l2_tables
        type: u4
      - id: padding
        type: u4
      - id: l2_strtab_lu_states_phys
        type: u8
        doc: Physical address of a dense array of handles.
  hw_smmuv3_a:
    -orig-id: struct iommu_hw_ser
    -generations: *smmu_a
    seq:
      - id: hdr
        type: hdr
      - id: token
        type: u8
      - id: type
        type: u8
        doc: A value of iommu_type.
      - id: arch
        size: 88
        type: hw_arch_a
        doc: Union by `type`.
    instances:
      intel:
        value: arch.intel
      smmuv3:
        value: arch.smmuv3
  hw_arch_a:
    seq:
      - id: raw
        size-eos: true
    instances:
      intel:
        pos: 0
        type: hw_intel
      smmuv3:
        pos: 0
        type: hw_smmuv3_of_a
  hw_smmuv3_of_v4:
    -orig-id: struct iommu_smmuv3_hw_ser
    -generations: *v4
    seq:
      - id: phys_addr
        type: u8
      - id: strtab_base_cfg
        type: u8
      - id: l1_strtab_lu_state
        type: u8
      - id: l2_strtab_lu_states_phys
        type: u8
        doc: Physical address of an array of handles by level-1 index, 0 = none.
  hw_v4:
    -orig-id: struct iommu_hw_ser
    -generations: *v4
    seq:
      - id: hdr
        type: hdr
      - id: token
        type: u8
      - id: type
        type: u8
        doc: A value of iommu_type.
      - id: arch
        size: 88
        type: hw_arch_v4
        doc: Union by `type`.
    instances:
      intel:
        value: arch.intel
      smmuv3:
        value: arch.smmuv3
  hw_arch_v4:
    seq:
      - id: raw
        size-eos: true
    instances:
      intel:
        pos: 0
        type: hw_intel
      smmuv3:
        pos: 0
        type: hw_smmuv3_of_v4
  hw_array_v2:
    -orig-id: struct iommu_hw_array_ser
    -generations: *v2
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 21)
      - id: objects
        type: hw_v2
        repeat: expr
        repeat-expr: hdr.nr_objects
  hw_array_base:
    -orig-id: struct iommu_hw_array_ser
    -generations: *bases
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 24)
      - id: objects
        type: hw_base
        repeat: expr
        repeat-expr: hdr.nr_objects
  hw_array_v3:
    -orig-id: struct iommu_hw_array_ser
    -generations: *v3
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 112)
      - id: objects
        type: hw_v3
        repeat: expr
        repeat-expr: hdr.nr_objects
  hw_array_smmuv3_a:
    -orig-id: struct iommu_hw_array_ser
    -generations: *smmu_a
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 112)
      - id: objects
        type: hw_smmuv3_a
        repeat: expr
        repeat-expr: hdr.nr_objects
  hw_array_v4:
    -orig-id: struct iommu_hw_array_ser
    -generations: *v4
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 112)
      - id: objects
        type: hw_v4
        repeat: expr
        repeat-expr: hdr.nr_objects
  domain_array_v2:
    -orig-id: struct iommu_domain_array_ser
    -generations: *v2
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 34)
      - id: objects
        type: domain_v2
        repeat: expr
        repeat-expr: hdr.nr_objects
  domain_array_v3:
    -orig-id: struct iommu_domain_array_ser
    -generations:
      - iommu-v3-2026-06-base
      - iommu-v3-2026-06
      - iommu-smmuv3-2026a
      - iommu-v4-version-field-base
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 37)
      - id: objects
        type: domain_v3
        repeat: expr
        repeat-expr: hdr.nr_objects
  domain_array_v4:
    -orig-id: struct iommu_domain_array_ser
    -generations: *v4
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 40)
      - id: objects
        type: domain_v4
        repeat: expr
        repeat-expr: hdr.nr_objects
  device_array_v2:
    -orig-id: struct iommu_device_array_ser
    -generations: *v2
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 37)
      - id: objects
        type: device_v2
        repeat: expr
        repeat-expr: hdr.nr_objects
  device_array_base:
    -orig-id: struct iommu_device_array_ser
    -generations: *bases
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 40)
      - id: objects
        type: device_base
        repeat: expr
        repeat-expr: hdr.nr_objects
  device_array_v3:
    -orig-id: struct iommu_device_array_ser
    -generations: *v3
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 56)
      - id: objects
        type: device_v3
        repeat: expr
        repeat-expr: hdr.nr_objects
  device_array_smmuv3_a:
    -orig-id: struct iommu_device_array_ser
    -generations: *smmu_a
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 64)
      - id: objects
        type: device_smmuv3_a
        repeat: expr
        repeat-expr: hdr.nr_objects
  device_array_v4:
    -orig-id: struct iommu_device_array_ser
    -generations: *v4
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: array_hdr((page_size - 16) / 72)
      - id: objects
        type: device_v4
        repeat: expr
        repeat-expr: hdr.nr_objects
enums:
  # Not applied to the 64-bit `type` members: C++ would cut their values to 32 bits.
  iommu_type:
    0: invalid
    1: intel
    2: arm_smmuv3
