"""QEMU's CPR state beside an image: which descriptor, device and HWPT is which token.

A CPR stream (:mod:`abi.qemu_cpr`) names what a VM's process holds, a LUO session names what
the kernel preserved of it by token. Nothing in either refers to the other, so only this can
be concluded:

* a VFIO device whose name is a PCI address is the device of that address in the image, and
  its ``hwpt_id`` and ``ioas_id`` then go with the HWPT and the iommufd of that device;
* everything else is a :class:`Guess`: numbers that happen to be equal, sizes that fit.

``devid``, ``ioas_id`` and ``hwpt_id`` count the objects of the *old* iommufd; they end with
it and mean nothing to the next kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from abi import qemu_cpr
from abi.errors import UnreadableError
from abi.qemu_cpr import CprEarlyState, CprError, CprState, FdForm, Framing
from inspector import passthrough
from inspector.memory.files import open_file
from inspector.text import display
from inspector.walk.luo import File, Session

if TYPE_CHECKING:
    from inspector.image import Image

State: TypeAlias = CprState | CprEarlyState

#: Larger inputs are no CPR state: a descriptor takes some tens of bytes.
MAX_SIZE: Final = 64 << 20
#: More guesses help nobody.
MAX_GUESSES: Final = 1000
#: Modes that the QEMU of the headerless form knew: 0 normal, 1 reboot, 2 exec.
_EARLY_MODES: Final = range(3)
_ADDRESS = re.compile(rb"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def load(path: str) -> State:
    """Read a stream from a file, or from standard input if ``path`` is ``-``.

    Raises UnreadableError, one line that begins with the name of the file.
    """
    file = open_file(path)
    try:
        if file.size > MAX_SIZE:
            raise UnreadableError(f"{file.name}: {file.size} bytes are too many for CPR state")
        try:
            return parse(bytes(file.data))
        except CprError as error:
            raise UnreadableError(f"{file.name}: {error} (at byte {error.offset})") from None
    finally:
        file.close()


def parse(data: bytes) -> State:
    """Decode a stream of version 1, or of the headerless form.

    The headerless form has nothing to tell it by, so it must hold something and fit to the
    last byte. Raises CprError.
    """
    try:
        return qemu_cpr.decode(data)
    except CprError as error:
        if data[:4] == qemu_cpr.MAGIC.to_bytes(4, "big"):
            raise
        try:
            early = qemu_cpr.decode_early(data)
        except CprError:
            raise error from None
        if early.mode not in _EARLY_MODES or not (early.fds or early.memory):
            raise
        return early


def unverified(state: State) -> list[str]:
    """What about the form of this stream was not checked against a real QEMU."""
    if isinstance(state, CprEarlyState):
        return [
            "the headerless form of 2022 is read as its posting describes it; no stream of "
            "that QEMU was at hand"
        ]
    doubts = []
    if state.framing is Framing.TABLE:
        doubts.append(
            "descriptors in a hash table with a count: no released QEMU was seen to write this"
        )
    if state.fd_form is FdForm.BARE:
        doubts.append(
            "nothing stands where the descriptors were; QEMU itself writes a space or a number"
        )
    if state.vfio_devices:
        doubts.append(
            "VFIO devices: QEMU 11.1 loaded such a list as it is read here, but no stream "
            "that QEMU wrote with devices was at hand"
        )
    return doubts


def address_of(name: bytes) -> passthrough.Key | None:
    """(segment, BDF) if a device's name is a PCI address, as QEMU names it by default."""
    match = _ADDRESS.fullmatch(name)
    if match is None:
        return None
    segment, bus, slot, function = (int(part or b"0", 16) for part in match.groups())
    return segment, bus << 8 | slot << 3 | function


# -- beside an image ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceMatch:
    """A VFIO device of the stream, and what the image says of its PCI address.

    ``key`` is None if the name is no PCI address. ``picture`` is None if the image does not
    know the address, or there is none.
    """

    name: bytes
    ioas_id: int
    hwpt_id: int
    key: passthrough.Key | None
    picture: passthrough.DevicePicture | None

    @property
    def hwpts(self) -> tuple[passthrough.HwptUse, ...]:
        """The HWPTs that the device's domain is known by."""
        return self.picture.hwpts if self.picture is not None else ()


