"""Physical memory of a machine, out of any container.

::

    from inspector import memory

    with memory.open("vmcore") as image:
        image.regions              # what is present, and what was left out
        image.read(0x1000, 4096)   # bytes, or MemoryFault

:func:`open` finds out what the container is. Every backend is a
:class:`~inspector.memory.base.PhysicalMemory`.
"""

from inspector.memory.base import MemoryFault, PageState, PhysicalMemory, Region, Span
from inspector.memory.probe import open
from inspector.memory.regions import Regions
from inspector.memory.scan import find_bytes, find_words

__all__ = [
    "MemoryFault",
    "PageState",
    "PhysicalMemory",
    "Region",
    "Regions",
    "Span",
    "find_bytes",
    "find_words",
    "open",
]
