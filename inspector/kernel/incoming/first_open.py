"""The first open of the control device: sessions and files are rebuilt.

Anything wrong there makes every open fail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from abi import luo as abi_luo
from abi.block import KHO_MAX_BLOCKS
from abi.schema import resolve
from inspector.budget import Cost
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.blocks import block_chain, block_rows
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.in_use import block_preserved, protected
from inspector.kernel.incoming.luo import FileEntry, Incoming, SessionEntry
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.kernel.profile import KernelProfile
from inspector.text import c_string, path_component

#: Layers that can have a handler for files.
FILE_LAYERS = ("memfd", "iommufd", "vfio-pci", "hugetlb", "tmpfs", "kvm", "guest-memfd")


def handlers(kernel: KernelProfile) -> dict[bytes, str]:
    """Handler string -> layer of every handler that this kernel registers."""
    found: dict[bytes, str] = {}
    for layer in FILE_LAYERS:
        generation = kernel.get(layer)
        if generation is not None:
            for string in generation.file_strings:
                found[string.encode()] = layer
    return found


def open_device(boot: Booting, luo: Incoming) -> None:
    """Deserialize once. Raises KernelErrno (EIO) if that failed; the reasons say why."""
    if not luo.opened:
        luo.opened = True
        boot.lost.see(boot.freed)
        try:
            _deserialize(boot, luo)
        except KernelErrno as error:
            luo.error = error
    if luo.error is not None:
        raise KernelErrno("EIO", f"deserialization failed: {luo.error.reason}")


def _fail(
    boot: Booting, path: str, address: int, error: KernelErrno, dmesg: str, data: bytes
) -> None:
    boot.reasons.add(
        Outcome.LUO_UNUSABLE,
        f"{error.reason}: every open of the control device fails",
        path=path, address=address, data=data, dmesg=dmesg, errno=error.name,
    )  # fmt: skip


def _deserialize(boot: Booting, luo: Incoming) -> None:
    path, at = "/LUO/sessions", luo.sessions_at
    try:
        rows, addresses = _session_rows(boot, luo)
        known = handlers(boot.kernel)
        names: set[bytes] = set()
        for row, address in zip(rows, addresses, strict=True):
            raw = row["name"].tobytes()
            name = c_string(raw)[:63]
            path, at = f"/LUO/sessions/{path_component(name)}", address
            if name in names:
                raise KernelErrno("EEXIST", "two sessions have this name")
            names.add(name)
            session = SessionEntry(path, address, name)
            luo.sessions.append(session)
            _odd_name(boot, session, raw)
            _files(boot, luo, session, row, known)
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, lack.why or "a page of the sessions is not in the image",
            path=path, address=lack.address,
        )  # fmt: skip
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"it leads to {fault.address:#x}, outside memory: a page fault",
            path=path, address=fault.address,
        )  # fmt: skip
        raise KernelErrno("EIO", "page fault") from None
    except _Told:
        raise
    except KernelErrno as error:
        data = boot.view.read(at, 64) if at and boot.view.present(at, 64) else b""
        _fail(boot, path, at, error, "during deserialization", data)
        raise


def _odd_name(boot: Booting, session: SessionEntry, raw: bytes) -> None:
    if not session.name:
        boot.notes.append(f"{session.path}: a session without a name, retrieved by that")
    elif b"\0" not in raw:
        boot.notes.append(
            f"{session.path}: the name is not terminated, the session is known by its first 63"
            " bytes"
        )


def _session_rows(boot: Booting, luo: Incoming) -> tuple[npt.NDArray[Any], list[int]]:
    generation, page = luo.generation, boot.view.page_size
    entry = resolve(generation.layouts["luo_session_ser"], page)
    path = "/LUO/sessions"
    if generation.sessions == "blocks":
        if not luo.sessions_at or luo.blocks is None:
            return np.empty(0, entry.dtype), []
        boot.spend(Cost.FILES, int(luo.blocks[:, 1].sum()), luo.sessions_at)
        luo.pages += [(int(at), page) for at in luo.blocks[:, 0]]
        return block_rows(boot, luo.blocks, entry, path, "a block of sessions")
    size = abi_luo.LUO_SESSION_PGCNT * page
    count = int.from_bytes(boot.view.read(luo.sessions_at, 8), "little")
    capacity = (size - 8) // entry.size
    if count > capacity:
        raise KernelErrno("EINVAL", f"{count} sessions, the array holds {capacity}")
    protected(boot, path, "the array of sessions", luo.sessions_at, 8 + count * entry.size)
    luo.pages.append((luo.sessions_at, size))
    start = luo.sessions_at + 8
    data = boot.view.read(start, count * entry.size)
    return np.frombuffer(data, entry.dtype), [start + i * entry.size for i in range(count)]


def _files(
    boot: Booting, luo: Incoming, session: SessionEntry, row: Any, known: dict[bytes, str]
) -> None:
    generation, page = luo.generation, boot.view.page_size
    if generation.files == "none":
        return
    files_at = int(row["file_set_ser"]["files"])
    count = int(row["file_set_ser"]["count"])
    if not files_at:
        if count:
            boot.reasons.add(
                Outcome.STATE_LOST, f"{count} files are counted, but there is no array of them",
                path=session.path, address=session.address,
            )  # fmt: skip
        return
    entry = resolve(generation.layouts["luo_file_ser"], page)
    path = f"{session.path}/files"
    if generation.files == "blocks":
        try:
            blocks = block_chain(boot, files_at, entry)
        except KernelErrno as error:
            block_preserved(boot, path, "a block of files", files_at - files_at % page)
            _clean_up(boot, path, files_at, error)
            raise
        held = int(blocks[:, 1].sum())
        if held != count:
            raise KernelErrno("EINVAL", f"{count} files are counted, the blocks hold {held}")
        boot.spend(Cost.FILES, held, files_at)
        rows, addresses = block_rows(boot, blocks, entry, path, "a block of files")
        luo.pages += [(int(at), page) for at in blocks[:, 0]]
    else:
        capacity = abi_luo.LUO_FILE_PGCNT * page // entry.size
        if count > capacity:
            raise KernelErrno("EINVAL", f"{count} files, the array holds {capacity}")
        boot.spend(Cost.FILES, count, files_at)
        protected(boot, path, "the array of files", files_at, count * entry.size)
        rows = np.frombuffer(boot.view.read(files_at, count * entry.size), entry.dtype)
        addresses = [files_at + i * entry.size for i in range(count)]
        luo.pages.append((files_at, abi_luo.LUO_FILE_PGCNT * page))
    _entries(boot, session, rows, addresses, known)


def _clean_up(boot: Booting, path: str, at: int, error: KernelErrno) -> None:
    """After an error the list's blocks are freed: the pages that they lie in, whoever has them."""
    assert boot.preserved is not None
    page = boot.view.page_size
    seen: set[int] = set()
    while at and not at % page and at not in seen and len(seen) < KHO_MAX_BLOCKS:
        seen.add(at)
        at = int.from_bytes(boot.view.read(at, 8), "little")
    inside = np.array([at - at % page], np.uint64)
    if at % page and boot.preserved.covers(inside, page)[0]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"a block of files inside a page, {at:#x}, is refused ({error.reason}), and that page"
            " is freed although something else lies in it",
            path=path, address=at, dmesg="during deserialization",
        )  # fmt: skip


