"""Images that speak of far more than they hold: what is decoded of them has a limit."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi import registry
from abi.fdt import HEADER_SIZE
from abi.memory_map import RadixGeometry
from abi.schema import resolve
from inspector import detect
from inspector import image as images
from inspector import memory as containers
from inspector.budget import Budget, Cost, stored_bytes
from inspector.check import check
from inspector.evidence import Plausibility
from inspector.handlers.detect_kvm import detect_vm
from inspector.image import Image, MapState
from inspector.kernel import scenario
from inspector.memory.base import PageState, Region
from inspector.memory.elfcore import write_core
from inspector.memory.regions import Regions
from inspector.memory.sparse import SparseMemory
from inspector.passthrough.detect_iommu import detect_iommufd, domain_data_readings
from inspector.survey import MAX_HOLES, Survey
from inspector.walk import chain, clients, pci
from inspector.walk.preserved import walk_map
from inspector.walk.vmalloc import walk_vmalloc, word_columns

PAGE = 4096
CODE = "KHO-LST-010"

HEAD = """
kernel = "{kernel}"
[machine]
ram = ["256M"]
"""
MEMFDS = """
[[session]]
name = "vm"
[[session.file]]
token = 1
count = {count}
size = "64K"
"""


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


class Hostile:
    """A small image to be broken, with spare pages to put things in."""

    def __init__(self, text: str, kernel: str = "linux-7.3") -> None:
        made = scenario.parse(HEAD.format(kernel=kernel) + text).run()
        self.memory = SparseMemory.over(made.memory)
        with images.open(made.memory) as image:
            self.image = image
        self._spare = 64 << 20

    def pages(self, count: int) -> int:
        """The address of so many pages of nobody's."""
        free = np.uint64(self._spare) + np.arange(count, dtype=np.uint64) * np.uint64(PAGE)
        while (self.memory.states(free, PAGE) == PageState.PRESENT).any():
            free += np.uint64(PAGE)
        self._spare = int(free[0])
        self._spare += count * PAGE
        return self._spare - count * PAGE

    def put(self, content: bytes) -> int:
        address = self.pages(-(-len(content) // PAGE))
        self.memory.write(address, content)
        return address

    def vmalloc(self, blocks: list[int], order: int = 0) -> bytes:
        """A descriptor of an area that lists ``blocks``."""
        following = 0
        for at in range((len(blocks) - 1) // 511 * 511, -1, -511):
            following = self.put(words(following, *blocks[at : at + 511]))
        return struct.pack("<QIHH", following, (len(blocks) << order) & 0xFFFFFFFF, 1, order)

    def field(self, struct_name: str, member: str, state: Any) -> int:
        """Where a member of a file's struct lies."""
        layout = resolve(state.generation.layouts[struct_name], PAGE)
        return int(state.address) + layout.field(member).offset

    @contextmanager
    def open(self, path: Path, *overrides: str, zero: Any = ()) -> Iterator[Image]:
        """What is decoded of it, stored as a file."""
        write_core(path / "image.elf", self.memory, "x86_64", zero_ranges=zero)
        with (
            containers.open(path / "image.elf") as source,
            images.open(source, overrides=list(overrides)) as image,
        ):
            yield image


def given_up(image: Image) -> list[str]:
    """What was said of the budget, once of each kind; then the image counts as incomplete."""
    found = [f.message for f in image.findings if f.code == CODE]
    assert len(found) == len(set(found))
    assert bool(found) == bool(image.survey.given_up) <= image.incomplete
    return found


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of small images, so that hostile ones can be small too."""
    monkeypatch.setattr(Cost.ENTRIES, "least", 1 << 20)
    monkeypatch.setattr(Cost.RUNS, "least", 4096)
    monkeypatch.setattr(Cost.FILES, "least", 64)


def allowance(image: Image) -> int:
    return max(Cost.ENTRIES.least, stored_bytes(image.memory))


def read(image: Image) -> int:
    """Bytes of folio entries that were read."""
    return sum(16 * len(m.folios.pfn) for _, m in image.memfds())


def test_regions_are_summed_as_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SparseMemory([(0, 64 * PAGE), (1 << 40, 8 * PAGE)])
    for page in (0, 1, 5, 63):
        memory.write(page * PAGE, b"x")
    memory.mark_zero(1 << 40, 2 * PAGE)

    def listed(self: Regions) -> Iterator[Region]:
        raise AssertionError("regions are looked at one by one")

    monkeypatch.setattr(Regions, "__iter__", listed)
    assert stored_bytes(memory) == 6 * PAGE


# -- array entries ------------------------------------------------------------------------------


def test_sound_images_are_within_it(tmp_path: Path) -> None:
    with Hostile(MEMFDS.format(count=40)).open(tmp_path) as image:
        assert not given_up(image)
        assert all(m.folios.complete for _, m in image.memfds())


@pytest.mark.parametrize("zero", [(), [(1 << 40, 1 << 44)]])
def test_a_file_of_any_number_of_folios(tmp_path: Path, zero: Any) -> None:
    """A note can make any memory present and zero: it holds nothing all the same."""
    hostile = Hostile(MEMFDS.format(count=1))
    _, memfd = next(hostile.image.memfds())
    at = hostile.field("memfd_luo_ser", "folios", memfd)
    hostile.memory.write(at, hostile.vmalloc([(1 << 40) + (i << 32) for i in range(511)], 20))
    hostile.memory.write(hostile.field("memfd_luo_ser", "nr_folios", memfd), words(1 << 62))
    with hostile.open(tmp_path, zero=zero) as image:
        assert given_up(image)
        assert read(image) <= allowance(image)
        report = check(image)
        assert "KHO-MFD-005" in report.undecided
        assert CODE in {f.code for f in report.findings}


@pytest.mark.parametrize("count", [3, 60])
def test_files_that_share_their_entries(tmp_path: Path, count: int) -> None:
    """Of few files and of many, which are read together."""
    hostile = Hostile(MEMFDS.format(count=count))
    folios = np.arange(1, 1 << 10, dtype="<u8").repeat(2).tobytes()
    start = hostile.put(folios.ljust(4 * PAGE, b"\0"))
    blocks = [start + i * PAGE for i in range(4)] * 100
    for _, memfd in hostile.image.memfds():
        at = hostile.field("memfd_luo_ser", "folios", memfd)
        hostile.memory.write(at, hostile.vmalloc(blocks))
        hostile.memory.write(hostile.field("memfd_luo_ser", "nr_folios", memfd), words(400 * 256))
    with hostile.open(tmp_path) as image:
        assert given_up(image)
        assert len(list(image.memfds())) == count
        assert 0 < read(image) <= allowance(image)


def test_a_self_test_that_lists_one_page_again_and_again(tmp_path: Path) -> None:
    hostile = Hostile("[kho_test]\npages = 1\nmax_order = 0\n")
    test = hostile.image.kho_test
    assert test is not None
    raw = hostile.memory.read(test.address, PAGE)
    again = hostile.vmalloc([hostile.put(words(*[1 << 20] * 512))] * 4000)
    old = raw.index(struct.pack("<QI", test.vmalloc.first, test.vmalloc.total_pages))
    hostile.memory.write(test.address + old, again)
    name = raw.index(b"\0\0\0\4", raw.index(b"data\0"))
    hostile.memory.write(test.address + name + 8, struct.pack("<I", 4000 * 512))
    with hostile.open(tmp_path) as image:
        assert image.kho_test is not None
        assert image.kho_test.nr_folios == 4000 * 512
        assert given_up(image)
        assert 8 * len(image.kho_test.folios) <= allowance(image)


def test_missing_pages_cost_little_and_something() -> None:
    survey = Survey(SparseMemory([(0, 1 << 20)], page_size=PAGE), PAGE)
    survey.memory.write(0x1000, words(0, *(1 << 40 | i << 32 for i in range(8))))  # type: ignore[attr-defined]
    survey.budget.least = {Cost.ENTRIES: 1 << 34}
    area = {"first": 0x1000, "total_pages": 8 << 20, "flags": 1, "order": 20}
    rows, complete = word_columns(survey, walk_vmalloc(survey, area, "/a"), 1, 1 << 30, "/a")
    pages = (1 << 33) // PAGE
    assert (len(rows), complete) == (0, False)
    assert len(survey.holes) == MAX_HOLES
    assert survey.findings.suppressed["KHO-MEM-002"] == pages - survey.findings.per_code
    assert survey.budget.room(Cost.ENTRIES, 1 << 40, survey.memory) == (1 << 34) - 16 * pages


# -- arrays behind their header -----------------------------------------------------------------

IOMMUFDS = """
[[machine.iommu]]
base = 0xfed90000
[[session]]
name = "vm"
[[session.file]]
type = "iommufd"
token = 1
id = "a"
count = {count}
"""


def retarget(hostile: Hostile, data: Callable[[int], int]) -> None:
    """Let every file have other data."""
    luo = hostile.image.luo
    assert luo is not None
    layout = resolve(luo.generation.layouts["luo_file_ser"], PAGE)
    for number, (_, file) in enumerate(luo.files()):
        hostile.memory.write(file.address + layout.field("data").offset, words(data(number)))


def array(rows: int, width: int) -> bytes:
    table = np.zeros((rows, width), "<u8")
    table[:, 0] = np.arange(1, rows + 1, dtype=np.uint64) * PAGE
    table[:, 1 % width] += np.arange(rows, dtype=np.uint64)
    return table.tobytes()


def test_iommufds_that_share_their_hwpts(tmp_path: Path) -> None:
    hostile = Hostile(IOMMUFDS.format(count=40), "linux-7.3+iommu-vw")
    shared = hostile.put(words(20000) + array(20000, 3))
    retarget(hostile, lambda _: shared)
    with hostile.open(tmp_path, "iommufd=iommufd-24") as image:
        assert image.luo is not None
        states = [f.state for _, f in image.luo.files()]
        assert given_up(image)
        held = sum(s.records.nbytes for s in states if s is not None)
        assert 0 < held <= allowance(image)
        assert "KHO-IFD-001" in image.survey.undecided
        # Trials have a small budget of their own; what it does not allow speaks against nothing.
        anchors = domain_data_readings(image.survey, [shared] * 40)
        assert sum(len(c) * 24 for c in anchors.domain_data) <= 3 * (8 << 20)
        likely = Plausibility(image.memory, PAGE, None)
        verdict = detect_iommufd(image.survey, likely, "iommufd-v1", [shared] * 40, None)
        assert verdict.generation is not None
        assert verdict.generation.id == "iommufd-24"
        counted = "as many HWPTs as counted"
        assert not [v for v in verdict.candidates[0].violations if counted in v]


def test_a_count_that_no_block_has_room_for(tmp_path: Path) -> None:
    hostile = Hostile(IOMMUFDS.format(count=1), "linux-7.3+iommu-vw")
    shared = hostile.put(words((1 << 64) - 1) + array(1 << 19, 1) + bytes(1 << 20))
    retarget(hostile, lambda _: shared)
    with hostile.open(tmp_path, "iommufd=iommufd-24") as image:
        assert image.luo is not None
        [(_, file)] = image.luo.files()
        assert file.state.records.nbytes <= 4 << 20
        assert "KHO-IFD-001" in {f.code for f in image.findings}


def test_machines_whose_lists_overlap(tmp_path: Path) -> None:
    """Lists that begin eight bytes apart are different lists."""
    hostile = Hostile(
        '[[session]]\nname = "vm"\n[[session.file]]\ntype = "kvm-vm"\ntoken = 1\ncount = 60\n',
        "linux-7.3+guest-memfd+kvm=kvm-vm-v1-minimal",
    )
    rows = hostile.put(np.full(1 << 15, 20000, "<u8").tobytes())
    structs = [hostile.put(words(0, rows + 8 * i)) for i in range(60)]
    retarget(hostile, lambda number: structs[number])
    with hostile.open(tmp_path, "kvm=kvm-caretaker") as image:
        assert image.luo is not None
        states = [f.state for _, f in image.luo.files()]
        assert given_up(image)
        assert sum(8 * len(s.folios.folios) for s in states if s.folios) <= allowance(image)
        # What trials look at has a limit of its own, all machines together.
        before = len(image.survey.looked)
        detect_vm(image.survey, Plausibility(image.memory, PAGE, None), structs)
        looked = image.survey.looked[before:]
        assert sum(8 * len(c.starts) for c in looked if c.kind == "folio") <= 3 * (8 << 20)


def test_pci_slots_beyond_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "MAX_SLOTS", 1000)
    memory = SparseMemory([(0, 1 << 20)], page_size=PAGE)
    memory.write(0x1000, words(1 << 63, 1 << 63) * 4000)
    seen = 0
    for generation in registry.generations("pci"):
        survey = Survey(memory, PAGE)
        state = pci.walk_pci(survey, generation, 0x1000, "/pci")  # type: ignore[arg-type]
        assert state is not None
        assert len(state.records) <= 1000
        codes = {f.code for f in survey.findings.items}
        seen += "KHO-PCI-005" in codes
    assert seen


# -- sessions and files -------------------------------------------------------------------------


def file_blocks(hostile: Hostile, count: int, data: int) -> int:
    entry = b"memfd-v2".ljust(48, b"\0")
    following = 0
    for at in range((count - 1) // 63 * 63, -1, -63):
        rows = [entry + words(data, i) for i in range(at, min(at + 63, count))]
        following = hostile.put(words(following, len(rows)) + b"".join(rows))
    return following


def session_blocks(hostile: Hostile, sessions: list[tuple[int, int]]) -> None:
    luo = hostile.image.luo
    assert luo is not None
    entries = [(b"s%d" % i).ljust(64, b"\0") + words(*s) for i, s in enumerate(sessions)]
    following = 0
    for at in range((len(entries) - 1) // 50 * 50, -1, -50):
        rows = entries[at : at + 50]
        following = hostile.put(words(following, len(rows)) + b"".join(rows))
    layout = resolve(luo.generation.layouts["luo_ser"], PAGE)
    hostile.memory.write(luo.address + layout.field("sessions_pa").offset, words(following))


def test_files_without_number(tmp_path: Path) -> None:
    hostile = Hostile(MEMFDS.format(count=1))
    _, memfd = next(hostile.image.memfds())
    session_blocks(hostile, [(file_blocks(hostile, 500, memfd.address), 500) for _ in range(2)])
    with hostile.open(tmp_path) as image:
        assert image.luo is not None
        # The stored bytes allow a few more than the least.
        most = max(64, stored_bytes(image.memory) // 4096)
        assert len(image.luo.sessions) + len(list(image.luo.files())) == most
        assert [s.complete for s in image.luo.sessions] == [False, False]
        assert given_up(image) == [
            "more sessions and files than an image of this size can have: the rest is not read"
        ]


def test_sessions_that_share_a_block_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cost.FILES, "least", 1 << 17)
    hostile = Hostile(MEMFDS.format(count=1))
    _, memfd = next(hostile.image.memfds())
    block = file_blocks(hostile, 3, memfd.address)
    session_blocks(hostile, [(block, 3)] * 400)
    read: list[str] = []
    once = chain.counted_entries

    def counted(survey: Survey, pages: Any, header: Any, entry: Any, path: str, what: str) -> Any:
        read.append(path)
        return once(survey, pages, header, entry, path, what)

    monkeypatch.setattr(chain, "counted_entries", counted)
    with hostile.open(tmp_path) as image:
        assert image.luo is not None
        assert len(image.luo.sessions) == 400
        assert [len(s.files) for s in image.luo.sessions] == [3] + [0] * 399
        assert not any(s.complete for s in image.luo.sessions[1:])
        assert read == ["/LUO/sessions", "/LUO/sessions/s0/files"]


# -- blobs --------------------------------------------------------------------------------------


def test_blobs_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is decoded, as libfdt finds it."""
    hostile = Hostile('[[reserve_mem]]\nname = "trace"\nsize = "64K"\n')
    root = hostile.image.root
    raw = hostile.memory.read(root.address, PAGE)
    total, structs = struct.unpack(">II", raw[4:12])
    size = struct.unpack(">I", raw[36:40])[0]
    begin = raw.index(b"\0\0\0\1memblock\0", structs)
    end = raw.index(b"\0\0\0\2", begin) + 4
    node = raw[begin:end]
    more = raw[structs : structs + size - 8] + node * 20 + raw[structs + size - 8 :][:8]
    strings = struct.unpack(">I", raw[12:16])[0]
    tail = raw[strings:total]
    header = bytearray(raw[:structs])
    header[4:8] = struct.pack(">I", structs + len(more) + len(tail))
    header[12:16] = struct.pack(">I", structs + len(more))
    header[36:40] = struct.pack(">I", len(more))
    assert structs >= HEADER_SIZE
    hostile.memory.write(root.address, (bytes(header) + more + tail).ljust(PAGE, b"\0"))
    walked: list[str] = []
    walk = clients.walk_reserve_mem

    def once(survey: Survey, blob: clients.Blob, data: bytes) -> Any:
        walked.append(blob.path)
        return walk(survey, blob, data)

    monkeypatch.setattr(clients, "walk_reserve_mem", once)
    with images.open(hostile.memory) as image:
        assert walked == ["/memblock"]
        assert image.reserve_mem is not None
        assert [r.name for r in image.reserve_mem] == [b"trace"]
        assert [f.code for f in image.findings].count("KHO-ROOT-009") == 20


# -- the preserved-memory map -------------------------------------------------------------------


def dense(hostile: Hostile, leaves: int) -> None:
    """Make a radix tree whose leaves change from bit to bit."""
    shape = RadixGeometry(PAGE)
    for number in range(leaves):
        key = shape.key((number + 64) << 27, 0)
        at = hostile.image.root.map_address
        assert at is not None
        for level in range(shape.depth - 1, 0, -1):
            slot = at + 8 * shape.index(key, level)
            if not hostile.memory.u64(slot):
                hostile.memory.write(
                    slot, words(hostile.put(b"\x55" * PAGE * (level == 1) or b"\0"))
                )
            at = hostile.memory.u64(slot)


def test_a_map_of_single_pages(tmp_path: Path) -> None:
    hostile = Hostile(MEMFDS.format(count=1))
    dense(hostile, 40)
    with hostile.open(tmp_path) as image:
        assert given_up(image)
        assert image.preserved is not None
        most = max(Cost.RUNS.least, stored_bytes(image.memory) // 16)
        assert 0 < len(image.preserved.starts) <= most
        assert (image.preserved.missing, image.preserved.problems) == (1, {})
        assert image.map_state is MapState.INCOMPLETE
        undecided = check(image).undecided
        assert undecided["KHO-MEM-010"] == "not all of the map is read"
        assert "KHO-MEM-012" in undecided


def test_trials_do_not_keep_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial has dropped is read again."""
    monkeypatch.setattr(Cost.RUNS, "least", 1 << 24)
    monkeypatch.setattr(detect, "_MOST_KEPT", 1000)
    hostile = Hostile(MEMFDS.format(count=1))
    dense(hostile, 1)
    with images.open(hostile.memory) as image:
        trial = image.root.verdict.trial
        assert trial is not None
        assert len(trial.preserved.starts) > 16000
        small = trial.small()
        assert (small.dropped, len(small.preserved.starts)) == (True, 0)
        assert small.preserved.nodes is trial.preserved.nodes
        assert image.preserved is not None
        assert len(image.preserved.starts) == len(trial.preserved.starts)
        known = detect.detect_kho(image.memory, image.root.tree.root, image.root.candidate)
        assert known.trial is not None
        assert len(known.trial.preserved.starts) == len(trial.preserved.starts)


def test_bitmap_chunks_of_single_pages() -> None:
    from abi import registry

    memory = SparseMemory([(0, 1 << 20)], page_size=PAGE)
    pairs = b"".join(words(i << 27, (i + 2) * PAGE) for i in range(4))
    memory.write(PAGE, struct.pack("<QII", 0, 0, 4) + pairs)
    memory.write(2 * PAGE, b"\x55" * 4 * PAGE)
    survey = Survey(memory, PAGE)
    generation: Any = registry.get("kho", "kho-v1-bitmap-page")
    whole = walk_map(Survey(memory, PAGE, budget=Budget({Cost.RUNS: 1 << 20})), generation, PAGE)
    assert (len(whole.starts), whole.missing) == (4 << 14, 0)
    survey.budget.least = {Cost.RUNS: 1 << 10}
    cut = walk_map(survey, generation, PAGE)
    assert (len(cut.starts), cut.missing, survey.given_up) == (0, 1, 1)
    survey = Survey(memory, PAGE, budget=Budget({Cost.RUNS: 3 << 14}))
    assert len(walk_map(survey, generation, PAGE).starts) == 3 << 14


# -- the budget itself --------------------------------------------------------------------------


def test_stored_bytes_are_counted_once(tmp_path: Path) -> None:
    """However many addresses lead to them; memory known to be zero does not count."""
    path = tmp_path / "image.elf"
    write_core(path, [(0x10000, b"\1" * 3 * PAGE)], "x86_64", zero_ranges=[(1 << 30, 1 << 40)])
    with containers.open(path) as plain:
        assert stored_bytes(plain) == 3 * PAGE
    raw = bytearray(path.read_bytes())
    at, count = struct.unpack_from("<Q", raw, 32)[0], struct.unpack_from("<H", raw, 56)[0]
    headers = [bytes(raw[at + 56 * i :][:56]) for i in range(count)]
    load = next(h for h in headers if h[:4] == b"\1\0\0\0")
    offset = struct.unpack_from("<Q", load, 8)[0]
    for i in range(20):  # the second page and what follows, again and again
        moved = struct.pack("<QQQQQQ", offset + PAGE, 0, (i + 1) << 32, 2 * PAGE, 2 * PAGE, PAGE)
        headers.append(load[:8] + moved)
    raw[32:40], raw[56:58] = struct.pack("<Q", len(raw)), struct.pack("<H", len(headers))
    (tmp_path / "aliases.elf").write_bytes(bytes(raw) + b"".join(headers))
    with containers.open(tmp_path / "aliases.elf") as aliased:
        present = sum(r.size for r in aliased.regions if r.state is PageState.PRESENT)
        assert present > 20 * 2 * PAGE
        assert stored_bytes(aliased) == 3 * PAGE


def test_large_images_have_large_budgets() -> None:
    memory = SparseMemory([(0, 1 << 40)], page_size=PAGE)
    memory.mark_zero(0, 1 << 40)
    budget = Budget()
    assert budget.room(Cost.ENTRIES, 1 << 36, memory) == 1 << 36
    budget.spend(Cost.ENTRIES, 1 << 36)
    assert budget.room(Cost.ENTRIES, 1 << 41, memory) == (1 << 40) - (1 << 36)
    assert Budget({Cost.ENTRIES: 100}).room(Cost.ENTRIES, 1 << 41, memory) == 100
