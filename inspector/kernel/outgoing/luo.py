"""Live Update Orchestrator, producer's side: sessions, files, file-lifecycle-bound data.

A :class:`FileHandler` knows one kind of file; a :class:`Flb` is global data that exists while
files of the handlers that depend on it are preserved. Sessions and files are kept in memory
and written into preserved pages in the reboot path (:meth:`Luo.freeze`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from abi import luo as abi_luo
from abi.errors import UsageError
from abi.fdt_write import FdtWriter
from abi.luo import LuoGeneration
from abi.schema import Struct, resolve
from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.blocks import BlockList
from inspector.kernel.outgoing.file_handler import FileHandler, Flb
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.record import pack, pack_many

NAME_BYTES = 64


@dataclass(slots=True)
class PreservedFile:
    """A file in a session."""

    file: Any
    handler: FileHandler
    token: int
    data: int


@dataclass(slots=True)
class Session:
    """A named set of preserved files, while its file descriptor is open."""

    luo: Luo = field(repr=False)
    name: str
    files: dict[int, PreservedFile] = field(default_factory=dict)
    closed: bool = False
    address: int = 0
    _array: int = 0
    _blocks: BlockList | None = None

    def find(self, file: Any) -> PreservedFile | None:
        """The entry of a file that is preserved here."""
        return next((p for p in self.files.values() if p.file is file), None)

    def preserve(self, file: Any, token: int) -> PreservedFile:
        """Preserve a file under a token.

        Raises EBADF (closed, or no file), EEXIST (token), ENOSPC (full), ENOENT (no handler),
        EBUSY (preserved already), and what the handler raises.
        """
        if self.closed or file is None:
            raise KernelErrno("EBADF", "no such file")
        if not 0 <= token < 1 << 64:
            raise UsageError(f"token {token:#x} is no 64-bit number")
        if token in self.files:
            raise KernelErrno("EEXIST", f"token {token:#x} is in use in session {self.name!r}")
        self._reserve(len(self.files) + 1)
        try:
            entry = self._preserve(file, token)
        except KernelErrno:
            self._release()
            raise
        self.files[token] = entry
        self.luo.preserved[id(file)] = entry
        return entry

    def _preserve(self, file: Any, token: int) -> PreservedFile:
        handler = self.luo.handler(file)
        if handler is None:
            raise KernelErrno("ENOENT", f"no handler takes {type(file).__name__}")
        if id(file) in self.luo.preserved:
            raise KernelErrno("EBUSY", "the file is preserved already")
        held: list[Flb] = []
        try:
            for flb in handler.flbs:
                flb.get()
                held.append(flb)
            data = handler.preserve(file, self, token)
        except KernelErrno:
            for flb in reversed(held):
                flb.put()
            raise
        return PreservedFile(file, handler, token, data)

    def _reserve(self, count: int) -> None:
        generation, page = self.luo.generation, self.luo.kho.machine.page_size
        if generation.files == "blocks":
            if self._blocks is None:
                self._blocks = BlockList(self.luo.kho, self.luo.file_entry)
            self._blocks.reserve(count)
            return
        if generation.files == "none":
            raise KernelErrno("ENOENT", "this generation of LUO has no files")
        room = abi_luo.LUO_FILE_PGCNT * page
        if count > room // self.luo.file_entry.size:
            raise KernelErrno("ENOSPC", f"session {self.name!r} is full")
        if not self._array:
            self._array = self.luo.kho.alloc_preserve(room)

    def _release(self) -> None:
        """Give back room that no file needs."""
        if self._blocks is not None:
            self._blocks.shrink(len(self.files))
        elif self._array and not self.files:
            self.luo.kho.unpreserve_free(self._array)
            self._array = 0

    def close(self) -> None:
        """Close the descriptor: every file is unpreserved, in reverse, and the session is gone."""
        if self.closed:
            raise KernelErrno("EBADF", "the session is closed")
        for entry in reversed(list(self.files.values())):
            self._unpreserve(entry)
        self._release()
        self.closed = True
        self.luo.forget(self)

    def _unpreserve(self, entry: PreservedFile) -> None:
        entry.handler.unpreserve(entry.file, entry.data)
        for flb in reversed(entry.handler.flbs):
            flb.put()
        del self.files[entry.token]
        del self.luo.preserved[id(entry.file)]

    def entry_address(self, index: int) -> int:
        """Where the entry of the file number ``index`` lies."""
        if self._blocks is not None:
            return self._blocks.address(index)
        return self._array + index * self.luo.file_entry.size

    @property
    def blocks(self) -> list[int]:
        """Addresses of the pages that hold the file entries."""
        if self._blocks is not None:
            return list(self._blocks.pages)
        return [self._array] if self._array else []

    # -- the reboot path -------------------------------------------------------------------

    def freeze(self) -> None:
        """Freeze every file; on failure the frozen ones are unfrozen again."""
        done: list[PreservedFile] = []
        try:
            for entry in self.files.values():
                entry.data = entry.handler.freeze(entry.file, entry.data)
                done.append(entry)
        except KernelErrno:
            for entry in reversed(done):
                entry.handler.unfreeze(entry.file, entry.data)
            raise

    def unfreeze(self) -> None:
        """Unfreeze every file."""
        for entry in reversed(list(self.files.values())):
            entry.handler.unfreeze(entry.file, entry.data)

    def write(self) -> tuple[int, int]:
        """Write the file entries; (address, count) for the session's own entry."""
        if not self.files:
            return 0, 0
        entry = self.luo.file_entry
        records = pack_many(entry, len(self.files), {})
        name = "compatible" if any(f.name == "compatible" for f in entry.fields) else "name"
        strings = records[name].view("S48").reshape(-1)
        strings[:] = [f.handler.compatible.encode() for f in self.files.values()]
        records["data"] = [f.data for f in self.files.values()]
        records["token"] = [f.token for f in self.files.values()]
        if self._blocks is not None:
            self._blocks.write(records)
            return self._blocks.first, len(records)
        self.luo.kho.machine.memory.write(self._array, records.tobytes())
        return self._array, len(records)


