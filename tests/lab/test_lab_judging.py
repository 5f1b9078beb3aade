"""From observations to an outcome, without a machine."""

import json
from pathlib import Path

import pytest

from abi.errors import UnreadableError
from inspector.findings import Outcome
from lab import judging, report, truth
from lab.expectation import Expectation, ExpectedFile, ExpectedRegion, from_truth, truth_beside
from lab.qemu import Stopped
from lab.ram import Ram

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def expected(**changes):
    return Expectation(
        [b"vm"],
        [ExpectedFile(b"vm", 1, 10, 3, 0, "aa")],
        [ExpectedRegion("r", 4096, 4096)],
        **changes,
    )


def seen(**changes):
    values = {
        "stopped": Stopped.END,
        "kho": True,
        "open_errno": 0,
        "sessions": [{"event": "retrieve", "name": b"vm".hex(), "errno": 0}],
        "files": [
            {
                "session": b"vm".hex(),
                "token": 1,
                "errno": 0,
                "size": 10,
                "position": 3,
                "seals": 0,
                "sha256": "aa",
            }
        ],
        "regions": [{"name": "r", "start": 4096, "revived": True}],
    }
    return report.Report("image", changes.pop("kernel", "kernel"), **(values | changes))


def file(**changes):
    return [{**seen().files[0], **changes}]


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({}, Outcome.TAKEN_OVER, ""),
        ({"stopped": Stopped.RESET}, Outcome.BOOT_FAILS, "without any output"),
        (
            {"stopped": Stopped.RESET, "console": "[ 1.0] Kernel panic - not syncing: x\nlast"},
            Outcome.BOOT_FAILS,
            "a panic: [ 1.0] Kernel panic",
        ),
        (
            {"stopped": Stopped.EARLY_FAULT, "console": "PANIC: early exception 0x0d IP"},
            Outcome.BOOT_FAILS,
            "before the kernel can handle one: PANIC",
        ),
        ({"stopped": Stopped.HANG}, Outcome.BOOT_FAILS, "the CPU runs for ever"),
        ({"stopped": Stopped.HALTED}, Outcome.BOOT_FAILS, "the CPU sleeps"),
        ({"stopped": Stopped.TIMEOUT}, Outcome.BOOT_FAILS, "time was up"),
        ({"kho": False}, Outcome.KHO_REFUSED, "booted without it"),
        ({"open_errno": 2}, Outcome.STATE_LOST, "no /dev/liveupdate"),
        ({"open_errno": 22}, Outcome.LUO_UNUSABLE, "Invalid argument"),
        ({"files": file(errno=5)}, Outcome.FILE_ERROR, "Input/output error"),
        ({"files": file(errno=2)}, Outcome.STATE_LOST, "file 0x1 is not there"),
        ({"files": file(sha256="bb")}, Outcome.CORRUPTION, "content differs"),
        ({"files": file(size=11)}, Outcome.CORRUPTION, "size 11 instead of 10"),
        ({"files": file(position=4)}, Outcome.STATE_LOST, "position 4 instead of 3"),
        ({"files": file(seals=8)}, Outcome.STATE_LOST, "seals 0x8"),
        (
            {"sessions": [{"event": "retrieve", "name": b"vm".hex(), "errno": 2}], "files": []},
            Outcome.STATE_LOST,
            "session b'vm'",
        ),
        (
            {"regions": [{"name": "r", "start": None, "revived": False}]},
            Outcome.STATE_LOST,
            "reserve_mem r was not revived",
        ),
        (
            {"regions": [{"name": "r", "start": 4096, "revived": True, "content": False}]},
            Outcome.CORRUPTION,
            "reserve_mem r: the content differs",
        ),
        ({"warnings": ["KHO: broken"]}, Outcome.TAKEN_OVER_WITH_WARNINGS, "KHO: broken"),
    ],
)
def test_outcomes(changes, outcome, reason):
    observed = seen(**changes)
    assert report.judge(observed, expected()) is outcome
    assert reason in "; ".join(observed.reasons)


def test_the_self_test_counts_only_where_its_data_are():
    observed = seen(warnings=["test_kho: KHO restore failed"])
    assert report.judge(observed, expected()) is Outcome.TAKEN_OVER
    observed = seen(warnings=["test_kho: KHO restore failed"])
    assert report.judge(observed, expected(kho_test=True)) is Outcome.STATE_LOST


def test_before_6_18_a_failed_self_test_is_corruption():
    found = seen(kernel="6.17.8")
    assert report.judge(found, expected(kho_test=True)) is Outcome.CORRUPTION
    good = seen(kernel="6.17.8", dmesg="KHO restore succeeded")
    assert report.judge(good, expected(kho_test=True)) is Outcome.TAKEN_OVER
    new = seen(kernel="6.18.15")
    assert report.judge(new, expected(kho_test=True)) is Outcome.STATE_LOST


