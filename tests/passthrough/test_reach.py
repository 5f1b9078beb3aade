"""Which device can DMA where: page tables of real captures against what user space mapped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kho
from abi.device_table import TableRoot
from inspector import passthrough
from inspector.cli.app import app
from inspector.device_tables import walk_root
from inspector.image import Image
from inspector.kernel import scenario
from inspector.memory.sparse import SparseMemory
from inspector.passthrough import reach
from inspector.passthrough.domains import DomainTables

CORPUS = Path(__file__).parents[2] / "corpus"
CAPTURES = [
    "iommu-vw-small_legacy-handoff",
    "iommu-vw-legacy-handoff",
    "iommu-vw-legacy-incoming",
    "iommu-v3-small_scalable-handoff",
]


def truth_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CORPUS / f"{name}.truth.json").read_text())
    return loaded


def expected(truth: dict[str, Any], iommufd: int, ioas: int) -> dict[int, tuple[int, str]]:
    """Page of the IOVA space -> (physical page, rights), as user space mapped it."""
    pages: dict[int, tuple[int, str]] = {}
    for m in truth["mappings"]:
        if (m["iommufd"], m["ioas"]) == (iommufd, ioas):
            first, pa = int(m["iova"], 16) >> 12, int(m["pa"], 16) >> 12
            for i in range(int(m["len"], 16) >> 12):
                pages[first + i] = pa + i, m["flags"]
    for m in truth["unmapped"]:
        if (m["iommufd"], m["ioas"]) == (iommufd, ioas):
            first = int(m["iova"], 16) >> 12
            for i in range(int(m["len"], 16) >> 12):
                pages.pop(first + i, None)
    return pages


def mapped(image: Image, root: TableRoot) -> dict[int, tuple[int, str]]:
    """The same out of a page table."""
    pages: dict[int, tuple[int, str]] = {}
    walk = walk_root(image.memory, root)
    for chunk in walk.ranges():
        for iova, pa, size, rights in chunk:
            text = "".join(c for c, bit in (("r", 1), ("w", 2)) if int(rights) & bit)
            for i in range(size >> 12):
                pages[(iova >> 12) + i] = (pa >> 12) + i, text
    assert walk.findings.items == []
    return pages


@pytest.mark.parametrize("name", CAPTURES)
def test_every_hwpt_decodes_to_what_user_space_mapped(name: str) -> None:
    truth = truth_of(name)
    wanted: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
    # The truth numbers iommufds as they were opened; the third was closed before the update.
    numbers = {"vm-a": 1, "vm-b": 2, "many": 4}
    checks = Counter((c["session"], c["iommufd_token"]) for c in truth["mapping_check"])
    compared: Counter[tuple[str, str]] = Counter()
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        for session, want_session in zip(image.luo.sessions, truth["sessions"], strict=True):
            for file, want_file in zip(session.files, want_session["files"], strict=True):
                for hwpt, want in zip(
                    getattr(file.state, "hwpts", ()), want_file.get("hwpts", ()), strict=True
                ):
                    who = want_session["name"], want_file["token"]
                    key = numbers[who[0]], want["ioas"]
                    if key not in wanted:
                        wanted[key] = expected(truth, *key)
                    domain = state.domains.at(hwpt.domain_data)
                    assert domain is not None
                    assert mapped(image, DomainTables(image).root(domain)) == wanted[key]
                    assert wanted[key]
                    compared[who] += 1
    assert compared == checks


@pytest.mark.parametrize("name", CAPTURES)
def test_reach_of_each_device(name: str) -> None:
    truth = truth_of(name)
    pages = {c["domain"]: c["pages"] for c in truth["mapping_check"]}
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        found = reach.devices(image)
        assert len(found) == 4
        for one in found:
            assert one.picture.domain is not None
            assert one.reach is not None
            assert one.reach.mapped == pages[hex(one.picture.domain.address)] * 4096
            assert one.reach.elsewhere == 0
            assert sum(one.reach.memory_files.values()) == one.reach.mapped
            session = one.picture.vfio[0][0]
            assert all(p.startswith(session.path + "/") for p in one.reach.memory_files)
            assert one.disagreements == ()
            assert one.reach.anomalies == []


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=4),
    ranges=st.lists(st.tuples(st.integers(0, 220), st.integers(1, 40)), max_size=20),
    pieces=st.integers(1, 7),
)
def test_shares_are_what_a_page_by_page_count_gives(
    files: list[list[int]], ranges: list[tuple[int, int]], pieces: int
) -> None:
    class Folios:
        def __init__(self, pfns: list[int]) -> None:
            self.pfn = np.array(pfns, np.uint64)

    class File:
        def __init__(self, pfns: list[int]) -> None:
            self.folios = Folios(pfns)
            self.addresses = self.folios.pfn * np.uint64(4096)
            self.sizes = np.full(len(pfns), 4096, np.uint64)
            self.used = self.folios.pfn != 0

    taken: set[int] = set()
    own: list[list[int]] = []
    for pfns in files:
        mine = sorted(set(pfns) - taken - {0})
        taken |= set(mine)
        own.append(mine)

    class Fake:
        def folio_files(self) -> Any:
            return ((str(i), File(p)) for i, p in enumerate(own))

    index = reach.MemoryFiles(Fake())  # type: ignore[arg-type]
    pa = np.array([r[0] * 4096 for r in ranges], np.uint64)
    size = np.array([r[1] * 4096 for r in ranges], np.uint64)
    saved, reach._MAX_PIECES = reach._MAX_PIECES, pieces
    try:
        shares = index.share(pa, size).tolist()
    finally:
        reach._MAX_PIECES = saved
    assert shares == [
        4096 * sum(p in mine for start, n in ranges for p in range(start, start + n))
        for mine in own
    ]


FIRST_STAGE = """
kernel = "{kernel}"
[machine]
ram = ["1G"]
[[machine.iommu]]
base = 0xfed90000
scalable = true
[[machine.device]]
bdf = "0000:00:03.0"
count = 2
[[session]]
name = "vm"
[[session.file]]
token = 1
id = "memory"
size = "2M"
huge = true
seals = ["seal", "shrink", "grow"]
[[session.file]]
type = "iommufd"
token = 2
id = "iommufd"
[[session.file.ioas]]
name = "space"
map = [
  {{ file = "memory", size = "8K", iova = 0x5000, access = "r" }},
  {{ file = "memory", size = "2M", iova = 0x40000000 }},
]
[[session.file.hwpt]]
name = "first"
ioas = "space"
token = 3
first_stage = true
[[session.file.hwpt]]
name = "second"
ioas = "space"
token = 4
[[session.file]]
type = "vfio-pci"
token = 5
bdf = "0000:00:03.0"
iommufd = "iommufd"
hwpt = "first"
[[session.file]]
type = "vfio-pci"
token = 6
bdf = "0000:00:03.1"
iommufd = "iommufd"
hwpt = "second"
"""


@pytest.mark.parametrize("series", ["iommu-v1", "iommu-v3", "iommu-vw"])
def test_first_stage_domains_are_read_as_such(series: str) -> None:
    """Their entries would pass for second-stage ones with other rights and other addresses."""
    made = scenario.parse(FIRST_STAGE.format(kernel=f"linux-7.1+{series}")).run()
    with kho.open(made.memory) as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        first, second = state.domains
        roots = [DomainTables(image).root(domain) for domain in (first, second)]
        assert [root.format for root in roots] == ["x86-64", "vtdss"]
        one, other = (list(mapped(image, root).items()) for root in roots)
        assert one == other
        assert [rights for _, (_, rights) in one[:3]] == ["r", "r", "rw"]
        assert [found.disagreements for found in reach.devices(image)] == [(), ()]
        pte = made.memory.u64(first.top_table_phys) & ~0xFFF
        top = first.top_table_phys
        made.memory.write(top + 8 * 511, (pte | 0x27).to_bytes(8, "little"))
    with kho.open(made.memory) as image:
        upper = max(mapped_of(image, roots[0]))
    assert upper == (0xFFFFFF8000000000 + 0x40000000 >> 12) + 511


def mapped_of(image: Image, root: TableRoot) -> list[int]:
    """The mapped pages of the IOVA space, whatever else is wrong with the table."""
    walk = walk_root(image.memory, root)
    return [(i >> 12) + n for c in walk.ranges() for i, _, s, _ in c for n in range(s >> 12)]


def test_entries_beyond_the_width_of_a_domain_are_found() -> None:
    with kho.open(CORPUS / "iommu-vw-small_legacy-handoff.elf.zst") as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        memory, domain = SparseMemory.over(image.memory), state.domains[0]
    for vasz, codes in ((48, set()), (39, {"KHO-PT-011"}), (0, set()), (255, set())):
        memory.write(domain.address + 24, vasz.to_bytes(4, "little"))
        with kho.open(memory) as image:
            state = passthrough.iommu_state(image)
            assert state is not None
            root = DomainTables(image).root(state.domains[0])
            assert {f.code for f in walk_root(image.memory, root).findings.items} == codes


def test_the_verb() -> None:
    path = str(CORPUS / "iommu-v3-small_scalable-handoff.elf.zst")
    result = CliRunner().invoke(app, ["devices", path])
    assert result.exit_code == 0, result.output
    assert "0000:00:10.0" in result.output
    assert "PASID entry 0x7fb000, DID 5" in result.output
    assert "0xfedcba9876543210 of iommufd 0x1000000100000010, session vm-a" in result.output
    result = CliRunner().invoke(app, ["devices", "--format", "json", path])
    assert result.exit_code == 0
    answer = json.loads(result.output)
    assert answer["schema_version"] == 1
    assert [d["name"] for d in answer["devices"]] == [
        "0000:00:03.0", "0000:00:04.0", "0000:00:05.0", "0000:00:10.0",
    ]  # fmt: skip
    first = answer["devices"][0]
    assert first["hardware"]["did"] == first["attachment_id"] == 3
    assert first["reach"]["bytes"] == 6526 * 4096
    result = CliRunner().invoke(app, ["devices", str(CORPUS / "linux-7.3.4-handoff.elf.zst")])
    assert "no device is handed over" in result.output


def test_a_table_of_several_domains_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = scenario.load("iommufd").run().memory
    state = passthrough.iommu_state(kho.open(memory))
    assert state is not None
    layout = state.domains.array.struct
    first, *others = state.domains
    field = layout.field("top_table_phys").offset
    for domain in others:
        memory.write(domain.address + field, first.top_table_phys.to_bytes(8, "little"))
    walks: list[TableRoot] = []
    walk = reach.reach

    def counted(image: Image, root: TableRoot, files: reach.MemoryFiles) -> reach.Reach:
        walks.append(root)
        return walk(image, root, files)

    monkeypatch.setattr(reach, "reach", counted)
    found = reach.devices(kho.open(memory))
    assert len({d.picture.domain.address for d in found if d.picture.domain is not None}) > 1
    assert len(walks) == len(set(walks))
