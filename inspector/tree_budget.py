"""Device trees that something leads to, each parsed once, within a budget.

A blob of 2 MiB may hold 100,000 nodes, and thousands of headers may share it; the trees of
an image that a machine left are few, and a device tree of arm64 has some thousands of nodes.
"""

from __future__ import annotations

from abi import fdt
from inspector.memory.base import MemoryFault, PhysicalMemory
from inspector.walk.fdt import MAX_SIZE, read_blob

#: Bytes of blobs that are parsed, and of memory that the trees take, about.
MAX_BYTES, MAX_MEMORY = 64 << 20, 128 << 20
_NODE, _PROPERTY = 300, 150


def tree_size(memory: PhysicalMemory, address: int) -> int | None:
    """How large the tree at ``address`` says that it is; None if nothing begins there."""
    try:
        header = fdt.peek(memory.read(address, fdt.HEADER_SIZE))
    except MemoryFault:
        return None
    return None if header is None else header.totalsize


class TreeBudget:
    """Parses trees until its budget is used up."""

    def __init__(self, memory: PhysicalMemory, *, salvage: bool = False) -> None:
        """``salvage``: as for :func:`abi.fdt.parse`."""
        self._memory = memory
        self._salvage = salvage
        self._known: dict[int, fdt.Fdt | None] = {}
        self.bytes = MAX_BYTES
        self.memory = MAX_MEMORY
        #: Where trees were not looked at, since the budget was used up.
        self.unread: set[int] = set()

    @property
    def spent(self) -> bool:
        """Whether nothing is left of the budget."""
        return min(self.bytes, self.memory) <= 0

    def tree(self, address: int, blob: bytes | None = None) -> fdt.Fdt | None:
        """The tree at ``address``, or None: none that parses, or none that is affordable.

        ``blob``: its bytes, where they are known already.
        """
        if address in self._known:
            return self._known[address]
        tree = None
        try:
            if blob is None:
                blob = read_blob(self._memory, address, MAX_SIZE)
            if self.spent:
                self.unread.add(address)
            else:
                self.bytes -= len(blob)
                tree = fdt.parse(blob, salvage=self._salvage)
                self.memory -= 2 * len(blob) + _size(tree.root)
        except (fdt.FdtError, MemoryFault):
            pass
        self._known[address] = tree
        return tree


def _size(root: fdt.Node) -> int:
    """About how much memory a tree takes, its values aside."""
    size, stack = 0, [root]
    while stack:
        node = stack.pop()
        size += _NODE + _PROPERTY * len(node.properties) + sum(map(len, node.properties))
        stack += node.children
    return size
