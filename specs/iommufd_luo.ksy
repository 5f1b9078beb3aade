meta:
  id: iommufd_luo
  title: Preserved iommufd file
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - iommu
    - kexec-handover
    - liveupdate
  endian: le
doc: |
  What `data` of a LUO file points to for handler `iommufd-v1`, which names
  three layouts. Never in a release up to Linux 7.3.

  | posting | type |
  |---------|------|
  | 2025-09 (RFC v1) | placeholder |
  | 2025-12 (RFC v2), 2026-02 (v1) | iommufd_v1 |
  | 2026-04 (v2) and later | iommufd (top level) |

  In the last form bytes 4 to 7 are zero. Nested HWPTs are not in the image.
doc-ref: https://docs.kernel.org/userspace-api/iommufd.html
seq:
  - id: ser
    type: iommufd
types:
  iommufd:
    -orig-id: struct iommufd_ser
    -generations: &later
      - iommu-v3-2026-06
    seq:
      - id: nr_hwpts
        type: u8
        valid:
          max: 0xffffffff
      - id: hwpt_array
        type: hwpt
        repeat: expr
        repeat-expr: nr_hwpts
  hwpt:
    -orig-id: struct iommufd_hwpt_ser
    -generations: *later
    seq:
      - id: domain_data
        type: u8
        doc: Physical address of a domain object of the IOMMU FLB.
      - id: token
        type: u8
      - id: reclaimed
        type: u1
        doc: Written by the consumer when user space has claimed the HWPT.
      - id: padding
        size: 7
  iommufd_v1:
    -orig-id: struct iommufd_lu
    -generations: &first
      - iommu-rfc-v2-2025-12
      - iommu-v1-2026-02
    seq:
      - id: nr_hwpts
        type: u4
      - id: hwpts
        type: hwpt_v1
        repeat: expr
        repeat-expr: nr_hwpts
  hwpt_v1:
    -orig-id: struct iommufd_hwpt_lu
    -generations: *first
    seq:
      - id: token
        type: u4
      - id: domain_data
        type: u8
      - id: reclaimed
        type: u1
  placeholder:
    -orig-id: struct iommufd_lu
    -generations:
      - iommu-rfc-v1-2025-09
    seq:
      - id: folio_lu
        type: u8
        doc: Pointer of the kernel that wrote it; means nothing to another.
  hwpt_set_preserve:
    -orig-id: struct iommu_hwpt_lu_set_preserve
    -generations:
      - iommu-v1-2026-02
    doc: Argument of the ioctl of the 2026-02 posting (number 0x95), not in the image.
    seq:
      - id: size
        type: u4
      - id: hwpt_id
        type: u4
      - id: hwpt_token
        type: u4
  mark_preserve:
    -orig-id: struct iommu_liveupdate_mark_preserve
    -generations:
      - iommufd-mark-preserve-u64
    doc: Argument of the later ioctl, not in the image.
    seq:
      - id: size
        type: u4
      - id: hwpt_id
        type: u4
      - id: hwpt_token
        type: u8
