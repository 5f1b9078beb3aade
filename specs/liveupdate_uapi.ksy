meta:
  id: liveupdate_uapi
  title: Arguments of the ioctls of /dev/liveupdate
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - liveupdate
  endian: le
  imports:
    - c_string
doc: |
  Not part of an image; given for tools that drive the device or trace its use.
  Type 0xba. Numbers on the device: create session 0x00, retrieve session 0x01;
  on a session: preserve fd 0x40, retrieve fd 0x41, finish 0x42, get name 0x43
  (Linux 7.2 and later). Each argument begins with its own size.

  The top-level type is that common beginning.
doc-ref: https://docs.kernel.org/userspace-api/liveupdate.html
seq:
  - id: size
    type: u4
types:
  create_session:
    -orig-id: struct liveupdate_ioctl_create_session
    -generations: &uapi
      - linux-6.19
      - linux-7.1
      - linux-7.2
      - linux-7.3
    seq:
      - id: size
        type: u4
      - id: fd
        type: s4
        doc: Returned file descriptor of the session.
      - id: name
        type: c_string
        size: 64
  retrieve_session:
    -orig-id: struct liveupdate_ioctl_retrieve_session
    -generations: *uapi
    seq:
      - id: size
        type: u4
      - id: fd
        type: s4
      - id: name
        type: c_string
        size: 64
  preserve_fd:
    -orig-id: struct liveupdate_session_preserve_fd
    -generations: *uapi
    seq:
      - id: size
        type: u4
      - id: fd
        type: s4
      - id: token
        type: u8
  retrieve_fd:
    -orig-id: struct liveupdate_session_retrieve_fd
    -generations: *uapi
    seq:
      - id: size
        type: u4
      - id: fd
        type: s4
      - id: token
        type: u8
  finish:
    -orig-id: struct liveupdate_session_finish
    -generations: *uapi
    seq:
      - id: size
        type: u4
      - id: reserved
        type: u4
  get_name:
    -orig-id: struct liveupdate_session_get_name
    -generations:
      - linux-7.2
      - linux-7.3
    seq:
      - id: size
        type: u4
      - id: reserved
        type: u4
      - id: name
        type: c_string
        size: 64
