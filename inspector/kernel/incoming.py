"""LUO in the kernel that takes over: what boot reads of it, and the first open of the device.

At boot the blob is checked; anything wrong there panics, since the old kernel's devices may
still do DMA. The first open of the control device rebuilds sessions and files; anything wrong
there makes every open fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from abi import fdt
from abi import luo as abi_luo
from abi.block import KHO_MAX_BLOCKS, kho_block_header_ser
from abi.luo import LuoGeneration
from abi.schema import Struct, resolve
from inspector.findings import Outcome
from inspector.kernel import libfdt
from inspector.kernel.boot import Booting
from inspector.kernel.errno import KernelErrno
from inspector.kernel.profile import KernelProfile
from inspector.kernel.revive import Blob, find_blob, read_tree
from inspector.kernel.view import Absent, PageFault
from inspector.memory.base import U64Array
from inspector.text import c_string, path_component

#: Layers that can have a handler for files.
FILE_LAYERS = ("memfd", "iommufd", "vfio-pci", "hugetlb", "tmpfs", "kvm", "guest-memfd")
PANIC = "The incoming tree failed to initialize properly"


@dataclass(slots=True)
class FileEntry:
    """A file to be retrieved. ``layer`` names the handler; ``error`` sticks once it failed."""

    path: str
    address: int
    compatible: bytes
    data: int
    token: int
    layer: str
    file: Any = None
    error: KernelErrno | None = None
    finished: bool = False


@dataclass(slots=True)
class SessionEntry:
    """A session to be retrieved."""

    path: str
    address: int
    name: bytes
    files: list[FileEntry] = field(default_factory=list)
    retrieved: bool = False
    finished: bool = False
    _by_token: dict[int, FileEntry] = field(default_factory=dict, repr=False)

    def add(self, file: FileEntry) -> None:
        """One more file."""
        self.files.append(file)
        self._by_token.setdefault(file.token, file)

    def find(self, token: int) -> FileEntry | None:
        """The first file with a token."""
        return self._by_token.get(token)


@dataclass(slots=True)
class FlbEntry:
    """File-lifecycle-bound data. ``error`` of its retrieve sticks."""

    path: str
    address: int
    name: bytes
    data: int
    count: int
    state: Any = None
    error: KernelErrno | None = None
    finished: bool = False


@dataclass(slots=True)
class Incoming:
    """The orchestrator of the kernel that takes over. ``error`` is what every open returns."""

    generation: LuoGeneration
    address: int
    number: int = 0
    sessions_at: int = 0
    flbs_at: int = 0
    sessions: list[SessionEntry] = field(default_factory=list)
    flbs: list[FlbEntry] = field(default_factory=list)
    error: KernelErrno | None = None
    opened: bool = False
    #: Pages of the blob and of its blocks, freed once they are read.
    pages: list[tuple[int, int]] = field(default_factory=list)
    _blocks: U64Array | None = None

    def files(self) -> Iterator[tuple[SessionEntry, FileEntry]]:
        """Every file with its session."""
        for session in self.sessions:
            for file in session.files:
                yield session, file


def handlers(kernel: KernelProfile) -> dict[bytes, str]:
    """Handler string -> layer of every handler that this kernel registers."""
    found: dict[bytes, str] = {}
    for layer in FILE_LAYERS:
        generation = kernel.get(layer)
        if generation is not None:
            for string in generation.file_strings:
                found[string.encode()] = layer
    return found


# -- boot ---------------------------------------------------------------------------------------


def start(boot: Booting) -> Incoming | None:
    """What boot does with the LUO blob. None if there is nothing to open."""
    generation = boot.kernel.get("luo")
    assert boot.tree is not None
    handed = boot.tree.child(abi_luo.LUO_KHO_ENTRY_NAME.encode()) is not None
    if not isinstance(generation, LuoGeneration):
        if handed:
            boot.reasons.add(
                Outcome.STATE_LOST,
                f"{boot.kernel} has no LUO: sessions and files are lost without a word",
                path="/LUO",
            )
        return None
    if not handed:
        return None
    address: int | None = None
    try:
        blob = find_blob(boot, abi_luo.LUO_KHO_ENTRY_NAME)
        assert blob is not None
        address = blob.address
        return _start(boot, generation, blob)
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "what LUO handed over is not in the image", path="/LUO",
            address=lack.address,
        )  # fmt: skip
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"LUO leads to {fault.address:#x}, outside memory", path="/LUO",
            address=fault.address,
        )  # fmt: skip
    except (fdt.FdtError, KernelErrno) as error:
        if boot.ignores("luo-mismatch"):
            boot.reasons.add(
                Outcome.STATE_LOST, f"LUO is ignored: {error}", path="/LUO", address=address
            )
            return None
        shown = address is not None and boot.view.present(address, 32)
        data = boot.view.read(address or 0, 32) if shown else b""
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"LUO cannot be restored ({error}): the kernel panics",
            path="/LUO", address=address, data=data, dmesg=PANIC,
        )  # fmt: skip
    return None


def _start(boot: Booting, generation: LuoGeneration, blob: Blob) -> Incoming:
    luo = Incoming(generation, blob.address)
    page = boot.view.page_size
    if generation.root == "fdt":
        root = read_tree(boot, blob)
        if "luo_ser" in generation.layouts:
            _check_string(generation.strings[0], root.compatible)
            _take(boot, luo, _property(root, abi_luo.LUO_FDT_ABI_HEADER))
        else:
            _fdt_root(luo, root)
        protected(boot, "/LUO", "the LUO device tree", blob.address, 1)
    else:
        _struct_root(boot, luo, blob)
    if generation.sessions == "blocks" and luo.sessions_at:
        entry = resolve(generation.layouts["luo_session_ser"], page)
        luo._blocks = block_chain(boot, luo.sessions_at, entry)
    return luo


def _check_string(wanted: str, found: tuple[bytes, ...]) -> None:
    if wanted.encode() not in found:
        said = b", ".join(found).decode("utf-8", "backslashreplace")
        raise KernelErrno("EINVAL", f"compatible is {said!r}, not {wanted!r}")


def _property(node: libfdt.Node, name: bytes) -> int:
    value = node.get(name)
    if value is None or len(value) != 8:
        raise KernelErrno("EINVAL", f"{name.decode()} is missing or has not 8 bytes")
    return fdt.native_u64(value)


def _fdt_root(luo: Incoming, root: libfdt.Node) -> None:
    strings = luo.generation.strings
    _check_string(strings[0], root.compatible)
    luo.number = _property(root, abi_luo.LUO_FDT_LIVEUPDATE_NUM)
    nodes = [(abi_luo.LUO_FDT_SESSION_NODE_NAME, abi_luo.LUO_FDT_SESSION_HEADER)]
    if luo.generation.flb:
        nodes.append((abi_luo.LUO_FDT_FLB_NODE_NAME, abi_luo.LUO_FDT_FLB_HEADER))
    found = []
    for (name, header), string in zip(nodes, strings[1:], strict=False):
        node = root.child(name)
        if node is None:
            raise KernelErrno("ENOENT", f"node {name.decode()} is missing")
        _check_string(string, node.compatible)
        found.append(_property(node, header))
    luo.sessions_at = found[0]
    luo.flbs_at = found[1] if len(found) > 1 else 0


def _struct_root(boot: Booting, luo: Incoming, blob: Blob) -> None:
    generation = luo.generation
    layout = resolve(generation.layouts["luo_ser"], boot.view.page_size)
    if blob.size is not None and blob.size < layout.size:
        raise KernelErrno("EINVAL", f"the blob has {blob.size} bytes, needs {layout.size}")
    values = layout.unpack(boot.view.read(blob.address, layout.size))
    if generation.features:
        known = abi_luo.LUO_FEATURE_NUMBER | abi_luo.LUO_FEATURE_SESSIONS | abi_luo.LUO_FEATURE_FLBS
        unknown = (values["req"] | values["active"]) & ~known
        if unknown or any(values["reserved"]):
            raise KernelErrno("EINVAL", f"features {unknown:#x} are not supported")
    else:
        string = generation.strings[0].encode().ljust(generation.string_size, b"\0")
        said = values["compatible"]
        if c_string(said) != c_string(string):
            text = c_string(said).decode("utf-8", "backslashreplace")
            raise KernelErrno("EINVAL", f"compatible is {text!r}, not {generation.strings[0]!r}")
    luo.number = values["liveupdate_num"]
    luo.sessions_at, luo.flbs_at = values["sessions_pa"], values["flbs_pa"]
    protected(boot, "/LUO", "struct luo_ser", blob.address, layout.size)
    luo.pages.append((blob.address, layout.size))


def _take(boot: Booting, luo: Incoming, address: int) -> None:
    layout = resolve(luo.generation.layouts["luo_ser"], boot.view.page_size)
    values = layout.unpack(boot.view.read(address, layout.size))
    luo.number = values["liveupdate_num"]
    luo.sessions_at, luo.flbs_at = values["sessions_pa"], values["flbs_pa"]


def protected(boot: Booting, path: str, what: str, address: int, size: int) -> bool:
    """Whether memory that is read long after the page allocator runs was preserved."""
    assert boot.preserved is not None
    page = boot.view.page_size
    start = address - address % page
    if boot.preserved.covers(np.array([start], np.uint64), address + size - start)[0]:
        return True
    if untouched(boot, address, size):
        return True
    boot.reasons.add(
        Outcome.CORRUPTION,
        f"{what} at {address:#x} is not preserved: it is read when its memory is in use already",
        path=path, address=address,
    )  # fmt: skip
    return False


#: Low memory that a PC's kernel reserves for the BIOS and puts nothing into (up to 1 MiB are
#: reserved; the trampoline goes to the top of what is there).
_LOW = 512 << 10


def untouched(boot: Booting, address: int, size: int) -> bool:
    """Whether nothing is put there, although it was not preserved."""
    return boot.x86 and address + size <= _LOW


def _block_preserved(boot: Booting, path: str, what: str, address: int) -> None:
    """Blocks are followed before anything tells whether their pages were preserved."""
    assert boot.preserved is not None
    if untouched(boot, address, boot.view.page_size):
        return
    if boot.lost.contains(np.array([address >> boot.view.page_shift], np.uint64))[0]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{what} at {address:#x} was freed with something else before it is read: what lies"
            " there then is followed as a pointer",
            path=path, address=address, dmesg="general protection fault",
        )  # fmt: skip
    elif not boot.preserved.covers(np.array([address], np.uint64), boot.view.page_size)[0]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{what} at {address:#x} is not preserved: its memory is in use when it is read, and"
            " what lies there is followed as a pointer",
            path=path, address=address, dmesg="general protection fault",
        )  # fmt: skip


# -- lists --------------------------------------------------------------------------------------


def block_chain(boot: Booting, first: int, entry: Struct) -> U64Array:
    """The blocks of a list, checked as the kernel does. Raises KernelErrno (EINVAL)."""
    capacity = (boot.view.page_size - kho_block_header_ser.size) // entry.size
    met: dict[int, int] = {}
    at = first
    while at:
        if at in met:
            raise KernelErrno("EINVAL", f"the list of blocks is cyclic at {at:#x}")
        if len(met) >= KHO_MAX_BLOCKS:
            raise KernelErrno("EINVAL", f"the list has more than {KHO_MAX_BLOCKS} blocks")
        head = boot.view.read(at, 16)
        count = int.from_bytes(head[8:], "little")
        if not 0 < count <= capacity:
            raise KernelErrno(
                "EINVAL", f"block {at:#x} counts {count} entries, it holds 1 to {capacity}"
            )
        met[at] = count
        _behind_the_count(boot, at, count, capacity, entry, last=not any(head[:8]))
        at = int.from_bytes(head[:8], "little")
    return np.array(list(met.items()), np.uint64).reshape(-1, 2)


def _behind_the_count(
    boot: Booting, at: int, count: int, capacity: int, entry: Struct, *, last: bool
) -> None:
    """Every block but the last is written full: what lies behind a lower count is not read."""
    behind = at + kho_block_header_ser.size + count * entry.size
    if last or count == capacity or not boot.view.present(behind, entry.size):
        return
    data = boot.view.read(behind, entry.size)
    if any(data):
        boot.reasons.add(
            Outcome.STATE_LOST,
            f"block {at:#x} counts {count} entries, holds more and is not the last: they are lost",
            path="/LUO", address=behind, data=data[:64],
        )  # fmt: skip


def _block_rows(
    boot: Booting, blocks: U64Array, entry: Struct, path: str, what: str
) -> tuple[npt.NDArray[Any], list[int]]:
    """The entries of all blocks and their addresses."""
    parts: list[npt.NDArray[Any]] = []
    addresses: list[int] = []
    for at, count in blocks.tolist():
        _block_preserved(boot, path, what, at)
        start = at + kho_block_header_ser.size
        parts.append(np.frombuffer(boot.view.read(start, count * entry.size), entry.dtype))
        addresses += range(start, start + count * entry.size, entry.size)
    if not parts:
        return np.empty(0, entry.dtype), []
    return np.concatenate(parts), addresses


# -- the first open -----------------------------------------------------------------------------


def open_device(boot: Booting, luo: Incoming) -> None:
    """Deserialize once. Raises KernelErrno (EIO) if that failed; the reasons say why."""
    if not luo.opened:
        luo.opened = True
        boot.lost.add(boot.freed.frames())
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
            Outcome.CANNOT_TELL, "a page of the sessions is not in the image", path=path,
            address=lack.address,
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
        if not luo.sessions_at or luo._blocks is None:
            return np.empty(0, entry.dtype), []
        luo.pages += [(int(at), page) for at in luo._blocks[:, 0]]
        return _block_rows(boot, luo._blocks, entry, path, "a block of sessions")
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
            _block_preserved(boot, path, "a block of files", files_at - files_at % page)
            _clean_up(boot, path, files_at, error)
            raise
        held = int(blocks[:, 1].sum())
        if held != count:
            raise KernelErrno("EINVAL", f"{count} files are counted, the blocks hold {held}")
        rows, addresses = _block_rows(boot, blocks, entry, path, "a block of files")
        luo.pages += [(int(at), page) for at in blocks[:, 0]]
    else:
        capacity = abi_luo.LUO_FILE_PGCNT * page // entry.size
        if count > capacity:
            raise KernelErrno("EINVAL", f"{count} files, the array holds {capacity}")
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


# -- FLB ----------------------------------------------------------------------------------------


def read_flbs(boot: Booting, luo: Incoming) -> list[FlbEntry]:
    """All FLB entries; they are searched by name, up to the count. Raises Absent, PageFault."""
    if not luo.generation.flb or not luo.flbs_at:
        return []
    page = boot.view.page_size
    entry = resolve(luo.generation.layouts["luo_flb_ser"], page)
    head = boot.view.read(luo.flbs_at, 16)
    count = int.from_bytes(head[8:], "little")
    # The kernel does not compare the count with what a page holds; there is nothing behind it.
    held = min(count, (page - 16) // entry.size)
    rows = np.frombuffer(boot.view.read(luo.flbs_at + 16, held * entry.size), entry.dtype)
    found = []
    for i, row in enumerate(rows):
        name = c_string(row["name"].tobytes())
        found.append(
            FlbEntry(
                f"/LUO/flbs/{path_component(name)}", luo.flbs_at + 16 + i * entry.size, name,
                int(row["data"]), int(row["count"]),
            )
        )  # fmt: skip
    return found
