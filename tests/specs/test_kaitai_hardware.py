"""Tables of IOMMUs: the codec's declarations and the specifications cut the same bits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import amd_iommu, smmuv3, vtd
from abi.schema import Struct
from specs import PARSE_ERRORS, AmdIommuTables, Smmuv3Tables, VtdTables, parse

#: (parser, codec's struct, {codec's field: (attribute, lowest bit of an address or 0)}).
#: A field that is not named is called the same in both.
TABLES: list[tuple[Any, Struct, dict[str, tuple[str, int]]]] = [
    (
        VtdTables.RootEntryScalable,
        vtd.root_entry,
        {
            "lo_present": ("lower.present", 0),
            "lo_table": ("lower.context_table", 12),
            "hi_present": ("upper.present", 0),
            "hi_table": ("upper.context_table", 12),
        },
    ),
    (
        VtdTables.RootEntryLegacy,
        vtd.root_entry,
        {"lo_present": ("present", 0), "lo_table": ("context_table", 12)},
    ),
    (
        VtdTables.ContextEntryLegacy,
        vtd.context_entry,
        {
            "second_stage": ("second_stage", 12),
            "available": ("software", 0),
            "did": ("domain_id", 0),
        },
    ),
    (
        VtdTables.ContextEntryScalable,
        vtd.scalable_context_entry,
        {
            "page_request": ("page_requests", 0),
            "directory_size": ("pasid_dir_size", 0),
            "pasid_directory": ("pasid_dir", 12),
            "rid_privileged": ("rid_priv", 0),
        },
    ),
    (VtdTables.PasidDirEntry, vtd.pasid_directory_entry, {"pasid_table": ("pasid_table", 12)}),
    (
        VtdTables.PasidEntry,
        vtd.pasid_entry,
        {
            "pgtt": ("translation_type", 0),
            "second_stage_dirty": ("access_dirty", 0),
            "second_stage": ("second_stage", 12),
            "did": ("domain_id", 0),
            "supervisor": ("supervisor_requests", 0),
            "first_stage": ("first_stage", 12),
        },
    ),
    (Smmuv3Tables.StrtabBase, smmuv3.strtab_base, {"table": ("addr", 6)}),
    (Smmuv3Tables.StrtabBaseCfg, smmuv3.strtab_base_cfg, {}),
    (Smmuv3Tables.L1Desc, smmuv3.l1_stream_descriptor, {"l2_table": ("l2ptr", 6)}),
    (
        Smmuv3Tables.Ste,
        smmuv3.stream_table_entry,
        {
            "s1_context": ("s1_context", 6),
            "s2ttb": ("s2_ttb", 4),
            **{
                name: (f"{name[:2]}_{name[2:]}", 0)
                for word in ("s1fmt s1cdmax s1dss s1cir s1cor s1csh s1stalld s2fwb s2vmid s2t0sz",
                             "s2sl0 s2ir0 s2or0 s2sh0 s2tg s2ps s2aa64 s2endi s2ptw s2s s2r")
                for name in word.split()
            },
        },
    ),
    (Smmuv3Tables.Cd, smmuv3.context_descriptor, {"ttb0": ("ttb0", 4)}),
    (Smmuv3Tables.CdL1Desc, smmuv3.cd_l1_descriptor, {"l2_table": ("l2ptr", 12)}),
    (
        AmdIommuTables,
        amd_iommu.device_table_entry,
        {
            "host_access_dirty": ("had", 0),
            "host_root": ("host_table", 12),
            "guest_levels": ("glx", 0),
            "gcr3_14_12": ("gcr3_a", 0),
            "gcr3_30_15": ("gcr3_b", 0),
            "gcr3_51_31": ("gcr3_c", 0),
            "read": ("ir", 0),
            "write": ("iw", 0),
            "system_management": ("sys_mgt", 0),
            "interrupt_valid": ("int_valid", 0),
            "interrupt_length": ("int_tab_len", 0),
            "interrupt_table": ("int_table", 6),
            "external_pass": ("eint_pass", 0),
            "interrupt_control": ("int_ctl", 0),
        },
    ),
]  # fmt: skip
#: Fields of the codec for words that the specifications leave in one piece.
WHOLE = ("_features", "_unused", "_rsvd")


def attribute(obj: Any, path: str) -> Any:
    for part in path.split("."):
        obj = getattr(obj, part)
    return obj


@pytest.mark.parametrize(("parser", "codec", "mapping"), TABLES, ids=lambda v: "")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bits(parser: Any, codec: Struct, mapping: dict[str, tuple[str, int]], data: Any) -> None:
    raw = data.draw(st.binary(min_size=codec.size, max_size=codec.size))
    values, entry = codec.unpack(raw), parse(parser, raw)
    assert entry._io.pos() == codec.size
    compared = 0
    for field in codec.fields:
        skipped = parser is VtdTables.RootEntryLegacy and field.name.startswith("hi_")
        if not field.bit_size or skipped or any(w in field.name for w in WHOLE):
            continue
        path, low = mapping.get(field.name, (field.name, 0))
        mine = attribute(entry, path)
        if isinstance(mine, list):
            mine = int.from_bytes(bytes(mine), "little")
        elif isinstance(mine, bytes):
            mine = int.from_bytes(mine, "little")
        assert int(mine) == values[field.name] << low, field.name
        compared += 1
    assert compared >= 2
    with pytest.raises(PARSE_ERRORS):
        parse(parser, raw[: 3 if parser is Smmuv3Tables.StrtabBaseCfg else -1])


@given(st.binary(min_size=32, max_size=32))
def test_guest_root_of_amd(raw: bytes) -> None:
    assert parse(AmdIommuTables, raw).gcr3_table == amd_iommu.parse_dte(raw).guest_root
