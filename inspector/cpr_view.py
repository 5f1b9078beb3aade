"""A CPR stream, alone or beside an image, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from abi import qemu_cpr
from abi.qemu_cpr import CprEarlyState, CprState
from inspector.cpr import Alignment, DeviceMatch, State, address_of, unverified
from inspector.text import display, name_text, plural, size_text
from inspector.walk.iommu import device_name

#: Said wherever ids are shown beside tokens.
IDS = "devid, ioas_id and hwpt_id are ids of the old iommufd; the next kernel does not know them"


def document(state: State, alignment: Alignment | None = None) -> dict[str, Any]:
    """The stream as JSON; ``image`` is null unless it was lined up with one."""
    version1 = state if isinstance(state, CprState) else None
    devices = version1.vfio_devices if version1 else None
    return {
        "form": "version-1" if version1 else "headerless-2022",
        "version": qemu_cpr.VERSION if version1 else None,
        "mode": None if isinstance(state, CprState) else state.mode,
        "fd_form": str(version1.fd_form) if version1 else "number",
        "framing": str(version1.framing) if version1 else "list",
        "unverified": unverified(state),
        "fds": [{"name": name_text(f.name), "id": f.id, "fd": f.fd} for f in state.fds],
        "vfio_devices": None
        if devices is None
        else [
            {
                "name": name_text(d.name),
                "devid": d.devid,
                "ioas_id": d.ioas_id,
                "hwpt_id": d.hwpt_id,
            }
            for d in devices
        ],
        "memory": None
        if isinstance(state, CprState)
        else [
            {
                "name": name_text(m.name),
                "id": m.id,
                "length": m.length,
                "max_length": m.max_length,
                "align": m.align,
            }
            for m in state.memory
        ],
        "image": None if alignment is None else _alignment(alignment),
    }


def _alignment(alignment: Alignment) -> dict[str, Any]:
    return {
        "sessions": [name_text(s.name) for s in alignment.sessions()],
        "devices": [_match(one) for one in alignment.devices],
        "guesses": [
            {"subject": g.subject, "path": g.path, "why": g.why} for g in alignment.guesses
        ],
        "differences": list(alignment.differences),
    }


def _match(one: DeviceMatch) -> dict[str, Any]:
    files = one.picture.vfio if one.picture is not None else ()
    return {
        "name": name_text(one.name),
        "address": None if one.key is None else device_name(*one.key),
        "found": one.picture is not None,
        "vfio_files": [
            {"session": name_text(s.name), "token": hex(f.token), "path": f.path}
            for s, f, _ in files
        ],
        "ioas_id": one.ioas_id,
        "hwpt_id": one.hwpt_id,
        "hwpts": [
            {
                "session": name_text(use.session.name),
                "iommufd": hex(use.file.token),
                "token": hex(use.hwpt.token),
                "path": use.hwpt.path,
            }
            for use in one.hwpts
        ],
    }


def lines(state: State, alignment: Alignment | None = None) -> Iterator[str]:
    """The stream as text, then how it lines up."""
    if isinstance(state, CprEarlyState):
        yield f"CPR state, headerless form of 2022, mode {state.mode}"
    else:
        framing = "" if state.framing == "list" else f", framing {state.framing}"
        yield f"CPR state, version {qemu_cpr.VERSION}, descriptors as {state.fd_form}{framing}"
    for doubt in unverified(state):
        yield f"unverified: {doubt}"
    yield ""
    yield plural(len(state.fds), "descriptor")
    for fd in state.fds:
        number = "" if fd.fd is None else f"  fd {fd.fd}"
        yield f"  {display(fd.name)}  id {fd.id}{number}"
    yield ""
    if isinstance(state, CprEarlyState):
        yield plural(len(state.memory), "memory file")
        for block in state.memory:
            yield (
                f"  {display(block.name)}  id {block.id}  size {size_text(block.length)}"
                f"  at most {size_text(block.max_length)}  align {block.align:#x}"
            )
    elif state.vfio_devices is None:
        yield "no list of VFIO devices (QEMU 10.0 writes none)"
    else:
        yield plural(len(state.vfio_devices), "VFIO device")
        for one in state.vfio_devices:
            key = address_of(one.name)
            address = "" if key is None else f"  PCI address {device_name(*key)}"
            yield (
                f"  {display(one.name)}  devid {one.devid}  ioas_id {one.ioas_id}"
                f"  hwpt_id {one.hwpt_id}{address}"
            )
    if alignment is not None:
        yield ""
        yield from _aligned(alignment)


def _aligned(alignment: Alignment) -> Iterator[str]:
    sessions = ", ".join(display(s.name) for s in alignment.sessions())
    yield f"in the image: session {sessions}" if sessions else "in the image: no session is sure"
    if alignment.devices:
        yield f"  ({IDS})"
    for one in alignment.devices:
        yield f"  {display(one.name)}"
        yield from (f"    {text}" for text in _facts(one))
    for guess in alignment.guesses:
        yield f"  guess: {guess.subject} is {display(guess.path)}: {guess.why}"
    for text in alignment.differences:
        yield f"  differs: {text}"


def _facts(one: DeviceMatch) -> Iterator[str]:
    if one.key is None:
        yield "its name is no PCI address: which device it is cannot be told"
        return
    if one.picture is None:
        yield "not in the image"
        return
    for session, file, _ in one.picture.vfio:
        yield f"VFIO file  session {display(session.name)}, token {file.token:#x}"
    for use in one.hwpts:
        yield (
            f"ioas_id {one.ioas_id}  iommufd {use.file.token:#x}, session"
            f" {display(use.session.name)}"
        )
        yield f"hwpt_id {one.hwpt_id}  HWPT token {use.hwpt.token:#x}"
    if not one.hwpts:
        yield "no HWPT of an iommufd file leads to its domain"
