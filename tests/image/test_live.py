"""A running kernel that names its roots: nothing is searched for, and the moment is known."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from abi.errors import UsageError
from inspector import locate
from inspector.check import check
from inspector.compat import Options, judge
from inspector.decode import decode
from inspector.extract import extract
from inspector.findings import Outcome, Severity
from inspector.image import Image, MapState, Moment
from inspector.image import open as open_image
from inspector.kernel import scenario
from inspector.kernel.faults import inject
from inspector.kernel.profile import profile
from inspector.kernel.profile_file import Target
from inspector.locate import How
from inspector.memory import PageState, notes
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory

PRESENT = PageState.PRESENT
AREAS = ((0x10000000, 0x1000000), (0x20000000, 0x2000000))


@pytest.fixture
def memory() -> SparseMemory:
    return scenario.load("linux-7.3").run().memory


@pytest.fixture
def root(memory: SparseMemory) -> int:
    return decode(memory).root.address


@pytest.fixture
def no_search(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_: object, **__: object) -> None:
        raise AssertionError("memory is searched")

    monkeypatch.setattr(locate, "find_words", searched)


@pytest.mark.parametrize(
    ("side", "how", "moment"),
    [("out", How.KHO_OUT, Moment.OUTGOING), ("in", How.KHO_IN, Moment.INCOMING)],
)
@pytest.mark.usefixtures("no_search")
def test_nothing_is_searched_for(
    memory: SparseMemory, root: int, side: str, how: How, moment: Moment
) -> None:
    memory.kernel_roots = {root: side, 0x1000: "in"}
    memory.kernel_scratch = AREAS
    image = decode(memory)
    assert image.root.address == root
    assert [c.how for c in image.location.candidates] == [how]
    assert image.moment is moment
    assert image.moment_reasons == [f"{how} points to the root"]
    assert [(area.address, area.size) for area in image.scratch or ()] == list(AREAS)
    assert image.luo is not None
    assert image.luo.sessions


def test_what_was_handed_over_comes_first(memory: SparseMemory, root: int) -> None:
    copy = memory.read(root, 4096)
    other = next(at for at in range(root + 4096, 1 << 40, 4096) if not any(memory.read(at, 4096)))
    memory.write(other, copy)
    memory.kernel_roots = {other: "out", root: "in"}
    assert decode(memory).root.address == root
    image = decode(memory, root=other)
    assert (image.root.address, image.moment) == (other, Moment.OUTGOING)
    assert {c.address for c in image.location.candidates} == {root, other}
    with pytest.raises(UsageError, match="no device tree"):
        decode(memory, root=0x3000)


def test_sessions_that_are_not_written_yet_are_no_leak(memory: SparseMemory, root: int) -> None:
    """Files are preserved when user space says so, listed when the kernel hands over."""
    whole = decode(memory)
    assert whole.luo is not None
    block = whole.luo.sessions_address
    memory.write(block + 8, bytes(8))
    memory.kernel_roots = {root: "out"}
    found, why = leaks(decode(memory))
    assert not found
    assert why is not None
    assert "hands over" in why
    memory.kernel_roots = {}
    found, why = leaks(decode(memory))
    assert found


def test_a_kernel_that_has_not_made_its_map_yet_is_sound(tmp_path: Path) -> None:
    """Up to 6.19 the address is filled in at the jump."""
    memory = scenario.load("linux-6.19").run().memory
    whole = decode(memory)
    value = whole.root.tree.root.get(b"preserved-memory-map")
    assert value is not None
    at = whole.root.address + memory.read(whole.root.address, 4096).index(value)
    memory.write(at, bytes(8))
    assert "KHO-ROOT-003" in {f.code for f in check(decode(memory)).findings}
    memory.kernel_roots = {whole.root.address: "out"}
    report = check(decode(memory))
    assert "KHO-ROOT-003" not in {f.code for f in report.findings}
    assert "hands over" in report.undecided["KHO-ROOT-003"]
    verdict = judge(memory, Target(profile("linux-6.19")))
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "hands over" in verdict.reasons[0].message
    extract(decode(memory), tmp_path / "out.elf")
    with open_image(tmp_path / "out.elf") as again:
        assert check(again).undecided["KHO-ROOT-003"] == report.undecided["KHO-ROOT-003"]
        assert not [f for f in check(again).findings if f.severity >= Severity.WARNING]
        assert judge(again.memory, Target(profile("linux-6.19"))).outcome is Outcome.CANNOT_TELL
    memory.kernel_roots = {}
    assert judge(memory, Target(profile("linux-6.19"))).outcome is not Outcome.CANNOT_TELL


@pytest.mark.parametrize("name", ["linux-6.17", "linux-7.3"])
def test_a_lost_map_is_normal_where_the_kernel_says_that_it_has_booted(
    name: str, tmp_path: Path
) -> None:
    """As of a kernel that was handed no sessions: nothing else is gone."""
    made = scenario.load(name).run()
    inject(made, "map-garbage")
    assert "KHO-MAP-012" in {f.code for f in check(decode(made.memory)).findings}
    made.memory.kernel_roots = {decode(made.memory).root.address: "in"}
    image = decode(made.memory)
    assert image.map_state is MapState.LOST
    assert {"KHO-MAP-010"} == {
        f.code for f in check(image).findings if f.code in ("KHO-MAP-010", "KHO-MAP-012")
    }
    extract(image, tmp_path / "out.elf")
    with open_image(tmp_path / "out.elf") as again:
        assert "KHO-MAP-012" not in {f.code for f in check(again).findings}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["linux-6.17", "linux-6.18", "linux-7.3"])
def test_a_map_that_was_reused_in_part_is_lost(name: str, seed: int) -> None:
    """A booted kernel frees all of it; some nodes may look as they did, some like others."""
    random = Random(seed)
    memory = scenario.load(name).run().memory
    whole = decode(memory)
    assert whole.preserved is not None
    nodes = list(
        zip(whole.preserved.nodes.tolist(), whole.preserved.node_sizes.tolist(), strict=True)
    )
    for at, size in random.sample(nodes[1:], max(len(nodes) // 3, 1)):
        memory.write(at, bytes(random.choice((0, 0, 3, 255)) for _ in range(size)))
    memory.kernel_roots = {whole.root.address: "in"}
    image = decode(memory)
    assert image.map_state is MapState.LOST
    assert not [f for f in check(image).findings if f.severity >= Severity.WARNING]


@pytest.mark.parametrize("suffix", ["elf", "elf.zst"])
@pytest.mark.parametrize("options", [{}, {"content": False}, {"redact": True}])
@pytest.mark.parametrize("side", ["in", "out"])
def test_an_extract_of_a_live_host_says_the_same(
    suffix: str, options: dict[str, bool], side: str, memory: SparseMemory, root: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Scratch areas, which no page of it tells, are in a note."""
    memory.kernel_roots = {root: side}
    memory.kernel_scratch = AREAS
    image = decode(memory)
    extract(image, tmp_path / f"out.{suffix}", **options)  # type: ignore[arg-type]
    with open_image(tmp_path / f"out.{suffix}") as again:
        assert again.moment is image.moment
        assert again.moment_reasons == image.moment_reasons
        assert [(a.address, a.size) for a in again.scratch or ()] == list(AREAS)
        assert again.root.candidate.how is image.root.candidate.how


