meta:
  id: qemu_cpr
  title: QEMU CPR state stream
  application: QEMU
  license: MIT
  ks-version: 0.11
  tags:
    - qemu
    - liveupdate
  endian: be
doc: |
  The stream of descriptors and devices that QEMU hands to its successor in the
  migration modes cpr-transfer and cpr-exec. It accompanies a live update of the
  user space of a VM; it is not part of a KHO image. Big endian throughout.

  What stands for a descriptor depends on the mode, which the stream does not
  say: one byte, a space, that carries the descriptor as ancillary data of the
  socket (cpr-transfer), or its number, which stays valid across exec (cpr-exec).
doc-ref: https://www.qemu.org/docs/master/devel/migration/CPR.html
params:
  - id: form
    type: u1
    enum: descriptor_form
seq:
  - id: magic
    contents: QCPR
  - id: version
    type: u4
    valid: 1
  - id: fds
    type: cpr_fd_element(form)
    repeat: until
    repeat-until: _.more == 0
    doc: vmstate `CprState`, version 1. The last element is only the byte 0.
  - id: subsections
    type: subsection
    repeat: eos
    doc: None up to QEMU 10.0.
types:
  name:
    seq:
      - id: len_name
        type: u4
        valid:
          min: 1
          max: 0xffff
        doc: The NUL included.
      - id: name
        size: len_name
        terminator: 0
  cpr_fd_element:
    params:
      - id: form
        type: u1
        enum: descriptor_form
    seq:
      - id: more
        type: u1
        valid:
          max: 1
      - id: fd
        type: cpr_fd(form)
        if: more == 1
  cpr_fd:
    doc: vmstate `cpr fd`, version 1.
    params:
      - id: form
        type: u1
        enum: descriptor_form
    seq:
      - id: name
        type: name
        doc: RAM block, object or device.
      - id: id
        type: s4
        doc: Tells several of one name apart.
      - id: carrier
        type: u1
        valid: 0x20
        if: form == descriptor_form::socket
      - id: number
        type: s4
        if: form == descriptor_form::number
  subsection:
    seq:
      - id: tag
        contents: [5]
      - id: len_name
        type: u1
      - id: name
        size: len_name
        type: str
        encoding: ASCII
        valid:
          eq: '"CprState/vfio devices"'
      - id: version
        type: u4
        valid: 1
      - id: devices
        type: vfio_device_element
        repeat: until
        repeat-until: _.more == 0
  vfio_device_element:
    seq:
      - id: more
        type: u1
        valid:
          max: 1
      - id: device
        type: vfio_device
        if: more == 1
  vfio_device:
    doc: vmstate `cpr vfio device`, version 1. The ids are those of the old iommufd.
    seq:
      - id: name
        type: name
      - id: devid
        type: s4
      - id: ioas_id
        type: u4
      - id: hwpt_id
        type: u4
enums:
  descriptor_form:
    0: bare
    1: socket
    2: number
