"""Let a real kernel take over a prepared image, and see what comes of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inspector import memory
from inspector.findings import Outcome
from inspector.memory.base import PhysicalMemory
from lab import guest, place, truth
from lab.build import Kernel
from lab.expectation import Expectation
from lab.qemu import Machine, Patience, Stopped
from lab.ram import Ram

_BASE_COMMAND_LINE = (
    "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 nokaslr panic=-1 "
    "kho=on liveupdate=on loglevel=8"
)


@dataclass(slots=True)
class Report:
    """What a kernel did with an image.

    ``outcome`` is the verdict, ``reasons`` the observations it rests on, most important
    first; ``stopped`` tells how the run ended.
    """

    image: str
    kernel: str
    outcome: Outcome = Outcome.CANNOT_TELL
    reasons: list[str] = field(default_factory=list)
    stopped: Stopped | None = None
    seconds: float = 0.0
    kho: bool | None = None
    open_errno: int | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    console: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        data = asdict(self)
        data["schema_version"] = 1
        return data


def script(expected: Expectation) -> str:
    """What the new kernel's init is to do with the image."""
    lines = [
        "exists /sys/kernel/debug/kho/in/fdt",
        "exists /dev/liveupdate",
        "send /proc/iomem consumer/iomem",
        "symbols consumer/symbols _text reserved_mem_table",
        "open",
    ]
    for session in expected.sessions:
        lines.append(f"retrieve {session.hex()}")
        lines += [f"file {f.token:#x} 0" for f in expected.of(session)]
        lines.append("finish")
    return "\n".join([*lines, "end"]) + "\n"


def boot(
    image: str | Path | PhysicalMemory,
    kernel: Kernel,
    expected: Expectation,
    *,
    root: int | None = None,
    scratch: tuple[tuple[int, int], ...] | None = None,
    ram_size: int | None = None,
    append: str = "",
    poison: bool = False,
    accel: str = "auto",
    patience: Patience | None = None,
) -> Report:
    """Boot ``kernel`` on top of ``image``; about three seconds without KVM.

    Raises LabError or UsageError if it cannot be tried; everything that the kernel does is
    in the report.
    """
    opened = image if isinstance(image, PhysicalMemory) else memory.open(str(image))
    report = Report("memory" if opened is image else str(image), kernel.name)
    known = f"{_BASE_COMMAND_LINE} {append}".strip()
    try:
        ram, placement = place.fill(
            opened,
            kernel,
            guest.initramfs({"script": script(expected).encode()}),
            root=root,
            scratch=scratch,
            ram_size=ram_size,
            command_line=known,
            poison=poison,
        )
    finally:
        if opened is not image:
            opened.close()
    report.notes += placement.notes
    rom = guest.memory_file("rom", guest.rom(placement.entry, placement.boot_params))
    try:
        with Machine(
            ram,
            ["-bios", f"/proc/self/fd/{rom}"],
            accel=accel,
            patience=patience,
            pass_fds=[rom],
        ) as machine:
            _listen(machine, report, ram, expected, placement.command_line)
    finally:
        os.close(rom)
        ram.close()
    report.outcome = judge(report, expected)
    return report


def _listen(
    machine: Machine, report: Report, ram: Ram, expected: Expectation, command_line: str
) -> None:
    blobs: dict[str, bytes] = {}
    while True:
        event = machine.next_event()
        if isinstance(event, Stopped):
            report.stopped = event
            break
        data = event.data
        if event.kind == "blob":
            blobs[str(data["name"])] = event.blob
        elif event.kind == "exists" and data["path"].endswith("/in/fdt"):
            report.kho = bool(data["exists"])
        elif event.kind == "open":
            # After the last file that is sent: the regions lie where they lie.
            report.open_errno = int(data["errno"])
            report.regions = _regions(ram, blobs, expected, command_line)
        elif event.kind in ("retrieve", "finish"):
            report.sessions.append(data)
        elif event.kind == "file":
            report.files.append(data)
    report.seconds = round(machine.seconds, 2)
    report.console = machine.console.decode("utf-8", "replace").replace("\r", "")
    report.warnings = warnings_of(report.console)


def _regions(
    ram: Ram, blobs: dict[str, bytes], expected: Expectation, command_line: str
) -> list[dict[str, Any]]:
    """Where each expected reserve_mem region is now, and what it holds."""
    asked = re.findall(r"reserve_mem=[^ ]*:([^ :]+)", command_line)
    table, shift = truth.text_offset(blobs, "consumer")
    found = truth.reserved_table(ram, table, shift)
    regions = []
    for region in expected.regions:
        if region.name not in asked:
            continue
        start = found.get(region.name)
        item: dict[str, Any] = {"name": region.name, "start": start, "revived": False}
        item["revived"] = start == region.start
        if item["revived"] and region.sha256 is not None:
            data = ram.read(region.start, region.size)
            item["content"] = hashlib.sha256(data).hexdigest() == region.sha256
        regions.append(item)
    return regions


