meta:
  id: iommu_luo_rfc
  title: Preserved IOMMU state, first two postings
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
  FLB data of `iommu-v1`: RFC v2 (2025-12) and v1 (2026-02); v1 in two states,
  without and with the VT-d members of the device. Development only. For what
  came later see `iommu_luo`.

  | posting | hw | domain | device |
  |---------|----|--------|--------|
  | RFC v2 | 48 | 41 | 53 |
  | v1, part of the series | 37 | 33 | 49 |
  | v1 | 37 | 33 | 65 |

  The counts are in the root (`flb`, top level) and include deleted objects:
  object i of a chain is in page i / capacity, slot i % capacity. The count in
  the header of a page is not what the kernel walks by. The array types here
  therefore take the number of objects to read from their page.

  RFC v2 leaves some structs unpacked inside packed ones, which puts padding in
  the middle of the device and of the hw object.
seq:
  - id: flb
    type: flb
types:
  flb:
    -orig-id: struct iommu_lu_flb_ser
    -generations: &all
      - iommu-rfc-v2-2025-12
      - iommu-v1-2026-02
      - iommu-v1-2026-02-partial
    seq:
      - id: iommus_phys
        type: u8
        doc: Physical address of the first array page of hw objects.
      - id: nr_iommus
        type: u8
      - id: iommu_domains_phys
        type: u8
      - id: nr_domains
        type: u8
      - id: devices_phys
        type: u8
      - id: nr_devices
        type: u8
  obj:
    -orig-id: struct iommu_obj_ser
    -generations: *all
    doc: Nine bytes; the last bit-field group takes only the byte it needs.
    seq:
      - id: idx
        type: u4
      - id: ref_count
        type: u4
      - id: deleted
        type: b1
      - id: incoming
        type: b1
      - id: unused
        type: b6
  objs:
    -orig-id: struct iommu_objs_ser
    -generations: *all
    params:
      - id: capacity
        type: u4
      - id: num_objects
        type: u8
        doc: Objects that the caller wants from this page.
    seq:
      - id: check
        size: 0
        valid:
          expr: num_objects <= capacity
        doc: Refuses a count over capacity; holds no bytes.
      - id: next_objs
        type: u8
        doc: Physical address of the next page, 0 at the end.
      - id: nr_objs
        type: u8
  intel_iommu:
    -orig-id: struct iommu_intel_ser
    -generations: *all
    seq:
      - id: phys_addr
        type: u8
        doc: Physical address of the registers.
      - id: root_table
        type: u8
        doc: Physical address of the root table.
  domain_rfc_v2:
    -orig-id: struct iommu_domain_ser
    -generations: &rfc_v2
      - iommu-rfc-v2-2025-12
    seq:
      - id: obj
        type: obj
      - id: top_table
        type: u8
      - id: top_level
        type: u8
      - id: attach_count
        type: u8
      - id: restored_domain
        type: u8
        doc: Kernel pointer that only the consumer writes.
  dev_map_rfc_v2:
    -orig-id: struct device_domain_iommu_ser
    -generations: *rfc_v2
    seq:
      - id: did
        type: u4
      - id: padding
        size: 4
      - id: domain_phys
        type: u8
      - id: iommu_phys
        type: u8
  device_rfc_v2:
    -orig-id: struct device_ser
    -generations: *rfc_v2
    seq:
      - id: obj
        type: obj
      - id: token
        type: u8
      - id: devid
        type: u4
      - id: pci_domain
        type: u4
      - id: domain_iommu_ser
        type: dev_map_rfc_v2
      - id: type
        type: u4
        enum: iommu_type
  iommu_rfc_v2:
    -orig-id: struct iommu_ser
    -generations: *rfc_v2
    seq:
      - id: obj
        type: obj
      - id: padding
        size: 7
      - id: token
        type: u8
      - id: type
        type: u4
        enum: iommu_type
      - id: intel
        type: intel_iommu
      - id: tail_padding
        size: 4
  domain_v1:
    -orig-id: struct iommu_domain_ser
    -generations: &v1
      - iommu-v1-2026-02
      - iommu-v1-2026-02-partial
    seq:
      - id: obj
        type: obj
      - id: top_table
        type: u8
      - id: top_level
        type: u8
        doc: Zero-based; the number of levels is one more.
      - id: restored_domain
        type: u8
  dev_map_v1:
    -orig-id: struct device_domain_iommu_ser
    -generations: *v1
    seq:
      - id: did
        type: u4
      - id: domain_phys
        type: u8
      - id: iommu_phys
        type: u8
  device_v1_partial:
    -orig-id: struct device_ser
    -generations:
      - iommu-v1-2026-02-partial
    seq:
      - id: obj
        type: obj
      - id: token
        type: u8
      - id: devid
        type: u4
      - id: pci_domain
        type: u4
      - id: domain_iommu_ser
        type: dev_map_v1
      - id: type
        type: u4
        enum: iommu_type
  device_intel_v1:
    -orig-id: struct device_intel_ser
    -generations: &v1_full
      - iommu-v1-2026-02
    seq:
      - id: pasid_table
        type: u8
        doc: Physical address of the PASID directory.
      - id: max_pasid
        type: u8
  device_v1:
    -orig-id: struct device_ser
    -generations: *v1_full
    seq:
      - id: obj
        type: obj
      - id: token
        type: u8
      - id: devid
        type: u4
        doc: (bus << 8) | devfn
      - id: pci_domain
        type: u4
      - id: domain_iommu_ser
        type: dev_map_v1
      - id: type
        type: u4
        enum: iommu_type
      - id: intel
        type: device_intel_v1
  iommu_v1:
    -orig-id: struct iommu_ser
    -generations: *v1
    seq:
      - id: obj
        type: obj
      - id: token
        type: u8
      - id: type
        type: u4
        enum: iommu_type
      - id: intel
        type: intel_iommu
  iommus_page_rfc_v2:
    -orig-id: struct iommus_ser
    -generations: *rfc_v2
    params: &page
      - id: page_size
        type: u4
      - id: num_objects
        type: u8
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: iommus
        type: iommu_rfc_v2
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 48
  domains_page_rfc_v2:
    -orig-id: struct iommu_domains_ser
    -generations: *rfc_v2
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: iommu_domains
        type: domain_rfc_v2
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 41
  devices_page_rfc_v2:
    -orig-id: struct devices_ser
    -generations: *rfc_v2
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: devices
        type: device_rfc_v2
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 53
  iommus_page_v1:
    -orig-id: struct iommus_ser
    -generations: *v1
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: iommus
        type: iommu_v1
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 37
  domains_page_v1:
    -orig-id: struct iommu_domains_ser
    -generations: *v1
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: iommu_domains
        type: domain_v1
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 33
  devices_page_v1_partial:
    -orig-id: struct devices_ser
    -generations:
      - iommu-v1-2026-02-partial
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: devices
        type: device_v1_partial
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 49
  devices_page_v1:
    -orig-id: struct devices_ser
    -generations: *v1_full
    params: *page
    seq:
      - id: objs
        type: objs(capacity, num_objects)
      - id: devices
        type: device_v1
        repeat: expr
        repeat-expr: num_objects
    instances:
      capacity:
        value: (page_size - 16) / 65
enums:
  iommu_type:
    0: invalid
    1: intel
