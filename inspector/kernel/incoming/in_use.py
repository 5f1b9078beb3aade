"""Memory that is read although it was not preserved: in use by then, or used by nobody."""

from __future__ import annotations

import numpy as np

from inspector.findings import Outcome
from inspector.kernel.incoming.boot import Booting


def protected(boot: Booting, path: str, what: str, address: int, size: int) -> bool:
    """Whether memory that is read long after the page allocator runs was preserved."""
    assert boot.preserved is not None
    page = boot.view.page_size
    start = address - address % page
    if boot.preserved.covers(np.array([start], np.uint64), address + size - start)[0]:
        return True
    if untouched(boot, address, size):
        return True
    boot.reasons.add(
        Outcome.CORRUPTION,
        f"{what} at {address:#x} is not preserved: it is read when its memory is in use already",
        path=path, address=address,
    )  # fmt: skip
    return False


#: Low memory that a PC's kernel reserves for the BIOS and puts nothing into (up to 1 MiB are
#: reserved; the trampoline goes to the top of what is there).
_LOW = 512 << 10


def untouched(boot: Booting, address: int, size: int) -> bool:
    """Whether nothing is put there, although it was not preserved."""
    return boot.x86 and address + size <= _LOW


def block_preserved(boot: Booting, path: str, what: str, address: int) -> None:
    """Blocks are followed before anything tells whether their pages were preserved."""
    assert boot.preserved is not None
    if untouched(boot, address, boot.view.page_size):
        return
    if boot.lost.contains(np.array([address >> boot.view.page_shift], np.uint64))[0]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{what} at {address:#x} was freed with something else before it is read: what lies"
            " there then is followed as a pointer",
            path=path, address=address, dmesg="general protection fault",
        )  # fmt: skip
    elif not boot.preserved.covers(np.array([address], np.uint64), boot.view.page_size)[0]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{what} at {address:#x} is not preserved: its memory is in use when it is read, and"
            " what lies there is followed as a pointer",
            path=path, address=address, dmesg="general protection fault",
        )  # fmt: skip