@dataclass(frozen=True, slots=True)
class Guess:
    """A correspondence that nothing proves: ``subject`` of the stream, ``path`` in the image."""

    subject: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """A stream and an image, lined up. ``differences`` are lines for people."""

    devices: tuple[DeviceMatch, ...]
    guesses: tuple[Guess, ...]
    differences: tuple[str, ...]

    def sessions(self) -> list[Session]:
        """The sessions that hold files of the matched devices, in order, each once."""
        found: dict[str, Session] = {}
        for one in self.devices:
            for session, _ in _files(one):
                found.setdefault(session.path, session)
        return list(found.values())


def align(state: State, image: Image) -> Alignment:
    """Line the names and ids of a stream up with the files and tokens of an image."""
    pictures = {picture.key: picture for picture in passthrough.devices(image)}
    listed = state.vfio_devices or () if isinstance(state, CprState) else ()
    devices = []
    for device in listed:
        key = address_of(device.name)
        picture = pictures.get(key) if key is not None else None
        devices.append(DeviceMatch(device.name, device.ioas_id, device.hwpt_id, key, picture))
    found = tuple(devices)
    return Alignment(
        found,
        tuple(islice(_guesses(state, found, image), MAX_GUESSES)),
        tuple(_differences(found, pictures)),
    )


def _files(one: DeviceMatch) -> Iterator[tuple[Session, File]]:
    if one.picture is not None:
        for session, file, _ in one.picture.vfio:
            yield session, file
        for use in one.picture.hwpts:
            yield use.session, use.file


def _differences(
    devices: tuple[DeviceMatch, ...],
    pictures: dict[passthrough.Key, passthrough.DevicePicture],
) -> Iterator[str]:
    seen: set[passthrough.Key] = set()
    tokens: dict[int, dict[str, int]] = {}
    for one in devices:
        name = display(one.name)
        if one.key is not None and one.key in seen:
            yield f"{name} is listed twice"
        if one.key is not None:
            seen.add(one.key)
            if one.picture is None:
                yield f"{name} is not in the image"
            elif not one.picture.vfio:
                yield f"{name} is in the image, but no session holds its VFIO file"
        for use in one.hwpts:
            # Ids are unique inside one iommufd only, so each is asked apart.
            token = tokens.setdefault(one.hwpt_id, {}).setdefault(use.file.path, use.hwpt.token)
            if token != use.hwpt.token:
                yield (
                    f"hwpt_id {one.hwpt_id} goes with HWPT {token:#x}, but for {name} with"
                    f" HWPT {use.hwpt.token:#x} of the same iommufd"
                )
    ours = {session.path for one in devices for session, _ in _files(one)}
    for key, picture in pictures.items():
        for session, _, _ in picture.vfio:
            if session.path in ours and key not in seen:
                yield f"{picture.name} is in session {display(session.name)}, not in the stream"


def _guesses(state: State, devices: tuple[DeviceMatch, ...], image: Image) -> Iterator[Guess]:
    yield from _equal_ids(devices, image)
    if isinstance(state, CprEarlyState):
        yield from _equal_sizes(state, image)
    tokens: dict[int, list[File]] = {}
    if image.luo is not None and any(fd.fd is not None for fd in state.fds):
        for _, file in image.luo.files():
            tokens.setdefault(file.token, []).append(file)
    for fd in state.fds:
        for file in tokens.get(fd.fd, ()) if fd.fd is not None else ():
            yield Guess(
                f"descriptor {display(fd.name)}",
                file.path,
                f"its number, {fd.fd}, is the token of the file",
            )


def _equal_ids(devices: tuple[DeviceMatch, ...], image: Image) -> Iterator[Guess]:
    """Ids that are also tokens, where a device's address does not settle it already."""
    wanted = np.array([one.hwpt_id for one in devices if not one.hwpts], np.uint64)
    open_ioas = {one.ioas_id for one in devices if not one.hwpts}
    for _, file, state in passthrough.iommufds(image):
        if file.token in open_ioas:
            yield Guess(
                f"ioas_id {file.token}", file.path, "the same number is the token of the iommufd"
            )
        equal = np.isin(state.records["token"].astype(np.uint64), wanted)
        for index in np.flatnonzero(equal).tolist():
            hwpt = state.hwpt(index)
            yield Guess(
                f"hwpt_id {hwpt.token}", hwpt.path, "the same number is the token of the HWPT"
            )


def _equal_sizes(state: CprEarlyState, image: Image) -> Iterator[Guess]:
    sizes: dict[int, list[str]] = {}
    for path, file in image.folio_files():
        sizes.setdefault(file.size, []).append(path)
    for block in state.memory:
        paths = sizes.get(block.length, [])
        if len(paths) == 1:
            yield Guess(
                f"memory {display(block.name)}",
                paths[0],
                f"no other memory file has its {block.length} bytes",
            )
