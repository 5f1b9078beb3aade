"""Whole captures, read with the Kaitai parsers alone, equal their truth files."""

from __future__ import annotations

import hashlib
import struct
from functools import cache
from typing import Any

import pytest
from kaitai_support import CORPUS, core, number, truth

from specs import PARSE_ERRORS, AmdIommuTables, Fdt, KhoBoot, KhoFdtProps, Smmuv3Tables, parse
from specs.follow import Follower
from specs.iommu import vtd_context, vtd_pasid
from specs.reader import File, Image, ImageReader, Layouts, LuoState

MEMORY_IMAGES = [
    "linux-6.17.8-handoff",
    "linux-6.18.15-handoff",
    "linux-6.19.11-handoff",
    "linux-6.19.11-incoming_retrieved",
    "linux-7.3.4-outgoing",
    "linux-7.3.4-handoff",
    "linux-7.3.4-incoming",
    "linux-7.3.4-arm64-4k-handoff",
    "linux-7.3.4-arm64-16k-incoming",
    "linux-7.3.4-arm64-64k-handoff",
]
IOMMU_IMAGES = [
    "iommu-vw-small_legacy-handoff",
    "iommu-vw-legacy-handoff",
    "iommu-vw-legacy-incoming",
    "iommu-v3-small_scalable-handoff",
]
LAYOUTS = {
    "linux-6.17.8-handoff": Layouts(bitmap_size=512),
    "iommu-v3-small_scalable-handoff": Layouts(pci="pci-v2-u64-2026-04"),
}
BEFORE_BOOT = [n for n in MEMORY_IMAGES + IOMMU_IMAGES if "incoming" not in n]
WITH_LUO = [n for n in BEFORE_BOOT if "6.17" not in n and "6.18" not in n]


def root_address(name: str) -> int:
    facts = truth(name)
    if "kho_fdt" in facts:
        return number(facts["kho_fdt"])
    return number((facts.get("kho") or facts["setup_data_kho"])["fdt_addr"])


def reader(name: str) -> ImageReader:
    page_size = truth(name).get("page_size", 4096)
    return ImageReader(core(name), page_size, LAYOUTS.get(name))


@cache
def read(name: str) -> Image:
    """Image of a capture; of a booted kernel, sessions and FLBs from where they were."""
    source = reader(name)
    image = source.image(root_address(name))
    if image.luo is None and "luo" in truth(name):
        found = truth(name)["luo"]
        image.luo = LuoState(number(found["pa"]), found["compatible"])
        image.luo.sessions = list(source.session_list(number(found["sessions_pa"])))
        image.luo.flbs = list(source.flbs(number(found["flbs_pa"])))
    return image


@cache
def blocks(name: str) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(reader(name).blocks(read(name))))


def files(image: Image) -> dict[tuple[str, int], File]:
    assert image.luo is not None
    return {(s.name.decode(), f.token): f for s in image.luo.sessions for f in s.files}


def body(parent: Image, name: bytes) -> Any:
    assert parent.luo is not None
    return next(f.body for f in parent.luo.flbs if f.name == name)


@pytest.mark.parametrize("name", BEFORE_BOOT)
def test_nothing_is_refused(name: str) -> None:
    source = reader(name)
    image = source.image(root_address(name))
    assert list(source.blocks(image))
    assert source.follower.problems == []


@pytest.mark.parametrize("name", MEMORY_IMAGES)
def test_root(name: str) -> None:
    image, facts = read(name), truth(name)["root"]
    assert image.compatible == facts["compatible"]
    assert image.map_pa == number(facts["preserved_memory_map"])
    expected = {}
    for blob, properties in facts["subnodes"].items():
        size = properties.get("blob-size")
        address = properties.get("fdt", properties.get("preserved-data"))
        expected[blob.encode()] = (number(address), None if size is None else number(size))
    assert image.blobs == expected


@pytest.mark.parametrize("name", MEMORY_IMAGES)
def test_reserved_regions(name: str) -> None:
    expected = [
        (r["name"].encode(), number(r["start"]), r["size"]) for r in truth(name)["reserve_mem"]
    ]
    assert [(r.name, r.start, r.size) for r in read(name).reserve_mem] == expected


