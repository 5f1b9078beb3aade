"""What a kernel did with an image: the observations, and the verdict they add up to."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inspector.findings import Outcome
from inspector.kernel.outcome import PRECEDENCE
from lab import truth
from lab.expectation import Expectation
from lab.qemu import Event, Machine, Stopped
from lab.ram import Ram
from lab.sources import Version

_PAGE = 4096


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
    dmesg: str = ""
    overwritten: list[int] = field(default_factory=list)
    _blobs: dict[str, bytes] = field(default_factory=dict)
    _guarded: dict[int, bytes] = field(default_factory=dict)

    def guard(self, ram: Ram, pages: Sequence[int]) -> None:
        """Remember pages that must not change while the kernel boots."""
        self._guarded = {page: ram.read(page, _PAGE) for page in pages if page + _PAGE <= ram.low}

    def take(self, event: Event, ram: Ram, expected: Expectation, command_line: str) -> None:
        """Note what the new kernel's init said."""
        data = event.data
        if event.kind == "blob":
            self._blobs[str(data["name"])] = event.blob
        elif event.kind == "exists" and data["path"].endswith("/in/fdt"):
            self.kho = bool(data["exists"])
        elif event.kind == "open":
            # What tells where the regions lie was sent before, and they stay there.
            self.open_errno = int(data["errno"])
            self.regions = _regions(ram, self._blobs, expected, command_line)
            guarded = self._guarded.items()
            self.overwritten = [p for p, was in guarded if ram.read(p, _PAGE) != was]
        elif event.kind in ("retrieve", "finish"):
            self.sessions.append(data)
        elif event.kind == "file":
            self.files.append(data)

    def close(self, machine: Machine, stopped: Stopped, expected: Expectation) -> None:
        """Note the end of the run, and judge."""
        self.stopped = stopped
        self.seconds = round(machine.seconds, 2)
        self.console = machine.console.decode("utf-8", "replace").replace("\r", "")
        log = self._blobs.get("consumer/dmesg")
        if log is not None:
            self.dmesg = log.decode("utf-8", "replace")
            self.warnings = warnings_of(self.dmesg)
        self.outcome = judge(self, expected)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        data = asdict(self)
        del data["_blobs"], data["_guarded"]
        data["schema_version"] = 1
        return data


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


#: Messages of the hand-over's parts, and the kernel's own alarms.
_OURS = re.compile(
    r"(KHO|kho\w*|luo\w*|memfd_luo|test_kho|liveupdate|shmem): |"
    r"WARNING: |BUG: |Oops|Bad page|.*reserve_mem"
)
#: At or below this level a message warns.
_WARN = 4
_LINE = re.compile(r"<(\d+)>\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? (.*)")


def warnings_of(log: str) -> list[str]:
    """Messages of a kernel's log (with levels) that complain about the hand-over, at most 50."""
    found = []
    for line in log.splitlines():
        m = _LINE.match(line)
        if m and int(m[1]) & 7 <= _WARN and _OURS.match(m[2]):
            found.append(m[2])
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
    if not expected.kho_test:  # its data is not in the image, and it says so
        report.warnings = [w for w in report.warnings if not w.startswith("test_kho: ")]
    found = {
        Outcome.CORRUPTION: _corrupt(report, expected),
        Outcome.LUO_UNUSABLE: [],
        Outcome.FILE_ERROR: _file_errors(report),
        Outcome.STATE_LOST: _lost(report, expected),
        Outcome.TAKEN_OVER_WITH_WARNINGS: report.warnings,
    }
    if expected.sessions and report.open_errno == errno.ENOENT:
        found[Outcome.STATE_LOST] = ["the kernel has no /dev/liveupdate"]
    elif expected.sessions and report.open_errno:
        why = os.strerror(report.open_errno)
        found[Outcome.LUO_UNUSABLE] = [f"opening /dev/liveupdate fails: {why}"]
    ranked = [outcome for outcome in PRECEDENCE if found.get(outcome)]
    for outcome in ranked:
        reasons += found[outcome]
    return ranked[0] if ranked else Outcome.TAKEN_OVER


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
    if expected.kho_test and _unguarded(report):
        found.append("the self test of KHO (kho_test) finds other content in its memory")
    if report.overwritten:
        n, first = len(report.overwritten), report.overwritten[0]
        found.append(f"{n} preserved pages in scratch were overwritten, the first at {first:#x}")
    found += [
        f"reserve_mem {r['name']}: the content differs"
        for r in report.regions
        if r["revived"] and r.get("content") is False
    ]
    return found


def _unguarded(report: Report) -> bool:
    """Whether the self test failed on a kernel that hands out memory it did not protect.

    Before 6.18 nothing tells a page that was preserved from another one: what is restored
    and has not the content that was handed over is corrupt, not lost.
    """
    version = Version.parse(report.kernel)
    old = version is not None and version.series < (6, 18)
    return old and "KHO restore succeeded" not in (report.dmesg or report.console)


def _file_errors(report: Report) -> list[str]:
    return [
        f"file {f['token']:#x}: {os.strerror(f['errno'])}"
        for f in report.files
        if f["errno"] not in (0, errno.EBADF, errno.ENOENT)  # the others are told as lost
    ]


def _lost(report: Report, expected: Expectation) -> list[str]:
    made = {session.hex() for session in expected.sessions}
    found = [
        f"session {bytes.fromhex(s['name'])!r}: {os.strerror(s['errno'])}"
        for s in report.sessions
        if s["event"] == "retrieve" and s["errno"] and s["name"] in made
    ]
    got = _files_by_name(report)
    for file in expected.files:
        data = got.get((file.session.hex(), file.token))
        where = f"file {file.token:#x}"
        if data is not None and data["errno"] == errno.ENOENT:
            found.append(f"{where} is not there")
        if data is None or data["errno"]:
            continue
        if file.position is not None and data["position"] != file.position:
            found.append(f"{where}: position {data['position']} instead of {file.position}")
        if file.seals is not None and data["seals"] != file.seals:
            found.append(f"{where}: seals {data['seals']:#x} instead of {file.seals:#x}")
    found += [
        f"reserve_mem {r['name']} was not revived" for r in report.regions if not r["revived"]
    ]
    restored = "KHO restore succeeded" in (report.dmesg or report.console)
    if expected.kho_test and not restored and not _unguarded(report):
        found.append("the self test of KHO (kho_test) did not restore its data")
    return found
