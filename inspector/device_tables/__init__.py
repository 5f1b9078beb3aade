"""Device tables in memory: from a table's address to what each device may do.

* :mod:`~inspector.device_tables.vtd`: root, context and PASID tables;
* :mod:`~inspector.device_tables.smmuv3`: stream tables and context descriptors;
* :mod:`~inspector.device_tables.amd`: the AMD device table;
* :mod:`~inspector.device_tables.cross`: the tables against the serialized objects.

Readers take a :class:`inspector.survey.Survey`, never raise for what memory holds, and give
page tables as :class:`abi.device_table.TableRoot`, which ``kho pagetable`` walks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abi.device_table import TableRoot
    from inspector.memory.base import PhysicalMemory
    from inspector.pagetable import Walk


def walk_root(memory: PhysicalMemory, root: TableRoot) -> Walk:
    """The page table that a device table entry points to. Raises UsageError if it cannot be one."""
    from inspector.pagetable import walk

    bits = root.input_bits if root.format.startswith("lpae") else None
    return walk(memory, root.format, root.address, root.levels, vasz=bits or None)
