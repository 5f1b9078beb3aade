"""QEMU's CPR state: what one QEMU hands to the next on the same host (``migration/cpr.c``).

Where a VM with passed-through devices is updated together with the kernel, this stream is the
user-space counterpart of the LUO session: it names the descriptors that the session's tokens
stand for, and the iommufd objects of each VFIO device. All numbers are big endian::

    u32 magic "QCPR", u32 version 1
    list of descriptors        each: byte 1, u32 length of name + NUL, name, s32 id, descriptor
                               end: byte 0
    subsection (QEMU 10.1+)    byte 5, u8 length, "CprState/vfio devices", u32 version 1
      list of VFIO devices     each: byte 1, u32 length, name, s32 devid, u32 ioas_id, u32 hwpt_id
                               end: byte 0

How a descriptor shows in the bytes depends on the mode (:class:`FdForm`).

Verified: the streams that QEMU 10.0.13 and 11.1.3 write in mode cpr-transfer, and 11.1.3 in
mode cpr-exec, decode and rebuild exactly; they have no VFIO devices. A subsection with two
devices, built here, was loaded by QEMU 11.1.3, field by field according to its trace.

Unverified, taken from program text that no released QEMU had when this was written:
:attr:`Framing.TABLE`, and the headerless form of 2022 (:func:`decode_early`). The posting of
2024-04 put descriptors and the host addresses of RAM blocks into sections of a migration
stream; that layout is not decoded.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from abi.errors import CodecError

MAGIC = 0x51435052
VERSION = 1
VFIO_SUBSECTION = b"CprState/vfio devices"
#: Most descriptors and devices of one stream; QEMU itself has no limit.
MAX_ENTRIES = 1 << 16
#: Longest name; those of RAM blocks have 255 bytes, of devices as many as their user gave them.
MAX_NAME = 4096
#: Larger numbers of descriptors are taken for another form, when forms are tried.
MAX_GUESSED_FD = 1 << 24

_SUBSECTION = 5


class CprError(CodecError):
    """The bytes are no CPR state; ``offset`` says where that shows."""


class FdForm(enum.StrEnum):
    """What stands in the stream where a descriptor is."""

    #: One byte, a space, which carries the descriptor as ancillary data (mode cpr-transfer).
    SOCKET = "socket"
    #: Its number as s32, which stays valid across exec (mode cpr-exec).
    NUMBER = "number"
    #: Nothing: a stream from which the carrying bytes were taken out.
    BARE = "bare"


class Framing(enum.StrEnum):
    """How the collection of descriptors is framed."""

    #: Byte 1 before each element, byte 0 at the end.
    LIST = "list"
    #: The same, behind a u32 count (a hash table instead of a list).
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class CprFd:
    """One descriptor: ``fd`` is its number in mode cpr-exec, else None.

    ``name`` is a RAM block, an object or a device; ``id`` tells several of one name apart.
    """

    name: bytes
    id: int = 0
    fd: int | None = None


@dataclass(frozen=True, slots=True)
class CprVfioDevice:
    """The iommufd ids of a VFIO device. They belong to the old iommufd and die with it."""

    name: bytes
    devid: int
    ioas_id: int
    hwpt_id: int


@dataclass(frozen=True, slots=True)
class CprState:
    """A whole stream. ``vfio_devices`` is None where the subsection is absent (QEMU 10.0)."""

    fds: tuple[CprFd, ...] = ()
    vfio_devices: tuple[CprVfioDevice, ...] | None = None
    fd_form: FdForm = FdForm.SOCKET
    framing: Framing = Framing.LIST

    def fd(self, name: bytes, id: int = 0) -> CprFd | None:
        """The descriptor of a name and id."""
        for fd in self.fds:
            if fd.name == name and fd.id == id:
                return fd
        return None


@dataclass(frozen=True, slots=True)
class CprMemory:
    """A memory file of the headerless form: lengths in bytes."""

    name: bytes
    id: int
    length: int
    max_length: int
    align: int


@dataclass(frozen=True, slots=True)
class CprEarlyState:
    """The headerless state of 2022. ``mode`` is QEMU's MigMode."""

    mode: int
    fds: tuple[CprFd, ...]
    memory: tuple[CprMemory, ...]


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def number(self, code: str, what: str) -> int:
        size = struct.calcsize(code)
        if self.at + size > len(self.data):
            raise CprError(f"CPR state ends inside {what}", self.at)
        value: int = struct.unpack_from(code, self.data, self.at)[0]
        self.at += size
        return value

    def name(self) -> bytes:
        start = self.at
        length = self.number(">I", "the length of a name")
        end = self.at + length
        if length == 0 or end > len(self.data):
            raise CprError(f"a name of {length} bytes does not fit", start)
        if length > MAX_NAME + 1:
            raise CprError(f"a name of {length - 1} bytes; no more than {MAX_NAME} are read", start)
        name = self.data[self.at : end]
        if name.find(b"\0") != length - 1:
            raise CprError("a name is not terminated at its length", self.at)
        self.at = end
        return name[:-1]

    def more(self, count: int) -> bool:
        """The byte in front of the next element: is there one?"""
        at = self.at
        flag = self.number("B", "a list")
        if flag > 1:
            raise CprError(f"a list goes on with {flag:#04x} instead of 0 or 1", at)
        if flag and count >= MAX_ENTRIES:
            raise CprError(f"more than {MAX_ENTRIES} list entries", at)
        return bool(flag)

    def fd(self, form: FdForm) -> CprFd:
        name, id_ = self.name(), self.number(">i", "the id of a descriptor")
        if form is FdForm.NUMBER:
            return CprFd(name, id_, self.number(">i", "a descriptor"))
        if form is FdForm.SOCKET:
            at = self.at
            if self.number("B", "a descriptor") != 0x20:
                raise CprError("no space where a descriptor travels", at)
        return CprFd(name, id_)

    def fds(self, form: FdForm) -> tuple[CprFd, ...]:
        fds: list[CprFd] = []
        while self.more(len(fds)):
            fds.append(self.fd(form))
        return tuple(fds)


