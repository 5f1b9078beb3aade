"""Whole images with files of development handlers: hand-made ones, and simulated ones.

The hand-made ones are put together from bytes that no declaration of the project wrote; the
Kaitai parsers read all of them too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hand_made as by_hand
import pytest
from hand_made import PAGE, HandMade
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kho
from abi.errors import IncompleteError
from inspector import check as checks
from inspector import compat, content, diff, extract, tree
from inspector.check.rule import Report
from inspector.cli.app import app
from inspector.document import document
from inspector.findings import Outcome, Severity
from inspector.image import Image
from inspector.image import open as open_image
from inspector.kernel import scenario
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.kvm import GuestMemfd, KvmVcpu, KvmVm
from inspector.kernel.outgoing.memfd import pattern_bytes
from inspector.kernel.outgoing.tmpfs import TmpfsMount
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.profile_file import find as find_target
from inspector.memory.sparse import SparseMemory
from specs import HugetlbLuo, KvmLuo
from specs.follow import Follower
from specs.handlers import FolioFile, Plain
from specs.reader import ImageReader, Layouts

SCENARIOS = ("guest-memfd", "kvm-caretaker")
VM, VCPU, GMEM = "kvm_vm_luo_v1", "kvm_vcpu_luo_v1", "guest_memfd_luo_v1"


def codes(image: Image) -> list[str]:
    return sorted({f.code for f in image.findings})


def checked(image: Image) -> Report:
    return checks.check(image)


def found(report: Report, at_least: Severity = Severity.INFO) -> set[str]:
    return {f.code for f in report.findings if f.severity >= at_least}


def state(image: Image, path: str) -> Any:
    return image.find(f"/LUO/sessions/{path}").object.state


# -- the layout of machines ---------------------------------------------------------------------


def of_machines(*structs: bytes, vcpus: int = 0) -> Image:
    """An image with such machines, each its own session's file 1."""
    made = HandMade()
    for i, raw in enumerate(structs):
        made.file(f"vm{i}", 1, VM, made.block(raw))
    for i in range(vcpus):
        data = by_hand.vcpu(i, 0, 1, made.block(b"registers"), 0)
        made.file("vm0", 0x10 + i, VCPU, made.block(data))
    return open_image(made.image().memory)


def with_attributes(made: HandMade, count: int) -> bytes:
    rows = b"".join(struct.pack("<QQ", 0x100 + i, 8) for i in range(count))
    return by_hand.vm_with_attributes(0, count, made.vmalloc(rows))


@pytest.mark.parametrize("count", [1, 256, 257])
def test_attributes_tell_the_form(count: int) -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(with_attributes(made, count)))
    made.file("vm", 2, VM, made.block(by_hand.vm_minimal(5)))
    image = open_image(made.image().memory)
    verdict = image.verdicts["kvm"]
    assert verdict.generation is not None
    assert verdict.generation.id == "kvm-guest-memfd-v1"
    assert verdict.certain
    assert state(image, "vm/files/1").attributes.count == count
    # One kernel wrote both: the second has the same form, without attributes.
    assert state(image, "vm/files/2").attributes.count == 0
    assert checked(image).findings == ()


def test_a_list_of_folios_tells_the_form() -> None:
    made = HandMade()
    own = [made.block(b"x"), made.block(b"y", order=3)]
    listed = made.block(by_hand.folio_list(own))
    made.file("vm", 1, VM, made.block(by_hand.vm_with_folios(1, listed)))
    image = open_image(made.image().memory)
    assert image.verdicts["kvm"].certain
    assert image.verdicts["kvm"].generation.id == "kvm-caretaker"  # type: ignore[union-attr]
    vm = state(image, "vm/files/1")
    assert vm.folios.folios.tolist() == own
    assert vm.folios.sizes.tolist() == [PAGE, PAGE << 3]
    report = checked(image)
    assert report.findings == ()
    assert report.ownership.leaked == 0


def test_a_machine_with_nothing_is_a_tie() -> None:
    image = of_machines(by_hand.vm_minimal(1), by_hand.vm_minimal(2))
    verdict = image.verdicts["kvm"]
    assert verdict.generation is not None
    assert verdict.generation.id == "kvm-vm-v1-minimal"
    assert {g.id for g in verdict.tied} == {"kvm-guest-memfd-v1", "kvm-caretaker"}
    assert codes(image) == ["KHO-GEN-001"]
    assert state(image, "vm0/files/1").type == 1