def test_a_note_of_a_root_may_say_anything(memory: SparseMemory, root: int, tmp_path: Path) -> None:
    for wrong in ("", "0x1000", ":in", "0x1000:up", "x:in", "0:out", f"{1 << 64:#x}:in", "-1:in"):
        assert notes.kernel_root_of({notes.KERNEL_ROOT: wrong}) == {}
    assert notes.kernel_root_of({notes.KERNEL_ROOT: "0x1000:in"}) == {0x1000: "in"}
    write_core(tmp_path / "out.elf", memory, "x86_64", notes={notes.KERNEL_ROOT: "0x3000:in"})
    with open_image(tmp_path / "out.elf") as image:  # there is no tree: it is searched for
        assert image.root.address == root


def test_notes_of_scratch_areas_may_say_anything() -> None:
    note = notes.scratch_areas_note(AREAS)
    assert notes.scratch_areas_of({notes.SCRATCH_AREAS: note}) == AREAS
    for wrong in ("", "0x1", "0x1+", "1+2+3", "-1+0x10", "0x10+-1", "a+b c", f"{1 << 64:x}+1"):
        assert notes.scratch_areas_of({notes.SCRATCH_AREAS: wrong}) == ()
    many = notes.scratch_areas_of({notes.SCRATCH_AREAS: "0x0+0x1 " * 100_000})
    assert len(many) == 4096


def test_what_a_running_kernel_has_for_the_next_one_is_judged(
    memory: SparseMemory, root: int
) -> None:
    """Not what it was given, whichever lies lower; nor a root that it does not have."""
    target = Target(profile("linux-7.3"))
    memory.kernel_scratch = AREAS
    lost = scenario.load("linux-7.3").run()
    inject(lost, "map-garbage")
    copy = lost.memory.read(root, 4096)
    free = [at for at in range(4096, 1 << 30, 4096) if memory.state(at, 4096) is PRESENT
            and at != root and not any(memory.read(at, 4096))]  # fmt: skip
    broken = bytearray(copy)
    value = decode(memory).root.tree.root.get(b"preserved-memory-map")
    assert value is not None
    at = broken.index(value)
    broken[at : at + 8] = bytes(8)
    for other in (free[0], free[-1]):
        memory.write(other, bytes(broken))
        memory.kernel_roots = {other: "in", root: "out"}
        verdict = judge(memory, target)
        assert verdict.outcome is Outcome.TAKEN_OVER, verdict.reasons
        assert verdict.notes == [
            f"what the running kernel has for the next one so far: root {root:#x}"
        ]
        insisted = judge(memory, target, Options(root=other))
        assert insisted.outcome is not Outcome.TAKEN_OVER
        memory.kernel_roots = {root: "in"}
        assert judge(memory, target).outcome is Outcome.CANNOT_TELL
    memory.kernel_roots, memory.kernel_scratch = {root: "out"}, ((0x1000000, 0x1000),)
    assert judge(memory, target).outcome is Outcome.BOOT_FAILS


def leaks(image: Image) -> tuple[bool, str | None]:
    report = check(image, rules=["KHO-MEM-012"])
    return bool(report.findings), report.undecided.get("KHO-MEM-012")
