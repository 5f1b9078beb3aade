"""Device tables read out of real memory: from the root alone to what each device may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abi.device_table import TableRoot
from abi.vtd import RTADDR_SMT
from inspector import memory
from inspector.device_tables import walk_root
from inspector.device_tables.amd import DeviceTable
from inspector.device_tables.smmuv3 import StreamTables
from inspector.device_tables.vtd import RootTable
from inspector.memory.base import PhysicalMemory
from inspector.pagetable import format_leaves
from inspector.survey import Survey

CORPUS = Path(__file__).parents[2] / "corpus"


def opened(name: str) -> tuple[PhysicalMemory, dict[str, Any]]:
    truth: dict[str, Any] = json.loads((CORPUS / f"{name}.truth.json").read_text())
    return memory.open(CORPUS / f"{name}.elf.zst"), truth


def devid(name: str) -> int:
    bus, device = name.split(":")[-2:]
    slot, function = device.split(".")
    return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)


def leaf_lines(image: PhysicalMemory, root: TableRoot) -> list[list[int]]:
    walk = walk_root(image, root)
    text = b"".join(format_leaves(chunk) for chunk in walk.leaves()).decode()
    assert walk.findings.items == []
    return [[int(word, 16) for word in line.split()] for line in text.splitlines()]


def expanded(runs: list[list[Any]]) -> list[list[int]]:
    """(iova, physical address, size) of each leaf of the truth's runs."""
    return [
        [int(iova, 16) + i * int(size, 16), int(pa, 16) + i * int(size, 16), int(size, 16)]
        for iova, pa, size, count, *_ in runs
        for i in range(count)
    ]


def test_vtd_legacy_from_the_root_table_alone() -> None:
    image, truth = opened("vtd-legacy")
    root = RootTable(Survey(image, 4096), int(truth["root_table"], 16))
    assert root.readable
    assert not root.scalable
    assert root.mode_certain
    assert root.present == {0}
    for name, want in truth["devices"].items():
        found = root.attachment(devid(name))
        assert found is not None
        assert hex(found.address) == want["context_entry_pa"]
        assert [hex(w) for w in found.entry.raw] == [want["context_lo"], want["context_hi"]]
        assert found.did == want["did"]
        [table_root] = found.roots
        assert (hex(table_root.address), table_root.levels) == (
            want["page_table_root"],
            want["levels"],
        )
        leaves = leaf_lines(image, table_root)
        assert leaves == [[int(v, 16) for v in leaf] for leaf in want["leaves"]]


@pytest.mark.parametrize(
    "name",
    [
        "iommu-vw-small_legacy-handoff",
        "iommu-vw-legacy-handoff",
        "iommu-vw-legacy-incoming",
        "iommu-v3-small_scalable-handoff",
    ],
)
def test_vtd_of_the_live_update_captures(name: str) -> None:
    image, truth = opened(name)
    register = int(truth["vtd_RTADDR_from_monitor"], 16)
    unit = next(u for u in truth["iommu_flb"]["hw"] if not u["flags"])
    root = RootTable(Survey(image, 4096), register & ~0xFFF)
    assert hex(root.address) == unit["root_table"]
    assert root.scalable == (truth["mode"] == "scalable")
    assert root.mode_certain
    assert sorted(root.present) == unit["bits"]
    assert root.reserved == {}
    found = {a.devid: a for a in root.attachments()}
    if "incoming" not in name:
        assert set(found) == {devid(d) for d in truth["context"]}
    for device, want in truth["context"].items():
        attachment = found[devid(device)]
        single = root.attachment(devid(device))
        assert single == attachment
        assert hex(attachment.address) == want["pa"]
        assert [hex(w) for w in attachment.entry.raw[:2]] == [want["lo"], want["hi"]]
        assert attachment.did == want["did"]
        assert attachment.second_stage is not None
        assert hex(attachment.second_stage.address) == want["slptptr"]
        assert attachment.second_stage.levels == want["aw"] + 2
        if root.scalable:
            assert attachment.pasid is not None
            assert [hex(w) for w in attachment.pasid.raw] == want["pasid_entry"]
            pasids = dict(root.pasids(attachment.entry))  # type: ignore[arg-type]
            assert pasids[0] == attachment.pasid


