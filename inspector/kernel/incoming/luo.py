"""LUO in the kernel that takes over: what boot reads of it.

At boot the blob is checked; anything wrong there panics, since the old kernel's devices may
still do DMA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi import fdt
from abi import luo as abi_luo
from abi.luo import LuoGeneration
from abi.schema import resolve
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming import libfdt
from inspector.kernel.incoming.blocks import block_chain
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.in_use import protected
from inspector.kernel.incoming.revive import Blob, find_blob, read_tree
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.memory.base import U64Array
from inspector.text import c_string, path_component

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
    blocks: U64Array | None = None

    def files(self) -> Iterator[tuple[SessionEntry, FileEntry]]:
        """Every file with its session."""
        for session in self.sessions:
            for file in session.files:
                yield session, file


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
            Outcome.CANNOT_TELL, lack.why or "what LUO handed over is not in the image",
            path="/LUO", address=lack.address,
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
        luo.blocks = block_chain(boot, luo.sessions_at, entry)
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
