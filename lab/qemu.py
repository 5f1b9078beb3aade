"""QEMU as a child: its consoles, the channel to the guest's init, QMP, and the gdb stub.

The guest's memory is a memfd, so that it can be written before and read after, and nothing
is left on disk. Consoles and QMP are socket pairs: no paths, no ports.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from lab import host
from lab.debugger import Debugger
from lab.host import LabError
from lab.ram import Ram

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_TICKS = os.sysconf("SC_CLK_TCK")
_CHANNEL_LINE_LIMIT = 1 << 16
_BLOB_LIMIT = 64 << 20
_NOISE_LINES = 16
_LOG_LIMIT = 16 << 20

#: Console lines after which a kernel says no more.
_LAST_WORDS = (b"PANIC: early exception", b"end Kernel panic")


class Stopped(enum.StrEnum):
    """Why the lab stopped listening to a guest."""

    END = "end"  # its init said that it is done
    RESET = "reset"  # the machine was reset: panic=-1, or a triple fault
    EARLY_FAULT = "early-fault"  # an exception before the kernel handles any
    PANIC = "panic"  # a panic that did not reset the machine
    HALTED = "halted"  # the CPU sleeps and nothing will wake it
    HANG = "hang"  # the CPU runs and nothing comes
    TIMEOUT = "timeout"  # still busy when the time was up


#: Bytes that a guest without KVM sums up in a second, on a busy host.
_SUMMED_PER_SECOND = 1 << 20
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long silence is borne: seconds of CPU time (so that a busy host does not matter),
    seconds asleep, and seconds of wall time in all."""

    cpu: float = 8.0
    asleep: float = 5.0
    total: float = _SECONDS


def patience_for(content: int) -> Patience:
    """Patience with a guest that has to sum up ``content`` bytes."""
    return Patience(total=_SECONDS + content / _SUMMED_PER_SECOND)


def kvm_works() -> bool:
    """Whether KVM is to be had here; the node alone says nothing, nor does opening it."""
    try:
        with open("/proc/cpuinfo", "rb") as f:
            flags = next((line for line in f if line.startswith(b"flags")), b"").split()
        if not {b"vmx", b"svm"} & set(flags):
            return False
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if fcntl.ioctl(device, _KVM_GET_API_VERSION, 0) != 12:
            return False
        os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
        return True
    except OSError:
        return False
    finally:
        os.close(device)


def accelerator(wanted: str = "auto") -> str:
    """``kvm`` or ``tcg``. Raises LabError if KVM was asked for and is not to be had."""
    if wanted == "auto":
        return "kvm" if kvm_works() else "tcg"
    if wanted == "kvm" and not kvm_works():
        raise LabError("KVM is not to be had here (/dev/kvm); use --accel tcg")
    return wanted


@dataclass(slots=True)
class Event:
    """What the guest's init said; ``blob`` holds the bytes that belong to it."""

    kind: str
    data: dict[str, Any]
    blob: bytes = b""


