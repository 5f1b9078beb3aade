"""The serialized structs of the IOMMU layer, every revision: see :mod:`abi.iommu`.

A struct that a later revision changed keeps the plain name for its last form; earlier
forms carry the revision as a suffix.
"""

from __future__ import annotations

from abi.schema import Scalar, Struct, array, bits, flags, kernel_pointer, phys, u8, u32, u64, union

#: Object flags since 2026-06; before, the same two are bits 0 and 1 behind ``ref_count``.
DELETED = 1
INCOMING = 2

#: Value of ``type`` of a hardware unit.
IOMMU_TYPES = {"IOMMU_INVALID": 0, "IOMMU_INTEL": 1, "IOMMU_ARM_SMMUV3": 2}
#: The union member that a ``type`` selects.
VIEW_OF_TYPE = {1: "intel", 2: "smmuv3"}
#: The only version that the version word has had.
FLB_VERSION = 1
#: Domain ids that the VT-d driver gives to no domain of its own: 0 and 1.
FIRST_DID = 2

# -- headers -----------------------------------------------------------------------------

iommu_obj_ser = Struct(
    "iommu_obj_ser",
    "idx" / u32 * "index of the object in its chain",
    "ref_count" / u32 * "users of the object",
    "state" / bits(u32, deleted=1, incoming=1),
)

iommu_hdr_ser_bits = Struct(
    "iommu_hdr_ser",
    "ref_count" / u32 * "users of the object",
    "state" / bits(u32, deleted=1, incoming=1),
)

iommu_hdr_ser = Struct(
    "iommu_hdr_ser",
    "ref_count" / u32 * "users of the object",
    "flags" / flags(u32, DELETED=DELETED, INCOMING=INCOMING) * "INCOMING: set by the consumer",
)

# -- hardware units ----------------------------------------------------------------------

iommu_lu_type = Scalar(
    "L", "enum iommu_lu_type", kind="enum", names={"IOMMU_INVALID": 0, "IOMMU_INTEL": 1}
)
_unit_type = Scalar("Q", "u64", kind="enum", names=IOMMU_TYPES)

iommu_intel_ser_v1 = Struct(
    "iommu_intel_ser",
    "phys_addr" / u64 * "register base, not memory",
    "root_table" / phys("VT-d root table page"),
)

iommu_intel_ser = Struct(
    "iommu_intel_ser",
    "restored" / u8 * "set by the consumer when it has taken the tables over",
    "padding" / array(u8, 7),
    "phys_addr" / u64 * "register base, not memory",
    "root_table" / phys("VT-d root table page"),
    "context_tables_bitmap"
    / array(u64, 8)
    * "one bit per half of a root entry: bus * 2 + (devfn >> 7)",
    packed=False,
)

iommu_smmuv3_hw_ser_a = Struct(
    "iommu_smmuv3_hw_ser",
    "phys_addr" / u64 * "register base, not memory",
    "strtab_base" / u64 * "STRTAB_BASE register",
    "strtab_base_cfg" / u64 * "STRTAB_BASE_CFG register",
    "l1_strtab_lu_state" / phys("struct dma_alloc_ser") * "level-1 or linear stream table",
    "num_l2_tables" / u32,
    "padding" / u32,
    "l2_strtab_lu_states_phys" / phys("u64[] of struct dma_alloc_ser handles") * "dense",
)

iommu_smmuv3_hw_ser_b = Struct(
    "iommu_smmuv3_hw_ser",
    "phys_addr" / u64 * "register base, not memory",
    "strtab_base_cfg" / u64 * "STRTAB_BASE_CFG register",
    "l1_strtab_lu_state" / phys("struct dma_alloc_ser") * "level-1 or linear stream table",
    "l2_strtab_lu_states_phys"
    / phys("u64[] of struct dma_alloc_ser handles")
    * "indexed by level-1 index; 0: none",
)


def _iommu_ser(packed: bool) -> Struct:
    return Struct(
        "iommu_ser",
        "obj" / iommu_obj_ser,
        "token" / u64 * "register base",
        "type" / iommu_lu_type,
        "u" / union(intel=iommu_intel_ser_v1),
        packed=packed,
    )


