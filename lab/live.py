"""kho on a live host: in a virtual machine that updates itself, held against what it says.

The guest runs this very Python and kho (:mod:`lab.guest.python`). It makes a session with files,
where its kernel has sessions, looks at ``/proc/kcore``, jumps into the same kernel, looks again,
and only then takes its files back (:mod:`lab.guest.live_init`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import guest
from lab.build import Kernel
from lab.guest import live_init, python
from lab.host import LabError
from lab.qemu import Event, Machine, Patience, Stopped
from lab.ram import Ram

_RAM = 2 << 30
_SECONDS = 900.0
_ENVIRONMENT = " ".join(f"{name}={value}" for name, value in python.ENVIRONMENT.items())
_COMMAND_LINE = (
    "console=ttyS0,115200 panic=-1 kho=on liveupdate=on loglevel=4"
    # As much as the next kernel and its initramfs need: a share of all that is in use is too much.
    " kho_scratch=64M,320M,256M"
    f" reserve_mem={live_init.REGION_SIZE}:4096:{live_init.REGION}"
    f" rdinit={python.INTERPRETER} {_ENVIRONMENT}"
)
_INIT = "live.py"
#: Emulated, AVX2 makes numpy's sorting wrong: a table of segments came out of order.
_CPU = "max,avx2=off"


@dataclass(slots=True)
class Report:
    """What was seen, and what of it was wrong."""

    kernel: str
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        """Record something that must hold."""
        (self.seen if holds else self.wrong).append(what)


def run(kernel: Kernel, *, accel: str = "auto", patience: Patience | None = None) -> Report:
    """Let a guest look at itself, before and after a live update; a few minutes without KVM.

    Raises LabError if it cannot be tried, for want of drgn for instance.
    """
    root = python.archive("kho-inspector", "drgn")
    root.file(_INIT, Path(live_init.__file__).read_bytes())
    second = root.compressed()
    outer = guest.Archive()
    outer.file("next/kernel", kernel.bzimage.read_bytes())
    outer.file("next/initrd", second)
    initrd = guest.memory_file("initrd", second + outer.compressed())
    ram = Ram(_RAM)
    arguments = [
        "-kernel", str(kernel.bzimage), "-initrd", f"/proc/self/fd/{initrd}",
        "-append", f"{_COMMAND_LINE} -- /{_INIT}", "-cpu", _CPU,
    ]  # fmt: skip
    patience = patience or Patience(cpu=300.0, asleep=60.0, total=_SECONDS)
    report = Report(kernel.name)
    try:
        with Machine(ram, arguments, accel=accel, patience=patience, pass_fds=[initrd]) as machine:
            events: list[Event] = []
            while not isinstance(event := machine.next_event(), Stopped):
                events.append(event)
            report.seconds = machine.seconds
            report.wrong += [f"the guest's line came damaged: {line!r}" for line in machine.noise]
            if event is not Stopped.END:
                tail = machine.console.decode("utf-8", "replace").splitlines()[-3:]
                report.wrong.append(f"the guest ended by {event}: {' | '.join(tail)}")
    finally:
        os.close(initrd)
        ram.close()
    _judge(report, events)
    return report


def _judge(report: Report, events: list[Event]) -> None:
    for event in events:
        if event.kind == "failed" or event.data.get("errno"):
            report.wrong.append(f"in the guest: {event.data}")
    stages = [[e for e in events if e.data["stage"] == stage] for stage in (1, 2)]
    for events_, judge in zip(stages, (_before, _after), strict=True):
        try:
            judge(report, events_)
        except (LabError, KeyError, IndexError, TypeError, ValueError) as error:
            report.wrong.append(f"{judge.__name__[1:]} the jump: {error!r}")


def _before(report: Report, events: list[Event]) -> None:
    """The side that has not handed over: its map is whole, its sessions are not written yet."""
    dump = _document(events, "dump")
    root, candidates = dump["root"], dump["candidates"]
    report.check(root["moment"] == "outgoing", "before the jump: the moment is outgoing")
    named = [c["how"] for c in candidates]
    report.check(
        named == ["kho_out of the running kernel"],
        "before the jump: the kernel names its root, nothing is searched for",
    )
    _same_scratch(report, events, dump, "before the jump")
    for run in _runs(events, "info"):
        said = run.data["error"]
        report.check(
            run.data["status"] == 4 and "the handover is not finalized" in said,
            "before it is finalized: kho says so",
        )
    _same_region(report, dump, "before the jump")
    if dump["preserved"] is None:  # in 6.19 the map is made at the jump
        report.seen.append("before the jump: there is no map yet")
    else:
        size = dump["preserved"]["pages"] * 4096
        files = live_init.FILES.values() if _sessions(events) else ()
        report.check(
            size >= live_init.REGION_SIZE + sum(files),
            "before the jump: the pages of region and files are preserved already",
        )
    found = _document(events, "check")["findings"]
    bad = sorted({f["code"] for f in found if f["severity"] != "info"})
    report.check(not bad, f"before the jump: nothing is wrong {' '.join(bad)}".rstrip())
    expected = "cannot-tell" if dump["preserved"] is None else "taken-over"
    _same_verdict(report, events, expected, "before the jump")
    _same_extract(report, events, dump, "before the jump")


def _after(report: Report, events: list[Event]) -> None:
    """The side that was handed something: its files are there until they are retrieved."""
    dump = _document(events, "dump")
    report.check(dump["root"]["moment"] == "incoming", "after the jump: the moment is incoming")
    hows = {c["how"].partition(" ")[0] for c in dump["candidates"]}
    _same_scratch(report, events, dump, "after the jump")
    _same_region(report, dump, "after the jump")
    own: list[dict[str, Any]] = []
    if _sessions(events):
        report.check(hows == {"kho_in", "kho_out"}, "after the jump: the kernel names both roots")
        _same_files(report, events, dump)
        asked = [e.data for e in _runs(events, "dump") if "--root" in e.data["arguments"]]
        own = [json.loads(data["out"]) for data in asked]
        report.check(
            [d["root"]["moment"] for d in own] == ["outgoing"],
            "after the jump: --root shows what the kernel has for the next one",
        )
    else:  # its own root is not made before it is finalized
        report.check(hows == {"kho_in"}, "after the jump: the kernel names the root it was given")
    bad = sorted(
        {
            f["code"] for f in _document(events, "check")["findings"] if f["severity"] != "info"
        }
    )  # fmt: skip
    report.check(not bad, f"after the jump: nothing is wrong {' '.join(bad)}".rstrip())
    # A map, of nothing but a region, from 7.1 on.
    own_map = any(d["preserved"] is not None for d in own)
    expected = "taken-over" if own_map else "cannot-tell"
    _same_verdict(report, events, expected, "after the jump")
    _same_extract(report, events, dump, "after the jump")


def _same_verdict(report: Report, events: list[Event], expected: str, when: str) -> None:
    """What the same release would make of what this kernel has for the next one so far."""
    outcome = _document(events, "compat")["verdicts"][0]["outcome"]
    report.check(outcome == expected, f"{when}: kho compat says {expected} ({outcome})")


def _same_extract(report: Report, events: list[Event], dump: dict[str, Any], when: str) -> None:
    """An extract of the running kernel's memory says what that memory said."""
    run = next(_runs(events, "extract"))
    report.check(
        run.data["status"] == 0, f"{when}: it can be extracted {run.data['error']}".strip()
    )
    again = _document(events, "dump", extract=True)
    for part in ("scratch", "reserve_mem", "kexec_metadata", "luo", "preserved"):
        report.check(again[part] == dump[part], f"{when}: the extract has the same {part}")
    same = [d["root"][key] for d in (again, dump) for key in ("moment", "moment_reasons")]
    report.check(same[:2] == same[2:], f"{when}: the extract is of the same moment")
    found = _document(events, "check", extract=True)["findings"]
    bad = sorted({f["code"] for f in found if f["severity"] != "info"})
    report.check(not bad, f"{when}: nothing is wrong with the extract {' '.join(bad)}".rstrip())