class Luo:
    """The orchestrator of a running kernel. ``number`` is that of the coming live update."""

    def __init__(
        self,
        kho: Kho,
        generation: LuoGeneration,
        *,
        number: int = 1,
        handlers: Iterable[FileHandler] = (),
        flbs: Iterable[Flb] = (),
    ) -> None:
        self.kho = kho
        self.generation = generation
        self.number = number
        self.handlers = list(handlers)
        self.flbs = list(flbs)
        self.sessions: list[Session] = []
        self.preserved: dict[int, PreservedFile] = {}
        page = kho.machine.page_size
        self.session_entry = self._layout("luo_session_ser")
        if generation.files != "none":
            self.file_entry = self._layout("luo_file_ser")
        self.address = kho.alloc_preserve(page)
        #: Where struct luo_ser lies: the blob itself, but for luo-v2, where a tree leads to it.
        self._struct_at = 0
        if "luo_ser" in generation.layouts:
            self._struct_at = kho.alloc_preserve(page) if generation.root == "fdt" else self.address
        self._sessions_at = self._flbs_at = 0
        self._blocks: BlockList | None = None
        if generation.sessions == "blocks":
            self._blocks = BlockList(kho, self.session_entry)
        else:
            self._sessions_at = kho.alloc_preserve(abi_luo.LUO_SESSION_PGCNT * page)
        if generation.flb:
            self._flbs_at = kho.alloc_preserve(abi_luo.LUO_FLB_PGCNT * page)
            kho.machine.memory.write(self._flbs_at, (1).to_bytes(8, "little"))
        kho.add_blob(abi_luo.LUO_KHO_ENTRY_NAME, self.address, self._write_root())

    @property
    def session_blocks(self) -> list[int]:
        """Addresses of the session blocks, or of the contiguous array."""
        return list(self._blocks.pages) if self._blocks is not None else [self._sessions_at]

    @property
    def flb_page(self) -> int:
        """Address of the FLB page, 0 if there is none."""
        return self._flbs_at

    def _layout(self, name: str) -> Struct:
        return resolve(self.generation.layouts[name], self.kho.machine.page_size)

    def handler(self, file: Any) -> FileHandler | None:
        """The handler that takes a file."""
        for handler in self.handlers:
            if handler.can_preserve(file):
                return handler
        return None

    def register(self, handler: FileHandler) -> None:
        """Add a handler, and its FLBs in the order they first appear."""
        self.handlers.append(handler)
        self.flbs += [f for f in handler.flbs if f not in self.flbs]

    def create_session(self, name: str) -> Session:
        """A new, empty session. Raises EINVAL, EEXIST, ENOSPC."""
        raw = name.encode("utf-8", "surrogateescape")
        if not raw or b"\0" in raw or len(raw) >= NAME_BYTES:
            raise KernelErrno("EINVAL", f"{name!r}: a session name has 1 to 63 bytes")
        if any(s.name == name for s in self.sessions):
            raise KernelErrno("EEXIST", f"there is a session {name!r}")
        count = len(self.sessions) + 1
        if self._blocks is not None:
            self._blocks.reserve(count)
        else:
            room = abi_luo.LUO_SESSION_PGCNT * self.kho.machine.page_size - 8
            if count > room // self.session_entry.size:
                raise KernelErrno("ENOSPC", "no room for another session")
        session = Session(self, name)
        self.sessions.append(session)
        return session

    def forget(self, session: Session) -> None:
        """Drop a closed session, and the block that it leaves empty."""
        self.sessions.remove(session)
        if self._blocks is not None:
            self._blocks.shrink(len(self.sessions))

    def session(self, name: str) -> Session:
        """An open session by name. Raises ENOENT."""
        for session in self.sessions:
            if session.name == name:
                return session
        raise KernelErrno("ENOENT", f"there is no session {name!r}")

    # -- the reboot path -------------------------------------------------------------------

    def freeze(self) -> None:
        """Freeze all sessions and write everything. On failure all is as before, and it raises."""
        frozen: list[Session] = []
        try:
            for session in self.sessions:
                session.freeze()
                frozen.append(session)
        except KernelErrno:
            for session in reversed(frozen):
                session.unfreeze()
            raise
        self._write_sessions()
        self._write_flbs()
        self._write_root()

    def unfreeze(self) -> None:
        """Undo :meth:`freeze` because a later step failed."""
        for session in reversed(self.sessions):
            session.unfreeze()

    def _write_sessions(self) -> None:
        records = pack_many(self.session_entry, len(self.sessions), {})
        if self.sessions:
            names = records["name"].view("S64").reshape(-1)
            names[:] = [s.name.encode("utf-8", "surrogateescape") for s in self.sessions]
            files = [s.write() for s in self.sessions]
            if "file_set_ser" in (records.dtype.names or ()):
                records["file_set_ser"]["files"] = [at for at, _ in files]
                records["file_set_ser"]["count"] = [count for _, count in files]
        memory = self.kho.machine.memory
        if self._blocks is not None:
            self._blocks.shrink(len(self.sessions))
            self._blocks.write(records)
            for i, session in enumerate(self.sessions):
                session.address = self._blocks.address(i)
            return
        memory.write(self._sessions_at, len(records).to_bytes(8, "little") + records.tobytes())
        for i, session in enumerate(self.sessions):
            session.address = self._sessions_at + 8 + i * self.session_entry.size

    def _write_flbs(self) -> None:
        if not self._flbs_at:
            return
        entry, page = self._layout("luo_flb_ser"), self.kho.machine.page_size
        live = [f for f in self.flbs if f.count]
        if len(live) > (page - 16) // entry.size:
            raise KernelErrno("ENOSPC", "the FLB page is full")
        records = pack_many(entry, len(live), {})
        if live:
            records["name"].view("S48").reshape(-1)[:] = [f.name.encode() for f in live]
            records["data"] = [f.data for f in live]
            records["count"] = [f.count for f in live]
        head = (1).to_bytes(8, "little") + len(live).to_bytes(8, "little")
        self.kho.machine.memory.write(self._flbs_at, head + records.tobytes())

    def _write_root(self) -> int:
        size = self._write_struct() if self._struct_at else 0
        return self._write_fdt() if self.generation.root == "fdt" else size

    def _write_struct(self) -> int:
        ser = self._layout("luo_ser")
        values: dict[str, Any] = {
            "liveupdate_num": self.number,
            "sessions_pa": self._blocks.first if self._blocks is not None else self._sessions_at,
            "flbs_pa": self._flbs_at,
        }
        if self.generation.features:
            bits = abi_luo.LUO_FEATURE_NUMBER | abi_luo.LUO_FEATURE_SESSIONS
            bits |= abi_luo.LUO_FEATURE_FLBS
            values["features"] = {"supp": bits, "req": bits, "active": bits}
        elif self.generation.string_size:
            values["compatible"] = self.generation.strings[0].encode()
        self.kho.machine.memory.write(self._struct_at, pack(ser, values))
        return ser.size

    def _write_fdt(self) -> int:
        strings = self.generation.strings
        writer = FdtWriter(self.kho.machine.page_size)
        writer.begin_node("")
        writer.property_string("compatible", strings[0])
        if self._struct_at:
            writer.property_u64(abi_luo.LUO_FDT_ABI_HEADER, self._struct_at)
        else:
            self._write_nodes(writer)
        writer.end_node()
        blob = writer.finish()
        self.kho.machine.memory.write(self.address, writer.page())
        return len(blob)

    def _write_nodes(self, writer: FdtWriter) -> None:
        strings = self.generation.strings
        writer.property_u64(abi_luo.LUO_FDT_LIVEUPDATE_NUM, self.number)
        nodes = [
            (abi_luo.LUO_FDT_SESSION_NODE_NAME, abi_luo.LUO_FDT_SESSION_HEADER, strings[1:2]),
            (abi_luo.LUO_FDT_FLB_NODE_NAME, abi_luo.LUO_FDT_FLB_HEADER, strings[2:3]),
        ]
        for (node, header, string), at in zip(
            nodes, (self._sessions_at, self._flbs_at), strict=True
        ):
            if at and string:
                writer.begin_node(node)
                writer.property_string("compatible", string[0])
                writer.property_u64(header, at)
                writer.end_node()
