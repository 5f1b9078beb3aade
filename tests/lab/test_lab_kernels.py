"""A real kernel produces, and a real kernel judges."""

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inspector import image as images
from inspector.findings import Outcome
from lab import boot as booting
from lab.capture import capture
from lab.compare import differences
from lab.expectation import Expectation, expect, of_image
from lab.host import LabError
from lab.qemu import Patience, Stopped
from lab.workload import Workload

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "corpus"


@pytest.fixture(scope="module")
def captured(kernel, tmp_path_factory):
    """A live update of a small workload, with the images before and after the jump."""
    out = tmp_path_factory.mktemp("captured")
    result = capture(kernel, kernel, Workload.small(11), out, prefix="small")
    return out, result


def qemus():
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return found.stdout.split()


def test_a_live_update_goes_well(captured):
    _, result = captured
    assert result.report.outcome is Outcome.TAKEN_OVER, result.report.reasons
    assert len(result.report.files) == 3


@pytest.mark.parametrize("moment", ["outgoing", "handoff", "incoming"])
def test_a_fresh_capture_decodes_equal_to_its_truth(captured, moment):
    out, _ = captured
    assert differences(out / f"small-{moment}.raw", out / f"small-{moment}.truth.json") == []


def test_a_departure_from_the_truth_is_seen(captured, tmp_path):
    """The comparison can fail: one byte of a file, one seal, one block."""
    import json

    out, _ = captured
    record = json.loads((out / "small-handoff.truth.json").read_text())
    record["files"][1]["sha256"] = "0" * 64
    record["files"][2]["seals"] = "0x1"
    record["preserved"]["sha256_of_lines_pa_order"] = "0" * 64
    record["reserve_mem"][0]["start"] = "0x1000"
    changed = tmp_path / "truth.json"
    changed.write_text(json.dumps(record))
    found = "; ".join(differences(out / "small-handoff.raw", changed))
    for part in ("content differs", "seals", "preserved blocks", "reserve_mem"):
        assert part in found


def test_a_capture_is_taken_over_again(captured, kernel):
    out, _ = captured
    image = out / "small-handoff.raw"
    report = booting.boot(image, kernel, expect(image))
    assert report.outcome is Outcome.TAKEN_OVER, report.reasons
    assert report.regions[0]["content"]


def test_an_image_of_the_corpus_is_taken_over(kernel):
    if kernel.version.series < (7, 3):
        pytest.skip("the corpus image is of 7.3")
    image = CORPUS / "linux-7.3.4-handoff.elf.zst"
    report = booting.boot(image, kernel, expect(image))
    assert report.outcome is Outcome.TAKEN_OVER, report.reasons
    assert len(report.files) == 81


def patched(image, tmp_path, address, data):
    target = tmp_path / "patched.raw"
    content = bytearray(image.read_bytes())
    content[address : address + len(data)] = data
    target.write_bytes(content)
    return target


def test_a_refused_image(captured, kernel, tmp_path):
    out, _ = captured
    image = out / "small-handoff.raw"
    with images.open(str(image)) as decoded:
        at, blob = decoded.root.address, decoded.memory.read(decoded.root.address, 256)
    target = patched(image, tmp_path, at + blob.index(b"kho-v"), b"kho-x")
    report = booting.boot(target, kernel, expect(image))
    assert report.outcome is Outcome.KHO_REFUSED


def test_changed_content_is_corruption(captured, kernel, tmp_path):
    out, _ = captured
    image = out / "small-handoff.raw"
    with images.open(str(image)) as decoded:
        expected = of_image(decoded)
        memfd = next(m for _, m in decoded.memfds() if m.size)
        address = int(memfd.addresses[0])
    target = patched(image, tmp_path, address, b"\xff" * 8)
    report = booting.boot(target, kernel, expected)
    assert report.outcome is Outcome.CORRUPTION
    assert "content differs" in report.reasons[0]