iommu_ser_rfc_v2 = _iommu_ser(packed=False)
iommu_ser = _iommu_ser(packed=True)


def _iommu_hw_ser(header: Struct, **views: Struct) -> Struct:
    members = ["hdr" / header, "token" / u64 * "register base", "type" / _unit_type]
    return Struct("iommu_hw_ser", *members, *(["u" / union(**views)] if views else []))


iommu_hw_ser_v2 = _iommu_hw_ser(iommu_hdr_ser_bits)
iommu_hw_ser_base = _iommu_hw_ser(iommu_hdr_ser)
iommu_hw_ser_v3 = _iommu_hw_ser(iommu_hdr_ser, intel=iommu_intel_ser)
iommu_hw_ser_smmuv3_a = _iommu_hw_ser(
    iommu_hdr_ser, intel=iommu_intel_ser, smmuv3=iommu_smmuv3_hw_ser_a
)
iommu_hw_ser_smmuv3_b = _iommu_hw_ser(
    iommu_hdr_ser, intel=iommu_intel_ser, smmuv3=iommu_smmuv3_hw_ser_b
)

# -- domains -----------------------------------------------------------------------------

_top_table = phys("top page of the page table")
_levels = "zero-based level of the top table: the number of levels - 1"
_vasz = "vasz" / u32 * "bits of the input address"
_restored = (
    "restored_domain"
    / kernel_pointer("struct iommu_domain")
    * "written by the consumer; a pointer in its own address space"
)

iommu_domain_ser_rfc_v2 = Struct(
    "iommu_domain_ser",
    "obj" / iommu_obj_ser,
    "top_table" / _top_table,
    "top_level" / u64 * _levels,
    "attach_count" / u64 * "devices attached",
    _restored,
)

iommu_domain_ser_v1 = Struct(
    "iommu_domain_ser",
    "obj" / iommu_obj_ser,
    "top_table" / _top_table,
    "top_level" / u64 * _levels,
    _restored,
)


def _iommu_domain_ser(header: Struct) -> Struct:
    return Struct(
        "iommu_domain_ser",
        "hdr" / header,
        "top_table_phys" / _top_table,
        "top_level" / u64 * _levels,
        _vasz,
        "sign_extend_bits" / bits(u32, sign_extend=1),
        _restored,
    )


iommu_domain_ser_v2 = _iommu_domain_ser(iommu_hdr_ser_bits)
iommu_domain_ser_v3 = _iommu_domain_ser(iommu_hdr_ser)

iommu_domain_ser = Struct(
    "iommu_domain_ser",
    "hdr" / iommu_hdr_ser,
    "top_table_phys" / _top_table,
    "top_level" / u64 * _levels,
    _vasz,
    "sign_extend" / u8 * "1: addresses are sign-extended from bit vasz - 1",
    "padding" / array(u8, 3),
    _restored,
)

# -- devices -----------------------------------------------------------------------------


def _device_domain_iommu_ser(packed: bool) -> Struct:
    return Struct(
        "device_domain_iommu_ser",
        "did" / u32 * "domain id in the unit's tables",
        "domain_phys" / phys("struct iommu_domain_ser"),
        "iommu_phys" / phys("struct iommu_ser"),
        packed=packed,
    )


device_domain_iommu_ser_rfc_v2 = _device_domain_iommu_ser(packed=False)
device_domain_iommu_ser = _device_domain_iommu_ser(packed=True)

iommu_dev_map_ser = Struct(
    "iommu_dev_map_ser",
    "attachment_id" / u64 * "VT-d: domain id (DID); SMMUv3: cache tag",
    "domain_phys" / phys("struct iommu_domain_ser"),
    "iommu_phys" / phys("struct iommu_hw_ser"),
)


def _intel_pasid(name: str, *first: object) -> Struct:
    return Struct(
        name,
        *first,
        "pasid_table" / phys("VT-d PASID directory") * "scalable mode only",
        "max_pasid" / u64 * "the directory has max_pasid >> 6 entries",
    )


