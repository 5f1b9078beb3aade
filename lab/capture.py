"""A live update under QEMU, and what memory holds at each moment of it.

Moments: ``outgoing`` (old kernel, about to jump), ``handoff`` (all segments copied, the
CPU at the entry of the new kernel's purgatory), ``incoming`` (the new kernel has booted,
nothing has been retrieved), ``retrieved`` (all files retrieved, no session finished).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import dumps, guest, truth
from lab.build import Kernel
from lab.expectation import Expectation, from_record
from lab.host import LabError, new_file, os_errors
from lab.qemu import Event, Machine, Patience, Stopped
from lab.ram import Ram
from lab.report import Report
from lab.workload import Workload

MOMENTS = ("outgoing", "handoff", "incoming", "retrieved")
_RDI = 5
_KIMAGE_START = 24  # struct kimage: head, entry, last_entry, start
_SYMBOLS = (
    "_text",
    "machine_kexec",
    "phys_base",
    "reserved_mem_table",
    "kho_out",
    "kho_in",
    "kho_scratch",
    "kho_scratch_cnt",
)
#: Up to 6.18 the handover is finalized by hand, before the kernel is loaded.
_FINALIZE_BEFORE = (6, 19)


@dataclass(slots=True)
class Capture:
    """What a live update left: image files by (moment, format), truth, logs, guest reports."""

    producer: Kernel
    consumer: Kernel
    workload: Workload
    command_line: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[tuple[str, str], Path] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    report: Report | None = None
    seconds: float = 0.0

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The guest's reports of one kind."""
        return [e for e in self.events if e["event"] == kind]


def producer_script(workload: Workload, kernel: Kernel, next_command_line: str) -> str:
    """What the old kernel's init is to do."""
    huge = "/sys/kernel/mm/transparent_hugepage"
    lines = [f"write {huge}/enabled always"]
    setting = ""
    by_session = {
        name: [f for f in workload.files if f.session == name] for name in workload.sessions
    }
    for name, files in by_session.items():
        lines.append(f"session {name.encode().hex()}")
        for file in files:
            wanted = "always" if file.huge else "never"
            if wanted != setting:
                lines.append(f"write {huge}/shmem_enabled {wanted}")
                setting = wanted
            lines.append(file.command())
    if kernel.version.series < _FINALIZE_BEFORE:
        lines.append("write /sys/kernel/debug/kho/out/finalize 1")
    lines += [
        f"load {next_command_line}",
        "send /proc/iomem producer/iomem",
        "send /proc/version producer/version",
        "send /sys/kernel/vmcoreinfo producer/vmcoreinfo",
        f"symbols producer/symbols {' '.join(_SYMBOLS)}",
        "list /sys/kernel/debug/kho producer/kho",
        "log producer/dmesg",
        "mark ready",
        "kexec",
    ]
    return "\n".join(lines) + "\n"


def consumer_script(workload: Workload, marks: Sequence[str]) -> str:
    """What the new kernel's init is to do."""
    lines = [
        "send /proc/iomem consumer/iomem",
        "send /proc/version consumer/version",
        "send /sys/kernel/vmcoreinfo consumer/vmcoreinfo",
        "list /sys/kernel/boot_params/setup_data consumer/setup_data",
        "exists /dev/liveupdate",
        "symbols consumer/symbols _text reserved_mem_table",
        "exists /sys/kernel/debug/kho/in/fdt",
        "log consumer/dmesg",
    ]
    if "incoming" in marks:
        lines.append("mark incoming")
    lines.append("open")
    for name in workload.sessions:
        lines.append(f"retrieve {name.encode().hex()}")
        lines += [f"file {f.token:#x} 1" for f in workload.files if f.session == name]
    if "retrieved" in marks:
        lines.append("mark retrieved")
    # Finishing needs the descriptor of each session; retrieving again tells that it is gone.
    return "\n".join([*lines, "log consumer/dmesg-after", "end"]) + "\n"


def command_line(workload: Workload, extra: str) -> str:
    """The producer's kernel command line."""
    words = [
        "console=ttyS0,115200 nokaslr panic=-1 kho=on liveupdate=on loglevel=5",
        # Without ACPI the driver must be told where QEMU's configuration port is.
        "qemu_fw_cfg.ioport=12@0x510:0:1:4",
        *(region.parameter() for region in workload.reserve_mem),
        extra,
    ]
    return " ".join(w for w in words if w)


