meta:
  id: kexec_metadata
  title: KHO kexec-metadata blob
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
  imports:
    - c_string
doc: |
  Blob `kexec-metadata` (Linux 7.1 and later): who wrote the image, and how many
  kexecs there were before. 73 bytes, packed; a shorter blob or another version
  is ignored by the kernel with a warning.
doc-ref: https://docs.kernel.org/core-api/kho/index.html
-orig-id: struct kho_kexec_metadata
-generations:
  - linux-7.1
  - linux-7.2
  - linux-7.3
seq:
  - id: version
    type: u4
    valid: 1
  - id: previous_release
    type: c_string
    size: 65
    doc: Release (`uname -r`) of the kernel that wrote the blob.
  - id: kexec_count
    type: u4
    doc: The first kexec writes 1, each further kernel adds 1.