_WARNING = re.compile(
    r"WARNING: |BUG: |Oops|Bad page|(KHO|kho|luo|LUO|memfd_luo|liveupdate)[^:]*: .*"
    r"(fail|invalid|mismatch|corrupt|broken|unable|warn|error|too small|not supported)",
    re.IGNORECASE,
)


def warnings_of(console: str) -> list[str]:
    """Lines of a kernel's log that complain about the hand-over, at most 50."""
    found = []
    for line in console.splitlines():
        text = re.sub(r"^(<\d+>)?\[ *\d+\.\d+\] ", "", line.strip())
        if _WARNING.search(text):
            found.append(text)
    return found[:50]


def judge(report: Report, expected: Expectation) -> Outcome:
    """The outcome, in the project's vocabulary; fills ``report.reasons``."""
    reasons = report.reasons
    if report.stopped is not Stopped.END:
        reasons.append(_end_of_boot(report))
        return Outcome.BOOT_FAILS
    if not report.kho:
        reasons.append("the kernel did not accept the hand-over and booted without it")
        return Outcome.KHO_REFUSED
    if expected.sessions and report.open_errno:
        if report.open_errno == 2:
            reasons.append("the kernel has no /dev/liveupdate")
            return Outcome.STATE_LOST
        reasons.append(f"opening /dev/liveupdate fails: {os.strerror(report.open_errno)}")
        return Outcome.LUO_UNUSABLE
    checks: Sequence[tuple[Outcome, list[str]]] = (
        (Outcome.CORRUPTION, _corrupt(report, expected)),
        (Outcome.FILE_ERROR, _file_errors(report)),
        (Outcome.STATE_LOST, _lost(report, expected)),
        (Outcome.TAKEN_OVER_WITH_WARNINGS, report.warnings),
    )
    outcome = Outcome.TAKEN_OVER
    for candidate, found in checks:
        if found and outcome is Outcome.TAKEN_OVER:
            outcome = candidate
        reasons += found
    return outcome


def _end_of_boot(report: Report) -> str:
    lines = [line.strip() for line in report.console.splitlines() if line.strip()]
    panic = next((line for line in lines if "Kernel panic" in line), "")
    fault = next((line for line in lines if "BUG: " in line or "Oops" in line), "")
    early = next((line for line in lines if "PANIC: early exception" in line), "")
    last = panic or fault or early or (lines[-1] if lines else "")
    what = {
        Stopped.RESET: "the machine was reset",
        Stopped.EARLY_FAULT: "an exception before the kernel can handle one",
        Stopped.PANIC: "a panic",
        Stopped.HALTED: "a hang: the CPU sleeps for ever",
        Stopped.HANG: "a hang: the CPU runs for ever",
        Stopped.TIMEOUT: "still busy when the time was up",
    }
    began = what.get(report.stopped or Stopped.TIMEOUT, "the run ended")
    if panic and report.stopped is Stopped.RESET:
        began = "a panic"
    return f"{began}: {last}" if last else f"{began}, without any output"


def _files_by_name(report: Report) -> dict[tuple[str, int], dict[str, Any]]:
    return {(f["session"], f["token"]): f for f in report.files}


def _corrupt(report: Report, expected: Expectation) -> list[str]:
    got = _files_by_name(report)
    found = []
    for file in expected.files:
        data = got.get((file.session.hex(), file.token))
        if data is None or data["errno"]:
            continue
        where = f"file {file.token:#x}"
        if file.size is not None and data["size"] != file.size:
            found.append(f"{where}: size {data['size']} instead of {file.size}")
        elif file.sha256 is not None and data["sha256"] != file.sha256:
            found.append(f"{where}: the content differs")
        if file.position is not None and data["position"] != file.position:
            found.append(f"{where}: position {data['position']} instead of {file.position}")
        if file.seals is not None and data["seals"] != file.seals:
            found.append(f"{where}: seals {data['seals']:#x} instead of {file.seals:#x}")
    found += [
        f"reserve_mem {r['name']}: the content differs"
        for r in report.regions
        if r["revived"] and r.get("content") is False
    ]
    return found


def _file_errors(report: Report) -> list[str]:
    return [
        f"file {f['token']:#x}: {os.strerror(f['errno'])}"
        for f in report.files
        if f["errno"] and f["errno"] != 9  # EBADF: its session is the reason
    ]


def _lost(report: Report, expected: Expectation) -> list[str]:
    found = [
        f"session {bytes.fromhex(s['name'])!r}: {os.strerror(s['errno'])}"
        for s in report.sessions
        if s["event"] == "retrieve" and s["errno"]
    ]
    found += [
        f"reserve_mem {r['name']} was not revived" for r in report.regions if not r["revived"]
    ]
    if expected.kho_test and "KHO restore succeeded" not in report.console:
        found.append("the self test of KHO (kho_test) did not restore its data")
    return found