def _entries(
    boot: Booting,
    session: SessionEntry,
    rows: npt.NDArray[Any],
    addresses: list[int],
    known: dict[bytes, str],
) -> None:
    field_name = "compatible" if "compatible" in (rows.dtype.names or ()) else "name"
    strings = [s.tobytes() for s in rows[field_name]]
    tokens: set[int] = set()
    path = f"{session.path}/files"
    for raw, data, token, address in zip(
        strings, rows["data"].tolist(), rows["token"].tolist(), addresses, strict=True
    ):
        compatible = c_string(raw)
        layer = known.get(compatible) if b"\0" in raw else None
        if layer is None:
            text = compatible.decode("utf-8", "backslashreplace")
            if boot.ignores("unknown-handler"):
                boot.reasons.add(
                    Outcome.STATE_LOST, f"no handler for {text!r}: the file is left out",
                    path=f"{path}/{token:#x}", address=address, data=raw,
                )  # fmt: skip
                continue
            error = KernelErrno("ENOENT", f"no handler for {text!r}")
            _fail(
                boot, f"{path}/{token:#x}", address, error,
                f"No registered handler for compatible '{text}'", raw,
            )  # fmt: skip
            raise _Told(error.name, error.reason)
        own = f"{path}/{token:#x}"
        if token in tokens:
            boot.reasons.add(
                Outcome.STATE_LOST, "two files have this token: only the first can be retrieved",
                path=own, address=address,
            )  # fmt: skip
            own = f"{own}@{address:#x}"
        tokens.add(token)
        session.add(FileEntry(own, address, compatible, data, token, layer))


class _Told(KernelErrno):
    """An error whose reason is recorded already."""
