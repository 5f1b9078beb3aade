"""PID 1 of a guest that looks at itself with kho: before a live update, and after it.

A region of ``reserve_mem`` goes with the handover of every kernel, a session with files where
there are sessions (6.19 on).

Runs in the virtual machine, with the Python and the packages of the host. What it says goes to
the second serial port, a JSON object on a line; the host compares (:mod:`lab.live`).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

SESSION = b"live"
FILES = {0x1: 3 << 20, 0x1234: 4097}
#: Those that kho is asked for.
SHOWN = (0x1234,)
#: A reserved region of the command line.
REGION, REGION_SIZE = "kept", 4 << 20
_MOUNTS = {"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev", "debugfs": "/sys/kernel/debug"}
_CREATE, _RETRIEVE, _PRESERVE_FD, _RETRIEVE_FD, _FINISH = 0xBA00, 0xBA01, 0xBA40, 0xBA41, 0xBA42
_KEXEC, _POWER_OFF = 0x45584543, 0x4321FEDC
_SYS_KEXEC_FILE_LOAD = 320
_STAGE = "live.stage=2"
_EXTRACT = "/extract.elf.zst"
_LIVEUPDATE = Path("/dev/liveupdate")
_FINALIZE = Path("/sys/kernel/debug/kho/out/finalize")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Mount, look, hand over, look again."""
    for kind, where in _MOUNTS.items():
        libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)
    channel = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    settings = termios.tcgetattr(channel)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(channel, termios.TCSANOW, settings)
    stage = 2 if _STAGE in Path("/proc/cmdline").read_text() else 1
    guest = Guest(channel, stage)
    try:
        (guest.before if stage == 1 else guest.after)()
    except Exception as error:
        guest.say("failed", error=f"{type(error).__name__}: {error}")
    guest.say("end")
    termios.tcdrain(channel)
    libc.reboot(_POWER_OFF)


class Guest:
    """What is done on either side of the jump."""

    def __init__(self, channel: int, stage: int) -> None:
        self._channel = channel
        self._stage = stage

    def before(self) -> None:
        """What is handed over; kho, which cannot know of sessions yet; the jump."""
        sessions = _LIVEUPDATE.exists()
        # Up to 6.18 the handover is finalized by hand, before the kernel is loaded.
        by_hand = not sessions and _FINALIZE.exists()
        self.say("start", sessions=sessions, by_hand=by_hand)
        if sessions:
            self.preserve()
        if by_hand:
            self.kho("info", "--format", "json")
            _FINALIZE.write_text("1")
        self.debugfs()
        self.kho("dump", "--format", "json")
        self.kho("check", "--format", "json")
        self.more()
        with open("/next/kernel", "rb") as kernel, open("/next/initrd", "rb") as initrd:
            line = f"{Path('/proc/cmdline').read_text().strip()} {_STAGE}".encode() + b"\0"
            failed = libc.syscall(
                _SYS_KEXEC_FILE_LOAD, kernel.fileno(), initrd.fileno(), len(line), line, 0
            )
        self.say("load", errno=ctypes.get_errno() if failed else 0)
        termios.tcdrain(self._channel)
        libc.reboot(_KEXEC)
        self.say("kexec", errno=ctypes.get_errno())

    def preserve(self) -> None:
        """A session with files."""
        liveupdate = os.open(_LIVEUPDATE, os.O_RDWR)
        session = _ioctl(liveupdate, _CREATE, "<Ii64s", 72, -1, SESSION)[1]
        for token, size in FILES.items():
            file = os.memfd_create(f"file-{token:x}")
            data = content(token, size)
            while data:
                data = data[os.write(file, data) :]
            _ioctl(session, _PRESERVE_FD, "<IiQ", 16, file, token)

    def after(self) -> None:
        """kho, before anything is retrieved; then what the kernel itself gives back."""
        sessions = _LIVEUPDATE.exists()
        self.say("start", sessions=sessions)
        self.debugfs()
        dump = self.kho("dump", "--format", "json")
        self.kho("check", "--format", "json")
        for token in SHOWN if sessions else ():
            self.kho("cat", f"/LUO/sessions/{SESSION.decode()}/files/{token:#x}", digest=True)
        for candidate in json.loads(dump)["candidates"] if dump else ():
            if candidate["how"].startswith("kho_out"):
                self.kho("dump", "--format", "json", "--root", candidate["address"])
        self.more()
        if sessions:
            self.retrieve()

    def retrieve(self) -> None:
        """The session's files, out of the kernel."""
        liveupdate = os.open(_LIVEUPDATE, os.O_RDWR)
        session = _ioctl(liveupdate, _RETRIEVE, "<Ii64s", 72, -1, SESSION)[1]
        for token in FILES:
            file = _ioctl(session, _RETRIEVE_FD, "<IiQ", 16, -1, token)[1]
            data = os.pread(file, 1 << 24, 0)
            self.say("retrieved", token=token, sha256=hashlib.sha256(data).hexdigest())

    def more(self) -> None:
        """What the next kernel would make of it; an extract, compressed, and what it says."""
        release = ".".join(os.uname().release.split(".")[:2])
        self.kho("compat", "--format", "json", "--to", f"linux-{release}")
        self.kho("extract", "--output", _EXTRACT, "--force")
        self.kho("dump", "--format", "json", image=_EXTRACT)
        self.kho("check", "--format", "json", image=_EXTRACT)

    def kho(
        self, verb: str, *arguments: str, image: str = "/proc/kcore", digest: bool = False
    ) -> bytes:
        """Run a verb on this very machine, or an extract of it, and tell what came of it."""
        run = "import sys; sys.argv[0] = 'kho'; from inspector.cli.app import main; main()"
        words = [sys.executable, "-c", run, verb, image, *arguments]
        done = subprocess.run(words, capture_output=True, check=False)
        out = hashlib.sha256(done.stdout).hexdigest() if digest else done.stdout.decode()
        self.say(
            "kho", arguments=[verb, *arguments], image=image, status=done.returncode, out=out,
            error=done.stderr.decode(errors="replace")[-2000:],
        )  # fmt: skip
        return done.stdout

    def debugfs(self) -> None:
        """What the kernel itself lists."""
        root = Path("/sys/kernel/debug/kho")
        lists = {
            name: (root / "out" / name).read_text().split()
            for name in ("scratch_phys", "scratch_len")
        }
        sides = sorted(path.name for path in root.iterdir())
        self.say("debugfs", sides=sides, **lists)

    def say(self, event: str, **what: Any) -> None:
        """A line for the host."""
        line = json.dumps({"event": event, "stage": self._stage, **what}).encode() + b"\n"
        while line:
            line = line[os.write(self._channel, line) :]


def content(token: int, size: int) -> bytes:
    """What a file holds."""
    block = hashlib.sha256(b"%d" % token).digest()
    return (block * (size // len(block) + 1))[:size]


def _ioctl(fd: int, request: int, layout: str, *values: Any) -> tuple[Any, ...]:
    argument = bytearray(struct.pack(layout, *values))
    fcntl.ioctl(fd, request, argument)
    return struct.unpack(layout, argument)


if __name__ == "__main__":
    main()
