meta:
  id: pci_luo
  title: Preserved PCI devices
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - pci
    - kexec-handover
    - liveupdate
  endian: le
  imports:
    - c_string
    - kho_block
doc: |
  FLB data of the PCI core. Never in a release up to Linux 7.3.

  | string | posting | type |
  |--------|---------|------|
  | pci (subsystem) | 2025-07 | ser_rfc |
  | pci (subsystem) | 2025-09 | ser_rfc_drvname |
  | pci-v1 | 2025-11 | ser_v1_a |
  | pci-v1 | 2026-01 | ser_v1_b |
  | pci-v1 | 2026-03 | ser_v1_c |
  | pci-v1, pci-v2 | 2026-04 | ser_u64 |
  | pci-v1, pci-v2 | 2026-05 | ser_u32 |
  | pci + version word | later | ser (top level) |

  `pci-v1` names five layouts and `pci-v2` two. With 64-bit counts, bytes 4 to 7
  are zero; with 32-bit counts they are nr_devices. Order of the devices is not
  to be relied on.
seq:
  - id: ser
    type: ser
types:
  device:
    -orig-id: struct pci_dev_ser
    -generations:
      - pci-v2-u64-2026-04
      - pci-v2-u32-2026-05
      - pci-flb-version2-2026
    seq:
      - id: domain
        type: u4
      - id: bdf
        type: u2
        doc: (bus << 8) | devfn
      - id: refcount
        type: u2
        doc: |
          Preserved endpoints at or below this function; 0 = free slot. Under
          `pci-v1` and under version 1 of the FLB only 0 or 1.
  ser:
    -orig-id: struct pci_ser
    -generations:
      - pci-flb-version2-2026
    seq:
      - id: version
        type: u4
        valid:
          any-of: [1, 2]
      - id: nr_devices
        type: u4
        doc: Slots in use, over all blocks.
      - id: devices
        type: u8
        doc: Physical address of the first `device_block`.
  device_block:
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: kho_block::header((page_size - 16) / 8)
      - id: devices
        type: device
        repeat: expr
        repeat-expr: hdr.count
  ser_u32:
    -orig-id: struct pci_ser
    -generations:
      - pci-v2-u32-2026-05
    seq:
      - id: max_nr_devices
        type: u4
      - id: nr_devices
        type: u4
        valid:
          max: max_nr_devices
      - id: devices
        type: device
        repeat: expr
        repeat-expr: nr_devices
    instances:
      slots:
        pos: 8
        type: device
        repeat: expr
        repeat-expr: max_nr_devices
        doc: The whole array; slots with refcount 0 are free.
  ser_u64:
    -orig-id: struct pci_ser
    -generations:
      - pci-v2-u64-2026-04
    seq:
      - id: max_nr_devices
        type: u8
        valid:
          max: 0xffffffff
      - id: nr_devices
        type: u8
        valid:
          max: max_nr_devices
      - id: devices
        type: device
        repeat: expr
        repeat-expr: nr_devices
    instances:
      slots:
        pos: 16
        type: device
        repeat: expr
        repeat-expr: max_nr_devices
        doc: The whole array; slots with refcount 0 are free.
  device_v1_c:
    -orig-id: struct pci_dev_ser
    -generations: &v1_c
      - pci-v1-c-2026-03
    seq:
      - id: domain
        type: u4
      - id: bdf
        type: u2
      - id: reserved
        type: u2
  ser_v1_c:
    -orig-id: struct pci_ser
    -generations: *v1_c
    seq:
      - id: max_nr_devices
        type: u8
        valid:
          max: 0xffffffff
      - id: nr_devices
        type: u8
        valid:
          max: max_nr_devices
      - id: devices
        type: device_v1_c
        repeat: expr
        repeat-expr: nr_devices
  device_v1:
    -orig-id: struct pci_dev_ser
    -generations:
      - pci-v1-a-2025-11
      - pci-v1-b-2026-01
    seq:
      - id: domain
        type: u2
      - id: bdf
        type: u2
  ser_v1_b:
    -orig-id: struct pci_ser
    -generations:
      - pci-v1-b-2026-01
    seq:
      - id: max_nr_devices
        type: u8
        valid:
          max: 0xffffffff
      - id: nr_devices
        type: u8
        valid:
          max: max_nr_devices
      - id: devices
        type: device_v1
        repeat: expr
        repeat-expr: nr_devices
  ser_v1_a:
    -orig-id: struct pci_ser
    -generations:
      - pci-v1-a-2025-11
    seq:
      - id: nr_devices
        type: u8
        valid:
          max: 0xffffffff
      - id: devices
        type: device_v1
        repeat: expr
        repeat-expr: nr_devices
        doc: Sorted by domain and bdf.
  device_rfc:
    -orig-id: struct pci_dev_ser
    -generations: &rfc
      - pci-luo-rfc-2025
    seq:
      - id: path
        type: u4
      - id: flags
        type: u4
      - id: driver_data
        type: u8
  ser_rfc:
    -orig-id: struct pci_ser
    -generations: *rfc
    seq:
      - id: count
        type: u4
      - id: padding
        size: 4
      - id: devs
        type: device_rfc
        repeat: expr
        repeat-expr: count
  device_rfc_drvname:
    -orig-id: struct pci_dev_ser
    -generations: &drvname
      - pci-luo-rfc-2025-drvname
    seq:
      - id: path
        type: u4
      - id: flags
        type: u4
      - id: driver_name
        type: c_string
        size: 63
      - id: padding
        size: 1
      - id: driver_data
        type: u8
  ser_rfc_drvname:
    -orig-id: struct pci_ser
    -generations: *drvname
    seq:
      - id: count
        type: u4
      - id: padding
        size: 4
      - id: devs
        type: device_rfc_drvname
        repeat: expr
        repeat-expr: count
