"""Bytes for every struct of ``layouts.json``: random, but acceptable to the parsers."""

from __future__ import annotations

import random
from typing import Any

from kaitai_support import PAGE_SIZES, Type, all_types, c_structs

#: Values that the specifications insist on, by struct and member: what random bytes may not be.
FIXED: dict[tuple[str, str], int | bytes] = {
    ("luo_ser", "compatible"): b"luo-v5",
    ("kho_kexec_metadata", "version"): 1,
    ("khoser_mem_chunk_hdr", "order"): 7,
    ("liveupdate_ver_hdr", "magic"): 0x4C565550,
    ("liveupdate_ver_hdr", "version"): 1,
    ("iommu_flb_ser", "version"): 1,
    ("hugetlb_ser", "nr_hstates"): 3,
    ("pci_ser", "version"): 2,
    ("vfio_pci_core_device_ser", "cfg_size"): 256,
}
#: Counts of arrays that follow; layouts.json has no elements for them.
COUNTS = {
    "count",
    "nr_devices",
    "max_nr_devices",
    "nr_hwpts",
    "nr_objects",
    "nr_folios",
    "size",
}
HAS_ARRAY = {
    "kho_block_header_ser",
    "luo_session_header_ser",
    "luo_flb_header_ser",
    "pci_ser",
    "iommufd_ser",
    "iommufd_lu",
    "iommu_array_hdr_ser",
    "kvm_kho_folios_ser",
    "pci_cap_saved_data_ser",
}
#: Structs whose type is tested as a member of what contains it.
CASES = [(g, s, t) for t in all_types().values() for g, s in t.c_structs if (g, s) in c_structs()]


def struct_size(struct: dict[str, Any], label: str) -> int:
    return int(struct.get("size_by_page_size", {}).get(label, struct["size"]))


def array_length(field: dict[str, Any], struct: dict[str, Any], label: str) -> int | None:
    """Elements of an array member; arrays that fill a page grow with it."""
    count = field.get("count")
    if count is None or "size_by_page_size" not in struct:
        return count
    return (struct_size(struct, label) - int(field["offset"])) // (field["size"] // count)


def nested(generation: str, field: dict[str, Any]) -> dict[str, Any] | None:
    kind = field["type"]
    if not kind.startswith("struct ") or kind.endswith("*"):
        return None
    return c_structs()[generation, kind.removeprefix("struct ")]


def fix(data: bytearray, generation: str, struct: dict[str, Any], base: int, label: str) -> None:
    """Give the members that may not be random a value that the parser accepts."""
    for field in struct["fields"]:
        if field.get("flexible") or field.get("size") == 0:
            continue
        at = base + field["offset"]
        inner = nested(generation, field)
        value = FIXED.get((struct["name"], field["name"]))
        if inner is not None:
            length = array_length(field, struct, label)
            for i in range(1 if length is None else length):
                fix(data, generation, inner, at + i * inner["size"], label)
        elif field["name"] == "num_elms":
            data[at : at + 4] = ((PAGE_SIZES[label] - 16) // 16).to_bytes(4, "little")
        elif field["name"] in COUNTS and struct["name"] in HAS_ARRAY:
            data[at : at + field["size"]] = bytes(field["size"])
        elif isinstance(value, int):
            data[at : at + field["size"]] = value.to_bytes(field["size"], "little")
        elif value is not None:
            data[at : at + field["size"]] = value.ljust(field["size"], b"\0")


def params_for(entry: Type, struct: dict[str, Any], label: str) -> list[int]:
    members = {f["name"]: f for f in struct["fields"]}
    values = {
        "page_size": PAGE_SIZES[label],
        "capacity": (PAGE_SIZES[label] - 16) // 16,
        "len_bitmap": struct_size(struct, label),
        "len_compatible": members.get("compatible", {}).get("size", 0),
        "num_objects": 0,
        "num_page_phys": 0,
    }
    return [values[p] for p in entry.params]


def pattern(generation: str, name: str, entry: Type, label: str, seed: int) -> bytes:
    """Random bytes of a struct, with acceptable values where a parser checks them."""
    struct = c_structs()[generation, name]
    data = bytearray(random.Random(seed).randbytes(struct_size(struct, label)))
    fix(data, generation, struct, 0, label)
    if name == "pci_saved_state_ser":
        # The list of capabilities ends with a record of size 0.
        data += bytes(7)
    return bytes(data)