def test_an_early_fault_is_told_from_a_hang(captured, kernel, tmp_path):
    """Garbage in the map: the walk faults before the kernel has handlers for it."""
    out, _ = captured
    image = out / "small-handoff.raw"
    with images.open(str(image)) as decoded:
        content = bytearray(image.read_bytes())
        for node in decoded.preserved.nodes.tolist():
            content[node : node + 4096] = struct.pack("<Q", 0x6B6B6B6B6B6B6B6B) * 512
    target = tmp_path / "garbage.raw"
    target.write_bytes(content)
    report = booting.boot(target, kernel, expect(image))
    assert report.outcome is Outcome.BOOT_FAILS
    assert report.stopped in (Stopped.EARLY_FAULT, Stopped.RESET)
    assert report.console


def test_a_guest_that_never_answers(kernel, captured, tmp_path):
    """A kernel whose entry is an endless loop: no output, and the CPU runs."""
    out, _ = captured
    spinning = bytearray(kernel.bzimage.read_bytes())
    setup = (spinning[0x1F1] + 1) * 512
    spinning[setup + 0x200 : setup + 0x202] = b"\xeb\xfe"
    path = tmp_path / "spin"
    path.write_bytes(spinning)
    broken = replace(kernel, bzimage=path)
    image = out / "small-handoff.raw"
    report = booting.boot(image, broken, expect(image), patience=Patience(cpu=1.0, total=30))
    assert report.outcome is Outcome.BOOT_FAILS
    assert report.stopped is Stopped.HANG
    assert "without any output" in report.reasons[0]
    assert qemus() == []


def test_a_guest_that_sleeps_for_ever(kernel, captured, tmp_path):
    out, _ = captured
    halted = bytearray(kernel.bzimage.read_bytes())
    setup = (halted[0x1F1] + 1) * 512
    halted[setup + 0x200 : setup + 0x204] = b"\xfa\xf4\xeb\xfd"
    path = tmp_path / "halt"
    path.write_bytes(halted)
    image = out / "small-handoff.raw"
    report = booting.boot(
        image, replace(kernel, bzimage=path), Expectation(), patience=Patience(asleep=1.0, total=30)
    )
    assert report.stopped is Stopped.HALTED


def test_a_triple_fault(kernel, captured, tmp_path):
    out, _ = captured
    dead = bytearray(kernel.bzimage.read_bytes())
    setup = (dead[0x1F1] + 1) * 512
    dead[setup + 0x200 : setup + 0x202] = b"\x0f\x0b"  # ud2, and no handlers
    path = tmp_path / "dead"
    path.write_bytes(dead)
    report = booting.boot(out / "small-handoff.raw", replace(kernel, bzimage=path), Expectation())
    assert report.stopped is Stopped.RESET
    assert "without any output" in report.reasons[0]


def test_a_kernel_that_does_not_get_to_the_jump(kernel, tmp_path):
    with pytest.raises(LabError, match="did not get to the jump"):
        capture(kernel, kernel, Workload.small(1), tmp_path, append="init=/nowhere rdinit=/nowhere")
    assert list(tmp_path.iterdir()) == []
    assert qemus() == []


def test_a_killed_lab_leaves_nothing(kernel, tmp_path):
    cache = Path(kernel.bzimage).parents[2]
    before = set((cache / "tmp").glob("*")) if (cache / "tmp").exists() else set()
    command = [sys.executable, "-m", "lab", "capture", "-o", str(tmp_path / "out"), "--small"]
    lab = subprocess.Popen(
        [*command, "-k", str(kernel.bzimage)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        child = None
        for _ in range(400):
            found = subprocess.run(
                ["pgrep", "-P", str(lab.pid), "qemu"], capture_output=True, text=True, check=False
            ).stdout.split()
            if found:
                child = found[0]
                break
            lab.poll()
            import time

            time.sleep(0.05)
        assert child is not None
    finally:
        lab.terminate()
        lab.communicate(timeout=30)
    assert lab.returncode == 128 + 15
    assert not Path("/proc", child).exists()
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    after = set((cache / "tmp").glob("*")) if (cache / "tmp").exists() else set()
    assert after <= before
