"""Device table entries: decoded from the words that real kernels wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi import amd_iommu, smmuv3, vtd
from abi.device_table import TableRoot, reserved, word
from abi.schema import Struct

CORPUS = Path(__file__).parents[2] / "corpus"

ENTRIES = [
    vtd.root_entry,
    vtd.context_entry,
    vtd.scalable_context_entry,
    vtd.pasid_directory_entry,
    vtd.pasid_entry,
    smmuv3.strtab_base,
    smmuv3.strtab_base_cfg,
    smmuv3.l1_stream_descriptor,
    smmuv3.stream_table_entry,
    smmuv3.context_descriptor,
    smmuv3.cd_l1_descriptor,
    amd_iommu.device_table_entry,
]


def truth(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CORPUS / f"{name}.truth.json").read_text())
    return loaded


def words(values: list[str]) -> bytes:
    return b"".join(int(v, 16).to_bytes(8, "little") for v in values)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.cname)
def test_every_bit_belongs_to_one_field(entry: Struct) -> None:
    covered = 0
    for field in entry.fields:
        mask = ((1 << field.bit_size) - 1) << (8 * field.offset + field.bit_offset)
        assert covered & mask == 0, field.name
        covered |= mask
    assert covered == (1 << 8 * entry.size) - 1


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.cname)
@given(data=st.data())
def test_an_entry_is_rebuilt_from_its_fields_alone(entry: Struct, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=entry.size, max_size=entry.size))
    values = entry.unpack(raw)
    assert entry.build({f.name: values[f.name] for f in entry.fields}) == raw


def test_word_refuses_overlaps_and_wrong_bits() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        word("w", a=(7, 0), b=7)
    with pytest.raises(ValueError, match="do not fit"):
        word("w", a=(64, 60))


def test_reserved_bits_are_named() -> None:
    entry = vtd.parse_context_entry(words(["0x9bd011", "0x382"]))
    assert entry.reserved == {"lo_rsvd4": 1, "hi_rsvd7": 1}
    assert reserved(vtd.context_entry, vtd.context_entry.unpack(words(["0x9bd001", "0x302"]))) == {}


@pytest.mark.parametrize("name", ["iommu-vw-small_legacy-handoff", "iommu-vw-legacy-handoff"])
def test_legacy_context_entries(name: str) -> None:
    for want in truth(name)["context"].values():
        entry = vtd.parse_context_entry(words([want["lo"], want["hi"]]))
        assert entry.present == want["present"]
        assert entry.translation_type == want["tt"]
        assert entry.second_stage == int(want["slptptr"], 16)
        assert (entry.address_width, entry.did) == (want["aw"], want["did"])
        assert entry.root == TableRoot("vtdss", entry.second_stage, 4, 48)
        assert entry.reserved == {}


def test_scalable_context_and_pasid_entries() -> None:
    for want in truth("iommu-v3-small_scalable-handoff")["context"].values():
        entry = vtd.parse_scalable_context_entry(words([want["lo"], want["hi"], "0", "0"]))
        assert entry.present == want["present"]
        assert entry.pasid_directory == int(want["pasid_dir"], 16)
        assert entry.directory_entries == 1 << want["pds"] + 7 == 0x8000 >> 6
        assert (entry.page_request, entry.device_tlb) == (bool(want["pre"]), bool(want["dte"]))
        assert entry.reserved == {}
        assert vtd.parse_pasid_directory_entry(words([want["pde0"]])) == int(want["pde0"], 16) - 1
        pasid = vtd.parse_pasid_entry(words(want["pasid_entry"]))
        assert pasid.pgtt == want["pgtt"] == vtd.Pgtt.SECOND_STAGE
        assert (pasid.address_width, pasid.did) == (want["aw"], want["did"])
        assert pasid.roots == (TableRoot("vtdss", int(want["slptptr"], 16), 4, 48),)
        assert pasid.reserved == {}


def test_first_stage_and_nested_pasid_entries() -> None:
    first = vtd.parse_pasid_entry(
        words([hex(1 | 1 << 6), "0x7", hex(0x123000 | 1 << 2)] + ["0"] * 5)
    )
    assert first.roots == (TableRoot("x86-64", 0x123000, 5, 57),)
    nested = vtd.parse_pasid_entry(
        words([hex(0x456000 | 2 << 2 | 3 << 6 | 1), "0x7", "0x123000"] + ["0"] * 5)
    )
    assert [r.format for r in nested.roots] == ["vtdss", "x86-64"]
    assert vtd.parse_pasid_entry(words([hex(1 | 4 << 6)] + ["0"] * 7)).roots == ()


def test_context_table_positions() -> None:
    assert vtd.context_index(0x18, scalable=False) == (0, 0x18)
    assert vtd.context_index(0x98, scalable=False) == (0, 0x98)
    assert vtd.context_index(0x98, scalable=True) == (1, 0x18)
    assert vtd.bitmap_bits([7, 1 << 63, 0, 0, 0, 0, 0, 2]) == {0, 1, 2, 127, 449}


@pytest.mark.parametrize("name", ["linux-7.3.4-smmuv3-s1-4k", "linux-7.3.4-smmuv3-s2-64k"])
def test_stream_table_entries(name: str) -> None:
    real = truth(name)
    base, cfg = (int(real["registers"][r], 16) for r in ("STRTAB_BASE", "STRTAB_BASE_CFG"))
    table = smmuv3.parse_strtab(base, cfg)
    assert hex(table.base) == real["strtab"]["base"]
    assert (table.log2size, table.split) == (real["strtab"]["log2size"], real["strtab"]["split"])
    assert table.two_level
    assert (table.l1_entries, table.size) == (256, 2048)
    present = real["strtab"]["l1_present"][0]
    l1 = smmuv3.parse_l1_descriptor(words([present["desc"]]))
    assert (l1.span, l1.entries, hex(l1.l2_table)) == (
        present["span_field"],
        present["entries"],
        present["l2"],
    )
    for want in real["devices"].values():
        sid = int(want["sid"], 16)
        index, entry = table.locate(sid)
        assert index == present["index"]
        assert l1.l2_table + 64 * entry == int(want["ste_pa"], 16)
        ste = smmuv3.parse_ste(words(want["ste"]))
        assert (ste.config, ste.s1fmt, ste.s1cdmax) == (
            want["config"],
            want["s1fmt"],
            want["s1cdmax"],
        )
        assert ste.s1_context == int(want["s1contextptr"], 16)
        assert ste.reserved == {}
        if ste.config == smmuv3.SteConfig.STAGE_1:
            cd = smmuv3.parse_cd(words(want["cd"]))
            assert (cd.asid, cd.t0sz, cd.ips) == (want["asid"], want["t0sz"], want["ips"])
            assert (cd.granule, cd.start_level) == (want["tg0_granule"], want["start_level"])
            assert cd.ttb0 == int(want["ttb0"], 16)
            assert cd.root == TableRoot("lpae-s1-4k", cd.ttb0, 4, 48)
            assert cd.reserved == {}
        else:
            assert (ste.s2vmid, hex(ste.s2vtcr), ste.s2sl0, ste.s2t0sz, ste.s2ps) == tuple(
                want[k] for k in ("s2vmid", "s2vtcr", "sl0", "t0sz", "ips")
            )
            assert (ste.granule, ste.start_level) == (want["tg0_granule"], want["start_level"])
            assert (ste.s2aa64, ste.s2ptw, ste.s2s, ste.s2r) == tuple(
                bool(want[k]) for k in ("s2aa64", "s2ptw", "s2s", "s2r")
            )
            assert ste.root == TableRoot("lpae-s2-64k", int(want["s2ttb"], 16), 3, 44)


def test_amd_device_table_entries() -> None:
    real = truth("linux-7.3.4-amdv1")
    for want in real["devices"].values():
        dte = amd_iommu.parse_dte(words(want["dte"]))
        assert (dte.valid, dte.translation_valid) == (bool(want["v"]), bool(want["tv"]))
        assert (dte.mode, dte.domain_id) == (want["mode"], want["domain_id"])
        assert dte.root is not None
        assert dte.root == TableRoot(
            "amdv1", int(want["root"], 16), want["mode"], 12 + 9 * want["mode"]
        )
    unused = amd_iommu.parse_dte(words(real["device_table"]["distinct"][0]["dte"]))
    assert (unused.valid, unused.mode, unused.root) == (True, 0, None)


def test_amd_guest_root_is_assembled_from_three_pieces() -> None:
    root = 0xF_EDCB_A987_6000
    w0 = 3 | (root >> 12 & 7) << 58 | 1 << 55
    w1 = (root >> 15 & 0xFFFF) << 16 | (root >> 31) << 43
    dte = amd_iommu.parse_dte(words([hex(w0), hex(w1), "0", "0"]))
    assert dte.guest_root == root
    assert dte.guest_valid
