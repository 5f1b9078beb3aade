"""What of the hardware's own tables a kernel took over, for the drivers that go on with them.

The consumer records here which pages it restored; as the producer of the next update its
drivers use them again instead of new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class InheritedTables:
    """The tables of one IOMMU, by physical address.

    VT-d: ``root``, ``contexts`` by their bit of the bitmap, ``pasids`` by (segment << 16 | bdf)
    as (directory, its order, table of the lowest PASIDs). SMMUv3: ``root`` is the level-1
    table, ``contexts`` are the level-2 tables by index. ``ids`` are the domain ids (VMIDs) that
    stay reserved until the devices have left the old domains.
    """

    root: int = 0
    contexts: dict[int, int] = field(default_factory=dict)
    pasids: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
