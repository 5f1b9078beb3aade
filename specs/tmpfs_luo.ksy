meta:
  id: tmpfs_luo
  title: Preserved tmpfs mount
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
    - liveupdate
  endian: le
doc: File handler `tmpfs-mnt-v1`, development only.
-orig-id: struct tmpfs_luo_mnt_ser
-generations:
  - tmpfs-mnt-v1
seq:
  - id: max_blocks
    type: u8
  - id: mode
    type: u4
  - id: flags
    type: u4
