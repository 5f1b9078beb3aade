meta:
  id: vfio_pci_luo
  title: Preserved VFIO PCI device file
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - pci
    - vfio
    - kexec-handover
    - liveupdate
  endian: le
doc: |
  What `data` of a LUO file points to for the handlers of vfio-pci. Never in a
  release up to Linux 7.3. All packed.

  | handler | bytes | type |
  |---------|-------|------|
  | vfio-v1 | 2 | core_device_rfc_v1_first |
  | vfio-v1 | 8235 | core_device_rfc_v1 |
  | vfio-pci-v1 | 4 | core_device_v1 |
  | vfio-pci-v1 | 5 | core_device_v1_reset |
  | vfio-pci-v1 | 9 | core_device_v1_iommufd |
  | vfio-pci-v1 | 6 | core_device_v1_dom32 (order of the members changed) |
  | vfio-pci-v2 | 7 | core_device_v2 (top level) |
  | vfio-pci-v2 | 11 | core_device_v2_iommufd |

  The size is not in the image. bdf = (bus << 8) | devfn.
seq:
  - id: ser
    type: core_device_v2
types:
  core_device_v2:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v2
    seq:
      - id: domain
        type: u4
      - id: bdf
        type: u2
      - id: reset_works
        type: u1
  core_device_v2_iommufd:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v2-iommufd
    doc: Distribution backport.
    seq:
      - id: domain
        type: u4
      - id: bdf
        type: u2
      - id: reset_works
        type: u1
      - id: iommufd_ser
        type: iommufd_link
  iommufd_link:
    -orig-id: struct vfio_iommufd_ser
    -generations:
      - vfio-pci-v1-iommufd
      - vfio-pci-v2-iommufd
    seq:
      - id: token
        type: u4
        doc: |
          Token of the iommufd file of the same session, cut to 32 bits of the
          64 that LUO tokens have.
  core_device_v1_dom32:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v1-dom32
    seq:
      - id: domain
        type: u4
      - id: bdf
        type: u2
  core_device_v1:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v1-2025-11
    seq:
      - id: bdf
        type: u2
      - id: domain
        type: u2
  core_device_v1_reset:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v1-reset
    seq:
      - id: bdf
        type: u2
      - id: domain
        type: u2
      - id: reset_works
        type: u1
  core_device_v1_iommufd:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-v1-iommufd
    seq:
      - id: bdf
        type: u2
      - id: domain
        type: u2
      - id: reset_works
        type: u1
      - id: iommufd_ser
        type: iommufd_link
  core_device_rfc_v1_first:
    -orig-id: struct vfio_pci_core_device_ser
    -generations:
      - vfio-pci-rfc-v1-2025-10-patch7
    seq:
      - id: bdf
        type: u2
  core_device_rfc_v1:
    -orig-id: struct vfio_pci_core_device_ser
    -generations: &rfc_v1
      - vfio-pci-rfc-v1
    seq:
      - id: bdf
        type: u2
      - id: cfg_size
        type: u4
        valid:
          max: 4096
        doc: 256 or 4096.
      - id: pci_config_map
        size: 4096
        doc: Capability that each byte of config space belongs to.
      - id: vconfig
        size: 4096
        doc: Virtual config space.
      - id: rbar
        type: u4
        repeat: expr
        repeat-expr: 7
        doc: Saved base address registers and ROM.
      - id: reset_works
        type: u1
      - id: pci_saved_state_phys
        type: u8
        doc: Physical address of a `saved_state`, 0 = none.
  saved_state:
    -orig-id: struct pci_saved_state_ser
    -generations: *rfc_v1
    seq:
      - id: config_space
        type: u4
        repeat: expr
        repeat-expr: 16
      - id: cap
        type: saved_cap
        repeat: until
        repeat-until: _.size == 0
        doc: Ends with a record of size 0.
  saved_cap:
    -orig-id: struct pci_cap_saved_data_ser
    -generations: *rfc_v1
    seq:
      - id: cap_nr
        type: u2
      - id: cap_extended
        type: u1
      - id: size
        type: u4
        doc: In bytes.
      - id: data
        size: size