device_intel_ser = _intel_pasid("device_intel_ser")
iommu_device_intel_ser_v3 = _intel_pasid("iommu_device_intel_ser")
iommu_device_intel_ser = _intel_pasid(
    "iommu_device_intel_ser",
    "restored" / u8 * "set by the consumer when it has taken the tables over",
    "padding" / array(u8, 7),
)

iommu_master_smmuv3_ser = Struct(
    "iommu_master_smmuv3_ser",
    "l1_cdtab_lu_state" / phys("struct dma_alloc_ser") * "level-1 or linear descriptor table",
    "num_l2_cdtables" / u32,
    "padding" / u32,
    "l2_cdtab_lu_states_phys" / phys("u64[] of struct dma_alloc_ser handles"),
)


def _device_ser(mapping: Struct, **views: Struct) -> Struct:
    return Struct(
        "device_ser",
        "obj" / iommu_obj_ser,
        "token" / u64,
        "devid" / u32 * "bus << 8 | devfn",
        "pci_domain" / u32,
        "domain_iommu_ser" / mapping,
        "type" / iommu_lu_type,
        *(["u" / union(**views)] if views else []),
    )


device_ser_rfc_v2 = _device_ser(device_domain_iommu_ser_rfc_v2)
device_ser_v1_partial = _device_ser(device_domain_iommu_ser)
device_ser = _device_ser(device_domain_iommu_ser, intel=device_intel_ser)


def _iommu_device_ser(header: Struct, owner: bool, **views: Struct) -> Struct:
    token = ["dma_owner_token" / u64 * "LUO token of the iommufd that owns the device's DMA"]
    return Struct(
        "iommu_device_ser",
        "hdr" / header,
        "devid" / u32 * "bus << 8 | devfn",
        "pci_domain_nr" / u32,
        *(token if owner else []),
        "domain_iommu_ser" / iommu_dev_map_ser,
        *(["u" / union(**views)] if views else []),
    )


iommu_device_ser_v2 = _iommu_device_ser(iommu_hdr_ser_bits, False)
iommu_device_ser_base = _iommu_device_ser(iommu_hdr_ser, False)
iommu_device_ser_v3 = _iommu_device_ser(iommu_hdr_ser, False, intel=iommu_device_intel_ser_v3)
iommu_device_ser_smmuv3 = _iommu_device_ser(
    iommu_hdr_ser, False, intel=iommu_device_intel_ser_v3, smmuv3=iommu_master_smmuv3_ser
)
iommu_device_ser = _iommu_device_ser(
    iommu_hdr_ser, True, intel=iommu_device_intel_ser, smmuv3=iommu_master_smmuv3_ser
)

# -- array pages and roots ---------------------------------------------------------------


def _iommu_objs_ser(packed: bool) -> Struct:
    return Struct(
        "iommu_objs_ser",
        "next_objs" / phys("the next page of the same array"),
        "nr_objs" / u64 * "objects in this page",
        packed=packed,
    )


iommu_objs_ser_rfc_v2 = _iommu_objs_ser(packed=False)
iommu_objs_ser = _iommu_objs_ser(packed=True)

iommu_array_hdr_ser = Struct(
    "iommu_array_hdr_ser",
    "next_array_phys" / phys("the next page of the same array"),
    "nr_objects" / u64 * "slots in use in this page, deleted ones included",
)

iommu_lu_flb_ser = Struct(
    "iommu_lu_flb_ser",
    "iommus_phys" / phys("struct iommus_ser"),
    "nr_iommus" / u64,
    "iommu_domains_phys" / phys("struct iommu_domains_ser"),
    "nr_domains" / u64,
    "devices_phys" / phys("struct devices_ser"),
    "nr_devices" / u64,
)

_flb_pointers = (
    "iommu_array_phys" / phys("struct iommu_hw_array_ser"),
    "iommu_domain_array_phys" / phys("struct iommu_domain_array_ser"),
    "device_array_phys" / phys("struct iommu_device_array_ser"),
)
iommu_flb_ser = Struct("iommu_flb_ser", *_flb_pointers)
iommu_flb_ser_version = Struct(
    "iommu_flb_ser", "version" / u64 * f"{FLB_VERSION}; any other is refused", *_flb_pointers
)
