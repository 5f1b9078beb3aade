"""diff finds exactly what differs, and explains what a kernel always does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kho
from inspector import memory
from inspector.cli.app import app
from inspector.decode import decode
from inspector.diff import Diff, Kind, diff
from inspector.diff.columns import changed_blocks
from inspector.diff.contents import contents
from inspector.kernel import scenario
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind as SegmentKind
from inspector.memory.segments import Segment, from_segments
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import FolioColumns

CORPUS = Path(__file__).parents[2] / "corpus"
IMAGES = sorted(
    p for p in CORPUS.glob("*.elf.zst")
    if p.name.startswith(("linux-", "iommu-")) and "amdv1" not in p.name and "smmu" not in p.name
)  # fmt: skip


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_an_image_does_not_differ_from_itself(path: Path) -> None:
    with kho.open(path) as one, kho.open(path) as other:
        assert diff(one, other, contents=True).changes == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("linux-7.3.4-outgoing", "linux-7.3.4-handoff"),
        ("linux-7.3.4-outgoing", "linux-7.3.4-incoming"),
        ("linux-7.3.4-handoff", "linux-7.3.4-incoming"),
        ("linux-6.19.11-handoff", "linux-6.19.11-incoming_retrieved"),
        ("iommu-vw-legacy-handoff", "iommu-vw-legacy-incoming"),
    ],
)
def test_every_difference_of_one_update_is_explained(before: str, after: str) -> None:
    with (
        kho.open(CORPUS / f"{before}.elf.zst") as one,
        kho.open(CORPUS / f"{after}.elf.zst") as two,
    ):
        found = diff(one, two)
    assert found.changes
    assert [c for c in found.changes if not c.why] == []


def patch(image_path: Path, edits: list[tuple[int, bytes]]) -> object:
    overlay = SparseMemory.over(kho.open_memory(image_path))
    for address, data in edits:
        overlay.write(address, data)
    return kho.open(overlay)


def test_a_changed_field_is_found_and_nothing_else() -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        file = one.luo.sessions[1].files[0]
        other = patch(source, [(file.data, (77).to_bytes(8, "little"))])
        found = diff(one, other)
        other.close()
    assert [(c.kind, c.path, c.what, c.after) for c in found.changes] == [
        (Kind.CHANGED, "/LUO/sessions/db-cache/files/0xdeadbeefcafe0004", "memfd.pos", 77)
    ]


def test_a_renamed_session_is_one_gone_and_one_come() -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        address = one.luo.sessions[0].address
        other = patch(source, [(address, b"vm-omega".ljust(64, b"\0"))])
        found = diff(one, other)
        other.close()
    assert sorted((c.kind, c.what) for c in found.changes) == [
        (Kind.ADDED, "vm-omega"),
        (Kind.REMOVED, "vm-alpha"),
    ]


def test_content_is_compared_on_demand() -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        memfd = one.find("/LUO/sessions/vm-alpha/files/0x1111111100000004").object.state
        page = int(memfd.addresses[3])
        other = patch(source, [(page + 5, b"\xaa\xbb\xcc")])
        assert diff(one, other).changes == []
        found = diff(one, other, contents=True).changes
        other.close()
    assert len(found) == 1
    assert found[0].path == memfd.path
    assert "0x3005" in found[0].what


def test_what_is_missing_hides_no_difference_behind_it() -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        memfd = one.find("/LUO/sessions/vm-alpha/files/0x1111111100000004").object.state
        pages = [int(pa) for pa in memfd.addresses[:4]]
        with memory.open(source) as opened:
            overlay = SparseMemory.over(opened)
            overlay.write(pages[1] + 7, b"\xaa\xbb")
            overlay.exclude(pages[0], 4096)
            found = diff(one, decode(overlay), contents=True).changes
    assert [(c.path, c.what) for c in found] == [(memfd.path, "content from byte 0x1007 on")]


def test_a_hole_is_not_made_to_be_compared() -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        memfd = one.find("/LUO/sessions/vm-alpha/files/0x1111111100000004").object.state
        page = int(memfd.addresses[0])
    huge = (memfd.address + 8, (1 << 50).to_bytes(8, "little"))
    left, right = patch(source, [huge]), patch(source, [huge, (page, b"\xaa\xbb")])
    assert diff(left, left, contents=True).changes == []
    assert [c.what for c in diff(left, right, contents=True).changes] == [
        "content from byte 0x0 on"
    ]
    left.close()
    right.close()


@pytest.mark.parametrize("change", [None, 0, 0x3001, (1 << 45) - 1])
def test_known_zeros_are_compared_as_ranges(
    monkeypatch: pytest.MonkeyPatch, change: int | None
) -> None:
    """A folio of 32 TiB of zeros, of which one image stores a page of zeros and a byte."""
    read = 0

    class Counted(MappedMemory):
        def read(self, pa: int, size: int) -> bytes:
            nonlocal read
            read += size
            return super().read(pa, size)

    start, size = 1 << 45, 1 << 45
    pieces = [Segment(start, start + size - 1, SegmentKind.ZERO)]
    data = bytearray(8193)
    stored = [Segment(start + (1 << 30), start + (1 << 30) + 4095, SegmentKind.STORED, 0)]
    if change is not None:
        data[4096] = 7
        stored.append(Segment(start + change, start + change, SegmentKind.STORED, 4096))
    left = Counted(from_segments(pieces), memoryview(b""))
    right = Counted(from_segments(stored + pieces), memoryview(bytes(data)))
    frame = np.array([start >> 12], np.uint64)
    with kho.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as image:
        path = "/LUO/sessions/vm-alpha/files/0x1111111100000004"
        file = replace(
            image.find(path).object.state,
            size=size,
            folios=FolioColumns(frame, np.zeros(1, np.uint16), 0 * frame, None, complete=True),
            orders=np.array([33], np.uint8),
        )
        one, other = (replace(image, survey=Survey(m, 4096)) for m in (left, right))
        found = Diff()
        contents(found, path, (one, file), (other, file))
    wanted = [] if change is None else [f"content from byte {change:#x} on"]
    assert [c.what for c in found.changes] == wanted
    assert read <= 4096 + 1


def test_only_moves_are_hidden_with_addresses() -> None:
    """Not folios of another index or with other flags, nor the list that they are in."""
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as one:
        memfd = one.find("/LUO/sessions/vm-alpha/files/0x1111111100000004").object.state
        entry = int(memfd.vmalloc.blocks[0])
        word = one.memory.read(entry, 8)
        clean = int.from_bytes(word, "little") & ~(1 << 52)
        kho_data = one.root.candidate.handover.address
        other = patch(source, [(kho_data + 8, (1024).to_bytes(8, "little"))])
        assert [(c.path, c.what) for c in diff(one, other).changes] == [("/", "hand-over fdt_size")]
        other.close()
        cases = {
            (entry, clean.to_bytes(8, "little")): {"flags of 1 folios"},
            (entry + 8, (0x1000).to_bytes(8, "little")): {"1 folios"},
            (memfd.address + 44, b"\x41"): {"vmalloc flags"},
        }
        for change, wanted in cases.items():
            other = patch(source, [change])
            found = diff(one, other, addresses=False).changes
            other.close()
            assert {c.what for c in found} == wanted
            assert {c.path for c in found} == {memfd.path}


PAGE = 4096


def a_map(blocks: dict[int, int]) -> PreservedMap:
    starts = np.array(sorted(blocks), np.uint64)
    orders = np.array([blocks[int(s)] for s in starts], np.uint8)
    none = np.empty(0, np.uint64)
    return PreservedMap(PAGE, starts, np.ones(len(starts), np.uint64), orders, none, none)


@st.composite
def maps(draw: st.DrawFn) -> dict[int, int]:
    """Disjoint, aligned blocks in the first 64 pages."""
    blocks: dict[int, int] = {}
    page = 0
    while page < 64:
        order = draw(st.integers(0, 3))
        if page % (1 << order) == 0 and draw(st.booleans()):
            blocks[page * PAGE] = order
            page += 1 << order
        else:
            page += 1
    return blocks


@settings(max_examples=200, deadline=None)
@given(maps(), maps())
def test_changed_blocks_are_those_of_the_sets(one: dict[int, int], other: dict[int, int]) -> None:
    def pages(blocks: dict[int, int]) -> dict[int, int]:
        return {b + i * PAGE: o for b, o in blocks.items() for i in range(1 << o)}

    before, after = pages(one), pages(other)
    expected = {
        page: (before.get(page), after.get(page))
        for page in before.keys() | after.keys()
        if before.get(page) != after.get(page)
    }
    got = {}
    for kind, start, size, old, new in changed_blocks(a_map(one), a_map(other)):
        assert kind == (
            Kind.ADDED if old is None else Kind.REMOVED if new is None else Kind.CHANGED
        )
        for page in range(start, start + size, PAGE):
            got[page] = (old, new)
    assert got == expected


def test_mappings_of_domains_are_compared_as_ranges() -> None:
    """A leaf taken out of a real domain's table is exactly one range less."""
    from inspector.passthrough.domains import DomainTables
    from inspector.passthrough.mappings import chunks, named_domains

    source = CORPUS / "iommu-vw-small_legacy-handoff.elf.zst"
    with kho.open(source) as one:
        name, domain = next(iter(named_domains(one).items()))
        maps = next(chunks(DomainTables(one), domain))
        assert len(maps) > 100
        # The level 0 table that maps the first range: walk down by hand.
        iova, table = int(maps.iova[5]), domain.top_table_phys
        for level in range(domain.top_level, 0, -1):
            slot = iova >> (12 + 9 * level) & 511
            table = int.from_bytes(one.memory.read(table + 8 * slot, 8), "little") & ~0xFFF
        entry = table + 8 * (iova >> 12 & 511)
        other = patch(source, [(entry, bytes(8))])
        found = [c for c in diff(one, other).changes if "iova" in c.what]
        other.close()
    assert [(c.kind, c.path) for c in found] == [(Kind.REMOVED, name)]
    assert found[0].what == f"iova {iova:#x}, 4 KiB"