@pytest.mark.parametrize("name", MEMORY_IMAGES)
def test_scratch(name: str) -> None:
    if "outgoing" in name:
        pytest.skip("the scratch array is not filled before the jump")
    facts = truth(name)
    given = facts.get("kho") or facts["setup_data_kho"]
    follower = Follower(core(name), facts.get("page_size", 4096))
    areas = follower.scratch(number(given["scratch_addr"]), given["scratch_size"])
    assert areas == [(number(a["addr"]), number(a["size"])) for a in facts["scratch"]]


@pytest.mark.parametrize("name", [n for n in MEMORY_IMAGES if "handoff" in n and "arm" not in n])
def test_setup_data(name: str) -> None:
    """The node is found by its contents; its parser gives what the machine handed over."""
    given = truth(name)["setup_data_kho"]
    needle = struct.pack("<IIQ", 10, 32, number(given["fdt_addr"]))
    follower, found = Follower(core(name)), []
    for start, data in core(name).segments:
        at = data.find(needle)
        if at >= 8:
            found.append(follower.setup_data(start + at - 8))
    assert found, "no setup_data node in the image"
    for data in found:
        for member in ("fdt_addr", "fdt_size", "scratch_addr", "scratch_size"):
            assert getattr(data, member) == number(given[member])


@pytest.mark.parametrize("name", ["linux-7.3.4-arm64-4k-handoff", "linux-7.3.4-arm64-64k-handoff"])
def test_chosen(name: str) -> None:
    facts = truth(name)["device_tree"]
    follower = Follower(core(name), truth(name)["page_size"])
    root = follower.tree(number(facts["dtb_pa"]), "device tree")
    assert root is not None
    assert follower.problems == []
    cells = [
        int.from_bytes(root.properties[f"#{k}-cells".encode()], "big") for k in ("address", "size")
    ]
    chosen = root.child(b"chosen")
    assert chosen is not None
    for key in ("linux,kho-fdt", "linux,kho-scratch"):
        found = parse(KhoFdtProps.ChosenRange, chosen.properties[key.encode()], *cells)
        assert found.address == number(facts["chosen"][key]["addr"])
        assert found.size == facts["chosen"][key]["size"]


@pytest.mark.parametrize("name", BEFORE_BOOT)
def test_preserved_map(name: str) -> None:
    facts = truth(name)["preserved"]
    lines = "".join(f"{pa:#x} {order}\n" for pa, order in blocks(name))
    assert len(blocks(name)) == facts["blocks"]
    assert sum(1 << order for _, order in blocks(name)) == facts["pages"]
    assert hashlib.sha256(lines.encode()).hexdigest() == facts["sha256_of_lines_pa_order"]


@pytest.mark.parametrize("name", [n for n in MEMORY_IMAGES if "7.3" in n])
def test_kexec_metadata(name: str) -> None:
    metadata = read(name).metadata
    assert metadata.version == 1
    release = truth(name)["producer"].split("-arm64")[0]
    assert metadata.previous_release.text.decode() == release
    assert metadata.kexec_count >= 1


@pytest.mark.parametrize("name", [n for n in MEMORY_IMAGES if "incoming" not in n])
def test_selftest_folios_are_preserved(name: str) -> None:
    image = read(name)
    assert image.kho_test is not None
    assert image.kho_test.folios
    assert set(image.kho_test.folios) <= set(blocks(name))


@pytest.mark.parametrize("name", [n for n in MEMORY_IMAGES if n in WITH_LUO])
def test_sessions_and_memory_files(name: str) -> None:
    image, facts = read(name), truth(name)
    assert image.luo is not None
    assert image.luo.liveupdate_num == facts["liveupdate_number_in"]
    assert sorted(s.name.decode() for s in image.luo.sessions) == sorted(facts["sessions"])
    found = files(image)
    assert len(found) == len(facts["files"])
    for fact in facts["files"]:
        file = found[fact["session"], number(fact["token"])]
        ser, folios = file.body.ser, file.body.folios
        assert file.handler == (b"memfd-v1" if "6.19" in name else b"memfd-v2")
        assert (ser.size, ser.pos) == (fact["size"], fact["pos"])
        assert ser.nr_folios == len(folios)
        assert {flags for _, flags, _ in folios} <= {3}
        if hasattr(ser, "seals"):
            assert (ser.seals, ser.flags) == (number(fact["seals"]), 0)


