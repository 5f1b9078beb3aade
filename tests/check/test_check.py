"""The fsck: silent on what real kernels wrote, and never silent on what was broken."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import kho
from inspector import memory, passthrough
from inspector.check import catalogue, check, explain
from inspector.decode import decode
from inspector.extract import extract
from inspector.findings import Severity
from inspector.image import Image
from inspector.kernel import scenario
from inspector.kernel.faults import FAULTS, Inapplicable, inject
from inspector.memory.sparse import SparseMemory
from inspector.pagetable import anomalies

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "corpus"
CAPTURES = sorted(
    p for p in CORPUS.glob("*.elf.zst")
    if p.name.startswith(("linux-", "iommu-")) and "amdv1" not in p.name and "smmu" not in p.name
)  # fmt: skip
#: Scenarios that take long to simulate, for their size only.
LARGE = {"terabyte", "devices-100000", "memfds-10000", "sessions-819"}
SCENARIOS = sorted(set(scenario.shipped()) - LARGE)
#: Where to look first for something that a fault can break.
FIRST = ["linux-7.3", "iommufd", "iommu-v3-scalable", "smmuv3", "linux-7.1", "linux-6.17",
         "linux-6.19", "unpreserve", "vfio-rfc-v1", "iommu-v1"]  # fmt: skip

#: Faults after which nothing in the image is a root any more.
LEAVES_NO_ROOT = {"root-magic"}
#: Faults that kernels accept, so that they are worth a note at most.
HARMLESS = {"handover-fdt-size-1024", "domain-orphan", "session-block-partial"}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda p: p.name)
def test_nothing_is_said_of_a_real_capture(path: Path) -> None:
    with kho.open(path) as image:
        report = check(image, at_least=Severity.WARNING)
        lost = {f.code for f in check(image, rules=["KHO-MAP"]).findings}
    assert report.findings == ()
    assert lost == ({"KHO-MAP-010"} if "incoming" in path.name else set())
    if "incoming" not in path.name:
        owned = report.ownership
        assert (owned.known, owned.leaked, owned.conflicts) == (True, 0, ())
        assert len(owned.unpreserved) == 0


@cache
def quiet(name: str) -> frozenset[str]:
    """Codes that a valid simulated image gives, notes included."""
    report = check(decode(scenario.load(name).run().memory))
    return frozenset(f.code for f in report.findings)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_said_of_a_valid_simulated_image(name: str) -> None:
    rules = catalogue()
    assert {c for c in quiet(name) if rules[c].severity >= Severity.WARNING} == set()


#: What the rule written for a fault is; not the rules that its consequences break besides.
RULE_OF_A_FAULT = {
    ("linux-6.19", "luo-compatible"): "KHO-LUO-012",
    ("linux-7.1", "luo-compatible"): "KHO-LUO-012",
    ("linux-7.3", "luo-compatible"): "KHO-LUO-012",
    ("luo-v2", "luo-compatible"): "KHO-LUO-012",
    ("linux-6.19", "luo-number-zero"): "KHO-LUO-015",
    ("linux-7.1", "luo-number-zero"): "KHO-LUO-015",
    ("linux-7.3", "luo-blob-short"): "KHO-LUO-003",
    ("features", "luo-blob-short"): "KHO-LUO-003",
    ("linux-7.1", "file-handler-unterminated"): "KHO-LUO-008",
    ("linux-7.3", "file-handler-unterminated"): "KHO-LUO-008",
    ("linux-6.17", "root-map-zero"): "KHO-ROOT-003",
    ("linux-7.3", "root-map-zero"): "KHO-ROOT-003",
    ("linux-6.17", "blob-beyond-memory"): "KHO-MEM-014",
    ("linux-7.3", "blob-beyond-memory"): "KHO-MEM-014",
    ("iommu-v1", "blob-beyond-memory"): "KHO-MEM-010",
    # These make the damaged layout break a constraint, and another one breaks no more.
    ("iommufd", "hwpt-count-over"): "KHO-IFD-001",
    ("iommu-v1", "hwpt-count-over"): "KHO-IFD-001",
    ("guest-memfd", "kvm-attributes-count"): "KHO-KVM-001",
    ("guest-memfd", "kvm-attributes-twice"): "KHO-KVM-002",
    ("vfio-rfc-v1", "vfio-config-size"): "KHO-VFI-001",
    ("vfio-rfc-v1", "vfio-not-in-pci"): "KHO-VFI-010",
    ("vfio-backport", "vfio-iommufd-token"): "KHO-VFI-011",
    ("iommu-v1", "vfio-iommufd-token"): "KHO-VFI-011",
    ("iommu-v1", "pci-duplicate"): "KHO-PCI-003",
    ("iommu-v1", "pci-count"): "KHO-PCI-004",
    ("vfio-rfc-v1", "pci-count"): "KHO-PCI-004",
    ("iommu-v1", "iommu-array-count-over"): "KHO-LST-005",
    ("iommu-v2", "did-zero"): "KHO-IOM-015",
    ("iommu-v2", "did-mismatch"): "KHO-IOM-016",
    ("iommufd", "unit-token-unknown"): "KHO-IOM-021",
    ("iommu-v1", "unit-token-unknown"): "KHO-IOM-021",
    ("smmuv3", "unit-token-unknown"): "KHO-IOM-021",
    ("smmuv3", "stream-l2-missing"): "KHO-SMM-006",
    ("smmuv3-first", "stream-l2-missing"): "KHO-SMM-006",
}


@pytest.mark.parametrize(("name", "fault"), RULE_OF_A_FAULT)
def test_the_rule_written_for_a_fault_fires(name: str, fault: str) -> None:
    simulated = scenario.load(name).run()
    inject(simulated, fault)
    wanted = RULE_OF_A_FAULT[name, fault]
    found = {f.code for f in check(decode(simulated.memory)).findings} - quiet(name)
    assert wanted in found


def edited(name: str, *changes: tuple[int, bytes]) -> dict[str, list[str]]:
    """What is found in a real capture with some bytes changed: paths by code."""
    found: dict[str, list[str]] = {}
    with memory.open(CORPUS / f"{name}.elf.zst") as capture:
        overlay = SparseMemory.over(capture)
        for address, data in changes:
            overlay.write(address, data)
        for finding in check(decode(overlay), at_least=Severity.ERROR).findings:
            found.setdefault(finding.code, []).append(finding.path)
    return found


@pytest.mark.parametrize("start", [b"\0" * 8, b"\xff" * 8, b"luo-v9\0\0"])
def test_a_kernel_panics_that_finds_no_luo(start: bytes) -> None:
    with kho.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as image:
        at = next(b.address for b in image.blobs if b.name == b"LUO")
    assert edited("linux-7.3.4-handoff", (at, start))["KHO-LUO-012"] == ["/LUO"]


def test_nodes_below_luo_have_strings_of_their_own() -> None:
    with kho.open(CORPUS / "linux-6.19.11-handoff.elf.zst") as image:
        at = next(b.address for b in image.blobs if b.name == b"LUO")
        tree = image.memory.read(at, 4096)
    string = at + tree.index(b"luo-session-v2")
    found = edited("linux-6.19.11-handoff", (string, b"luo-session-v9"))
    assert found["KHO-LUO-012"] == ["/LUO/sessions"]


@pytest.mark.parametrize("target", [0x7F000_0000, 0x9_0000_0000_0000])
def test_a_pointer_outside_ram_is_an_error(target: int) -> None:
    with kho.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as image:
        assert image.luo is not None
        at, file = image.luo.address, next(f for _, f in image.luo.files())
    pointer = target.to_bytes(8, "little")
    found = edited("linux-7.3.4-handoff", (at + 16, pointer))
    assert found["KHO-MEM-014"] == found["KHO-MEM-010"] == ["/LUO/sessions"]
    found = edited("linux-7.3.4-handoff", (file.address + 48, pointer))
    assert found["KHO-MEM-014"] == found["KHO-MEM-010"] == [file.path]


@pytest.mark.parametrize("more", [0, 1])
def test_up_to_7_1_an_flb_has_as_many_users_as_there_are_files(more: int) -> None:
    simulated = scenario.load("iommu-v3-scalable").run()
    luo = decode(simulated.memory).luo
    assert luo is not None
    for flb in luo.flbs:
        count = (flb.count + more).to_bytes(8, "little")
        simulated.memory.write(flb.address + 56, count)
    found = check(decode(simulated.memory)).findings
    assert [f.path for f in found if f.code == "KHO-LUO-020"] == [f.path for f in luo.flbs] * more


def test_a_block_of_a_vmalloc_area_is_one_preserved_block() -> None:
    """Two preserved pages said to be one block of order 1."""
    name = "linux-7.3.4-handoff"
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        preserved = image.preserved
        assert preserved is not None
        pairs = (
            (file, int(block))
            for path, file in image.memfds()
            if file.vmalloc is not None and len(file.vmalloc.blocks) == 1
            for block in file.vmalloc.blocks
            if block % 0x2000 == 0
        )
        file, block = next(
            (f, b) for f, b in pairs
            if preserved.covers(np.array([b], np.uint64), 0x2000)[0]
            and preserved.orders_at(np.array([b], np.uint64))[0][0] == 0
        )  # fmt: skip
    descriptor = (2).to_bytes(4, "little") + b"\1\0" + b"\1\0"
    with memory.open(CORPUS / f"{name}.elf.zst") as capture:
        overlay = SparseMemory.over(capture)
        overlay.write(file.address + 40, descriptor)
        found = check(decode(overlay), rules=["KHO-VML"]).findings
    assert [(f.code, f.address) for f in found] == [("KHO-VML-005", block)]


def broken(fault: str) -> tuple[str, Image]:
    for name in [*FIRST, *(n for n in SCENARIOS if n not in FIRST)]:
        simulated = scenario.load(name).run()
        try:
            inject(simulated, fault)
        except Inapplicable:
            continue
        return name, decode(simulated.memory)
    raise AssertionError("no shipped scenario has what this fault breaks")


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_is_caught(fault: str, tmp_path: Path) -> None:
    """And what has it can be sent to others: an extract is compared before it is there."""
    if fault in LEAVES_NO_ROOT:
        with pytest.raises(kho.KhoError, match="no KHO root"):
            broken(fault)
        return
    name, image = broken(fault)
    least = Severity.INFO if fault in HARMLESS else Severity.WARNING
    findings = check(image, at_least=least).findings
    assert {f.code for f in findings} - quiet(name), FAULTS[fault].doc
    for finding in findings:
        assert finding.path.startswith("/")
        # A verdict on a layer is of all its structs together.
        assert finding.address is not None or finding.code.startswith(("KHO-GEN", "KHO-LST"))
    assert extract(image, str(tmp_path / "out.elf"), content=False).ranges


def test_the_catalogue_explains_every_code_that_can_be_reported() -> None:
    known = catalogue()
    for path in (ROOT / "inspector").rglob("*.py"):
        if "layouts" in path.parts or "check" in path.parts or "kernel" in path.parts:
            continue
        for code in re.findall(r'"(KHO-(?!ABI)[A-Z]+-\d{3})"', path.read_text()):
            assert code in known, f"{path.name} reports {code}"
    for rule in known.values():
        assert rule.statement.endswith(".")
        assert rule.kernel.endswith((".", ".)"))


def test_rules_can_be_chosen() -> None:
    with kho.open(CORPUS / "linux-7.3.4-incoming.elf.zst") as image:
        assert {f.code for f in check(image, rules=["KHO-MAP"]).findings} == {"KHO-MAP-010"}
        assert check(image, rules=["KHO-SCR"]).findings == ()
        with pytest.raises(kho.UsageError, match="did you mean"):
            check(image, rules=["KHO-MPA"])


def test_explain_is_case_blind() -> None:
    assert explain("kho-map-005").code == "KHO-MAP-005"


def without(memory: SparseMemory, address: int) -> Image:
    """The image with the page of an address left out of the dump."""
    filtered = SparseMemory.over(memory)
    filtered.exclude(address & ~0xFFF, 0x1000)
    return decode(filtered)


@pytest.mark.parametrize("name", ["iommu-v1", "iommufd"])
def test_of_an_iommufd_that_the_dump_left_out_the_rest_is_checked(name: str) -> None:
    simulated = scenario.load(name).run().memory
    for _, file, _ in passthrough.iommufds(decode(simulated)):
        image = without(simulated, file.data)
        assert "KHO-MEM-001" in {finding.code for finding in check(image).findings}


@pytest.mark.parametrize(
    ("name", "rule"),
    [("iommu-v1", "KHO-LUO-020"), ("iommu-v1", "KHO-IOM-020"), ("iommufd", "KHO-IOM-018")],
)
def test_a_rule_about_files_waits_for_those_that_the_dump_left_out(name: str, rule: str) -> None:
    simulated = scenario.load(name).run().memory
    luo = decode(simulated).luo
    assert luo is not None
    report = check(without(simulated, luo.sessions_address), rules=[rule])
    assert (report.findings, list(report.undecided)) == ((), [rule])


def test_a_unit_that_the_dump_left_out_is_not_said_to_be_none() -> None:
    simulated = scenario.load("iommufd").run().memory
    state = passthrough.iommu_state(decode(simulated))
    assert state is not None
    image = without(simulated, state.units[0].address)
    assert check(image, rules=["KHO-IOM-010"]).findings == ()
    assert image.incomplete


@pytest.mark.parametrize(
    ("name", "open_"),
    [
        ("iommu-v1", {"KHO-VTD-001", "KHO-VTD-004"}),
        ("iommu-v3-scalable", {"KHO-VTD-001", "KHO-VTD-004"}),
        ("smmuv3-first", {"KHO-SMM-002", "KHO-SMM-006"}),
    ],
)
def test_of_tables_that_the_dump_left_out_nothing_is_said_to_be_absent(
    name: str, open_: set[str]
) -> None:
    simulated = scenario.load(name).run().memory
    whole = decode(simulated)
    check(whole)  # claims the tables
    pages = {
        int(pa)
        for claim in whole.survey.claims
        if claim.kind == "device-table"
        for pa in claim.starts
    }
    undecided: set[str] = set()
    for page in pages:
        report = check(without(simulated, page), rules=["KHO-VTD", "KHO-SMM"])
        assert [f for f in report.findings if f.severity is Severity.ERROR] == []
        undecided |= report.undecided.keys()
    assert undecided == open_


def test_what_is_in_an_incomplete_map_is_not_told_of_page_tables() -> None:
    simulated = scenario.load("iommu-v1").run().memory
    preserved = decode(simulated).preserved
    assert preserved is not None
    report = check(without(simulated, int(preserved.nodes[-1])))
    assert {"KHO-MEM-010", anomalies.UNPRESERVED} <= report.undecided.keys()


def test_what_is_left_out_for_its_severity_is_not_counted_either() -> None:
    simulated = scenario.load("linux-7.3").run().memory
    image = decode(simulated)
    image.survey.findings.suppress("KHO-MEM-001", 5)
    assert check(image).suppressed == {"KHO-MEM-001": 5}
    assert check(image, at_least=Severity.WARNING).suppressed == {}


@pytest.mark.parametrize("table", ["top_table_phys", "root_table"])
def test_what_lies_behind_a_table_that_the_dump_left_out_is_no_leak(table: str) -> None:
    simulated = scenario.load("iommufd").run().memory
    state = passthrough.iommu_state(decode(simulated))
    assert state is not None
    named = state.domains[0] if table == "top_table_phys" else state.units[0]
    report = check(without(simulated, getattr(named, table)), rules=["KHO-MEM-012"])
    assert (report.findings, list(report.undecided)) == ((), ["KHO-MEM-012"])


def test_unclaimed_blocks_are_sought_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as all at once, however the runs fall into windows."""
    from inspector.check import ownership

    image = decode(scenario.load("linux-7.3").run().memory)
    assert image.preserved is not None
    image.survey.claims = [c for c in image.survey.claims if c.kind != "struct"][::2]
    whole = ownership.account(image)
    assert whole.leaked
    for window in (1, 2, 7):
        monkeypatch.setattr(ownership, "_WINDOW", window)
        parts = ownership.account(image)
        assert (parts.leaked, parts.slack) == (whole.leaked, whole.slack)
        assert parts.leak_starts.tolist() == whole.leak_starts.tolist()
        assert parts.leak_ends.tolist() == whole.leak_ends.tolist()


def test_unpreserved_memory_is_counted_beyond_what_is_told() -> None:
    """Those that are not described are counted, each once."""
    text = """
kernel = "linux-7.3"
[machine]
ram = ["256M"]
[[session]]
name = "vm"
[[session.file]]
token = 1
size = "4M"
"""
    image = decode(scenario.parse(text).run().memory)
    assert image.preserved is not None
    image.preserved = replace(
        image.preserved.without_runs(),
        starts=image.preserved.starts[:1],
        counts=image.preserved.counts[:1],
        orders=image.preserved.orders[:1],
    )
    report = check(image, rules=["KHO-MEM-010"])
    told, counted = len(report.findings), report.suppressed["KHO-MEM-010"]
    assert told + counted == len(report.ownership.unpreserved)