def test_vcpus_break_the_tie() -> None:
    image = of_machines(by_hand.vm_minimal(1), vcpus=2)
    verdict = image.verdicts["kvm"]
    assert verdict.certain
    assert verdict.generation is not None
    assert verdict.generation.id == "kvm-caretaker"
    vm = state(image, "vm0/files/1")
    assert vm.vcpus == [f"/LUO/sessions/vm0/files/{t:#x}" for t in (0x10, 0x11)]
    assert checked(image).findings == ()


@pytest.mark.parametrize(
    ("asked", "attributes", "folios"),
    [
        ("kvm-vm-v1-minimal", False, None),
        ("kvm-guest-memfd-v1", True, None),
        ("kvm-caretaker", False, 0),
    ],
)
def test_a_form_can_be_asked_for(asked: str, attributes: bool, folios: int | None) -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(by_hand.vm_minimal(1)))
    image = open_image(made.image().memory, overrides=[f"kvm={asked}"])
    assert image.verdicts["kvm"].how == "override"
    vm = state(image, "vm/files/1")
    assert vm.generation.id == asked
    assert (vm.attributes is not None, vm.folios_pa) == (attributes, folios)


def test_no_form_fits() -> None:
    """Bytes behind the longest form: the finding says so, and the least bad is shown."""
    image = of_machines(struct.pack("<8Q", 1, 2, 3, 4, 5, 6, 7, 8))
    assert "KHO-GEN-002" in codes(image)
    assert state(image, "vm0/files/1") is not None