def decode(
    data: bytes | bytearray | memoryview,
    *,
    fd_form: FdForm | None = None,
    framing: Framing | None = None,
) -> CprState:
    """Decode a stream. The forms are found by trying, unless given.

    A stream of numbers that is cut off right behind a zero byte can pass for a ``BARE`` one.

    :raises CprError: magic, version, or framing wrong, or bytes left over; with several forms
        tried, the error of the one that came furthest.
    """
    data = bytes(data)
    head = _Reader(data)
    magic = head.number(">I", "the magic")
    if magic != MAGIC:
        raise CprError(f"no CPR state: magic is {magic:#010x}", 0)
    version = head.number(">I", "the version")
    if version != VERSION:
        raise CprError(f"CPR state of version {version} is not known", 4)
    errors: list[CprError] = []
    for frame in [framing] if framing else _framings(data, head.at):
        for form in [fd_form] if fd_form else list(FdForm):
            try:
                state = _decode_body(data, head.at, form, frame)
                if fd_form is None:
                    _check_guess(state, head.at)
                return state
            except CprError as error:
                errors.append(error)
    raise max(errors, key=lambda error: error.offset)


def _framings(data: bytes, at: int) -> list[Framing]:
    """Those worth trying: no count is so large that its first byte begins a list."""
    return [Framing.LIST] if data[at : at + 1] > b"\0" else list(Framing)


def _check_guess(state: CprState, at: int) -> None:
    for fd in state.fds:
        if fd.fd is not None and not 0 <= fd.fd < MAX_GUESSED_FD:
            raise CprError(f"{fd.fd} is hardly the number of a descriptor", at)


def _decode_body(data: bytes, at: int, form: FdForm, framing: Framing) -> CprState:
    reader = _Reader(data, at)
    count = reader.number(">I", "the count") if framing is Framing.TABLE else None
    fds = reader.fds(form)
    if count is not None and count != len(fds):
        raise CprError(f"{len(fds)} descriptors, but a count of {count}", at)
    devices = None
    if reader.at < len(data):
        devices = _decode_devices(reader)
    if reader.at < len(data):
        raise CprError(f"{len(data) - reader.at} bytes follow the CPR state", reader.at)
    return CprState(fds, devices, form, framing)


