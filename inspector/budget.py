"""What the decoding of one image may cost.

Counts can be any number, and lists can share what they lead to: an image of a few pages can speak
of more than any memory holds. What a kernel writes lies in pages of its own, though, so that no
sound image has more of anything than it has bytes for. Every walk takes from one budget.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from inspector.memory.base import PhysicalMemory
from inspector.memory.mapped import MappedMemory
from inspector.memory.sparse import SparseMemory

#: Bytes of array entries that tell a layout, if any do: half a million of 16 bytes.
_TRIAL = 8 << 20


class Cost(enum.Enum):
    """What a walk takes from the budget: how much any image may have, and how many stored bytes
    allow one more.
    """

    #: Pages of arrays, in bytes: of folios, HWPTs, attributes, ...
    ENTRIES = "array entries", 32 << 20, 1
    #: Runs of the preserved-memory map: the least is enough for random bits over 128 GiB. A page
    #: alone is listed somewhere, as 16 bytes at least.
    RUNS = "runs of preserved blocks", 10 << 20, 16
    #: Sessions and files. The state of each file has a page of its own.
    FILES = "sessions and files", 1 << 16, 4096

    def __init__(self, what: str, least: int, unit: int) -> None:
        self.what = what
        self.least = least
        self.unit = unit


@dataclass(slots=True)
class Budget:
    """A budget that walks share. ``least`` replaces that of a cost, whatever the image stores."""

    least: dict[Cost, int] = field(default_factory=dict)
    _spent: dict[Cost, int] = field(default_factory=dict)
    _stored: int | None = None

    def room(self, cost: Cost, wanted: int, memory: PhysicalMemory) -> int:
        """How much of ``wanted`` can still be had."""
        left = self.least.get(cost, cost.least) - self._spent.get(cost, 0)
        if wanted <= left:
            return wanted
        if cost not in self.least:
            if self._stored is None:
                self._stored = stored_bytes(memory)
            left = max(cost.least, self._stored // cost.unit) - self._spent.get(cost, 0)
        return max(min(wanted, left), 0)

    def spend(self, cost: Cost, amount: int) -> None:
        """Take what was had."""
        self._spent[cost] = self._spent.get(cost, 0) + amount


def trial() -> Budget:
    """That of walks which only tell the layout of something: many may be held together."""
    return Budget({Cost.ENTRIES: _TRIAL})


def stored_bytes(memory: PhysicalMemory) -> int:
    """Bytes that an image can hold something in.

    What a container stores counts once, however many addresses lead to it, and memory that is
    known to be zero does not. Where neither is told, it is the memory that is present.
    """
    if isinstance(memory, SparseMemory) and not memory.blank:
        return stored_bytes(memory.base) + memory.written_bytes
    if isinstance(memory, MappedMemory):
        return sum(len(view) for _, view in memory.distinct())
    if memory.scan_heads and memory.page_size:
        return memory.page_size * sum(len(pages) for pages in memory.heads())
    return memory.regions.present.bytes
