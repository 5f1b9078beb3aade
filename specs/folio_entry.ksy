meta:
  id: folio_entry
  title: Entry of a preserved file's folio array
  license: MIT
  ks-version: 0.11
  tags:
    - linux
    - kexec-handover
  endian: le
  bit-endian: le
doc: |
  16 bytes, the same for memfd, hugetlb memfd and guest_memfd (the meaning of
  the 12 bits differs). The frame number is read in two pieces because the
  JavaScript runtime reads at most 32 bits at once.
-orig-id:
  - struct memfd_luo_folio_ser
  - struct guest_memfd_luo_folio_ser
  - struct hugemfd_folio_ser
  - struct huge_memfd_folio_ser
-generations:
  - linux-6.19
  - linux-7.1
  - linux-7.2
  - linux-7.3
  - luo-features-dev
  - memfd-v2-early
  - kvm-guest-memfd-v1
  - kvm-caretaker
  - hugetlb-v1
  - hugetlb-early
seq:
  - id: pfn_lo
    type: b32
  - id: pfn_hi
    type: b20
  - id: flags
    type: b12
    doc: |
      memfd: 1 dirty, 2 up to date (both always set). guest_memfd: 1 up to date.
      hugetlb: reserved.
  - id: index
    type: u8
    doc: Offset in the file, in base pages also for large folios.
instances:
  pfn:
    value: (pfn_lo + pfn_hi * 0x100000000).as<u8>
    doc: First frame of the folio, 0 = hole.
  reserved:
    value: flags
    doc: Name of the 12 bits in the hugetlb structs.