def test_what_a_consumer_writes() -> None:
    """An image against itself, after a simulated kernel has taken it over."""
    path = CORPUS / "iommu-vw-small_legacy-handoff.elf.zst"
    result = CliRunner().invoke(app, ["diff", str(path), "--consumed-by", "linux-7.3+iommu-vw"])
    assert result.exit_code == 1, result.output
    changed = [line for line in result.stdout.splitlines() if line.startswith("~")]
    assert any("/iommu/domains/0 restored_domain" in line for line in changed)
    assert any("reclaimed: 0 -> 1" in line for line in changed)
    assert all(line.endswith(")") for line in changed), "a change without its reason"


@pytest.mark.parametrize("kernel", ["linux-7.3", "linux-6.18"])
def test_a_consumer_that_writes_nothing(kernel: str) -> None:
    path = CORPUS / "linux-7.3.4-handoff.elf.zst"
    result = CliRunner().invoke(
        app, ["diff", str(path), "--consumed-by", kernel, "--format", "json"]
    )
    found = [c["path"] for c in json.loads(result.stdout)["changes"]]
    # What refuses the image, or takes it over without marks, leaves only the moment.
    assert found == (["/root"] if kernel == "linux-7.3" else [])


def test_one_image_alone_is_no_diff() -> None:
    path = str(CORPUS / "linux-7.3.4-handoff.elf.zst")
    for arguments in ([path], [path, path, "--consumed-by", "linux-7.3"]):
        assert CliRunner().invoke(app, ["diff", *arguments]).exit_code != 0