class Machine:
    """A running QEMU. Use as a context manager: leaving it kills everything."""

    def __init__(
        self,
        ram: Ram,
        arguments: Sequence[str],
        *,
        accel: str = "auto",
        patience: Patience | None = None,
        pass_fds: Sequence[int] = (),
        gdb: bool = False,
    ) -> None:
        self.ram = ram
        self.patience = patience or Patience()
        self.console = bytearray()
        self._channel = bytearray()
        self._events: list[Event] = []
        #: Lines that were no events: a kernel scribbles on the port, or they came damaged.
        self.noise: list[bytes] = []
        self._expected: tuple[Event, int] | None = None
        self._qmp_buffer = bytearray()
        self._gdb_address: bytes | None = None
        program = host.tool("qemu-system-x86_64", "qemu-system-x86", "running a kernel")
        accel = accelerator(accel)
        pairs = [socket.socketpair() for _ in range(3)]
        ours, theirs = [p[0] for p in pairs], [p[1] for p in pairs]
        inherit = [ram.fd, *pass_fds, *(s.fileno() for s in theirs)]
        listener = None
        command = [program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-S"]  # a machine may die at once: not before anybody can hear of it
        command += ["-machine", f"pc,accel={accel},memory-backend=ram", "-smp", "1"]
        command += ["-cpu", "host" if accel == "kvm" else "qemu64"]
        command += ["-m", f"{ram.size}B"]
        command += ["-object", f"memory-backend-file,id=ram,size={ram.size}B,share=on,"
                    f"mem-path=/proc/self/fd/{ram.fd}"]  # fmt: skip
        for name, end in zip(("console", "channel", "qmp"), theirs, strict=True):
            command += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        command += ["-serial", "chardev:console", "-serial", "chardev:channel"]
        command += ["-mon", "chardev=qmp,mode=control"]
        if gdb:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind("")  # an abstract address: nothing in the file system
            listener.listen(1)
            self._gdb_address = listener.getsockname()
            inherit.append(listener.fileno())
            command += ["-chardev", f"socket,id=gdb,fd={listener.fileno()},server=on,wait=off"]
            command += ["-gdb", "chardev:gdb"]
        self._console_socket, self._channel_socket, self._qmp_socket = ours
        self._selector = selectors.DefaultSelector()
        self._child = host.start([*command, *arguments], pass_fds=inherit)
        try:
            for s in (*theirs, *([listener] if listener else [])):
                s.close()
            for s in ours:
                s.setblocking(False)
            for s in (self._console_socket, self._channel_socket):
                self._selector.register(s, selectors.EVENT_READ)
            self._began = self._last_life = time.monotonic()
            self._last_cpu = 0.0
            self._qmp_receive("QMP")
            self.qmp("qmp_capabilities")
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            self.qmp("cont")
        except LabError as error:
            try:  # it may be dead already, which next_event says
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                raise error from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill QEMU and everything it started."""
        host.stop(self._child)
        self._selector.close()
        for s in (self._console_socket, self._channel_socket, self._qmp_socket):
            s.close()

    @property
    def running(self) -> bool:
        """Whether QEMU is still there."""
        return self._child.poll() is None

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._began

    # Listening

    def _pump(self, wait: float) -> bool:
        """Take in what the consoles have to say; whether there was anything."""
        heard = False
        for key, _ in self._selector.select(wait):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                data = sock.recv(1 << 18)
            except (BlockingIOError, ConnectionResetError):
                continue
            if not data:
                self._selector.unregister(sock)
                continue
            heard = True
            if sock is self._console_socket:
                if len(self.console) < _LOG_LIMIT:
                    self.console += data
            else:
                self._channel += data
                self._parse_channel()
        if heard:
            self._last_life, self._last_cpu = time.monotonic(), self._cpu()
        return heard

    def _parse_channel(self) -> None:
        while True:
            if self._expected is not None:
                event, size = self._expected
                if len(self._channel) < size:
                    return
                event.blob = bytes(self._channel[:size])
                del self._channel[:size]
                self._expected = None
                self._events.append(event)
            end = self._channel.find(b"\n")
            if end < 0:
                if len(self._channel) > _CHANNEL_LINE_LIMIT:
                    self._channel.clear()
                return
            line = bytes(self._channel[:end])
            del self._channel[: end + 1]
            try:
                data = json.loads(line)
                event = Event(str(data["event"]), data)
            except (ValueError, KeyError, TypeError):
                if line and len(self.noise) < _NOISE_LINES:
                    self.noise.append(line[:200])
                continue
            if event.kind == "blob" and 0 <= int(data.get("size", 0)) <= _BLOB_LIMIT:
                self._expected = (event, int(data["size"]))
            else:
                self._events.append(event)

    def _cpu(self) -> float:
        try:
            with open(f"/proc/{self._child.pid}/stat", "rb") as f:
                fields = f.read().rsplit(b")", 1)[1].split()
        except OSError:
            return self._last_cpu
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _why_stopped(self) -> Stopped | None:
        if not self.running:
            while self._pump(0):
                pass
            return Stopped.RESET
        silent = time.monotonic() - self._last_life
        used = self._cpu() - self._last_cpu
        if silent > 0.3:
            tail = bytes(self.console[-4096:])
            if _LAST_WORDS[0] in tail:
                return Stopped.EARLY_FAULT
            if _LAST_WORDS[1] in tail:
                return Stopped.PANIC
        if self.seconds > self.patience.total:
            return Stopped.TIMEOUT
        if used > self.patience.cpu:
            return Stopped.HANG
        if silent > self.patience.asleep and used < 0.02 * silent:
            return Stopped.HALTED
        return None

    def next_event(self) -> Event | Stopped:
        """What the guest's init says next, or why it will say no more."""
        while True:
            if self._events:
                event = self._events.pop(0)
                return Stopped.END if event.kind == "end" else event
            if not self._pump(0.1):
                why = self._why_stopped()
                if why is not None and not self._events:
                    return why

    def answer(self) -> None:
        """Let an init that waits at a mark go on."""
        with contextlib.suppress(BrokenPipeError):
            self._channel_socket.send(b"\n")

    def startup_error(self) -> str:
        """What QEMU itself said on its way out."""
        if self._child.stderr is None or self.running:
            return ""
        text = self._child.stderr.read(1 << 16).decode("utf-8", "replace").strip()
        return text.splitlines()[-1] if text else ""

    # QMP

    def qmp(self, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
        """Run a monitor command and return its value. Raises LabError."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._qmp_socket.sendall(json.dumps(request).encode())
        except OSError:
            raise LabError(f"QEMU went away: {self.startup_error() or command}") from None
        reply = self._qmp_receive("return", "error", timeout=timeout)
        if "error" in reply:
            raise LabError(f"QEMU: {command}: {reply['error'].get('desc', 'failed')}")
        return reply["return"]

    def _qmp_receive(self, *keys: str, timeout: float = 30.0) -> dict[str, Any]:
        """The next QMP message with one of the keys; consoles are drained meanwhile."""
        deadline = time.monotonic() + timeout
        while True:
            line, found, rest = self._qmp_buffer.partition(b"\n")
            if found:
                self._qmp_buffer = rest
                message: dict[str, Any] = json.loads(line)
                if any(key in message for key in keys):
                    return message
                continue
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                data = self._qmp_socket.recv(1 << 16)
                if not data:
                    self._child.wait(5)
                    why = self.startup_error() or f"exit status {self._child.returncode}"
                    raise LabError(f"QEMU did not start or went away: {why}")
                self._qmp_buffer += data
                continue
            if time.monotonic() > deadline:
                raise LabError(f"QEMU does not answer its monitor within {timeout:.0f} s")
            self._pump(0.02)

    def dump(self, path: os.PathLike[str], kind: str) -> None:
        """``dump-guest-memory``: kind ``elf`` or ``kdump-zlib``."""
        arguments: dict[str, Any] = {"paging": False, "protocol": f"file:{os.fspath(path)}"}
        if kind != "elf":
            arguments["format"] = kind
        self.qmp("dump-guest-memory", timeout=600.0, **arguments)

    # What the debugger needs

    def debugger(self) -> Debugger:
        """Attach to the gdb stub; the guest stands still until it is told to go on."""
        assert self._gdb_address is not None
        return Debugger(self._gdb_address, self)

    def breathe(self) -> None:
        """Take in output while something else is waited for."""
        self._pump(0.02)

    def rest(self) -> None:
        """Say that a silence was wanted: patience starts anew."""
        self._last_life, self._last_cpu = time.monotonic(), self._cpu()

    def gave_up(self) -> Stopped | None:
        """Why waiting makes no sense any more, if it does not."""
        return self._why_stopped()
