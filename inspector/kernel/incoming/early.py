"""Early boot of the consumer: the hand-over record, the root FDT, scratch, the preserved map."""

from __future__ import annotations

from inspector.kernel.incoming.boot import Booting, read_root
from inspector.kernel.incoming.early_map import inherit_map
from inspector.kernel.incoming.early_scratch import read_scratch


def early(boot: Booting, kernel_size: int, initrd_size: int) -> bool:
    """Everything up to the page allocator. False if the rest of the boot has nothing to do."""
    if not read_root(boot) or not read_scratch(boot, kernel_size, initrd_size):
        return False
    return inherit_map(boot)
