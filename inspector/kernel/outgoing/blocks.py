"""Block lists (7.2 on): preserved pages of {next, count} and entries, chained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from abi.block import KHO_MAX_BLOCKS, kho_block_header_ser
from abi.schema import Struct
from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.kho import Kho


class BlockList:
    """A growing list of ``entry`` structs. Pages are taken when they are first needed."""

    def __init__(self, kho: Kho, entry: Struct) -> None:
        self._kho = kho
        self.entry = entry
        self.capacity = (kho.machine.page_size - kho_block_header_ser.size) // entry.size
        self.pages: list[int] = []

    @property
    def first(self) -> int:
        """Address of the first block, 0 if there is none."""
        return self.pages[0] if self.pages else 0

    def reserve(self, count: int) -> None:
        """Make room for ``count`` entries. Raises ENOSPC, ENOMEM."""
        while len(self.pages) * self.capacity < count:
            if len(self.pages) >= KHO_MAX_BLOCKS:
                raise KernelErrno("ENOSPC", f"more than {KHO_MAX_BLOCKS} blocks")
            page = self._kho.alloc_preserve(self._kho.machine.page_size)
            if self.pages:
                self._kho.machine.memory.write(self.pages[-1], page.to_bytes(8, "little"))
            self.pages.append(page)

    def shrink(self, count: int) -> None:
        """Give back the pages that ``count`` entries do not need."""
        need = -(-count // self.capacity)
        while len(self.pages) > need:
            self._kho.unpreserve_free(self.pages.pop())
            if self.pages:
                self._kho.machine.memory.write(self.pages[-1], bytes(8))

    def address(self, index: int) -> int:
        """Where entry ``index`` lies."""
        block, slot = divmod(index, self.capacity)
        return self.pages[block] + kho_block_header_ser.size + slot * self.entry.size

    def write(self, records: npt.NDArray[Any]) -> None:
        """Write all entries; every block but the last is full."""
        memory = self._kho.machine.memory
        for i, page in enumerate(self.pages):
            part = records[i * self.capacity : (i + 1) * self.capacity]
            following = self.pages[i + 1] if i + 1 < len(self.pages) else 0
            head = np.array([following, len(part)], "<u8")
            memory.write(page, head.tobytes() + part.tobytes())
