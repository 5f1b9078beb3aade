"""A page that a dump left out makes nothing that is sound look wrong: rules cannot tell then."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import cast

import numpy as np
import pytest

from abi import registry
from abi.iommufd import IommufdGeneration
from inspector import passthrough
from inspector.check import check
from inspector.check.rule import Report
from inspector.decode import decode
from inspector.findings import Severity
from inspector.image import Image, NoRootError
from inspector.kernel import scenario
from inspector.kernel.faults import inject
from inspector.memory.sparse import SparseMemory
from inspector.survey import Claim, Survey
from inspector.walk.iommufd import walk_iommufd
from inspector.walk.preserved import PreservedMap

#: Images that have something of every layer, in several generations each.
SWEPT = [
    "chain-everything", "chain-iommufd", "guest-memfd", "iommu-rfc-v2", "iommu-v1",
    "iommu-v1-partial", "iommu-v2", "iommu-v3-base", "iommu-v3-scalable", "iommufd",
    "iommufd-rfc-v1", "kvm-caretaker", "kvm-minimal", "linux-6.17", "linux-6.19",
    "linux-7.3-arm64-64k", "linux-7.3", "luo-v2", "smmuv3", "smmuv3-first", "vfio-backport",
    "vfio-rfc-v1", "vfio-rfc-v1-patch7", "vfio-v1-reset", "vfio-v3",
]  # fmt: skip
#: Codes that say that a page is missing.
MISSING = {"KHO-MEM-001", "KHO-MEM-002", "KHO-PT-004"}
#: Pages that are tried of one range and of one image, at most.
EACH, MOST = 2, 40


@cache
def whole(name: str) -> tuple[SparseMemory, Image, Report]:
    memory = scenario.load(name).run().memory
    image = decode(memory)
    return memory, image, check(image, at_least=Severity.WARNING)


def without(name: str, *pages: int) -> Image:
    """The image with the pages of some addresses left out of the dump."""
    memory, image, _ = whole(name)
    size = image.page_size
    filtered = SparseMemory.over(memory, size)
    for page in pages:
        filtered.exclude(page - page % size, size)
    return decode(filtered)


def pages_of(claim: Claim, size: int) -> Iterator[int]:
    """The first pages of the first and of the last thing that is claimed."""
    for row in {0, len(claim.starts) - 1} if len(claim.starts) else ():
        start = int(claim.starts[row])
        last = start + max(int(claim.sizes[row]), 1) - 1
        yield from range(start - start % size, last - last % size + 1, size)[:EACH]


def sampled(name: str) -> list[int]:
    """Pages of each kind of claim and of each struct: of the first and the last of them."""
    _, image, report = whole(name)
    kinds: dict[str, list[Claim]] = {}
    for claim in (*image.survey.claims, *report.ownership.claims):
        kinds.setdefault(claim.kind, []).append(claim)
    for placed in image.survey.placed:
        sizes = np.full(len(placed.addresses), placed.struct.size, np.uint64)
        claim = Claim(placed.struct.cname, placed.path, placed.addresses, sizes)
        kinds.setdefault(placed.struct.cname, []).append(claim)
    found: dict[int, None] = {}
    for claims in kinds.values():
        for claim in (claims[0], claims[-1]):
            found.update(dict.fromkeys(pages_of(claim, image.page_size)))
    return list(found)[:: len(found) // MOST + 1]


def wrong(report: Report) -> set[str]:
    return {f.code for f in report.findings if f.severity > Severity.INFO} - MISSING


@pytest.mark.parametrize("name", SWEPT)
def test_without_any_one_page_nothing_new_is_wrong(name: str) -> None:
    _, image, report = whole(name)
    root = image.root.address - image.root.address % image.page_size
    for page in sampled(name):
        try:
            left = check(without(name, page), at_least=Severity.WARNING)
        except NoRootError:
            assert page == root
        else:
            assert wrong(left) <= wrong(report), hex(page)


@pytest.mark.parametrize(
    "name", ["chain-everything", "iommu-v1", "iommu-v3-scalable", "iommufd", "vfio-rfc-v1"]
)
@pytest.mark.parametrize("part", range(5))
def test_without_many_pages_nothing_new_is_wrong(name: str, part: int) -> None:
    _, image, report = whole(name)
    root = image.root.address - image.root.address % image.page_size
    pages = [page for page in sorted(sampled(name)) if page != root]
    left = check(without(name, *pages[part::5]), at_least=Severity.WARNING)
    assert wrong(left) <= wrong(report)


def test_the_roots_page_left_out_brings_back_no_older_root() -> None:
    _, image, _ = whole("chain-everything")
    with pytest.raises(NoRootError, match="--root reads an older one"):
        without("chain-everything", image.root.address)


def test_the_luo_blob_left_out_brings_back_neither_older_root_nor_older_sessions() -> None:
    _, image, _ = whole("chain-everything")
    assert image.luo is not None
    left = without("chain-everything", image.luo.address)
    assert left.root.address == image.root.address
    assert left.luo is not None
    assert [s.address for s in left.luo.sessions] == [s.address for s in image.luo.sessions]
    assert left.luo.flbs_address == image.luo.flbs_address


def assert_undecided(image: Image, code: str) -> None:
    report = check(image, rules=[code])
    assert (report.findings, list(report.undecided)) == ((), [code])


def test_a_chain_that_the_dump_cut_is_not_too_short() -> None:
    simulated = scenario.load("iommu-v1").run()
    state = passthrough.iommu_state(decode(simulated.memory))
    assert state is not None
    for objects in (state.units, state.domains, state.devices):
        page = int(objects.array.pages[-1])
        assert_undecided(without("iommu-v1", page), "KHO-LST-008")
    assert state.generation.flb is not None
    count = state.generation.flb.field("nr_domains")
    simulated.memory.write(state.address + count.offset, (1000).to_bytes(count.size, "little"))
    (finding,) = check(decode(simulated.memory), rules=["KHO-LST-008"]).findings
    assert finding.message == "1000 objects counted, 9 pages of array of domains needed, 1 linked"


def test_what_may_refer_to_what_was_left_out_is_not_said_to_refer_to_nothing() -> None:
    _, image, _ = whole("iommufd")
    state = passthrough.iommu_state(image)
    assert state is not None
    assert_undecided(without("iommufd", int(state.domains.array.pages[0])), "KHO-IFD-010")
    assert_undecided(without("iommufd", int(state.domains.array.pages[0])), "KHO-IOM-010")
    devices = int(state.devices.array.pages[0])
    for code in ("KHO-IOM-011", "KHO-IOM-013", "KHO-IFD-011"):
        assert_undecided(without("iommufd", devices), code)


@pytest.mark.parametrize(("order", "found"), [(0, ["KHO-IFD-001"]), (1, [])])
def test_hwpts_in_a_page_that_was_left_out_of_a_block_may_be_there(
    order: int, found: list[str]
) -> None:
    generation = cast("IommufdGeneration", registry.get("iommufd", "iommufd-24"))
    memory = SparseMemory([(0, 1 << 16)])
    memory.write(0x2000, generation.root.build({"nr_hwpts": 200}).ljust(4096, b"\0"))
    one, none = np.ones(1, np.uint64), np.empty(0, np.uint64)
    orders = np.array([order], np.uint8)
    block = PreservedMap(4096, one * np.uint64(0x2000), one, orders, none, none)
    survey = Survey(memory, 4096)
    state = walk_iommufd(survey, generation, 0x2000, "/file", block)
    assert state is not None
    assert not state.complete
    assert [f.code for f in survey.findings.items if f.severity > Severity.INFO] == found
    assert list(survey.undecided) == ([] if found else ["KHO-IFD-001"])


def test_an_iommufd_that_may_be_left_out_is_not_said_to_be_none_of_the_session() -> None:
    image = without("vfio-backport")
    session, _, _ = next(passthrough.vfio_devices(image))
    session.files = [f for f in session.files if not f.compatible.startswith(b"iommufd")]
    assert {f.code for f in check(image, rules=["KHO-VFI-011"]).findings} == {"KHO-VFI-011"}
    session.complete = False
    assert_undecided(image, "KHO-VFI-011")


def test_a_record_that_leads_to_what_was_left_out_is_not_said_to_lead_to_nothing() -> None:
    memory, image, _ = whole("chain-everything")
    filtered = SparseMemory.over(memory)
    filtered.exclude(image.root.address & -4096, 4096)
    older = next(c for c in image.location.candidates if c.address != image.root.address)
    assert_undecided(decode(filtered, root=older.address), "KHO-ROOT-013")


def test_pci_devices_that_were_left_out_are_not_said_to_be_unlisted() -> None:
    _, image, _ = whole("vfio-v3")
    pci = passthrough.pci_state(image)
    assert pci is not None
    assert_undecided(without("vfio-v3", int(pci.addresses[0])), "KHO-VFI-010")


@pytest.mark.parametrize("name", ["iommufd", "vfio-v1", "kvm-caretaker"])
def test_a_layout_that_left_out_pages_would_tell_is_not_said_to_be_unknown(name: str) -> None:
    _, image, _ = whole(name)
    assert image.luo is not None
    layers = (b"iommufd", b"vfio", b"kvm_vm")
    told = [file for _, file in image.luo.files() if file.compatible.startswith(layers)]
    assert told
    for file in told:
        assert_undecided(without(name, file.data), "KHO-GEN-002")


@pytest.mark.parametrize("name", ["linux-6.19", "luo-v2", "iommu-v2"])
def test_a_luo_blob_that_was_left_out_is_not_said_to_be_none(name: str) -> None:
    _, image, _ = whole(name)
    assert image.luo is not None
    left = without(name, image.luo.address)
    assert_undecided(left, "KHO-LUO-013")
    assert left.lost == ["the LUO blob (its page was left out of the image)"]
    assert left.incomplete


@pytest.mark.parametrize(("name", "struct"), [("linux-6.19", "blob"), ("luo-v2", "luo_ser")])
def test_what_the_dump_left_out_does_not_prove_that_the_next_kernel_runs(
    name: str, struct: str
) -> None:
    """A damaged map and a LUO blob that the dump lacks are no sign of a boot."""
    simulated = scenario.load(name).run()
    inject(simulated, "map-garbage")
    broken = decode(simulated.memory)
    filtered = SparseMemory.over(simulated.memory)
    (page,) = {
        int(placed.addresses[0]) for placed in broken.survey.placed if placed.struct.cname == struct
    } or {broken.luo.address if broken.luo is not None else 0}
    filtered.exclude(page & -4096, 4096)
    for image in (broken, decode(filtered)):
        codes = {f.code for f in check(image, rules=["KHO-MAP"]).findings}
        assert "KHO-MAP-012" in codes
        assert "KHO-MAP-010" not in codes
