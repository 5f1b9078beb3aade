"""tmpfs mounts and the handler that preserves their options (never in a release)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abi.registry import Generation
from abi.schema import Struct, resolve
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.record import pack


@dataclass(slots=True, eq=False)
class TmpfsMount:
    """A mount: its limit in pages (0: none), the mode of its root, flags of unknown meaning."""

    max_blocks: int = 0
    mode: int = 0o1777
    flags: int = 0


class TmpfsHandler(FileHandler):
    """Preserves mounts; the files in them are not part of it."""

    def __init__(self, kho: Kho, generation: Generation) -> None:
        self.kho = kho
        self.generation = generation
        self.compatible = generation.file_strings[0]
        layout = generation.layouts["tmpfs_luo_mnt_ser"]
        self.layout: Struct = resolve(layout, kho.machine.page_size)

    def can_preserve(self, file: Any) -> bool:
        """Descriptors of mounts only."""
        return isinstance(file, TmpfsMount)

    def preserve(self, file: TmpfsMount, session: Session, token: int) -> int:
        """Write the options down. Raises ENOMEM."""
        values = {"max_blocks": file.max_blocks, "mode": file.mode, "flags": file.flags}
        return self.kho.alloc_preserve(self.layout.size, pack(self.layout, values))

    def unpreserve(self, file: TmpfsMount, data: int) -> None:
        """Undo."""
        self.kho.unpreserve_free(data)
