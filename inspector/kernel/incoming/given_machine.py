"""What an image tells of the machine that the next kernel boots on."""

from __future__ import annotations

from abi import fdt
from inspector.locate import Location, ram_of
from inspector.memory.base import MemoryFault, PhysicalMemory, Region
from inspector.memory.mapped import MappedMemory
from inspector.memory.sparse import SparseMemory
from inspector.walk.fdt import read_tree

#: Containers whose regions are the machine's memory map.
_WHOLE = ("sparse", "raw")


def ram_for(memory: PhysicalMemory, location: Location) -> tuple[Region, ...] | None:
    """Where RAM is, as the hand-over tells or all of a whole image; None if nothing tells."""
    told = ram_of(memory, location)
    if told is None and _container(memory) in _WHOLE:
        return tuple(memory.regions)
    return told


def _container(memory: PhysicalMemory) -> str:
    """What an image came in; pages written over it do not tell where RAM is."""
    while isinstance(memory, SparseMemory) and memory.base.kind != MappedMemory.kind:
        memory = memory.base
    return memory.kind


def page_size_of(memory: PhysicalMemory, location: Location) -> int:
    """That of the kernel that wrote the image."""
    if memory.machine == "x86_64" or not location.candidates:
        return 0x1000
    from inspector.detect import detect_kho

    candidate = location.candidates[0]
    try:
        tree = read_tree(memory, candidate.address, salvage=True)
    except (MemoryFault, fdt.FdtError):
        return 0x1000
    return detect_kho(memory, tree.root, candidate).page_size
