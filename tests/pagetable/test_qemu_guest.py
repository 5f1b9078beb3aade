"""A real kernel's own page tables, against what QEMU's monitor prints of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inspector.memory
from inspector.pagetable import Limits, Walk, walk

QEMU = shutil.which("qemu-system-x86_64")
#: Longest boot that is waited for, in seconds; machines that run tests are busy.
PATIENCE = 240

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
]


def kernel() -> Path:
    """A bzImage: named by KHO_TEST_KERNEL, or out of the lab's cache."""
    named = os.environ.get("KHO_TEST_KERNEL")
    if named:
        return Path(named)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from lab.host import cache_directory

    built = sorted((cache_directory() / "kernels").glob("*/bzImage"))
    if not built:
        pytest.skip("no real kernel: set KHO_TEST_KERNEL, or build one with the lab")
    return built[-1]


class Monitor:
    """QMP over a socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.stream = self.socket.makefile("rw")
        json.loads(self.stream.readline())
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "error" in answer:
                raise AssertionError(answer["error"])
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def human(self, line: str) -> str:
        return str(self.call("human-monitor-command", **{"command-line": line}))


@contextlib.contextmanager
def panicked(directory: Path, cpu: str) -> Iterator[Monitor]:
    """A guest whose kernel came as far as finding no init, and is stopped."""
    console, qmp = directory / "console", directory / "qmp"
    command = [
        str(QEMU),
        *("-machine", "pc,accel=tcg", "-cpu", cpu, "-m", "256M", "-smp", "1"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}", "-qmp", f"unix:{qmp},server=on,wait=off"),
        *("-kernel", str(kernel()), "-append", "console=ttyS0 panic=0"),
    ]
    with contextlib.ExitStack() as ends:
        process = ends.enter_context(subprocess.Popen(command))
        ends.callback(process.kill)
        monitor = ends.enter_context(contextlib.closing(Monitor(qmp)))
        deadline = time.monotonic() + PATIENCE
        while b"Kernel panic" not in (console.read_bytes() if console.exists() else b""):
            assert process.poll() is None, "QEMU ended"
            assert time.monotonic() < deadline, "the kernel did not come to its end"
            time.sleep(0.2)
        monitor.call("stop")
        yield monitor


FIVE_LEVELS = pytest.param(
    "max,la57=on",
    marks=pytest.mark.skipif(
        "KHO_TEST_LA57" not in os.environ, reason="slow to boot; set KHO_TEST_LA57"
    ),
)


@pytest.fixture(scope="module", params=["max,la57=off", FIVE_LEVELS])
def guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Walk, str, str]]:
    """The walk of a guest's tables, `info tlb`, `info mem`."""
    directory = tmp_path_factory.mktemp("guest")
    with panicked(directory, request.param) as monitor:
        registers = monitor.human("info registers")
        tlb, mem = monitor.human("info tlb"), monitor.human("info mem")
        dump = directory / "dump.elf"
        monitor.call("dump-guest-memory", paging=False, protocol=f"file:{dump}")
    value = {
        name: int(re.search(rf"{name}=([0-9a-f]+)", registers)[1], 16) for name in ("CR3", "CR4")
    }
    with inspector.memory.open(dump) as memory:
        levels = 5 if value["CR4"] >> 12 & 1 else 4
        root = value["CR3"] & 0x000FFFFFFFFFF000
        # The kernel shares tables of its own: fixmaps, the espfix area.
        yield walk(memory, "x86-64", root, levels, limits=Limits(repeats=1 << 18)), tlb, mem


def test_info_tlb(guest: tuple[Walk, str, str]) -> None:
    walked, tlb, _ = guest
    lines = []
    for chunk in walked.leaves():
        for iova, pa, size, entry in chunk:
            flags = "".join(
                letter if entry >> bit & 1 else "-"
                for letter, bit in (
                    ("X", 63),
                    ("G", 8),
                    ("P", 7),
                    ("D", 6),
                    ("A", 5),
                    ("C", 4),
                    ("T", 3),
                    ("U", 2),
                    ("W", 1),
                )
            )
            assert size == 4096 or entry & 0x80
            lines.append(f"{iova:016x}: {pa:016x} {flags}")
    assert len(lines) > 1000
    assert tlb.split("\r\n")[:-1] == lines


def test_info_mem(guest: tuple[Walk, str, str]) -> None:
    walked, _, mem = guest
    if not mem and walked.tree.depth == 5:
        pytest.skip("this QEMU's `info mem` says nothing of five levels")
    merged: list[list[int]] = []
    for chunk in walked.ranges():
        rights = (chunk.attributes & 6).tolist()
        for iova, size, right in zip(chunk.iova.tolist(), chunk.size.tolist(), rights, strict=True):
            if merged and merged[-1][0] + merged[-1][1] == iova and merged[-1][2] == right:
                merged[-1][1] += size
            else:
                merged.append([iova, size, right])
    lines = [
        f"{iova:016x}-{iova + size & (1 << 64) - 1:016x} {size:016x} "
        f"{'u' if right & 4 else '-'}r{'w' if right & 2 else '-'}"
        for iova, size, right in merged
    ]
    assert mem.split("\r\n")[:-1] == lines


def test_nothing_is_wrong_but_sharing(guest: tuple[Walk, str, str]) -> None:
    walked, _, _ = guest
    assert walked.stats.complete
    assert {finding.code for finding in walked.findings.items} <= {"KHO-PT-005"}
