"""Dumps that QEMU makes of a guest, against the file that is the guest's memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from memory_model import CORPUS

from inspector import memory

QEMU = shutil.which("qemu-system-x86_64")
SIZE = 32 << 20
PAGE = 4096
#: What a PC shows below 1 MiB is not all RAM.
LOW = 640 << 10

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
]


class Guest:
    """A guest that never runs; its memory is a file, and QMP is a socket."""

    def __init__(self, directory: Path) -> None:
        self.ram = directory / "ram"
        with self.ram.open("wb") as stream:
            stream.truncate(SIZE)
        self.place_capture()
        self.qmp_path = directory / "qmp"
        backend = f"memory-backend-file,id=ram,size={SIZE},mem-path={self.ram},share=on"
        command = [
            str(QEMU),
            *("-machine", "q35,accel=tcg,memory-backend=ram", "-m", f"{SIZE >> 20}M"),
            *("-object", backend, "-S", "-display", "none", "-nodefaults", "-no-user-config"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(str(self.qmp_path))
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    pytest.skip("QEMU does not start here")
                time.sleep(0.05)
        self.stream = self.socket.makefile("rw")
        self.stream.readline()
        self.ask("qmp_capabilities")

    def place_capture(self) -> None:
        """A real hand-over at its real addresses, and noise elsewhere."""
        rng = np.random.default_rng(7)
        with self.ram.open("r+b") as stream:
            for pfn in rng.choice(np.arange(256, SIZE // PAGE), 500, replace=False).tolist():
                stream.seek(pfn * PAGE)
                stream.write(rng.bytes(PAGE // 8) * 8)
            with memory.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as capture:
                for region in capture.regions:
                    if region.end <= SIZE:
                        stream.seek(region.start)
                        stream.write(capture.read(region.start, region.size))

    def ask(self, command: str, **arguments: Any) -> Any:
        try:
            self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.stream.flush()
        except OSError:
            pytest.skip("QEMU is gone")
        while True:
            line = self.stream.readline()
            if not line:
                pytest.skip("QEMU is gone")
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        if hasattr(self, "stream"):
            with contextlib.suppress(OSError):
                self.stream.close()
        self.socket.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    machine = Guest(tmp_path_factory.mktemp("guest"))
    yield machine
    machine.close()


@pytest.mark.parametrize("form", ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"])
def test_a_dump_is_the_memory(guest: Guest, form: str, tmp_path: Path) -> None:
    formats = guest.ask("query-dump-guest-memory-capability")["formats"]
    if form not in formats:
        pytest.skip(f"this QEMU does not write {form}")
    path = tmp_path / "dump"
    guest.ask("dump-guest-memory", paging=False, protocol=f"file:{path}", format=form)
    packed = tmp_path / "packed"
    with path.open("rb") as source, packed.open("wb") as target:
        zstandard.ZstdCompressor(level=1).copy_stream(source, target)
    with memory.open(path) as dump, memory.open(packed) as unpacked, memory.open(guest.ram) as ram:
        assert dump.kind == ("elf" if form == "elf" else "kdump")
        assert dump.machine == "x86_64"
        frames = np.concatenate((np.arange(LOW // PAGE), np.arange(256, SIZE // PAGE)))
        addresses = frames.astype(np.uint64) * np.uint64(PAGE)
        assert (dump.states(addresses, PAGE) == memory.PageState.PRESENT).all()
        assert dump.state(SIZE) is memory.PageState.OUTSIDE
        for at in range(0, len(addresses), 2048):
            some = addresses[at : at + 2048]
            want = ram.gather(some, PAGE)
            assert np.array_equal(dump.gather(some, PAGE), want)
            assert np.array_equal(unpacked.gather(some, PAGE), want)
        roots = [pa for pa in memory.find_words(ram, 0xEDFE0DD0) if pa >= 1 << 20]
        assert roots
        for image in (dump, unpacked):
            found = [pa for pa in memory.find_words(image, 0xEDFE0DD0) if 1 << 20 <= pa < SIZE]
            assert found == roots


def test_the_dump_through_a_pipe(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    copy = tmp_path / "copy"
    # Both ends are held: a QEMU that is done before cat has begun would leave it waiting.
    ends = os.open(path, os.O_RDWR)
    with (
        copy.open("wb") as target,
        path.open("rb") as source,
        subprocess.Popen(["cat"], stdin=source, stdout=target) as cat,
    ):
        try:
            guest.ask(
                "dump-guest-memory", paging=False, protocol=f"file:{path}", format="kdump-zlib"
            )
        except RuntimeError as error:
            cat.kill()
            pytest.skip(f"this QEMU does not write into a pipe: {error}")
        finally:
            os.close(ends)
    with memory.open(copy) as dump, memory.open(guest.ram) as ram:
        assert dump.read(1 << 20, 1 << 16) == ram.read(1 << 20, 1 << 16)