def test_the_mode_can_be_forced() -> None:
    image, truth = opened("iommu-v3-small_scalable-handoff")
    register = int(truth["vtd_RTADDR_from_monitor"], 16)
    # The monitor of that machine prints the address without the mode bit.
    assert not register & RTADDR_SMT
    assert not RootTable(Survey(image, 4096), register, scalable=False).scalable


@pytest.mark.parametrize("name", ["linux-7.3.4-smmuv3-s1-4k", "linux-7.3.4-smmuv3-s2-64k"])
def test_smmuv3_streams(name: str) -> None:
    image, truth = opened(name)
    registers = {k: int(v, 16) for k, v in truth["registers"].items()}
    survey = Survey(image, truth["page_size"])
    tables = StreamTables(survey, registers["STRTAB_BASE"], registers["STRTAB_BASE_CFG"])
    wanted = truth["strtab"]["l1_present"]
    l1 = tables.l1_descriptors()
    assert {i: hex(d.raw) for i, d in l1.items()} == {w["index"]: w["desc"] for w in wanted}
    streams = {s.sid: s for s in tables.streams()}
    by_config: dict[str, int] = {}
    for stream in streams.values():
        by_config[str(stream.entry.config)] = by_config.get(str(stream.entry.config), 0) + 1
    assert by_config == truth["stes_nonzero"]["by_config"]
    others = truth["other_streams"]
    assert {s for s, v in streams.items() if v.roots} == {
        *(int(d["sid"], 16) for d in truth["devices"].values()),
        *(int(k, 16) for k in others),
    }
    for want in truth["devices"].values():
        stream = tables.stream(int(want["sid"], 16))
        assert stream == streams[int(want["sid"], 16)]
        assert hex(stream.address) == want["ste_pa"]
        assert [hex(w) for w in stream.entry.raw] == want["ste"]
        if "cd" in want:
            assert stream.descriptor is not None
            assert hex(stream.descriptor_address) == want["cd_pa"]
            assert [hex(w) for w in stream.descriptor.raw] == want["cd"]
        [root] = stream.roots
        assert [leaf[:3] for leaf in leaf_lines(image, root)] == expanded(want["leaf_runs"])
    for sid, want in others.items():
        stream = streams[int(sid, 16)]
        assert [hex(w) for w in stream.entry.raw] == want["ste"]
    assert tables.stream(1 << 16) is None
    assert tables.stream(0x100) is None


def test_amd_device_table() -> None:
    image, truth = opened("linux-7.3.4-amdv1")
    register = int(truth["registers"]["DEV_TAB_BASE"], 16)
    devices = DeviceTable.of_register(Survey(image, 4096), register)
    assert hex(devices.address) == truth["device_table"]["base"]
    assert devices.size == truth["device_table"]["bytes"]
    found = {d: (at, e) for d, at, e in devices.entries()}
    wanted = {int(w["devid"], 16): w for w in truth["devices"].values()}
    others = [int(d, 16) for w in truth["other_domains"].values() for d in w["devids"]]
    assert set(found) == {*wanted, *others}
    for number, want in wanted.items():
        address, entry = found[number]
        assert devices.entry(number) == (address, entry)
        assert hex(address) == want["dte_pa"]
        assert [hex(w) for w in entry.raw] == want["dte"]
        assert (entry.domain_id, entry.mode) == (want["domain_id"], want["mode"])
        assert entry.root is not None
        leaves = leaf_lines(image, entry.root)
        assert [leaf[:3] for leaf in leaves] == expanded(want["leaf_runs"])
        assert sum(leaf[2] for leaf in leaves) == want["mapped_4k_pages"] * 4096
    assert devices.entry(1 << 16) is None
