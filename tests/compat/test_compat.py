"""Verdicts for images and pairs of kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from abi.errors import UsageError
from inspector import compat, memory
from inspector.cli.app import app
from inspector.findings import Outcome
from inspector.kernel import scenario
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.outcome import Notes, Reasons
from inspector.kernel.profile_file import find, parse
from inspector.kernel.toml_file import ScenarioError
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory
from inspector.verdict import SHOWN, consumed_lines

CORPUS = Path(__file__).parents[2] / "corpus"
MEASURED = {
    (p["producer"].rpartition(".")[0], p["consumer"].rpartition(".")[0]): p["project_outcome"]
    for p in json.loads((CORPUS / "matrix.json").read_text())["pairs"]
}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_matrix_is_the_measured_one() -> None:
    verdicts = {(v.producer[6:], v.consumer[6:]): v for v in compat.matrix()}
    assert len(verdicts) == 64
    for pair, wanted in MEASURED.items():
        assert verdicts[pair].outcome == wanted, (pair, verdicts[pair].reasons[:2])
    for (producer, consumer), verdict in verdicts.items():
        told = any("no real one was measured" in note for note in verdict.notes)
        assert told == bool({producer, consumer} & {"6.16", "7.0"})


@pytest.mark.parametrize("layer", compat.LAYERS)
def test_two_layouts_of_one_string_are_never_taken_over(layer: str) -> None:
    targets = compat.layer_targets(layer)
    for producer in targets:
        for consumer in targets:
            ours, theirs = consumer.kernel[layer], producer.kernel[layer]
            if ours.strings[0] != theirs.strings[0]:
                continue
            verdict = compat.pair(producer, consumer)
            if ours is theirs:
                placeholder = theirs.id == "iommufd-rfc-v1"
                assert (verdict.outcome is Outcome.TAKEN_OVER) != placeholder, verdict.reasons[:2]
            elif verdict.outcome is Outcome.TAKEN_OVER:
                same = compat._members(ours) == compat._members(theirs)
                assert same, (str(producer), str(consumer))


SERIES = ("7.3+iommu-vw", "7.1+iommu-v3", "7.1+iommu-v2", "6.19+iommu-v1", "6.19+iommu-rfc-v2")


@pytest.mark.parametrize("kernel", SERIES)
def test_a_series_takes_its_own_state_over(kernel: str) -> None:
    target = find(f"linux-{kernel}")
    verdict = compat.pair(target, target)
    assert verdict.outcome is Outcome.TAKEN_OVER, verdict.reasons[:3]


def test_a_plain_kernel_after_one_with_the_series() -> None:
    verdict = compat.pair(find("linux-7.3+iommu-vw"), find("linux-7.3"))
    assert verdict.outcome is Outcome.LUO_UNUSABLE
    assert any(
        r.dmesg == "No registered handler for compatible 'iommufd-v1'" for r in verdict.reasons
    )
    assert any("translation is turned off" in r.message for r in verdict.reasons)


@pytest.mark.parametrize(
    ("name", "kernel", "outcome"),
    [
        ("iommu-vw-small_legacy-handoff", "linux-7.3+iommu-vw", Outcome.TAKEN_OVER),
        ("iommu-vw-legacy-handoff", "linux-7.3+iommu-vw", Outcome.TAKEN_OVER),
        ("iommu-v3-small_scalable-handoff", "linux-7.1+iommu-v3", Outcome.TAKEN_OVER),
        ("iommu-vw-small_legacy-handoff", "linux-7.3", Outcome.LUO_UNUSABLE),
        ("iommu-v3-small_scalable-handoff", "linux-7.3+iommu-vw", Outcome.KHO_REFUSED),
    ],
)
def test_real_captures_with_devices(name: str, kernel: str, outcome: Outcome) -> None:
    with memory.open(CORPUS / f"{name}.elf.zst") as opened:
        verdict = compat.judge(opened, find(kernel))
        overlay = compat.judge(SparseMemory.over(opened), find(kernel))
    assert verdict.outcome is outcome, verdict.reasons[:3]
    assert overlay.outcome is outcome, "pages that may be written do not tell where RAM is"


def test_an_image_by_command_line() -> None:
    image = str(CORPUS / "linux-6.17.8-handoff.elf.zst")
    result = run("compat", image, "--to", "linux-6.17", "--to", "linux-6.18", "-f", "json")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    first, second = document["verdicts"]
    assert (first["outcome"], second["outcome"]) == ("taken-over", "boot-fails")
    reason = second["reasons"][0]
    assert reason["path"] == "/preserved"
    assert reason["bytes"]
    assert reason["dmesg"]
    assert reason["kernel"] == "linux-6.18"
    assert document["rules"] == {"broken": {}}


def test_pairs_by_command_line() -> None:
    result = run("compat", "--from", "linux-6.19", "--to", "linux-6.18")
    assert result.exit_code == 4
    assert "linux-6.19 -> linux-6.18: state-lost" in result.stdout
    assert run("compat", "--from", "7.2", "--to", "7.3").exit_code == 0


def test_the_matrix_by_command_line() -> None:
    result = run("compat", "--matrix")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "from",
        "/",
        "to",
        *(r for r in ("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3")),
    ]
    assert lines[2].split()[:4] == ["6.17", "taken-over", "taken-over", "boot-fails"]


def test_a_page_size_is_foreseen() -> None:
    image = str(CORPUS / "linux-7.3.4-arm64-64k-handoff.elf.zst")
    assert run("compat", image, "--to", "linux-7.3").exit_code == 0
    result = run("compat", image, "--to", "linux-7.3", "--page-size", "4K", "-f", "json")
    assert result.exit_code & 4
    assert json.loads(result.stdout)["verdicts"][0]["outcome"] == "boot-fails"


def test_scratch_by_command_line() -> None:
    image = str(CORPUS / "linux-7.3.4-handoff.elf.zst")
    result = run("compat", image, "--to", "linux-7.3", "--kernel-size", "600M", "-f", "json")
    verdict = json.loads(result.stdout)["verdicts"][0]
    assert verdict["outcome"] == "boot-fails"
    assert verdict["reasons"][0]["path"] == "/scratch"


@pytest.mark.parametrize(
    ("mib", "outcome"),
    [(8, "taken-over"), (6, "cannot-tell"), (4, "boot-fails")],
)
def test_scratch_apart_from_kernel_and_initrd(mib: int, outcome: str, tmp_path: Path) -> None:
    """As measured: 8 MiB are enough, 4 MiB are not."""
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    path = tmp_path / "small-scratch.elf"
    with memory.open(source) as opened:
        overlay = SparseMemory.over(opened)
        at = int(json.loads((CORPUS / "linux-7.3.4-handoff.truth.json").read_text())[
            "setup_data_kho"]["scratch_addr"], 0)  # fmt: skip
        overlay.write(at + 8, (mib << 20).to_bytes(8, "little"))
        overlay.write(at + 32 + 8, bytes(8))
        write_core(path, overlay)
    result = run("compat", str(path), "--to", "linux-7.3", "--kernel-size", "0", "-f", "json")
    assert json.loads(result.stdout)["verdicts"][0]["outcome"] == outcome


def test_a_layer_can_be_changed() -> None:
    image = str(CORPUS / "linux-7.3.4-handoff.elf.zst")
    result = run("compat", image, "--to", "linux-7.3", "--with", "memfd=memfd-v1")
    assert result.exit_code == 4
    assert "luo-unusable" in result.stdout


PROFILE = """
name = "ours"
kernel = "linux-7.3"
[layers]
memfd = "memfd-v1"
[behaviour]
unknown-handler = "ignore"
"""


def test_a_name_says_the_size_of_pages() -> None:
    assert find("linux-7.3").page_size is None
    assert find("linux-7.3-4k").page_size == 0x1000
    assert find("linux-7.3-arm64-64K+iommu-vw").page_size == 0x10000
    assert str(find("linux-7.3-16k")) == "linux-7.3 (16K pages)"
    image = CORPUS / "linux-7.3.4-arm64-64k-handoff.elf.zst"
    with memory.open(image) as opened:
        assert compat.judge(opened, find("linux-7.3-4k")).outcome is Outcome.BOOT_FAILS
        assert compat.judge(opened, find("linux-7.3-64k")).outcome is Outcome.TAKEN_OVER


def test_a_profile_file(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(PROFILE)
    image = str(CORPUS / "linux-7.3.4-handoff.elf.zst")
    result = run("compat", image, "--to", str(path), "-f", "json")
    verdict = json.loads(result.stdout)["verdicts"][0]
    assert (verdict["to"], verdict["outcome"]) == ("ours", "state-lost")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('kernel = "linux-9.9"\n', 1),
        ('kernel = "linux-7.3"\n[layers]\nmemfd = "nosuch"\n', 3),
        ('kernel = "linux-7.3"\n[behaviour]\nluo-mismatch = "explode"\n', 3),
        ('kernel = "linux-7.3"\npage_size = "5K"\n', 2),
        ('kernel = "linux-7.3"\nkernal = "x"\n', 2),
    ],
)
def test_a_bad_profile_names_line_and_key(text: str, line: int) -> None:
    with pytest.raises(ScenarioError, match=rf"^profile:{line}: "):
        parse(text)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--from", "7.3"),
        ("image", "--matrix"),
        ("--matrix", "--layer", "nosuch"),
        ("--layer", "iommu", "--from", "7.3", "--to", "7.3"),
        ("--from", "7.3", "--to", "7.3", "--kernel-size", "big"),
        ("--from", "7.3", "--to", "7.3", "--with", "memfd"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...]) -> None:
    result = run("compat", *arguments)
    assert isinstance(result.exception, UsageError)


def test_a_consumed_image_by_command_line() -> None:
    image = str(CORPUS / "linux-7.3.4-handoff.elf.zst")
    result = run(
        "consume", image, "--as", "linux-7.3", "--session", "vm-alpha",
        "--retrieve", "0x1111111100000002", "--finish", "--sha256", "-f", "json",
    )  # fmt: skip
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    session = next(s for s in document["sessions"] if s["name"] == "vm-alpha")
    assert session["finished"]
    results = {f["token"]: f["result"] for f in session["files"]}
    assert results["0x1111111100000002"] == "retrieved"
    assert results["0x1111111100000003"] == "discarded"
    assert not any(s["retrieved"] for s in document["sessions"] if s["name"] != "vm-alpha")
    wrong = run("consume", image, "--as", "linux-7.3", "--session", "nobody")
    assert isinstance(wrong.exception, UsageError)


@pytest.mark.parametrize(
    ("behaviour", "fault", "outcome"),
    [
        ("", "luo-compatible", Outcome.BOOT_FAILS),
        ('luo-mismatch = "ignore"', "luo-compatible", Outcome.STATE_LOST),
        ('luo-mismatch = "panic"', "luo-compatible", Outcome.BOOT_FAILS),
        ('unknown-handler = "ignore"', "file-handler-unknown", Outcome.STATE_LOST),
        ('unknown-handler = "errno"', "file-handler-unknown", Outcome.LUO_UNUSABLE),
    ],
)
def test_behaviours(behaviour: str, fault: str, outcome: Outcome) -> None:
    from inspector.kernel import faults, scenario

    image = scenario.load("linux-7.3").run()
    faults.inject(image, fault)
    target = parse(f'kernel = "linux-7.3"\n[behaviour]\n{behaviour}\n')
    assert compat.judge(image.memory, target).outcome is outcome


def test_without_a_memory_map_the_end_of_memory_is_unknown(tmp_path: Path) -> None:
    from inspector.kernel import faults, scenario

    image = scenario.load("linux-7.3").run()
    faults.inject(image, "map-block-beyond-memory")
    with_map = compat.judge(image.memory, find("linux-7.3"))
    assert with_map.outcome is Outcome.BOOT_FAILS
    root = image.root
    image.memory.exclude(image.segments.parameters, 0x2000)
    path = tmp_path / "no-map.elf"
    write_core(str(path), image.memory)
    with memory.open(path) as opened:
        verdict = compat.judge(opened, find("linux-7.3"), compat.Options(root=root))
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert any("nothing tells where RAM ends" in r.message for r in verdict.reasons)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ([], Outcome.TAKEN_OVER),
        ([(Outcome.STATE_LOST, "/LUO"), (Outcome.CANNOT_TELL, "/LUO")], Outcome.STATE_LOST),
        # Whether the kernel comes up matters more than what it would then lose.
        ([(Outcome.STATE_LOST, "/LUO"), (Outcome.CANNOT_TELL, "/preserved")], Outcome.CANNOT_TELL),
        ([(Outcome.LUO_UNUSABLE, "/LUO"), (Outcome.CANNOT_TELL, "/scratch")], Outcome.CANNOT_TELL),
        ([(Outcome.BOOT_FAILS, "/"), (Outcome.CANNOT_TELL, "/preserved")], Outcome.BOOT_FAILS),
        ([(Outcome.CORRUPTION, "/LUO"), (Outcome.CANNOT_TELL, "/")], Outcome.CORRUPTION),
    ],
)
def test_what_reasons_add_up_to(found: list[tuple[Outcome, str]], outcome: Outcome) -> None:
    reasons = Reasons()
    for one, path in found:
        reasons.add(one, "so", path=path)
    assert reasons.outcome is outcome
    assert not found or reasons.ranked[0].outcome is outcome


def test_many_notes_are_counted() -> None:
    notes = Notes(limit=4)
    for i in range(12):
        notes.append(f"note {i // 2}")
    assert list(notes) == ["note 0", "note 1", "note 2", "note 3", "4 more notes"]


def test_the_notes_of_a_takeover_have_a_limit() -> None:
    image = scenario.load("linux-7.3").run()
    result = consume(image.memory, "linux-7.3")
    for i in range(1000):
        result.consumer.notes.append(f"note {i}")
    known = len(result.consumer.notes.items)
    assert (known, len(result.notes)) == (256, 257)
    *_, last = [line for line in consumed_lines(result, colour=False) if "more notes" in line]
    assert last == f"  ... and {known + result.consumer.notes.more - SHOWN} more notes"


def test_without_a_map_of_ram_nobody_can_tell_whether_junk_bits_kill(tmp_path: Path) -> None:
    image = scenario.load("linux-6.17").run(moment="outgoing")
    write_core(tmp_path / "image.elf", image.memory, excluded=())
    with memory.open(tmp_path / "image.elf") as opened:
        assert compat.judge(opened, find("linux-6.18")).outcome is Outcome.CANNOT_TELL