def test_warnings_are_told_from_chatter():
    log = (
        "<6>[    0.000000] KHO: found kexec handover data.\n"
        "<4>[    0.100000] tsc: Unable to calibrate against PIT\n"
        "<4>[    0.200000] KHO: broken KHO subnode 'x'\n"
        "<4>[    0.300000][    T1] WARNING: kernel/liveupdate/x.c:1 at f\n"
        "<3>[    1.000000] memfd_luo: failed\n"
        "<4>[    1.100000] luo: Failed to insert session [vm] -17\n"
        "<6>[    1.000000] Command line: kho=on reserve_mem=1M:4096:x\n"
    )
    assert report.warnings_of(log) == [
        "KHO: broken KHO subnode 'x'",
        "WARNING: kernel/liveupdate/x.c:1 at f",
        "memfd_luo: failed",
        "luo: Failed to insert session [vm] -17",
    ]


def test_expectations_of_the_corpus():
    found = from_truth(CORPUS / "linux-7.3.4-handoff.truth.json")
    assert len(found.sessions) == 5
    assert len(found.files) == 81
    by_token = {f.token: f for f in found.files}
    # A restored file is executable, so F_SEAL_EXEC brings the others with it.
    assert by_token[0x1000].seals == 0x3E
    # Content above 64 KiB was left out of that image.
    assert by_token[0x8000000000000005].sha256 is None
    assert by_token[0x8000000000000005].size == 16 << 20
    old = from_truth(CORPUS / "linux-6.19.11-handoff.truth.json")
    assert all(f.seals is None for f in old.files)


@pytest.mark.parametrize("name", ["a.raw", "a.elf", "a.elf.zst", "a.filtered"])
def test_the_truth_beside_an_image(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert truth_beside(tmp_path / name) is None
    (tmp_path / "a.truth.json").write_text("{}")
    assert truth_beside(tmp_path / name) == tmp_path / "a.truth.json"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [{}], "sessions": []}'])
def test_what_is_no_truth(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(UnreadableError):
        from_truth(path)


def verdict(image, predicted, actual):
    return judging.Verdict(image, "k", predicted, actual)


def test_the_confusion_matrix():
    text = judging.confusion(
        [
            verdict("a", Outcome.TAKEN_OVER, Outcome.TAKEN_OVER),
            verdict("b", Outcome.TAKEN_OVER, Outcome.BOOT_FAILS),
            verdict("c", Outcome.BOOT_FAILS, Outcome.BOOT_FAILS),
        ]
    )
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:-1]}
    assert rows == {"taken-over": ["1", "1"], "boot-fails": ["0", "1"]}
    assert text.endswith("2 of 3 as predicted")


def test_results_are_kept_and_not_run_again(tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.raw", "b.raw", "b.truth.json"):
        (images / name).write_bytes(b"")
    ran = []

    def one(image, kernel, **_):
        ran.append(image.name)
        return verdict(image.name, Outcome.TAKEN_OVER, Outcome.FILE_ERROR)

    class Kernel:
        name = "k"

    monkeypatch.setattr(judging, "one", one)
    results = tmp_path / "results.jsonl"
    first = judging.run(images, Kernel(), results=results)
    assert ran == ["a.raw", "b.raw"]
    assert judging.run(images, Kernel(), results=results) == first
    assert ran == ["a.raw", "b.raw"]
    results.write_text("nonsense\n")
    with pytest.raises(UnreadableError, match="not a file of results"):
        judging.run(images, Kernel(), results=results)


def test_directories_without_images(tmp_path):
    with pytest.raises(UnreadableError, match="holds no image"):
        judging.images(tmp_path)
    with pytest.raises(UnreadableError, match="not a directory"):
        judging.images(tmp_path / "x")


def test_blocks_out_of_a_kernels_log():
    line = (
        "<6>[    0.000000] __memblock_reserve: [0x{:016x}-0x{:016x}] nid=-1 flags=0 "
        "kho_preserved_memory_reserve+0x4f/0x80\n"
    )
    other = "<6>[    0.000000] memblock_reserve: [0x0-0xfff] setup_arch+0x1/0x2\n"
    log = line.format(0x200000, 0x3FFFFF) + other + line.format(0x1000, 0x1FFF)
    assert truth.preserved_blocks(log.encode()) == [(0x1000, 0), (0x200000, 9)]
    assert truth.preserved_blocks(other.encode()) is None
    assert truth.preserved_blocks(line.format(0x1000, 0x3FFF).encode()) is None


def test_guest_memory_above_three_gigabytes_goes_on_at_four():
    ram = Ram(4 << 30)
    try:
        assert ram.write((4 << 30) + 0x1000, b"high")
        assert ram.write(0x1000, b"low")
        assert not ram.write(3 << 30, b"hole")
        assert not ram.write(5 << 30, b"beyond")
        assert ram.read((4 << 30) + 0x1000, 4) == b"high"
        assert {a & ~0xFFF for a, _, n in ram.extents() if n} == {0x1000, (4 << 30) + 0x1000}
    finally:
        ram.close()


def test_reports_are_plain_data():
    data = json.loads(json.dumps(seen().as_json()))
    assert data["schema_version"] == 1
    assert "_blobs" not in data
