meta:
  id: luo
  title: Live Update Orchestrator state
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
    - liveupdate
  endian: le
  imports:
    - c_string
    - kho_block
doc: |
  The KHO blob `LUO`. Three forms of root:

  * Linux 6.19 to 7.1: a device tree (`fdt`, told by its magic), whose
    properties give the address of a `session_array` and, from 7.1 on, of a
    `flb_page`;
  * Linux 7.2 and 7.3, and development trees: `ser` (the top-level type is the
    one of the releases, with an 8-byte string);
  * feature development tree: `ser_features`, with no string at all.

  | root string | sessions | files of a session |
  |-------------|----------|--------------------|
  | luo-v1 (tree) | session_array | file_array |
  | luo-v2 (tree and `ser_v2`) | session_array | file_array |
  | luo-v3 | session_array | file_array |
  | luo-v3-kho-block-v1 | session_block list | file_array |
  | luo-v4 | session_block list | file_array |
  | luo-v5 | session_block list | file_block list |
  | luo-v5;block-v1 | session_block list | file_block list |
  | (features) | session_block list | file_block list |
doc-ref: https://docs.kernel.org/core-api/liveupdate.html
seq:
  - id: ser
    type: ser(8)
types:
  ser:
    -orig-id: struct luo_ser
    -generations:
      - linux-7.2
      - linux-7.3
      - kho-compat-composite
    doc: |
      The string is padded with NULs to a multiple of 8, and a longer string
      moves everything behind it.
    params:
      - id: len_compatible
        type: u4
        doc: 8; 16 for `luo-v5;block-v1`; 24 for `luo-v3-kho-block-v1`.
    seq:
      - id: compatible
        type: strz
        encoding: ASCII
        size: len_compatible
        valid:
          any-of:
            - '"luo-v3"'
            - '"luo-v4"'
            - '"luo-v5"'
            - '"luo-v5;block-v1"'
            - '"luo-v3-kho-block-v1"'
      - id: liveupdate_num
        type: u8
        doc: Number of live updates so far, this one included.
      - id: sessions_pa
        type: u8
        doc: Physical address of the sessions, 0 = none.
      - id: flbs_pa
        type: u8
        doc: Physical address of the `flb_page`, 0 = none.
  ser_v2:
    doc: |
      What `luo-abi-header` of the tree of `luo-v2` points to: `ser` without its
      string, which is in the tree.
    seq:
      - id: liveupdate_num
        type: u8
      - id: sessions_pa
        type: u8
      - id: flbs_pa
        type: u8
  feature_hdr:
    -orig-id: struct luo_feature_hdr
    -generations: &features
      - luo-features-dev
    doc: |
      Bits of LUO: 1 number, 2 sessions, 4 FLBs. Bits of memfd: 1 seals,
      2 folios.
    seq:
      - id: supp
        type: u8
      - id: req
        type: u8
      - id: active
        type: u8
      - id: reserved
        type: u8
        repeat: expr
        repeat-expr: 13
  ser_features:
    -orig-id: struct luo_ser
    -generations: *features
    seq:
      - id: features
        type: feature_hdr
      - id: liveupdate_num
        type: u8
      - id: sessions_pa
        type: u8
      - id: flbs_pa
        type: u8
  file:
    -orig-id: struct luo_file_ser
    -generations:
      - linux-6.19
      - linux-7.1
      - linux-7.2
      - linux-7.3
    seq:
      - id: compatible
        type: c_string
        size: 48
        doc: String of the file handler.
      - id: data
        type: u8
        doc: |
          Belongs to the handler; by convention the physical address of its root
          struct.
      - id: token
        type: u8
        doc: Chosen by user space, unique in the session.
  file_features:
    -orig-id: struct luo_file_ser
    -generations: *features
    doc: As `file`, with the name of the handler (`memfd`) and no version in it.
    seq:
      - id: name
        type: c_string
        size: 48
      - id: data
        type: u8
      - id: token
        type: u8
  file_set:
    -orig-id: struct luo_file_set_ser
    -generations: &sets
      - linux-6.19
      - linux-7.1
      - linux-7.2
      - linux-7.3
      - luo-features-dev
    seq:
      - id: files
        type: u8
        doc: Physical address of a `file_array` or of the first `file_block`.
      - id: count
        type: u8
        doc: Number of files of the session; 0 exactly when `files` is 0.
  session:
    -orig-id: struct luo_session_ser
    -generations: *sets
    seq:
      - id: name
        type: c_string
        size: 64
      - id: file_set_ser
        type: file_set
  session_header:
    -orig-id: struct luo_session_header_ser
    -generations: &arrays
      - linux-6.19
      - linux-7.1
      - luo-v1-session-v1
    params:
      - id: capacity
        type: u4
    seq:
      - id: count
        type: u8
        valid:
          max: capacity
  session_array:
    doc: Contiguous, 16 pages.
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: session_header((16 * page_size - 8) / 80)
      - id: sessions
        type: session
        repeat: expr
        repeat-expr: hdr.count
  session_name_only:
    -orig-id: struct luo_session_ser
    -generations:
      - luo-v1-session-v1
    seq:
      - id: name
        type: c_string
        size: 64
  session_array_name_only:
    doc: '`luo-session-v1`, a development step before 6.19. Contiguous.'
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: session_header((16 * page_size - 8) / 64)
      - id: sessions
        type: session_name_only
        repeat: expr
        repeat-expr: hdr.count
  file_array:
    doc: Contiguous, 2 pages; the count is in the session.
    params:
      - id: page_size
        type: u4
      - id: num_files
        type: u8
    seq:
      - id: check
        size: 0
        valid:
          expr: num_files <= 2 * page_size / 64
        doc: Refuses a count over capacity; holds no bytes.
      - id: files
        type: file
        repeat: expr
        repeat-expr: num_files
  session_block:
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: kho_block::header((page_size - 16) / 80)
      - id: sessions
        type: session
        repeat: expr
        repeat-expr: hdr.count
  file_block:
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: kho_block::header((page_size - 16) / 64)
      - id: files
        type: file
        repeat: expr
        repeat-expr: hdr.count
  flb_header:
    -orig-id: struct luo_flb_header_ser
    -generations: &flbs
      - linux-7.1
      - linux-7.2
      - linux-7.3
      - luo-features-dev
    params:
      - id: capacity
        type: u4
    seq:
      - id: pgcnt
        type: u8
        doc: Pages of the array, always 1.
      - id: count
        type: u8
        valid:
          max: capacity
  flb:
    -orig-id: struct luo_flb_ser
    -generations: *flbs
    doc: File-Lifecycle-Bound global data.
    seq:
      - id: name
        type: c_string
        size: 48
      - id: data
        type: u8
        doc: Belongs to the owner; usually, not always, a physical address.
      - id: count
        type: u8
        doc: Preserved files whose handlers depend on it (7.2+, other holders too).
  flb_page:
    params:
      - id: page_size
        type: u4
    seq:
      - id: hdr
        type: flb_header((page_size - 16) / 64)
      - id: flbs
        type: flb
        repeat: expr
        repeat-expr: hdr.count
  ver_hdr:
    -orig-id: struct liveupdate_ver_hdr
    -generations: *features
    seq:
      - id: magic
        type: u4
        valid: 0x4c565550
      - id: version
        type: u4
        valid: 1
  feature_entry:
    -orig-id: struct liveupdate_feature_entry
    -generations: *features
    seq:
      - id: name
        type: c_string
        size: 48
      - id: feat_bytes
        type: u4
      - id: reserved
        type: u4
      - id: supp
        type: u8
      - id: req
        type: u8
      - id: active
        type: u8
  feature_section:
    doc: Section `.liveupdate_features` of a kernel image, whole.
    seq:
      - id: hdr
        type: ver_hdr
      - id: entries
        type: feature_entry
        repeat: eos