@pytest.mark.parametrize("name", [n for n in MEMORY_IMAGES if n in WITH_LUO])
def test_folios_and_content(name: str) -> None:
    """Frames of the first pages, and where the image holds it, the hash of the content."""
    facts, found = truth(name), files(read(name))
    page_size = facts.get("page_size", 4096)
    orders = {pa // page_size: order for pa, order in blocks(name)}
    hashed = 0
    for fact in facts["files"]:
        file = found[fact["session"], number(fact["token"])]
        frames = {}
        for pfn, _, index in file.body.folios:
            for i in range(1 << orders[pfn]):
                frames[index + i] = pfn + i
        for index, pfn in enumerate(fact.get("first_pfns", [])):
            assert frames[index] == pfn
        size = fact["size"]
        if size > 65536:
            continue
        content = b"".join(
            core(name).read(frames[i] * page_size, page_size) for i in range(-(-size // page_size))
        )
        assert hashlib.sha256(content[:size]).hexdigest() == fact["sha256"]
        hashed += 1
    assert hashed >= 70


def hexes(row: dict[str, Any], *keys: str) -> list[int]:
    return [number(row[k]) for k in keys]


@pytest.mark.parametrize("name", IOMMU_IMAGES)
def test_iommu_sessions(name: str) -> None:
    image, facts = read(name), truth(name)
    luo = image.luo
    assert luo is not None
    incoming = "incoming" in name
    for session, fact in zip(luo.sessions, facts["sessions"], strict=True):
        assert session.name.decode() == fact["name"]
        assert [session.pa, session.files_pa] == hexes(fact, "pa", "files_pa")
        assert session.count == fact["count"]
        for file, row in zip(session.files, fact["files"], strict=True):
            assert file.handler.decode() == row["handler"]
            assert [file.pa, file.data, file.token] == hexes(row, "pa", "data", "token")
            if row["handler"] == "iommufd-v1":
                hwpts = [(pa, h.domain_data, h.token) for pa, h in file.body.hwpts]
                expected = [tuple(hexes(h, "pa", "domain_data", "token")) for h in row["hwpts"]]
                assert hwpts == expected
                assert file.body.ser.nr_hwpts == row["nr_hwpts"]
                if not incoming:
                    assert [h.reclaimed for _, h in file.body.hwpts] == [
                        h["reclaimed"] for h in row["hwpts"]
                    ]
            elif row["handler"] == "vfio-pci-v2":
                for member in ("domain", "bdf", "reset_works"):
                    assert getattr(file.body.ser, member) == row["ser"][member]
    for flb, row in zip(luo.flbs, facts["flbs"], strict=True):
        assert flb.name.decode() == row["name"]
        assert [flb.pa, flb.data, flb.count] == hexes(row, "pa", "data", "count")


@pytest.mark.parametrize("name", IOMMU_IMAGES)
def test_pci(name: str) -> None:
    facts = truth(name)["pci"]
    pci = body(read(name), b"pci-v1" if "-v3-" in name else b"pci")
    assert pci.pa == number(facts["pa"])
    assert pci.ser.nr_devices == facts["nr_devices"]
    if "-v3-" in name:
        assert pci.ser.max_nr_devices == facts["max_nr_devices"]
        devices = [(pci.pa + 16 + 8 * i, d) for i, d in enumerate(pci.ser.slots)]
        assert pci.devices == [(pa, d) for pa, d in pci.devices if d.refcount]
    else:
        assert pci.ser.version == facts["version"]
        assert pci.ser.devices == number(facts["devices"])
        devices = pci.devices
    found = [(pa, d.domain, d.bdf, d.refcount) for pa, d in devices]
    assert found == [tuple(hexes(e, "pa", "domain", "bdf", "refcount")) for e in facts["entries"]]


#: Members that the consumer writes after the hand-over.
CONSUMER_WRITES = {"flags", "restored_domain", "restored", "intel.restored"}


@pytest.mark.parametrize("name", IOMMU_IMAGES)
def test_iommu_objects(name: str) -> None:
    facts = truth(name)["iommu_flb"]
    state = body(read(name), b"iommu-liveupdate-v1" if "-v3-" in name else b"iommu-liveupdate")
    assert state.pa == number(facts["pa"])
    for member in ("iommu_array_phys", "iommu_domain_array_phys", "device_array_phys"):
        assert getattr(state.flb, member) == number(facts[member])
    compared = 0
    for kind, objects in (
        ("hw", state.hw),
        ("domains", state.domains),
        ("devices", state.devices),
    ):
        assert [pa for pa, _ in objects] == [number(row["pa"]) for row in facts[kind]]
        for (_, found), row in zip(objects, facts[kind], strict=True):
            places = [found, found.hdr, getattr(found, "domain_iommu_ser", None)]
            places += [found.intel] if kind == "hw" else []
            for key, value in row.items():
                if "incoming" in name and key in CONSUMER_WRITES:
                    continue
                place: Any = found
                member = key
                if key.startswith("intel."):
                    place, member = found.intel, key.removeprefix("intel.")
                else:
                    place = next((p for p in places if hasattr(p, key)), None)
                    if place is None:
                        continue
                given = getattr(place, member)
                if isinstance(given, bytes):
                    given = int.from_bytes(given, "little")
                    value = int(value, 16) if key == "padding" else value
                assert int(given) == number(value), (kind, key)
                compared += 1
    assert compared >= 6 * sum(len(facts[k]) for k in ("hw", "domains", "devices"))


@pytest.mark.parametrize("name", IOMMU_IMAGES)
def test_context_entries(name: str) -> None:
    facts = truth(name)
    follower = Follower(core(name))
    scalable = facts["mode"] == "scalable"
    state = body(read(name), b"iommu-liveupdate-v1" if "-v3-" in name else b"iommu-liveupdate")
    hw = next(h for _, h in state.hw if not h.hdr.deleted)
    devices = {d.devid: d for _, d in state.devices if not d.hdr.deleted}
    assert len(facts["context"]) >= 4
    for key, fact in facts["context"].items():
        bus, slot, function = (int(p, 16) for p in key.replace(".", ":").split(":"))
        devid = bus << 8 | slot << 3 | function
        pa, entry = vtd_context(follower, hw.intel.root_table, devid, scalable=scalable)
        assert pa == number(fact["pa"])
        assert entry.present == fact["present"]
        if not scalable:
            found = [entry.translation_type, entry.second_stage, entry.address_width]
            assert found == hexes(fact, "tt", "slptptr", "aw")
            assert entry.domain_id == fact["did"]
            continue
        assert entry.pasid_dir == number(fact["pasid_dir"])
        assert [entry.pasid_dir_size, entry.page_requests, entry.device_tlb] == hexes(
            fact, "pds", "pre", "dte"
        )
        device = devices[devid]
        assert device.intel.pasid_table == entry.pasid_dir
        _, pasid = vtd_pasid(follower, entry.pasid_dir, 0, device.intel.max_pasid)
        found = [pasid.translation_type, pasid.address_width, pasid.second_stage, pasid.domain_id]
        assert found == hexes(fact, "pgtt", "aw", "slptptr", "did")
    assert follower.problems == []


def test_vtd_without_kho() -> None:
    facts = truth("vtd-legacy")
    follower = Follower(core("vtd-legacy"))
    for fact in facts["devices"].values():
        devid = 24 + 8 * list(facts["devices"].values()).index(fact)
        pa, entry = vtd_context(follower, number(facts["root_table"]), devid, scalable=False)
        assert pa == number(fact["context_entry_pa"])
        assert [entry.domain_id, entry.address_width] == [fact["did"], fact["aw"]]
        assert entry.second_stage == number(fact["page_table_root"])


@pytest.mark.parametrize("name", ["linux-7.3.4-smmuv3-s1-4k", "linux-7.3.4-smmuv3-s2-64k"])
def test_smmuv3(name: str) -> None:
    facts = truth(name)
    registers = {k: struct.pack("<Q", number(v)) for k, v in facts["registers"].items()}
    base = parse(Smmuv3Tables.StrtabBase, registers["STRTAB_BASE"])
    cfg = parse(Smmuv3Tables.StrtabBaseCfg, registers["STRTAB_BASE_CFG"])
    assert base.addr == number(facts["strtab"]["base"])
    assert [cfg.log2size, cfg.split] == [facts["strtab"]["log2size"], facts["strtab"]["split"]]
    assert cfg.fmt == Smmuv3Tables.StrtabFmt.two_level
    for row in facts["strtab"]["l1_present"]:
        data = core(name).read(base.addr + 8 * row["index"], 8)
        desc = parse(Smmuv3Tables.L1Desc, data)
        assert [desc.l2ptr, desc.span] == [number(row["l2"]), row["span_field"]]
        table = core(name).read(desc.l2ptr, 64 << (desc.span - 1))
        entries = parse(Smmuv3Tables.StreamTable, table, 1 << (desc.span - 1)).entries
        assert len(entries) == row["entries"]
        configs: dict[str, int] = {}
        for entry in entries:
            configs[str(int(entry.config))] = configs.get(str(int(entry.config)), 0) + 1
        assert configs == facts["stes_nonzero"]["by_config"]
        for fact in facts["devices"].values():
            ste = entries[number(fact["sid"])]
            assert ste.valid
            assert [ste.config, ste.s1_fmt, ste.s1_cdmax] == [
                fact["config"],
                fact["s1fmt"],
                fact["s1cdmax"],
            ]
            assert ste.s1_context == number(fact["s1contextptr"])
            if fact["config"] == 5:
                cd = parse(Smmuv3Tables.Cd, core(name).read(ste.s1_context, 64))
                assert cd.valid
                assert [cd.asid, cd.t0sz, cd.ips] == [fact["asid"], fact["t0sz"], fact["ips"]]
                assert cd.ttb0 == number(fact["ttb0"])
                assert cd.tg0 == Smmuv3Tables.Granule.g4k
            else:
                assert [ste.s2_vmid, ste.s2_ttb] == hexes(fact, "s2vmid", "s2ttb")
                assert [ste.s2_sl0, ste.s2_t0sz] == [fact["sl0"], fact["t0sz"]]
                flags = [ste.s2_aa64, ste.s2_ptw, ste.s2_s, ste.s2_r]
                assert flags == [fact["s2aa64"], fact["s2ptw"], fact["s2s"], fact["s2r"]]
                assert [ste.s2_tg, ste.s2_ps] == [Smmuv3Tables.Granule.g64k, fact["ips"]]


def test_amd_device_table() -> None:
    name = "linux-7.3.4-amdv1"
    facts = truth(name)
    base = number(facts["device_table"]["base"])
    for fact in facts["devices"].values():
        at = base + 32 * number(fact["devid"])
        assert at == number(fact["dte_pa"])
        entry = parse(AmdIommuTables, core(name).read(at, 32))
        assert [entry.valid, entry.translation_valid] == [fact["v"], fact["tv"]]
        assert [entry.mode, entry.domain_id] == [fact["mode"], fact["domain_id"]]
        assert entry.host_table == number(fact["root"])
        assert entry.ir
        assert entry.iw


def test_every_capture_is_used() -> None:
    used = {*MEMORY_IMAGES, *IOMMU_IMAGES}
    used |= {"vtd-legacy", "linux-7.3.4-amdv1"}
    used |= {"linux-7.3.4-smmuv3-s1-4k", "linux-7.3.4-smmuv3-s2-64k"}
    captures = {p.name.removesuffix(".elf.zst") for p in CORPUS.glob("*.elf.zst")}
    real = {c for c in captures if (CORPUS / f"{c}.truth.json").exists()}
    assert used <= real


def test_boot_parser_refuses_another_setup_data() -> None:
    node = struct.pack("<QII", 0, 9, 32) + bytes(32)
    with pytest.raises(PARSE_ERRORS, match="validation failed"):
        parse(KhoBoot, node)


def test_device_tree_with_overlapping_strings() -> None:
    tree = Follower(core("linux-7.3.4-handoff")).tree(root_address("linux-7.3.4-handoff"))
    assert tree is not None
    raw = core("linux-7.3.4-handoff").read(root_address("linux-7.3.4-handoff"), 4096)
    fdt = parse(Fdt, raw)
    assert fdt.version == 17
    assert fdt.mem_rsvmap[-1].size == 0
    assert b"compatible\0" in fdt.strings.raw
