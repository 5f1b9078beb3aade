"""Early boot's scratch areas: where they are, and whether they are large enough."""

from __future__ import annotations

import numpy as np

from abi.boot import KHO_SCRATCH_READ, kho_scratch
from inspector.findings import Outcome
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.locate import How

MiB = 1 << 20
#: The kernel and initrd that the scratch sizes below were measured with, in bytes.
KERNEL_SIZE, INITRD_SIZE = 3 * MiB, 1 * MiB
#: Scratch in all: this much was enough, this much was not.
_ENOUGH, _TOO_LITTLE = 16 * MiB, 12 * MiB
#: Scratch beside kernel and initrd, where these lie elsewhere.
_ENOUGH_APART, _TOO_LITTLE_APART = 8 * MiB, 4 * MiB
#: A compressed kernel unpacks to at most so many times its size.
_UNPACKED = 4
#: Bytes of struct page for a page of memory, of 4 KiB.
_PAGE_STRUCT = 64
_M32 = (1 << 32) - 1


def read_scratch(boot: Booting, kernel_size: int, initrd_size: int) -> bool:
    """Read the scratch array; sizes are bytes. False if the kernel does not survive it."""
    handover = boot.handover
    if handover is None:
        boot.scratch = list(boot.view.memory.kernel_scratch)
        return not boot.scratch or _adequate(boot, kernel_size, initrd_size)
    # The number of areas has 32 bits, too.
    said = handover.scratch_size // kho_scratch.size & _M32
    count = min(said, KHO_SCRATCH_READ)
    try:
        data = boot.view.read(handover.scratch_address, count * kho_scratch.size)
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "the scratch array is not in the image", path="/scratch",
            address=lack.address,
        )  # fmt: skip
        return True
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"the scratch array is said to be at {handover.scratch_address:#x}, where no memory is:"
            " what is read there are no areas, and early boot has no memory at all",
            path="/scratch", address=fault.address, dmesg="Failed to allocate",
        )  # fmt: skip
        return False
    if count and not any(data):
        boot.notes.append("the scratch array is not copied yet: it is taken to be what it must be")
        return True
    boot.scratch = [
        (v["addr"], v["size"])
        for v in (kho_scratch.unpack(data, i * kho_scratch.size) for i in range(count))
    ]
    if not _areas(boot):
        return False
    if said > count:
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            f"{said:,} scratch areas are too many to look at: the first {count:,} do no harm",
            path="/scratch", address=handover.scratch_address,
        )  # fmt: skip
    return _adequate(boot, kernel_size, initrd_size)


def _areas(boot: Booting) -> bool:
    assert boot.handover is not None
    view_page = boot.view.page_size
    real = _real(boot)  # once: there may be as many areas as a hostile size says
    for i, (start, size) in enumerate(boot.scratch):
        if not size:
            continue
        at = boot.handover.scratch_address + i * kho_scratch.size
        behind = _behind_all(boot, start)
        # An area that is taken for memory needs page structs, which come out of scratch.
        if behind and min(size, (1 << 64) - start) // view_page * _PAGE_STRUCT > real:
            _no_room(boot, start, size, at)
            return False
        if behind:
            boot.notes.append(
                f"scratch area {start:#x}+{size:#x} lies behind all memory: it is of no use"
            )
            boot.scratch[i] = (start, 0)
            continue
        if start % boot.view.page_size:
            boot.reasons.add(
                Outcome.BOOT_FAILS,
                f"scratch area {start:#x}+{size:#x} does not start at a page: the page allocator"
                " is corrupted",
                path="/scratch", address=at,
            )  # fmt: skip
            return False
        inside = bool(boot.view.inside(np.array([start], np.uint64), min(size, (1 << 64) - 1))[0])
        if not inside and boot.view.in_ram(start) is False:
            boot.reasons.add(
                Outcome.BOOT_FAILS,
                f"scratch area {start:#x}+{size:#x} is outside memory: what early boot puts"
                " there is nowhere",
                path="/scratch", address=at,
            )  # fmt: skip
            return False
        if not inside and size // view_page * _PAGE_STRUCT > real:
            _no_room(boot, start, size, at)
            return False
        if not inside:
            boot.reasons.add(
                Outcome.CANNOT_TELL,
                f"scratch area {start:#x}+{size:#x} is not wholly known to be memory",
                path="/scratch", address=at,
            )  # fmt: skip
    return True


def _no_room(boot: Booting, start: int, size: int, at: int) -> None:
    boot.reasons.add(
        Outcome.BOOT_FAILS,
        f"scratch area {start:#x}+{size:#x} is taken for memory: there is no room for the"
        " page structs of so much",
        path="/scratch", address=at, dmesg="Failed to allocate",
    )  # fmt: skip


def _real(boot: Booting) -> int:
    """Bytes of scratch that are memory; what of an area reaches behind it does not count."""
    ends = [r.end for r in boot.view.ram or boot.view.memory.regions]
    end = max(ends, default=0)
    return sum(max(min(start + size, end) - start, 0) for start, size in boot.scratch)


def _behind_all(boot: Booting, start: int) -> bool:
    """Whether an area is above the end of RAM, where x86 does not allocate early on."""
    assert boot.handover is not None
    ram = boot.view.ram
    return (
        boot.handover.how is How.SETUP_DATA and bool(ram) and start >= max(r.end for r in ram or ())
    )


def _adequate(boot: Booting, kernel_size: int, initrd_size: int) -> bool:
    total = sum(size for _, size in boot.scratch)
    if kernel_size:
        more_kernel, more_initrd = kernel_size - KERNEL_SIZE, initrd_size - INITRD_SIZE
        enough = _ENOUGH + max(more_kernel, _UNPACKED * more_kernel) + more_initrd
        little = _TOO_LITTLE + min(more_kernel, _UNPACKED * more_kernel) + more_initrd
        what = f"scratch for a kernel of {_mib(kernel_size)} and an initrd of {_mib(initrd_size)}"
    else:
        enough, little = _ENOUGH_APART + initrd_size, _TOO_LITTLE_APART + initrd_size
        what = "scratch apart from kernel and initrd"
        if initrd_size:
            what = f"scratch apart from the kernel, for an initrd of {_mib(initrd_size)}"
    where = boot.handover.scratch_address if boot.handover is not None else None
    if total <= little:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{_mib(total)} of {what}: {_mib(little)} and less are too little, the kernel hangs"
            " without a word",
            path="/scratch", address=where,
        )  # fmt: skip
        return False
    if total < enough:
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            f"{_mib(total)} of {what}: {_mib(enough)} are enough, {_mib(little)} are not",
            path="/scratch", address=where,
        )  # fmt: skip
    return True


def _mib(size: int) -> str:
    return f"{size / MiB:g} MiB"