def _same_files(report: Report, events: list[Event], dump: dict[str, Any]) -> None:
    """The files are found, and hold what the kernel gives back."""
    files = {
        int(file["token"], 16): file
        for session in dump["luo"]["sessions"]
        for file in session["files"]
    }
    report.check(
        sorted(files) == sorted(live_init.FILES), "after the jump: session and files are found"
    )
    back = {e.data["token"]: e.data["sha256"] for e in events if e.kind == "retrieved"}
    for token in live_init.SHOWN:
        size = live_init.FILES[token]
        path = f"/LUO/sessions/{live_init.SESSION.decode()}/files/{token:#x}"
        got = next(
            (e.data["out"] for e in _runs(events, "cat") if e.data["arguments"][1] == path), None
        )
        wanted = hashlib.sha256(live_init.content(token, size)).hexdigest()
        report.check(
            got == wanted == back.get(token),
            f"after the jump: kho cat and the kernel give file {token:#x} as it was",
        )


def _sessions(events: list[Event]) -> bool:
    return any(e.data["sessions"] for e in events if e.kind == "start")


def _same_region(report: Report, dump: dict[str, Any], when: str) -> None:
    regions = [(r["name"], r["size"]) for r in dump["reserve_mem"] or ()]
    wanted = [(live_init.REGION, live_init.REGION_SIZE)]
    report.check(regions == wanted, f"{when}: the reserved region is found")


def _same_scratch(report: Report, events: list[Event], dump: dict[str, Any], when: str) -> None:
    told = next(e.data for e in events if e.kind == "debugfs")
    wanted = [
        (int(start, 0), int(size, 0))
        for start, size in zip(told["scratch_phys"], told["scratch_len"], strict=True)
    ]
    shown = [(int(area["address"], 16), area["size"]) for area in dump["scratch"] or ()]
    report.check(shown == wanted, f"{when}: the scratch areas are those of debugfs")


def _runs(events: list[Event], verb: str, *, extract: bool = False) -> Iterator[Event]:
    """What came of a verb, on the machine itself or on an extract of it."""
    return (
        e
        for e in events
        if e.kind == "kho"
        and e.data["arguments"][0] == verb
        and (e.data["image"] != "/proc/kcore") == extract
    )


def _document(events: list[Event], verb: str, *, extract: bool = False) -> dict[str, Any]:
    """The first document that a verb printed. Raises LabError if it printed none."""
    run = next(_runs(events, verb, extract=extract), None)
    if run is None:
        raise LabError(f"kho {verb} did not run")
    try:
        loaded: dict[str, Any] = json.loads(run.data["out"])
    except ValueError:
        raise LabError(f"kho {verb} ended with {run.data['status']}: {run.data['error']}") from None
    return loaded
