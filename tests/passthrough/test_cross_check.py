"""Device tables against objects: nothing on real captures, the right finding for each change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kho
from abi import smmuv3
from abi.registry import get
from inspector import passthrough
from inspector.device_tables.claims import claim_tables
from inspector.device_tables.cross import CODES, cross_check
from inspector.device_tables.cross_vtd import root_table_of
from inspector.image import Image
from inspector.memory.sparse import SparseMemory
from inspector.passthrough.domains import DomainTables
from inspector.survey import Survey
from inspector.walk.iommu import walk_iommu

CORPUS = Path(__file__).parents[2] / "corpus"
LEGACY = "iommu-vw-small_legacy-handoff"
SCALABLE = "iommu-v3-small_scalable-handoff"
#: The device whose entries are changed.
DEVID = 0x18


@pytest.mark.parametrize(
    "name", [LEGACY, SCALABLE, "iommu-vw-legacy-handoff", "iommu-vw-legacy-incoming"]
)
def test_real_captures_are_consistent(name: str) -> None:
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        assert cross_check(image).items == []


class Changed:
    """A capture with changes: addresses of the entries that tests change."""

    def __init__(self, name: str) -> None:
        with kho.open(CORPUS / f"{name}.elf.zst") as image:
            self.memory = SparseMemory.over(image.memory)
            state = passthrough.iommu_state(image)
            assert state is not None
            self.unit = state.units[0]
            self.domain = state.domains[0]
            self.device = next(d for d in state.devices if d.devid == DEVID)
            root = root_table_of(Survey(image.memory, 4096), state, self.unit)
            found = root.attachment(DEVID)
            assert found is not None
            self.empty = root.tables[2]
            self.root, self.context, self.pasid = root.address, found.address, found.pasid_address

    def flip(self, address: int, mask: int) -> None:
        """Change bits of a word."""
        word = self.memory.u64(address) ^ mask
        self.memory.write(address, word.to_bytes(8, "little"))

    def codes(self) -> set[str]:
        """What the check says now."""
        with kho.open(self.memory) as image:
            return {f.code for f in cross_check(image).items}


CHANGES: list[tuple[str, Callable[[Changed], None], set[str]]] = [
    (LEGACY, lambda c: c.flip(c.root, 1), {"KHO-VTD-002", "KHO-VTD-004"}),
    (LEGACY, lambda c: c.flip(c.root + 16, 1), {"KHO-VTD-002"}),
    (LEGACY, lambda c: c.flip(c.root + 32 * 16, c.empty | 1), {"KHO-VTD-003"}),
    (LEGACY, lambda c: c.flip(c.root, 2), {"KHO-VTD-011"}),
    (LEGACY, lambda c: c.flip(c.context, 1), {"KHO-VTD-004"}),
    (LEGACY, lambda c: c.flip(c.context + 8, 1 << 9), {"KHO-VTD-005"}),
    (LEGACY, lambda c: c.flip(c.context, 1 << 12), {"KHO-VTD-006"}),
    (LEGACY, lambda c: c.flip(c.context, 2 << 2), {"KHO-VTD-006"}),
    (LEGACY, lambda c: c.flip(c.domain.address + 24, 1 << 32), {"KHO-VTD-006"}),
    (LEGACY, lambda c: c.flip(c.context + 8, 1), {"KHO-VTD-007"}),
    (LEGACY, lambda c: c.flip(c.context, 1 << 4), {"KHO-VTD-011"}),
    (LEGACY, lambda c: c.flip(c.context + 16, 1), {"KHO-VTD-009"}),
    (SCALABLE, lambda c: c.flip(c.context, 1 << 4), {"KHO-VTD-008"}),
    (SCALABLE, lambda c: c.flip(c.context, 1 << 5), {"KHO-VTD-011"}),
    (SCALABLE, lambda c: c.flip(c.device.address + 40, 1 << 12), {"KHO-VTD-010"}),
    (SCALABLE, lambda c: c.flip(c.device.address + 48, 3 << 14), {"KHO-VTD-010"}),
    (SCALABLE, lambda c: c.flip(c.pasid, 1), {"KHO-VTD-004"}),
    (SCALABLE, lambda c: c.flip(c.pasid + 8, 1), {"KHO-VTD-005"}),
    (SCALABLE, lambda c: c.flip(c.pasid, 1 << 13), {"KHO-VTD-006"}),
    (SCALABLE, lambda c: c.flip(c.pasid, 3 << 2), {"KHO-VTD-007"}),
    (SCALABLE, lambda c: c.flip(c.pasid, 1 << 10), {"KHO-VTD-011"}),
    (SCALABLE, lambda c: c.flip(c.pasid, 6 << 6), {"KHO-VTD-006"}),
    (SCALABLE, lambda c: c.flip(c.unit.address + 24 + 16, 1 << 40), {"KHO-VTD-001"}),
]


@pytest.mark.parametrize(("name", "change", "codes"), CHANGES)
def test_each_change_is_found(
    name: str, change: Callable[[Changed], None], codes: set[str]
) -> None:
    changed = Changed(name)
    assert changed.codes() == set()
    change(changed)
    assert changed.codes() == codes


def test_every_vtd_code_is_tested() -> None:
    tested = {code for _, _, codes in CHANGES for code in codes}
    assert tested == {c for c in CODES if c.startswith("KHO-VTD")}


# -- SMMUv3: made tables, since no capture has both them and serialized objects -------------------


#: Tables of context descriptors: where, and of how many pages; the level-1 table first.
CDS = [(0x300000, 1), (0x310000, 16), (0x320000, 16)]


class SmmuImage:
    """The least of an Image that the check needs: state, memory, page size, moment."""

    def __init__(self, layout: str, *, descriptors: bool = False) -> None:
        self.memory = SparseMemory([(0, 1 << 24)], page_size=4096)
        self.generation = get("iommu", layout)
        self.page_size = 4096
        self.survey = Survey(self.memory, 4096)
        self.sid = 0x118
        l1, l2, self.table = 0x100000, 0x104000, 0x200000
        self.ste = l2 + 64 * (self.sid & 0xFF)
        pages = [0, l1, l2, self.table, 0x10000, 0x11000, 0x12000, 0x13000, 0x14000, 0x15000]
        for page in pages[1:]:
            self.memory.write(page, bytes(4096))
        self.memory.write(l2, bytes(64 * 256))
        self.memory.write(l1 + 8, (l2 | 9).to_bytes(8, "little"))
        ste = {
            "valid": 1, "config": 6, "s2vmid": 7, "s2t0sz": 64 - 44, "s2sl0": 2, "s2aa64": 1,
            "s2ttb": self.table >> 4,
        }  # fmt: skip
        self.memory.write(self.ste, smmuv3.stream_table_entry.build(ste))
        kinds = self.generation.arrays  # type: ignore[attr-defined]
        handle = self.allocation(0x14000, l1, 1)
        unit = {
            "hdr": {"ref_count": 1}, "token": 0x9050000, "type": 2,
            "smmuv3": {"strtab_base_cfg": 0x10210, "l1_strtab_lu_state": handle},
        }  # fmt: skip
        domain = {"hdr": {"ref_count": 1}, "top_table_phys": self.table, "top_level": 3, "vasz": 44}
        device = {
            "hdr": {"ref_count": 1}, "devid": self.sid,
            "domain_iommu_ser": {"attachment_id": 7, "domain_phys": 0x11010, "iommu_phys": 0x10010},
        }  # fmt: skip
        if descriptors:
            handles = [
                self.allocation(0x16000 + i * 0x1000, at, n) for i, (at, n) in enumerate(CDS)
            ]
            self.memory.write(0x15000, b"".join(h.to_bytes(8, "little") for h in handles[1:]))
            device["smmuv3"] = {
                "l1_cdtab_lu_state": handles[0], "num_l2_cdtables": 2,
                "l2_cdtab_lu_states_phys": 0x15000,
            }  # fmt: skip
        for page, kind, values in zip(
            (0x10000, 0x11000, 0x12000), kinds, (unit, domain, device), strict=True
        ):
            self.memory.write(page + 8, (1).to_bytes(8, "little") + kind.objects.build(values))
        flb = self.generation.flb  # type: ignore[attr-defined]
        root = {k.root: p for k, p in zip(kinds, (0x10000, 0x11000, 0x12000), strict=True)}
        if self.generation.version is not None:  # type: ignore[attr-defined]
            root["version"] = 1
        self.memory.write(0x13000, flb.build(root))

    def allocation(self, handle: int, at: int, pages: int) -> int:
        """A ``struct dma_alloc_ser``, of contiguous pages."""
        first = self.generation.id == "iommu-smmuv3-2026a"
        words = [at, pages << 12, 0, 0] if first else [0, pages]
        raw = b"".join(word.to_bytes(8, "little") for word in words)
        if not first:
            raw += b"\1\1" + at.to_bytes(8, "little")
        self.memory.write(handle, raw)
        return handle

    def codes(
        self, monkeypatch: pytest.MonkeyPatch, undecided: dict[str, str] | None = None
    ) -> set[str]:
        state = walk_iommu(Survey(self.memory, 4096), self.generation, 0x13000, "/flb")  # type: ignore[arg-type]
        monkeypatch.setattr(passthrough, "iommu_state", lambda _: state)
        self.moment = None
        image: Image = self  # type: ignore[assignment]
        return {f.code for f in cross_check(image, undecided).items}


@pytest.mark.parametrize("layout", ["iommu-smmuv3-2026a", "iommu-v4-version-field"])
def test_context_descriptors_are_the_devices(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SmmuImage(layout, descriptors=True)
    state = walk_iommu(Survey(made.memory, 4096), made.generation, 0x13000, "/flb")  # type: ignore[arg-type]
    assert state is not None
    monkeypatch.setattr(passthrough, "iommu_state", lambda _: state)
    made.survey = Survey(made.memory, 4096)
    claim_tables(made)  # type: ignore[arg-type]
    (device,) = state.devices
    claims = [c for c in made.survey.claims if c.owner == device.path]
    tables = {
        (int(a), int(n))
        for c in claims
        if c.kind == "device-table"
        for a, n in zip(c.starts, c.sizes, strict=True)
    }
    assert tables == {(at, pages << 12) for at, pages in CDS}
    structs = sorted(int(a) for c in claims if c.kind == "struct" for a in c.starts)
    assert structs == [0x15000, 0x16000, 0x17000, 0x18000]


@pytest.mark.parametrize("layout", ["iommu-smmuv3-2026a", "iommu-v4-version-field"])
def test_smmuv3(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SmmuImage(layout)
    assert made.codes(monkeypatch) == set()
    for offset, mask, code in (
        (0, 1, "KHO-SMM-002"),
        (24, 1 << 20, "KHO-SMM-003"),
        (16, 1, "KHO-SMM-004"),
        (16, 1 << 32, "KHO-SMM-005"),
        (0, 6 << 1, "KHO-SMM-002"),
        (0, 2 << 1, "KHO-SMM-003"),
        (0, 3 << 1, "KHO-SMM-003"),
        (16, 1 << 38, "KHO-SMM-007"),
        (16, 3 << 46, "KHO-SMM-007"),
        (40, 1, "KHO-SMM-008"),
    ):
        made = SmmuImage(layout)
        word = made.memory.u64(made.ste + offset) ^ mask
        made.memory.write(made.ste + offset, word.to_bytes(8, "little"))
        assert made.codes(monkeypatch) == {code}
    made = SmmuImage(layout)
    made.memory.exclude(0x14000, 4096)
    undecided: dict[str, str] = {}
    assert made.codes(monkeypatch, undecided) == set()
    assert undecided.keys() == {"KHO-SMM-001"}


@pytest.mark.parametrize("two_levels", [False, True])
def test_context_descriptors_that_the_dump_left_out(
    two_levels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which stage-1 table a stream has is not to be told then; one without any still is wrong."""
    made = SmmuImage("iommu-v4-version-field")
    stream = {"valid": 1, "config": 5, "s1_context": 0x30000 >> 6}
    if two_levels:
        made.memory.write(0x30000, (0x40000 | 1).to_bytes(8, "little"))
        stream |= {"s1fmt": 2, "s1cdmax": 12}
    else:
        made.memory.write(0x30000, bytes(4096))
    made.memory.write(made.ste, smmuv3.stream_table_entry.build(stream))
    if two_levels:
        made.memory.write(0x40000, bytes(4096))
    assert made.codes(monkeypatch) == {"KHO-SMM-003"}
    for page in (0x30000, 0x40000)[: 1 + two_levels]:
        left = SparseMemory.over(made.memory)
        left.exclude(page, 4096)
        whole, made.memory = made.memory, left
        undecided: dict[str, str] = {}
        assert made.codes(monkeypatch, undecided) == set()
        assert undecided.keys() == {"KHO-SMM-003"}
        made.memory = whole


@pytest.mark.parametrize(
    ("mask", "format"),
    [(0, "lpae-s2-4k"), (1 << 46, "lpae-s2-64k"), (2 << 46, "lpae-s2-16k"), (3 << 46, None)],
)
def test_the_granule_is_that_of_the_stream(
    mask: int, format: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SMMU without the granule of the kernel's pages is given a smaller one."""
    made = SmmuImage("iommu-v4-version-field")
    word = made.memory.u64(made.ste + 16) ^ mask
    made.memory.write(made.ste + 16, word.to_bytes(8, "little"))
    made.page_size = 0x10000
    made.codes(monkeypatch)
    state = passthrough.iommu_state(made)  # type: ignore[arg-type]
    assert state is not None
    root = DomainTables(made).root(state.domains[0])  # type: ignore[arg-type]
    assert root.format == (format or "lpae-s2-64k")
    assert (root.address, root.levels, root.input_bits) == (made.table, 4, 44)
