"""A client of QEMU's gdb stub, for stopping a guest at an instruction."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from typing import Protocol

from lab.host import LabError


class Host(Protocol):
    """What the debugger asks of the machine while it waits."""

    def breathe(self) -> None: ...
    def rest(self) -> None: ...
    def gave_up(self) -> str | None: ...
    def answer(self) -> None: ...


@dataclass(slots=True)
class Debugger:
    """The few packets of the gdb remote protocol that the lab needs."""

    address: bytes
    machine: Host
    _socket: socket.socket = field(init=False)
    _buffer: bytearray = field(init=False, default_factory=bytearray)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(self.address)
        except OSError as error:
            self._socket.close()
            raise LabError(f"QEMU's gdb stub does not answer: {error.strerror}") from None
        self._socket.setblocking(False)

    def _send(self, packet: str) -> None:
        body = packet.encode()
        self._socket.sendall(b"$" + body + b"#%02x" % (sum(body) & 0xFF))

    def _receive(self) -> str:
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start + 1) if start >= 0 else -1
            if end >= 0 and len(self._buffer) >= end + 3:
                body = bytes(self._buffer[start + 1 : end]).decode("ascii", "replace")
                del self._buffer[: end + 3]
                self._socket.send(b"+")
                return body
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                self.machine.breathe()
                why = self.machine.gave_up()
                if why is not None:
                    raise LabError(f"the guest stopped on the way to a breakpoint: {why}") from None
                continue
            if not data:
                raise LabError("QEMU closed its gdb stub")
            self._buffer += data

    def _command(self, packet: str) -> str:
        self.machine.rest()
        self._send(packet)
        reply = self._receive()
        while reply.startswith("T"):  # a late notice that the guest stands still
            reply = self._receive()
        if reply.startswith("E"):
            raise LabError(f"QEMU's gdb stub refused {packet}: {reply}")
        return reply

    def run_to(self, address: int, go: bool = False) -> None:
        """Continue until the CPU is about to execute ``address``.

        ``go`` answers the guest's init, which waits at a mark, once it runs again.
        """
        self._command(f"Z1,{address:x},1")
        self.machine.rest()
        self._send("c")
        if go:
            self.machine.answer()
        while not self._receive().startswith("T05"):
            pass
        self._command(f"z1,{address:x},1")
        self.machine.rest()

    def register(self, index: int) -> int:
        """A general register by its number in the remote protocol (rdi is 5, rip 16)."""
        everything = bytes.fromhex(self._command("g")[: 17 * 16])
        return int.from_bytes(everything[8 * index : 8 * index + 8], "little")

    def read_u64(self, address: int) -> int:
        """Eight bytes at a virtual address."""
        return int.from_bytes(bytes.fromhex(self._command(f"m{address:x},8")), "little")

    def detach(self) -> None:
        """Let the guest run on."""
        with contextlib.suppress(OSError, LabError):
            self._command("D")
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
