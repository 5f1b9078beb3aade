"""Let a real kernel take over a prepared image, and see what comes of it."""

from __future__ import annotations

import os
from pathlib import Path

from inspector import memory
from inspector.memory.base import PhysicalMemory
from lab import guest, place
from lab.build import Kernel
from lab.expectation import Expectation
from lab.qemu import Machine, Patience, Stopped, patience_for
from lab.report import Report

_BASE_COMMAND_LINE = (
    "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 nokaslr panic=-1 "
    "kho=on liveupdate=on loglevel=8"
)


#: Bytes of free memory that are filled before the device is opened, at most.
_USED = 1 << 30


def script(expected: Expectation) -> str:
    """What the new kernel's init is to do with the image."""
    lines = [
        "exists /sys/kernel/debug/kho/in/fdt",
        "exists /dev/liveupdate",
        "send /proc/iomem consumer/iomem",
        "symbols consumer/symbols _text reserved_mem_table",
        # What is not protected gets used sooner or later: here it is before anything is asked for.
        f"use {_USED}",
        "open",
    ]
    for session in expected.sessions:
        lines.append(f"retrieve {session.hex()}")
        lines += [f"file {f.token:#x} 0" for f in expected.of(session)]
        lines.append("finish")
    return "\n".join([*lines, "log consumer/dmesg", "end"]) + "\n"


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

    ``patience`` None: two minutes, and more where there is much content to sum up.
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
            regions=expected.regions,
            poison=poison,
        )
    finally:
        if opened is not image:
            opened.close()
    report.notes += placement.notes
    report.guard(ram, expected.exposed)
    rom = guest.memory_file("rom", guest.rom(placement.entry, placement.boot_params))
    try:
        with Machine(
            ram,
            ["-bios", f"/proc/self/fd/{rom}"],
            accel=accel,
            patience=patience or patience_for(min(expected.content, ram.size)),
            pass_fds=[rom],
        ) as machine:
            while not isinstance(event := machine.next_event(), Stopped):
                report.take(event, ram, expected, placement.command_line)
            report.close(machine, event, expected)
    finally:
        os.close(rom)
        ram.close()
    return report