def test_paths_of_sessions_and_files_are_those_that_dump_takes() -> None:
    text = """
    kernel = "linux-7.3"
    [[session]]
    name = "a/b%"
    [[session.file]]
    token = 1
    size = "{size}"
    """
    one, other = (decode(scenario.parse(text.format(size=s)).run().memory) for s in ("4K", "12K"))
    found = diff(one, other)
    paths = {change.path for change in found.changes if change.path.startswith("/LUO/sessions")}
    assert paths
    for path in paths:
        assert other.find(path).object is not None
    assert ("memfd.size", 4096, 12288) in [(c.what, c.before, c.after) for c in found.changes]


def test_blocks_are_compared_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as all at once, overlapping runs included."""
    from inspector.diff import columns

    random = np.random.default_rng(5)

    def some(apart: bool) -> PreservedMap:
        counts = random.integers(1, 4, 40)
        starts = np.sort(random.integers(0, 150, 40)) * 4096
        if apart:
            starts = (np.cumsum(counts) - counts + np.cumsum(random.integers(0, 2, 40))) * 4096
        none = np.empty(0, np.uint64)
        orders = random.integers(0, 2, 40).astype(np.uint8) * (not apart)
        return PreservedMap(
            4096, starts.astype(np.uint64), counts.astype(np.uint64), orders.astype(np.uint8),
            none, none,
        )  # fmt: skip

    for apart in (True, False):
        for _ in range(20):
            one, other = some(apart), some(apart)
            monkeypatch.setattr(columns, "_WINDOW", 1 << 18)
            expected = list(changed_blocks(one, other))
            monkeypatch.setattr(columns, "_WINDOW", 3)
            assert list(changed_blocks(one, other)) == expected
            assert not list(changed_blocks(one, one))


def test_files_are_compared_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all entries of all files are there at once, and still each is compared."""
    from inspector.diff import objects

    text = SESSION.format(size="64K")
    one, other = (decode(scenario.parse(t).run().memory) for t in (text, text.replace("64", "68")))
    assert one.luo is not None
    made: list[int] = []
    monkeypatch.setattr(objects, "file_entry", lambda f, real=objects.file_entry: (
        made.append(f.token), real(f))[1])  # fmt: skip
    assert not diff(one, one).changes
    assert sorted(made) == sorted(2 * [f.token for s in one.luo.sessions for f in s.files])
    changed = [c for c in diff(one, other).changes if c.what == "memfd.size"]
    assert [(c.before, c.after) for c in changed] == [(64 << 10, 68 << 10)] * 3


SESSION = """
kernel = "linux-7.3"
[machine]
ram = ["256M"]
[[session]]
name = "vm"
[[session.file]]
token = 1
count = 3
size = "{size}"
"""