def capture(
    producer: Kernel,
    consumer: Kernel,
    workload: Workload,
    out: Path | None,
    *,
    prefix: str | None = None,
    moments: Sequence[str] = ("outgoing", "handoff", "incoming"),
    formats: Sequence[str] = ("raw",),
    accel: str = "auto",
    append: str = "",
    patience: Patience | None = None,
) -> Capture:
    """Run one live update; write images and truth files to ``out`` (None: nothing).

    Raises LabError if the producer does not get as far as the jump. What the consumer then
    does is the result, good or bad.
    """
    line = command_line(workload, append)
    # The consumer lists what it reserves: a list of the preserved memory that no decoder made.
    extra = "memblock=debug log_buf_len=8M earlyprintk=serial,ttyS0,115200"
    result = Capture(producer, consumer, workload, line)
    initrd = guest.initramfs({"script": consumer_script(workload, moments).encode()})
    with os_errors("read the kernels"):
        kernels = producer.bzimage.read_bytes(), consumer.bzimage.read_bytes()
    script = producer_script(workload, producer, f"{line} {extra}")
    first = guest.initramfs(
        {"script": script.encode(), "next/kernel": kernels[1], "next/initrd": initrd}
    )
    name = prefix or f"linux-{producer.release}"
    fds = [guest.memory_file("kernel", kernels[0]), guest.memory_file("initrd", first)]
    ram = Ram(workload.ram)
    try:
        arguments = ["-kernel", f"/proc/self/fd/{fds[0]}", "-initrd", f"/proc/self/fd/{fds[1]}"]
        # With this device QEMU's own dumps carry the kernel's VMCOREINFO.
        arguments += ["-append", line, "-device", "vmcoreinfo"]
        with Machine(
            ram, arguments, accel=accel, patience=patience, pass_fds=fds, gdb=True
        ) as machine:
            _drive(machine, result, out, name, moments, formats)
            result.seconds = machine.seconds
        if out is not None and result.images:
            _write_truth(result, out, name)
    finally:
        ram.close()
        for fd in fds:
            os.close(fd)
    return result


def _drive(
    machine: Machine,
    result: Capture,
    out: Path | None,
    name: str,
    moments: Sequence[str],
    formats: Sequence[str],
) -> None:
    """Follow the guest through the live update, and take images on the way."""

    def take(moment: str) -> None:
        if out is not None and moment in moments:
            _dump(machine, result, out / f"{name}-{moment}", moment, formats)

    report: Report | None = None
    expected = Expectation()
    while True:
        event = machine.next_event()
        if isinstance(event, Stopped):
            if report is None:
                tail = machine.console.decode("utf-8", "replace").strip().splitlines()[-1:]
                why = machine.startup_error() or "".join(tail)
                raise LabError(f"{result.producer.name} did not get to the jump ({event}): {why}")
            report.close(machine, event, expected)
            result.report = report
            return
        _note(result, event, report is not None)
        if report is not None:
            report.take(event, machine.ram, expected, result.command_line)
        if event.kind == "load" and event.data["errno"]:
            why = os.strerror(event.data["errno"])
            raise LabError(f"{result.producer.name}: kexec_file_load failed: {why}")
        if event.kind != "mark":
            continue
        if event.data["name"] == "ready":
            _fill_regions(machine.ram, result)
            expected = from_record(truth.truth(result, "handoff"))
            report = Report(result.producer.name, result.consumer.name)
            _jump(machine, result, take)
            machine.console.clear()
        else:
            machine.qmp("stop")
            take(event.data["name"])
            machine.qmp("cont")
            machine.rest()
            machine.answer()


def _note(result: Capture, event: Event, jumped: bool) -> None:
    if event.kind == "blob":
        name = str(event.data["name"])
        if jumped and name.startswith("frames/"):
            name = f"consumer/{name}"
        result.blobs[name] = event.blob
    else:
        result.events.append(event.data)


def _jump(machine: Machine, result: Capture, take: Any) -> None:
    """From the producer's last mark to the entry of the new kernel."""
    symbols = truth.symbols(result.blobs.get("producer/symbols", b""))
    if "machine_kexec" not in symbols:
        raise LabError(f"{result.producer.name}: its kallsyms has no machine_kexec")
    debugger = machine.debugger()
    try:
        debugger.run_to(symbols["machine_kexec"], go=True)
        take("outgoing")
        entry = debugger.read_u64(debugger.register(_RDI) + _KIMAGE_START)
        debugger.run_to(entry)
        take("handoff")
        debugger.detach()
    finally:
        debugger.close()


def _fill_regions(ram: Ram, result: Capture) -> None:
    """Find the reserve_mem regions in the kernel's own table, and fill them."""
    found = truth.reserved_table(ram, *truth.text_offset(result.blobs, "producer"))
    for region in result.workload.reserve_mem:
        if region.name in found:
            result.regions[region.name] = found[region.name]
            ram.write(found[region.name], region.content())


def _dump(
    machine: Machine, result: Capture, stem: Path, moment: str, formats: Sequence[str]
) -> None:
    side = "producer" if moment in ("outgoing", "handoff") else "consumer"
    for kind in formats:
        path = stem.with_name(f"{stem.name}.{kind}")
        with new_file(path) as temporary:
            dumps.save(machine, temporary, kind, result.blobs.get(f"{side}/vmcoreinfo", b""))
        result.images[moment, kind] = path
    machine.rest()


def _write_truth(result: Capture, out: Path, name: str) -> None:
    for moment in dict.fromkeys(m for m, _ in result.images):
        record = truth.truth(result, moment)
        record["images"] = {
            kind: {"file": path.name, "sha256": _sha256(path)}
            for (m, kind), path in result.images.items()
            if m == moment
        }
        with new_file(out / f"{name}-{moment}.truth.json") as path:
            path.write_text(json.dumps(record, indent=1) + "\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