# -- tokens -------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_session() -> None:
    made = HandMade()
    for session in ("a", "b"):
        made.file(session, 7, VM, made.block(by_hand.vm_minimal(1)))
    block = made.block(b"content")
    area = made.vmalloc(by_hand.folios([(block // PAGE, 1, 0)]))
    made.file("b", 9, GMEM, made.block(by_hand.guest_memfd(PAGE, 1, 1, 7, area)))
    made.file("b", 10, GMEM, made.block(by_hand.guest_memfd(PAGE, 0, 0, 8, by_hand.EMPTY)))
    made.file("b", 11, GMEM, made.block(by_hand.guest_memfd(PAGE, 0, 0, 9, by_hand.EMPTY)))
    image = open_image(made.image().memory)
    assert state(image, "b/files/9").vm == "/LUO/sessions/b/files/0x7"
    assert state(image, "b/files/7").memory == ["/LUO/sessions/b/files/0x9"]
    assert state(image, "a/files/7").memory == []
    wrong = {f.path: f.message for f in image.findings if f.code == "KHO-KVM-020"}
    assert wrong == {
        "/LUO/sessions/b/files/0xa": "vm_token 0x8 names no file of the session",
        "/LUO/sessions/b/files/0xb": (
            "vm_token 0x9 names /LUO/sessions/b/files/0x9, which is no virtual machine"
        ),
    }
    text = "\n".join(tree.render(image.find("/LUO/sessions/b")))
    assert "memory 0x9" in text
    assert "vm 0x7" in text
    assert "vm 0x8?" in text


def test_one_vcpu_twice() -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(by_hand.vm_minimal(1)))
    for token in (2, 3):
        raw = by_hand.vcpu(0, 0, 1, made.block(b"registers"), 0)
        made.file("vm", token, VCPU, made.block(raw))
    report = checked(open_image(made.image().memory))
    assert found(report) == {"KHO-KVM-016"}
    assert report.findings[0].path == "/LUO/sessions/vm/files/0x3"


# -- huge pages ---------------------------------------------------------------------------------


def huge(states: list[tuple[int, int]] | None, order: int, block_order: int) -> Report:
    made = HandMade()
    if states is not None:
        made.flb("hugetlb-v1", made.block(by_hand.pools(states)))
    pages = [made.block(b"h", block_order) for _ in range(2)]
    area = made.vmalloc(by_hand.folios((pa // PAGE, 0, i) for i, pa in enumerate(pages)))
    size = 2 * (PAGE << order)
    data = made.block(by_hand.huge_memfd(size, 0, 2, area, order))
    made.file("s", 1, "huge-memfd-v1", data)
    return checked(open_image(made.image().memory))


def test_huge_pages_and_their_pool() -> None:
    report = huge([(2, 3), (7, 4)], 3, 3)
    assert found(report) == set()
    assert report.ownership.leaked == report.ownership.slack == 0
    assert found(huge([(2, 4)], 3, 3)) == {"KHO-HTL-007"}
    assert found(huge([(1, 3)], 3, 3)) == {"KHO-HTL-008"}
    assert found(huge(None, 3, 3)) == {"KHO-HTL-007"}
    assert "KHO-HTL-006" in found(huge([(2, 3)], 3, 4))
    # A smaller block: half of what the file says is the file's is not preserved.
    assert {"KHO-HTL-006", "KHO-MEM-010"} <= found(huge([(2, 3)], 3, 2))


def test_an_flb_with_too_few_users() -> None:
    made = HandMade()
    made.flb("hugetlb-v1", made.block(by_hand.pools([(4, 3)])), users=1)
    for token in (1, 2):
        data = made.block(by_hand.huge_memfd(0, 0, 0, by_hand.EMPTY, 3))
        made.file("s", token, "huge-memfd-v1", data)
    assert "KHO-LUO-018" in found(checked(open_image(made.image().memory)))


def test_pools_of_the_first_form() -> None:
    made = HandMade()
    pages = [made.block(b"h", 4) for _ in range(5)]
    listed = b"".join(struct.pack("<Q", pa // PAGE | (i > 2) << 52) for i, pa in enumerate(pages))
    made.flb("hugetlb", made.block(by_hand.early_pools([(5, 4, made.vmalloc(listed))])))
    image = open_image(made.image().memory)
    report = checked(image)
    assert found(report, Severity.WARNING) == set()
    assert report.ownership.leaked == 0
    assert image.verdicts["hugetlb"].generation.id == "hugetlb-early"  # type: ignore[union-attr]
    flb = document(image)["luo"]["flbs"][0]["hugetlb"]
    assert [(p["order"], p["nr_pages"], p["free"]) for p in flb["pools"]] == [(4, 5, 2)]
    node = image.find("/LUO/flbs/hugetlb/0/4")
    assert node.facts == [("address", f"{pages[4]:#x}"), ("page", "free")]
    assert b"".join(content.read(image, node))[:2] == b"h\0"


# -- content ------------------------------------------------------------------------------------


def test_content_of_guest_memory_with_holes() -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(by_hand.vm_minimal(1)))
    first, second = made.block(b"a" * PAGE), made.block(b"b" * (PAGE << 2), order=2)
    area = made.vmalloc(by_hand.folios([(first // PAGE, 1, 1), (second // PAGE, 1, 4)]))
    raw = by_hand.guest_memfd(7 * PAGE, 0, 2, 1, area)
    made.file("vm", 2, GMEM, made.block(raw))
    image = open_image(made.image().memory)
    data = b"".join(content.read(image, image.find("/LUO/sessions/vm/files/2")))
    assert data == bytes(PAGE) + b"a" * PAGE + bytes(2 * PAGE) + b"b" * (3 * PAGE)
    assert checked(image).ownership.leaked == 0


def test_without_the_map_sizes_of_guest_folios_are_not_known() -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(by_hand.vm_minimal(1)))
    second = made.block(b"b" * (PAGE << 2), order=2)
    area = made.vmalloc(by_hand.folios([(second // PAGE, 1, 4)]))
    made.file("vm", 2, GMEM, made.block(by_hand.guest_memfd(8 * PAGE, 0, 1, 1, area)))
    image = open_image(made.image().memory)
    file = state(image, "vm/files/2")
    from inspector.walk.folio_file import sparse_orders

    assert file.sized
    assert sparse_orders(file, None).tolist() == [0]
    assert not file.sized
    node = image.find("/LUO/sessions/vm/files/2")
    with pytest.raises(IncompleteError, match="how large folios are"):
        list(content.read(image, node))
    assert len(b"".join(content.read(image, node, fill_missing=True))) == 8 * PAGE


# -- scenarios ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SCENARIOS)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Image]]:
    image = scenario.load(request.param).run()
    with open_image(image.memory) as decoded:
        yield image, decoded


def test_scenarios_decode_to_what_they_ask_for(made: tuple[Any, Image]) -> None:
    image, decoded = made
    kinds = set()
    luo = image.kernel.luo
    assert decoded.luo is not None
    for session, theirs in zip(luo.sessions, decoded.luo.sessions, strict=True):
        tokens = {id(p.file): p.token for p in session.files.values()}
        for entry, file in zip(session.files.values(), theirs.files, strict=True):
            kinds.add(type(entry.file))
            compare(entry.file, file.state, tokens)
    wanted = {GuestMemfd, KvmVm, HugeMemfd, TmpfsMount} if len(luo.sessions) > 1 else {
        GuestMemfd, KvmVm, KvmVcpu,
    }  # fmt: skip
    assert wanted <= kinds


def compare(asked: Any, seen: Any, tokens: dict[int, int]) -> None:
    """One file that the kernel had, and what was decoded of it."""
    if isinstance(asked, (GuestMemfd, HugeMemfd)):
        frames = [f for extent in asked.extents for f in extent.frames.tolist()]
        assert (seen.size, seen.folios.pfn.tolist()) == (asked.size, frames)
        shift = asked.machine.page_shift
        indices = [
            extent.index + (i << extent.order)
            for extent in asked.extents
            for i in range(len(extent.frames))
        ]
        assert seen.offsets.tolist() == [index << shift for index in indices]
    if isinstance(asked, GuestMemfd):
        assert (seen.flags, seen.vm_token) == (asked.flags, tokens[id(asked.vm)])
        assert seen.uptodate == seen.nr_folios - asked.stale
    elif isinstance(asked, HugeMemfd):
        assert (seen.order, seen.pos) == (asked.pool.order, asked.pos)
    elif isinstance(asked, KvmVm):
        assert seen.type == asked.type
        if seen.attributes is not None:
            runs = zip(*(column.tolist() for column in seen.attributes.runs()), strict=True)
            assert list(runs) == [(a.gfn, a.frames, a.attributes) for a in asked.attributes]
        if seen.folios is not None:
            shift = asked.machine.page_shift
            pairs = zip(seen.folios.folios.tolist(), seen.folios.sizes.tolist(), strict=True)
            assert list(pairs) == [(f << shift, PAGE << order) for f, order in asked.folios]
    elif isinstance(asked, KvmVcpu):
        assert (seen.vcpu_id, seen.vm_token) == (asked.vcpu_id, tokens[id(asked.vm)])
        assert (seen.control is not None) == (asked.control is not None)
        if asked.control is not None:
            assert seen.control.state == asked.control["state"]
            assert seen.control.pcpu_id == asked.control.get("pcpu_id", 0xFFFFFFFF)
        if asked.telemetry is not None:
            assert seen.control.telemetry == asked.telemetry
    elif isinstance(asked, TmpfsMount):
        assert (seen.max_blocks, seen.mode, seen.flags) == (
            asked.max_blocks, asked.mode, asked.flags,
        )  # fmt: skip


def test_scenarios_account_for_every_page(made: tuple[Any, Image]) -> None:
    report = checked(made[1])
    assert found(report, Severity.WARNING) == set()
    assert (report.ownership.leaked, report.ownership.slack) == (0, 0)
    assert report.undecided == {}


def test_content_is_what_was_written(made: tuple[Any, Image]) -> None:
    image, decoded = made
    read = 0
    for session in image.kernel.luo.sessions:
        for entry in session.files.values():
            if isinstance(entry.file, (GuestMemfd, HugeMemfd)):
                node = decoded.find(f"/LUO/sessions/{session.name}/files/{entry.token:#x}")
                data = b"".join(content.read(decoded, node))
                assert data == entry.file.read(0, entry.file.size)
                assert data[:PAGE] == pattern_bytes(entry.token, 0, PAGE)
                read += 1
    assert read >= 1


def test_extracts_keep_all_that_is_decoded(made: tuple[Any, Image], tmp_path: Path) -> None:
    _, decoded = made
    extract.extract(decoded, tmp_path / "a.elf")
    with kho.open(tmp_path / "a.elf") as again:
        assert diff.diff(decoded, again, contents=True).changes == []
        assert document(again)["luo"] == document(decoded)["luo"]
    extract.extract(decoded, tmp_path / "b.elf", redact=True)
    with kho.open(tmp_path / "b.elf") as again:
        assert again.luo is not None
        for _, file in again.luo.files():
            if hasattr(file.state, "vm"):
                assert file.state.vm is not None
    raw = (tmp_path / "b.elf").read_bytes()
    for token in (0x11, 0x20, 0x30):
        assert pattern_bytes(token, 0, 64) not in raw


def test_reports_and_pictures(made: tuple[Any, Image]) -> None:
    from inspector.report import render
    from inspector.report.pictures import session_bars

    _, decoded = made
    page = render(decoded)
    assert "kvm_vm_luo_v1" in page
    assert all(bar.text.split()[0] != "0" for bar in session_bars(decoded))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_state_elsewhere_only_moves(name: str) -> None:
    chosen = scenario.load(name)
    scattered = replace(chosen, machine=replace(chosen.machine, shuffle=True, fragmentation=0.2))
    one, other = open_image(chosen.run().memory), open_image(scattered.run(seed=77).memory)
    assert diff.diff(one, other, addresses=False, contents=True).changes == []
    moved = diff.diff(one, other).changes
    assert {str(c.kind) for c in moved if c.path.startswith("/LUO")} == {"moved"}
    wanted = {"arch_state", "kho_folios", "folios"} if name == "kvm-caretaker" else {"data"}
    assert wanted <= {c.what.rpartition(".")[2] for c in moved}


def test_differences_are_found() -> None:
    text = scenario.load("guest-memfd")
    one, other = open_image(text.run().memory), open_image(text.run().memory)
    file = state(other, "vm-a/files/0x11")
    memory = SparseMemory.over(other.memory, PAGE)
    memory.write(file.address + 8, struct.pack("<Q", 1))
    memory.write(int(file.addresses[5]) + 7, b"\xff")
    found_ = diff.diff(one, open_image(memory), contents=True)
    changes = {(c.what, c.before, c.after) for c in found_.changes}
    assert ("guest_memfd.flags", "0x3", "0x1") in changes
    assert ("content from byte 0x5007 on", None, None) in changes


def test_info_counts_their_bytes() -> None:
    from inspector.summary import summarise

    image = open_image(scenario.load("guest-memfd").run().memory)
    sizes = [3 << 20, 64 << 10, 96 << 10, 6 << 20, 8 << 20, 320 << 10]
    assert summarise(image)["file_bytes"] == sum(sizes)


def test_verbs(tmp_path: Path) -> None:
    target = str(tmp_path / "image.elf")
    assert CliRunner().invoke(app, ["simulate", "guest-memfd", "-o", target]).exit_code == 0
    out = CliRunner().invoke(app, ["dump", target, "/LUO/sessions/vm-a/files/0x10"])
    assert "memory attributes 603" in out.stdout
    out = CliRunner().invoke(app, ["cat", target, "/LUO/sessions/host/files/1"])
    assert out.stdout_bytes == pattern_bytes(1, 0, 8 << 20)
    out = CliRunner().invoke(app, ["dump", target, "/LUO/flbs/hugetlb-v1", "--format", "json"])
    assert json.loads(out.stdout)["object"]["hugetlb"]["pools"][1]["order"] == 4
    for code in ("KHO-KVM-020", "KHO-HTL-007", "KHO-GMF-001", "KHO-TMP-001"):
        assert CliRunner().invoke(app, ["explain", code]).exit_code == 0


# -- the kernel that takes over -------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_taken_over(name: str) -> None:
    chosen = scenario.load(name)
    image = chosen.run()
    result = consume(image.memory, chosen.kernel)
    assert result.outcome is Outcome.TAKEN_OVER, result.reasons
    assert sum("no kernel with this handler was observed" in n for n in result.notes) >= 3
    for file in result.files():
        if hasattr(file.file, "sha256"):
            asked = next(
                p.file
                for s in image.kernel.luo.sessions
                for p in s.files.values()
                if file.path == f"/LUO/sessions/{s.name}/files/{p.token:#x}"
            )
            assert file.file.read() == asked.read(0, asked.size)
    # What is still in use is what files and machines hold, and nothing else that LUO had.
    kept = result.consumer.retained
    held = [f for f in result.files() if hasattr(f.file, "frames")]
    for file in held:
        assert kept.contains(file.file.frames).all()
    pages = sum(int((1 << f.file.orders.astype(int)).sum()) for f in held)
    # The root FDT and LUO's FLB page stay: the kernel keeps them for good.
    assert pages <= len(kept.frames()) <= pages + 4


@pytest.mark.parametrize("name", SCENARIOS)
def test_files_nobody_retrieves_are_freed(name: str) -> None:
    from inspector.kernel.incoming.consumer import boot

    chosen = scenario.load(name)
    image = chosen.run()
    consumer = boot(image.memory, chosen.kernel)
    luo = consumer.open()
    for entry in luo.sessions:
        consumer.retrieve_session(entry.name).finish()
    assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
    assert len(consumer.retained.frames()) <= 4


@pytest.mark.parametrize("page", [0x1000, 0x4000, 0x10000])
@pytest.mark.parametrize(
    "kernel", ["linux-7.3+guest-memfd+hugetlb+tmpfs", "linux-7.3+kvm-caretaker+hugetlb"]
)
def test_every_page_size(kernel: str, page: int) -> None:
    image = compat.image_of(find_profile(kernel), page)
    with open_image(image.memory, root=image.root) as decoded:
        assert decoded.page_size == page
        report = checked(decoded)
        assert found(report, Severity.WARNING) == set()
        assert report.ownership.leaked == 0
        assert len(list(decoded.folio_files())) == 4
    verdict = compat.pair(find_target(kernel), find_target(kernel), compat.Options(page_size=page))
    assert verdict.outcome is Outcome.TAKEN_OVER, verdict.reasons


def test_a_plain_kernel_refuses() -> None:
    image = scenario.load("guest-memfd").run()
    result = consume(image.memory, "linux-7.3")
    assert result.outcome is Outcome.LUO_UNUSABLE
    assert any("nobody asks for the FLB 'hugetlb-v1'" in r.message for r in result.reasons)


def test_what_cannot_be_taken_over() -> None:
    made = HandMade()
    made.file("vm", 1, VM, made.block(by_hand.vm_minimal(1)))
    gmem = by_hand.guest_memfd(PAGE, 0, 0, 5, by_hand.EMPTY)
    made.file("vm", 2, GMEM, made.block(gmem))
    huge_file = by_hand.huge_memfd(0, 0, 0, by_hand.EMPTY, 9)
    made.file("vm", 3, "huge-memfd-v1", made.block(huge_file))
    result = consume(made.image().memory, "linux-7.3+guest-memfd+hugetlb")
    assert result.outcome is Outcome.FILE_ERROR
    errors = {path.rpartition("/")[2]: str(error) for path, error in result.errors.items()}
    assert errors.keys() == {"0x2", "0x3"}
    assert "no virtual machine 0x5" in errors["0x2"]
    assert "no pools" in errors["0x3"]


# -- the producer ---------------------------------------------------------------------------------


def test_what_the_producer_refuses() -> None:
    from inspector.kernel.machine import small_machine
    from inspector.kernel.outgoing.kernel import Kernel

    kernel = Kernel("linux-7.3+kvm-caretaker+hugetlb", small_machine(huge_pages=((9, 2),)))
    session, other = kernel.luo.create_session("a"), kernel.luo.create_session("b")
    vm = kernel.kvm_vm()
    memory = kernel.guest_memfd(vm)
    memory.truncate(2 * PAGE)
    with pytest.raises(KernelErrno, match="EINVAL"):
        session.preserve(memory, 1)
    other.preserve(vm, 1)
    with pytest.raises(KernelErrno, match="EINVAL"):
        session.preserve(memory, 1)
    file = kernel.huge_memfd(9)
    with pytest.raises(KernelErrno, match="EINVAL"):
        file.truncate(PAGE)
    file.truncate(6 << 20)
    before = kernel.machine.pages_out
    with pytest.raises(KernelErrno, match="ENOMEM"):
        session.preserve(file, 2)
    with pytest.raises(KernelErrno, match="ENOENT"):
        kernel.huge_memfd(4)
    assert kernel.machine.pages_out == before
    plain = Kernel("linux-7.3", small_machine(huge_pages=((9, 2),)))
    held = plain.huge_memfd(9)
    with pytest.raises(KernelErrno, match="ENOENT"):
        plain.luo.create_session("a").preserve(held, 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_closing_sessions_gives_everything_back(name: str) -> None:
    chosen = scenario.load(name)
    kernel = chosen.boot()
    chosen.perform(kernel)
    for session in list(kernel.luo.sessions):
        session.close()
    image = open_image(kernel.kexec().memory)
    report = checked(image)
    assert image.luo is not None
    assert (image.luo.sessions, image.luo.flbs) == ([], [])
    assert report.ownership.leaked == 0


# -- the other reader -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kaitai_reader_sees_the_same(name: str) -> None:
    image = scenario.load(name).run()
    decoded = open_image(image.memory)
    kvm = decoded.verdicts["kvm"].generation
    assert kvm is not None
    reader = ImageReader(image.memory, PAGE, Layouts(kvm=kvm.id))
    theirs = reader.image(image.root)
    assert reader.follower.problems == []
    assert theirs.luo is not None
    assert decoded.luo is not None
    compared = 0
    for session, mine in zip(theirs.luo.sessions, decoded.luo.sessions, strict=True):
        for file, own in zip(session.files, mine.files, strict=True):
            compared += same(file.body, own.state)
            same_behind(reader.follower, file.body, own.state)
    assert reader.follower.problems == []
    assert compared >= 6
    for flb, own_flb in zip(theirs.luo.flbs, decoded.luo.flbs, strict=True):
        states = [(h.nr_pages, h.order) for h in flb.body.ser.hstates]
        used = states[: flb.body.ser.nr_hstates]
        assert used == [(p.nr_pages, p.order) for p in own_flb.state.pools]


def same(body: Any, own: Any) -> bool:
    """Whether what the other reader parsed is of a handler compared here; it must be the same."""
    kind = type(own).__name__
    if isinstance(body, FolioFile):
        columns = own.folios
        mine = zip(
            columns.pfn.tolist(), columns.flags.tolist(), columns.index.tolist(), strict=True
        )
        assert body.folios == list(mine)
        assert (body.pa, body.ser.size) == (own.address, own.size)
        if kind == "GuestMemfd":
            assert (body.ser.flags, body.ser.vm_token) == (own.flags, own.vm_token)
        elif kind == "HugeMemfd":
            assert (body.ser.pos, body.ser.order) == (own.pos, own.order)
        return kind != "Memfd"
    assert isinstance(body, Plain)
    assert body.pa == own.address
    ser = body.ser
    if kind == "KvmVm":
        assert ser.type == own.type
        if own.attributes is not None:
            assert (ser.nr_mem_attrs, ser.mem_attrs.first) == (
                own.attributes.count, own.attributes.vmalloc.first,
            )  # fmt: skip
        if own.folios_pa is not None:
            assert ser.kho_folios == own.folios_pa
    elif kind == "KvmVcpu":
        assert (ser.vcpu_id, ser.flags, ser.vm_token, ser.arch_state, ser.cb) == (
            own.vcpu_id, own.flags, own.vm_token, own.arch_state, own.cb,
        )  # fmt: skip
    else:
        assert kind == "TmpfsMount"
        assert (ser.max_blocks, ser.mode, ser.flags) == (own.max_blocks, own.mode, own.flags)
    return True


def same_behind(follower: Follower, body: Any, own: Any) -> None:
    """What hangs off a machine or a vCPU by address."""
    kind = type(own).__name__
    if kind == "KvmVm" and own.attributes is not None:
        count = own.attributes.count
        raw = follower.vmalloc_bytes(body.ser.mem_attrs, 16 * count) if count else b""
        assert raw is not None
        rows = [
            follower.parse("kvm", 0, raw[at : at + 16], KvmLuo.MemAttr)
            for at in range(0, len(raw), 16)
        ]
        assert [r.gfn for r in rows] == own.attributes.gfn.tolist()
        assert [r.attributes for r in rows] == own.attributes.attributes.tolist()
    if kind == "KvmVm" and own.folios_pa:
        count = own.folios.count
        listed = follower.struct("kvm", own.folios_pa, 8 + 8 * count, KvmLuo.FolioList)
        assert (listed.nr_folios, listed.folios_pa) == (count, own.folios.folios.tolist())
    if kind == "KvmVcpu" and own.cb:
        control = follower.struct("kvm", own.cb, 24, KvmLuo.ControlBlock)
        mine = own.control
        assert (int(control.state), control.pcpu_id, control.vcpu_id, control.telemetry) == (
            mine.state, mine.pcpu_id, mine.vcpu_id, mine.telemetry_pa,
        )  # fmt: skip
        if mine.telemetry is not None:
            told = follower.struct("kvm", mine.telemetry_pa, 56, KvmLuo.Telemetry)
            assert {name: getattr(told, name) for name in mine.telemetry} == mine.telemetry


def test_the_kaitai_parser_sees_the_pools_of_the_first_form() -> None:
    made = HandMade()
    pages = [made.block(b"h", 4) for _ in range(3)]
    listed = b"".join(struct.pack("<Q", pa // PAGE | (i & 1) << 52) for i, pa in enumerate(pages))
    data = made.block(by_hand.early_pools([(3, 4, made.vmalloc(listed))]))
    made.flb("hugetlb", data)
    memory = made.image().memory
    pool = open_image(memory).luo.flbs[0].state.pools[0]  # type: ignore[union-attr]
    follower = Follower(memory, PAGE)
    theirs = follower.struct("hugetlb", data, 136, HugetlbLuo.SerEarly)
    assert theirs.nr_hstates == 1
    state = theirs.hstates[0]
    assert (state.nr_pages, state.order) == (pool.nr_pages, pool.order)
    raw = follower.vmalloc_bytes(state.folios, 24)
    assert raw is not None
    parsed = [
        follower.parse("hugetlb", 0, raw[at : at + 8], HugetlbLuo.FolioEarly)
        for at in range(0, 24, 8)
    ]
    assert [(p.pfn, bool(p.free)) for p in parsed] == list(
        zip(pool.pages.pfn.tolist(), pool.pages.free.tolist(), strict=True)
    )
    assert follower.problems == []


# -- hostile values -------------------------------------------------------------------------------

VALUES = st.sampled_from([0, 1, 3, 0x10, PAGE, (1 << 52) - PAGE, 1 << 63, (1 << 64) - 1])


@pytest.fixture(scope="module")
def bases() -> list[tuple[SparseMemory, list[tuple[int, int]]]]:
    """Images, and the (address, size) of every struct of these handlers in them."""
    found_ = []
    for name in SCENARIOS:
        memory = scenario.load(name).run().memory
        with open_image(memory) as decoded:
            words = [
                (int(address) + offset, min(8, one.struct.size - offset))
                for one in decoded.survey.placed
                if one.path.startswith(("/LUO/sessions/", "/LUO/flbs/"))
                for address in one.addresses[:64].tolist()
                for offset in range(0, min(one.struct.size, 64), 8)
            ]
        found_.append((memory, words))
    return found_


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_hostile_values(
    bases: list[tuple[SparseMemory, list[tuple[int, int]]]], data: st.DataObject
) -> None:
    """Any word of any struct may be anything: every verb's work goes through."""
    memory, words = data.draw(st.sampled_from(bases))
    broken = SparseMemory.over(memory, PAGE)
    for _ in range(data.draw(st.integers(1, 3))):
        address, size = data.draw(st.sampled_from(words))
        broken.write(address, struct.pack("<Q", data.draw(VALUES))[:size])
    image = open_image(broken)
    json.dumps(document(image))
    for line in tree.render(tree.build(image)):
        assert line.isprintable()
    assert found(checked(image)) <= checks.catalogue().keys()
    for kernel in ("linux-7.3+guest-memfd+hugetlb+tmpfs", "linux-7.3+kvm-caretaker"):
        consume(broken, kernel)