def _decode_devices(reader: _Reader) -> tuple[CprVfioDevice, ...]:
    start = reader.at
    kind = reader.number("B", "a subsection")
    if kind != _SUBSECTION:
        raise CprError(f"byte {kind:#04x} where a subsection or the end should be", start)
    length = reader.number("B", "a subsection")
    name = reader.data[reader.at : reader.at + length]
    if name != VFIO_SUBSECTION:
        raise CprError(f"unknown subsection {name!r}", start)
    reader.at += length
    version = reader.number(">I", "the version of a subsection")
    if version != 1:
        raise CprError(f"subsection of version {version} is not known", reader.at - 4)
    devices: list[CprVfioDevice] = []
    while reader.more(len(devices)):
        devices.append(
            CprVfioDevice(
                reader.name(),
                reader.number(">i", "a devid"),
                reader.number(">I", "an ioas_id"),
                reader.number(">I", "a hwpt_id"),
            )
        )
    return tuple(devices)


def _encode_name(name: bytes) -> bytes:
    if b"\0" in name:
        raise CprError(f"a NUL inside the name {name!r}")
    return struct.pack(">I", len(name) + 1) + name + b"\0"


def _encode_fd(fd: CprFd, form: FdForm) -> bytes:
    head = b"\1" + _encode_name(fd.name) + struct.pack(">i", fd.id)
    if form is FdForm.SOCKET:
        return head + b" "
    if form is FdForm.NUMBER:
        if fd.fd is None:
            raise CprError(f"descriptor {fd.name!r} has no number")
        return head + struct.pack(">i", fd.fd)
    return head


def build(state: CprState) -> bytes:
    """The stream. In form ``SOCKET`` the caller sends each descriptor with its space.

    :raises CprError: a name holds a NUL, or a number is missing.
    """
    out = [struct.pack(">II", MAGIC, VERSION)]
    if state.framing is Framing.TABLE:
        out.append(struct.pack(">I", len(state.fds)))
    out += [_encode_fd(fd, state.fd_form) for fd in state.fds]
    out.append(b"\0")
    if state.vfio_devices is not None:
        out.append(bytes((_SUBSECTION, len(VFIO_SUBSECTION))) + VFIO_SUBSECTION)
        out.append(struct.pack(">I", 1))
        for device in state.vfio_devices:
            out.append(b"\1" + _encode_name(device.name))
            out.append(struct.pack(">iII", device.devid, device.ioas_id, device.hwpt_id))
        out.append(b"\0")
    return b"".join(out)


def decode_early(data: bytes | bytearray | memoryview) -> CprEarlyState:
    """Decode the headerless state of 2022: u32 mode, descriptors as numbers, memory files.

    Unverified: no stream of that QEMU was at hand.

    :raises CprError: the framing is wrong, or bytes are left over.
    """
    reader = _Reader(bytes(data))
    mode = reader.number(">I", "the mode")
    fds = reader.fds(FdForm.NUMBER)
    memory: list[CprMemory] = []
    while reader.more(len(memory)):
        name, id_ = reader.name(), reader.number(">i", "the id of a memory file")
        lengths = [reader.number(">Q", "the lengths of a memory file") for _ in range(3)]
        memory.append(CprMemory(name, id_, *lengths))
    if reader.at < len(reader.data):
        raise CprError(f"{len(reader.data) - reader.at} bytes follow the CPR state", reader.at)
    return CprEarlyState(mode, fds, tuple(memory))


def build_early(state: CprEarlyState) -> bytes:
    """The bytes that :func:`decode_early` reads.

    :raises CprError: a name holds a NUL, or a number is missing.
    """
    out = [struct.pack(">I", state.mode)]
    out += [_encode_fd(fd, FdForm.NUMBER) for fd in state.fds]
    out.append(b"\0")
    for block in state.memory:
        out.append(b"\1" + _encode_name(block.name))
        lengths = (block.length, block.max_length, block.align)
        out.append(struct.pack(">iQQQ", block.id, *lengths))
    out.append(b"\0")
    return b"".join(out)
