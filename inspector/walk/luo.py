"""Live Update Orchestrator: sessions, files and file-lifecycle-bound data (FLB).

The FDT generations (6.19 to 7.1) and the struct generations (7.2 on) differ in how one
gets from the blob to the arrays; sessions, files and FLBs are the same 80, 64 and 64
bytes ever since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from abi import fdt, luo
from abi.luo import LuoGeneration
from abi.schema import Struct, resolve
from inspector.budget import Cost
from inspector.memory.base import MemoryFault
from inspector.survey import Claim, Survey
from inspector.text import c_string, path_component
from inspector.walk.chain import Entries, block_entries

_NOTHING = Entries(
    np.empty((0, 1), np.uint8), np.empty(0, np.uint64), np.empty(0, np.uint64),
    np.empty(0, np.uint64), True,
)  # fmt: skip


@dataclass(slots=True)
class File:
    """A preserved file: ``data`` is the handler's, by convention a physical address.

    ``state`` is what the handler's decoder made of it, or None.
    """

    path: str
    address: int
    compatible: bytes
    data: int
    token: int
    state: Any = None


@dataclass(slots=True)
class Session:
    """A named set of files. ``count`` is what the image says, ``files`` what was found."""

    path: str
    address: int
    name: bytes
    files_address: int
    count: int
    files: list[File] = field(default_factory=list)
    complete: bool = True


@dataclass(slots=True)
class Flb:
    """Global data bound to the life cycle of files. ``data`` need not be an address."""

    path: str
    address: int
    name: bytes
    data: int
    count: int
    state: Any = None


@dataclass(slots=True)
class Luo:
    """The LUO blob. ``lost`` says what is gone and why, ``recovered`` how it was found anyway."""

    generation: LuoGeneration
    address: int
    number: int | None = None
    sessions_address: int = 0
    flbs_address: int = 0
    sessions: list[Session] = field(default_factory=list)
    flbs: list[Flb] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    #: How much of what is lost is in pages that the dump left out.
    left_out: int = 0
    recovered: bool = False

    def files(self) -> Iterator[tuple[Session, File]]:
        """Every file with its session."""
        for session in self.sessions:
            for file in session.files:
                yield session, file


def walk_luo(
    survey: Survey, generation: LuoGeneration, address: int, blob: bytes, *, booted: bool = False
) -> Luo:
    """Everything below the LUO blob; file and FLB states are left to their handlers.

    ``booted`` says that the next kernel runs already: what it has reused is then reported
    as lost instead of decoded.
    """
    found = Luo(generation, address)
    if generation.root == "fdt":
        _fdt_root(survey, found, blob)
    else:
        _struct_root(survey, found, blob)
    if booted and sessions_reused(survey, generation, found.sessions_address):
        found.lost.append("the sessions (their memory was reused after boot)")
        at = np.array([found.sessions_address], np.uint64)
        size = np.array([survey.page_size], np.uint64)
        survey.remnants.append(Claim("session-block", "/LUO/sessions", at, size))
    elif found.sessions_address:
        found.sessions = walk_sessions(survey, generation, found.sessions_address)
    if found.flbs_address:
        found.flbs = walk_flbs(survey, generation, found.flbs_address)
    return found


def _fdt_root(survey: Survey, found: Luo, blob: bytes) -> None:
    try:
        tree = fdt.parse(blob, salvage=True)
    except fdt.FdtError as error:
        survey.findings.error(
            "KHO-LUO-001", f"LUO blob: {error}", path="/LUO", address=found.address
        )
        found.lost.append(f"LUO device tree: {error}")
        return
    for anomaly in tree.anomalies:
        if anomaly.kind is fdt.AnomalyKind.CUT_SHORT:
            at = found.address + anomaly.offset
            survey.findings.error(
                "KHO-LUO-001",
                f"LUO blob is read up to {at:#x} only: {anomaly.message}",
                path="/LUO",
                address=at,
            )
    if "luo_ser" in found.generation.layouts:
        _struct_behind_fdt(survey, found, tree.root)
        return
    found.number = _native(survey, found, tree.root, luo.LUO_FDT_LIVEUPDATE_NUM, "/LUO")
    session = tree.root.child(luo.LUO_FDT_SESSION_NODE_NAME)
    if session is not None:
        _known_node(survey, found, session, "/LUO/sessions")
        header = _native(survey, found, session, luo.LUO_FDT_SESSION_HEADER, "/LUO/sessions")
        if header == 0:
            survey.findings.error(
                "KHO-LUO-002",
                f"property {luo.LUO_FDT_SESSION_HEADER.decode()} is 0",
                path="/LUO/sessions",
                address=found.address,
            )
        found.sessions_address = header or 0
    else:
        survey.findings.error(
            "KHO-LUO-002",
            f"node {luo.LUO_FDT_SESSION_NODE_NAME.decode()} is missing",
            path="/LUO/sessions",
            address=found.address,
        )
    flb = tree.root.child(luo.LUO_FDT_FLB_NODE_NAME)
    if flb is not None:
        _known_node(survey, found, flb, "/LUO/flbs")
        found.flbs_address = _native(survey, found, flb, luo.LUO_FDT_FLB_HEADER, "/LUO/flbs") or 0


def _known_node(survey: Survey, found: Luo, node: fdt.Node, path: str) -> None:
    """Nodes below the root have strings of their own, which their readers compare."""
    known = {string.encode() for string in found.generation.strings}
    if not known & set(node.compatible):
        said = b", ".join(node.compatible)
        survey.findings.error(
            "KHO-LUO-012",
            f"node {node.name.decode()} says {said!r}, which no known kernel writes: the next"
            " kernel panics",
            path=path,
            address=found.address,
            data=said,
        )


def _struct_behind_fdt(survey: Survey, found: Luo, root: fdt.Node) -> None:
    """luo-v2: the tree has nothing but its string and the address of ``struct luo_ser``."""
    address = _native(survey, found, root, luo.LUO_FDT_ABI_HEADER, "/LUO")
    luo_ser = resolve(found.generation.layouts["luo_ser"], survey.page_size)
    if not address or not survey.pointer(address, "/LUO", "luo_ser", align=8):
        found.lost.append("struct luo_ser")
        return
    known = survey.left_out
    values = survey.unpack(luo_ser, address, "/LUO")
    if values is None:
        found.lost.append("struct luo_ser")
        found.left_out += survey.left_out > known
        return
    survey.claim("struct", "/LUO", address, luo_ser.size)
    _take_root(found, values)


def _take_root(found: Luo, values: dict[str, int]) -> None:
    found.number = values["liveupdate_num"]
    found.sessions_address = values["sessions_pa"]
    found.flbs_address = values["flbs_pa"]


def _native(survey: Survey, found: Luo, node: fdt.Node, name: bytes, path: str) -> int | None:
    value = node.get(name)
    if value is None or len(value) != 8:
        survey.findings.error(
            "KHO-LUO-002",
            f"property {name.decode()} {'is missing' if value is None else 'has no 8 bytes'}",
            path=path,
            address=found.address,
        )
        return None
    return fdt.native_u64(value)


def _struct_root(survey: Survey, found: Luo, blob: bytes) -> None:
    luo_ser = resolve(found.generation.layouts["luo_ser"], survey.page_size)
    if len(blob) < luo_ser.size:
        survey.findings.error(
            "KHO-LUO-003",
            f"LUO blob has {len(blob)} bytes, needs {luo_ser.size}: the kernel panics",
            path="/LUO",
            address=found.address,
        )
        found.lost.append("LUO blob too short")
        return
    survey.place(luo_ser, found.address, "/LUO")
    _take_root(found, luo_ser.unpack(blob))


# -- sessions and files ------------------------------------------------------------------


def is_name(raw: bytes) -> bool:
    """Whether ``raw`` looks like a name: printable, not empty, terminated, zeros behind it."""
    name, _, rest = raw.partition(b"\0")
    return (
        0 < len(name) < len(raw) and not rest.strip(b"\0") and all(0x20 <= c < 0x7F for c in name)
    )


def sessions_reused(survey: Survey, generation: LuoGeneration, address: int) -> bool:
    """Whether the page at ``address`` can no longer be the start of the sessions.

    For images of a kernel that has booted: it frees these pages once they are read.
    """
    layout = resolve(generation.layouts["luo_session_ser"], survey.page_size)
    blocks = generation.sessions == "blocks"
    header = 16 if blocks else 8
    capacity = (survey.page_size * (1 if blocks else luo.LUO_SESSION_PGCNT) - header) // layout.size
    try:
        data = survey.memory.read(address, survey.page_size)
    except MemoryFault:
        return False
    count = int.from_bytes(data[header - 8 : header], "little")
    if count > capacity or (blocks and count == 0):
        return True
    shown = min(count, (len(data) - header) // layout.size)
    return not all(is_name(data[header + i * layout.size :][:64]) for i in range(shown))


def walk_sessions(survey: Survey, generation: LuoGeneration, address: int) -> list[Session]:
    """The sessions at ``address`` and their files."""
    layout = resolve(generation.layouts["luo_session_ser"], survey.page_size)
    path = "/LUO/sessions"
    if generation.sessions == "blocks":
        entries = block_entries(survey, address, layout, path, "session block")
        survey.claim("session-block", path, entries.pages, survey.page_size)
    else:
        header = resolve(generation.layouts["luo_session_header_ser"], survey.page_size)
        size = luo.LUO_SESSION_PGCNT * survey.page_size
        entries = _array(survey, address, header, layout, size, path, "session")
        if len(entries.pages):
            survey.claim("session-block", path, address, size)
    entries = _allowed(survey, entries, path)
    sessions: list[Session] = []
    taken: dict[str, int] = {}
    for row, at in zip(entries.data, entries.addresses, strict=True):
        values = layout.unpack(row.tobytes())
        name = c_string(values["name"])
        own = f"{path}/{path_component(name)}"
        _check_name(survey, values["name"], own, int(at))
        if own in taken:
            taken[own] += 1
            survey.findings.error(
                "KHO-LUO-006", "two sessions have this name", path=own, address=int(at)
            )
            own = f"{own}#{taken[own]}"
        taken.setdefault(own, 1)
        session = Session(own, int(at), name, values.get("files", 0), values.get("count", 0))
        session.complete = entries.complete
        _files(survey, generation, session)
        sessions.append(session)
    return sessions


def _array(
    survey: Survey, address: int, header: Struct, entry: Struct, size: int, path: str, what: str
) -> Entries:
    """A contiguous array of at most ``size`` bytes whose header ends in a u64 count."""
    if not survey.pointer(address, path, f"{what} array"):
        return _NOTHING
    values = survey.unpack(header, address, path)
    if values is None or not survey.enter(address, path, f"{what} array"):
        return _NOTHING
    count, capacity = values["count"], (size - header.size) // entry.size
    if count > capacity:
        survey.findings.error(
            "KHO-LST-005",
            f"{what} array counts {count} entries, capacity {capacity}",
            path=path,
            address=address + header.size - 8,
        )
    return _rows(survey, address + header.size, min(count, capacity), entry, path, address)


def _rows(survey: Survey, start: int, count: int, entry: Struct, path: str, page: int) -> Entries:
    step = np.uint64(entry.size)
    addresses = np.uint64(start) + np.arange(count, dtype=np.uint64) * step
    data, present = survey.rows(addresses, entry.size, path)
    if len(present):
        survey.place(entry, present, path)
    return Entries(
        data, present, np.array([page], np.uint64), np.array([count], np.uint64),
        len(present) == count,
    )  # fmt: skip


def _allowed(survey: Survey, entries: Entries, path: str) -> Entries:
    """The first of the entries, as many as the budget allows to make objects of."""
    known = len(entries.data)
    room = survey.room(Cost.FILES, known, path, int(entries.pages[0]) if known else None)
    survey.budget.spend(Cost.FILES, room)
    if room == known:
        return entries
    return replace(
        entries, data=entries.data[:room], addresses=entries.addresses[:room], complete=False
    )


def _files(survey: Survey, generation: LuoGeneration, session: Session) -> None:
    if generation.files == "none":
        return
    if bool(session.files_address) != bool(session.count):
        survey.findings.error(
            "KHO-LUO-004",
            f"files at {session.files_address:#x} but {session.count} counted",
            path=session.path,
            address=session.address,
        )
    if not session.files_address:
        return
    layout = resolve(generation.layouts["luo_file_ser"], survey.page_size)
    own = f"{session.path}/files"
    if generation.files == "blocks":
        entries = block_entries(survey, session.files_address, layout, own, "file block")
        survey.claim("file-block", own, entries.pages, survey.page_size)
        if len(entries.data) != session.count and entries.complete:
            survey.findings.error(
                "KHO-LUO-005",
                f"session counts {session.count} files, its blocks hold {len(entries.data)}",
                path=session.path,
                address=session.address,
            )
    else:
        entries = _contiguous_files(survey, session, layout, own)
    entries = _allowed(survey, entries, own)
    session.complete = session.complete and entries.complete
    name_field = "compatible" if "compatible" in layout.dtype.fields else "name"  # type: ignore[operator]
    seen: set[int] = set()
    for row, at in zip(entries.data, entries.addresses, strict=True):
        values = layout.unpack(row.tobytes())
        token = values["token"]
        path = f"{own}/{token:#x}"
        if token in seen:
            survey.findings.error(
                "KHO-LUO-007", f"token {token:#x} twice in a session", path=path, address=int(at)
            )
            path = f"{path}@{int(at):#x}"
        seen.add(token)
        if b"\0" not in values[name_field]:
            survey.findings.error(
                "KHO-LUO-008", "the handler's name is not terminated", path=path, address=int(at)
            )
        session.files.append(
            File(path, int(at), c_string(values[name_field]), values["data"], token)
        )


def _contiguous_files(survey: Survey, session: Session, layout: Struct, path: str) -> Entries:
    size = luo.LUO_FILE_PGCNT * survey.page_size
    capacity = size // layout.size
    if session.count > capacity:
        survey.findings.error(
            "KHO-LST-005",
            f"session counts {session.count} files, capacity {capacity}",
            path=session.path,
            address=session.address + 72,
        )
    address = session.files_address
    if not survey.pointer(address, path, "file array") or not survey.enter(
        address, path, "file array"
    ):
        return _NOTHING
    survey.claim("file-block", path, address, size)
    return _rows(survey, address, min(session.count, capacity), layout, path, address)


def _check_name(survey: Survey, raw: bytes, path: str, address: int) -> None:
    if b"\0" not in raw:
        survey.findings.error(
            "KHO-LUO-008", "name is not terminated", path=path, address=address, data=raw
        )
    elif raw[:1] == b"\0":
        survey.findings.error("KHO-LUO-009", "name is empty", path=path, address=address)


# -- FLB ----------------------------------------------------------------------------------


def walk_flbs(survey: Survey, generation: LuoGeneration, address: int) -> list[Flb]:
    """The FLB entries at ``address`` (one page: {pgcnt, count}, then entries).

    None in a generation whose FLBs have no known form, whatever its root points to.
    """
    if "luo_flb_header_ser" not in generation.layouts:
        return []
    header = resolve(generation.layouts["luo_flb_header_ser"], survey.page_size)
    layout = resolve(generation.layouts["luo_flb_ser"], survey.page_size)
    path = "/LUO/flbs"
    entries = _array(survey, address, header, layout, survey.page_size, path, "FLB")
    if len(entries.pages):
        survey.claim("flb", path, address, survey.page_size)
    flbs: list[Flb] = []
    seen: set[bytes] = set()
    for row, at in zip(entries.data, entries.addresses, strict=True):
        values = layout.unpack(row.tobytes())
        name = c_string(values["name"])
        own = f"{path}/{path_component(name)}"
        _check_name(survey, values["name"], own, int(at))
        if name in seen:
            survey.findings.error(
                "KHO-LUO-010", "two FLB entries have this name", path=own, address=int(at)
            )
            own = f"{own}@{int(at):#x}"
        seen.add(name)
        if values["count"] == 0:
            survey.findings.warning("KHO-LUO-011", "FLB counts no users", path=own, address=int(at))
        flbs.append(Flb(own, int(at), name, values["data"], values["count"]))
    return flbs
