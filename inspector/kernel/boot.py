"""Early boot of the consumer: the hand-over record, the root FDT, scratch, the preserved map.

Every step appends to the reasons what it does about the image; :func:`early` returns None when
the kernel forgets KHO or dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from abi import fdt
from abi.boot import kho_scratch
from abi.kho import KhoGeneration, MapKind
from inspector.findings import Findings, Outcome
from inspector.kernel import libfdt
from inspector.kernel.frames import FrameSet
from inspector.kernel.outcome import Reasons
from inspector.kernel.profile import KernelProfile
from inspector.kernel.restore import (
    Freed,
    Inherited,
    Marks,
    TooManyBlocks,
    empty_map,
    marks_of,
    read_map,
)
from inspector.kernel.view import SECTION, Absent, PageFault, View
from inspector.locate import Candidate, Handover, How, Location
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map

MiB = 1 << 20
#: The kernel and initrd that the scratch sizes below were measured with, in bytes.
KERNEL_SIZE, INITRD_SIZE = 3 * MiB, 1 * MiB
#: Scratch in all: this much was enough, this much was not.
_ENOUGH, _TOO_LITTLE = 16 * MiB, 12 * MiB
#: Scratch beside kernel and initrd, where these lie elsewhere.
_ENOUGH_APART, _TOO_LITTLE_APART = 8 * MiB, 4 * MiB
#: A compressed kernel unpacks to at most so many times its size.
_UNPACKED = 4
#: Pages that x86 can map in early boot.
_EARLY_MAP = 64
_M32 = (1 << 32) - 1
#: Bytes of struct page for a page of memory, of 4 KiB.
_PAGE_STRUCT = 64
#: No machine preserves more blocks than this.
_MAX_BLOCKS = 1 << 28


@dataclass(slots=True)
class Booting:
    """A kernel that takes over: what early boot has found so far."""

    kernel: KernelProfile
    view: View
    location: Location
    reasons: Reasons
    findings: Findings
    notes: list[str] = field(default_factory=list)
    handover: Handover | None = None
    root: int = 0
    tree: libfdt.Node | None = None
    scratch: list[tuple[int, int]] = field(default_factory=list)
    preserved: PreservedMap | None = None
    marks: Marks = field(default_factory=Marks)
    #: What the kernel does about state it cannot read, where it is not what releases do.
    behaviours: Mapping[str, str] = field(default_factory=dict)
    freed: Freed = field(default_factory=Freed)
    #: Frames that were given back long before what lies in them is read.
    lost: FrameSet = field(default_factory=FrameSet)
    #: Whether libfdt reads the root FDT to its end.
    root_ends: bool = True

    @property
    def generation(self) -> KhoGeneration:
        """The form of KHO that this kernel reads."""
        found = self.kernel["kho"]
        assert isinstance(found, KhoGeneration)
        return found

    def ignores(self, situation: str) -> bool:
        """Whether the kernel ignores what others panic or fail about."""
        return self.behaviours.get(situation) == "ignore"

    @property
    def x86(self) -> bool:
        """Whether this is surely a PC."""
        how = self.handover.how if self.handover is not None else None
        return how is How.SETUP_DATA or self.view.memory.machine == "x86_64"

    @property
    def handed_off(self) -> bool:
        """Whether the image surely is of the moment of the jump."""
        how = self.handover.how if self.handover is not None else None
        return how is How.SETUP_DATA or self.view.memory.notes.get("KHO_MOMENT") == "handed-over"


def early(boot: Booting, kernel_size: int, initrd_size: int) -> bool:
    """Everything up to the page allocator. False if the rest of the boot has nothing to do."""
    if not _root(boot) or not _scratch(boot, kernel_size, initrd_size):
        return False
    return _map(boot)


# -- root -------------------------------------------------------------------------------------


def _refuse(
    boot: Booting, message: str, address: int | None, dmesg: str, data: bytes = b""
) -> bool:
    boot.reasons.add(
        Outcome.KHO_REFUSED,
        message + ": the kernel forgets KHO and boots; all that was handed over is lost",
        path="/",
        address=address,
        data=data,
        dmesg=dmesg,
    )
    return False


def _root(boot: Booting) -> bool:
    candidate = _candidate(boot)
    if candidate is None and boot.handover is None:
        boot.reasons.add(Outcome.CANNOT_TELL, "the image holds no KHO root", path="/")
        return False
    if boot.handover is not None:
        boot.root, size = boot.handover.fdt_address, boot.handover.fdt_size
        if not size or not boot.handover.scratch_size:
            what = "root FDT" if not size else "scratch array"
            return _refuse(
                boot, f"the size of the {what} is handed over as 0", boot.handover.address,
                "disabling KHO revival",
            )  # fmt: skip
        for what, address, length, message in (
            ("root FDT", boot.root, size, "failed to memremap FDT"),
            (
                "scratch array", boot.handover.scratch_address, boot.handover.scratch_size,
                "failed to memremap scratch",
            ),
        ):  # fmt: skip
            if boot.handover.how is How.SETUP_DATA and _early_pages(address, length) > _EARLY_MAP:
                return _refuse(
                    boot, f"the size of the {what} is handed over as {length:#x}, more than can"
                    " be mapped early", boot.handover.address, message,
                )  # fmt: skip
    else:
        assert candidate is not None
        boot.root = candidate.address
    try:
        return _compatible(boot, _root_tree(boot))
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "the root FDT is not in the image", path="/", address=lack.address
        )
        return False
    except _Unmapped as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"reading the root FDT leads to {fault.address:#x}, behind what is mapped of it",
            path="/", address=fault.address, dmesg="PANIC: early exception",
        )  # fmt: skip
        return False
    except PageFault as fault:
        return _refuse(
            boot, "the root FDT cannot be mapped", fault.address, "failed to memremap FDT"
        )
    except fdt.FdtError as error:
        return _refuse(boot, f"the root FDT is invalid: {error}", boot.root, "is invalid")


def _early_pages(address: int, size: int) -> int:
    """How many pages early_memremap counts, in 32 bits, for a range of bytes."""
    return (address % 4096 + size + 4095 >> 12) & _M32


def _candidate(boot: Booting) -> Candidate | None:
    """The root that the hand-over record leads to, else the best one found by other means."""
    records = [h for h in boot.location.handovers if h.how in (How.SETUP_DATA, How.CHOSEN)]
    best = boot.location.candidates[0] if boot.location.candidates else None
    if best is not None and (best.how is How.USER or best.handover is not None or not records):
        boot.handover = best.handover
        if best.handover is None:
            boot.notes.append(
                "no hand-over record leads to the root: scratch is taken to be what it must be"
            )
        return best
    boot.handover = records[0] if records else None
    return None


def _root_tree(boot: Booting) -> libfdt.Node:
    """The root as libfdt reads it, out of the pages that early boot maps of it.

    Raises FdtError, Absent, PageFault.
    """
    view, at = boot.view, boot.root
    size = boot.handover.fdt_size if boot.handover is not None else view.page_size
    end = -(-(at + size) // view.page_size) * view.page_size

    def read(address: int, size: int) -> bytes:
        if address + size > end:
            raise _Unmapped(address)
        return view.read(address, size)

    blob = libfdt.Blob(read, at)
    blob.check_header()
    if blob.total > view.page_size:
        boot.findings.warning(
            "KHO-ROOT-002", f"root FDT has {blob.total} bytes, more than a page",
            path="/", address=at,
        )  # fmt: skip
    # libfdt wants the root node at the start of the structure, and takes no NOP before it.
    return libfdt.Node(blob)


class _Unmapped(PageFault):
    """Early boot reads behind what it mapped."""


def _compatible(boot: Booting, root: libfdt.Node) -> bool:
    boot.tree = root
    wanted = boot.generation.strings[0].encode()
    if wanted not in root.compatible:
        own = root.get(b"compatible") or b""
        said = own.split(b"\0")[0].decode("utf-8", "backslashreplace")
        return _refuse(
            boot, f"the root FDT says {said!r}, this kernel knows {wanted.decode()!r} only",
            boot.root, f"is incompatible with '{wanted.decode()}'", own,
        )  # fmt: skip
    if boot.kernel.map_required:
        value = root.get(boot.generation.map_property.encode())
        if value is None or len(value) != 8 or not any(value):
            what = "missing" if value is None else "zero" if len(value) == 8 else "malformed"
            return _refuse(
                boot, f"{boot.generation.map_property} is {what}", boot.root,
                "disabling KHO revival", value or b"",
            )  # fmt: skip
    # Later readers have all of memory mapped.
    whole = libfdt.Blob(boot.view.read, boot.root)
    boot.tree, boot.root_ends = libfdt.Node(whole), whole.ends()
    return True


# -- scratch ------------------------------------------------------------------------------------


def _scratch(boot: Booting, kernel_size: int, initrd_size: int) -> bool:
    handover = boot.handover
    if handover is None:
        return True
    # The number of areas has 32 bits, too.
    count = min(handover.scratch_size // kho_scratch.size & _M32, 4096)
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
    return _areas(boot) and _adequate(boot, kernel_size, initrd_size)


def _areas(boot: Booting) -> bool:
    assert boot.handover is not None
    view_page = boot.view.page_size
    for i, (start, size) in enumerate(boot.scratch):
        if not size:
            continue
        at = boot.handover.scratch_address + i * kho_scratch.size
        if _behind_all(boot, start):
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
        if not inside and size // view_page * _PAGE_STRUCT > _real(boot):
            boot.reasons.add(
                Outcome.BOOT_FAILS,
                f"scratch area {start:#x}+{size:#x} is taken for memory: there is no room for the"
                " page structs of so much",
                path="/scratch", address=at, dmesg="Failed to allocate",
            )  # fmt: skip
            return False
        if not inside:
            boot.reasons.add(
                Outcome.CANNOT_TELL,
                f"scratch area {start:#x}+{size:#x} is not wholly known to be memory",
                path="/scratch", address=at,
            )  # fmt: skip
    return True


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


# -- the map --------------------------------------------------------------------------------------


def _map(boot: Booting) -> bool:
    assert boot.tree is not None
    value = boot.tree.get(boot.generation.map_property.encode())
    root = fdt.native_u64(value) if value is not None and len(value) == 8 else 0
    if not root:
        boot.preserved = empty_map(boot.view.page_size)
        if boot.tree.children:
            boot.reasons.add(
                Outcome.CORRUPTION,
                "the root leads to no map: nothing is protected, whatever the blobs point to",
                path="/preserved", address=boot.root,
                dmesg="failed to get preserved memory bitmaps",
            )  # fmt: skip
        return True
    found = read_map(boot.view, boot.generation, root)
    boot.preserved = found.preserved
    if not _judged(boot, found, root):
        return False
    if found.preserved.block_count > _MAX_BLOCKS:
        boot.reasons.add(
            Outcome.CANNOT_TELL, f"the map has {found.preserved.block_count} blocks",
            path="/preserved", address=root,
        )  # fmt: skip
        return False
    if not found.preserved.block_count and not found.absent and boot.tree.children:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            "the map is empty although blobs were handed over: all their memory is reused",
            path="/preserved", address=root,
        )  # fmt: skip
        return False
    try:
        boot.marks = marks_of(found.preserved)
    except TooManyBlocks:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "the blocks of the map are spread too wide to follow",
            path="/preserved", address=root,
        )  # fmt: skip
        return False
    _in_scratch(boot)
    _unread(boot, root)
    return True


def _judged(boot: Booting, found: Inherited, root: int) -> bool:
    """What the walk itself leads to: False if the kernel dies of it, or nothing can be told."""
    fatal = list(found.fatal)
    blocks = found.preserved
    beyond = np.flatnonzero(~boot.view.inside(blocks.starts, blocks.run_sizes))
    unknown = []
    if len(beyond):
        fatal += _small_bitmaps(boot, blocks)
    for i in beyond[:64].tolist():
        start, end = int(blocks.starts[i]), int(blocks.ends[i])
        message = f"preserved memory {start:#x}-{end:#x} (order {int(blocks.orders[i])}) is outside"
        head = end - (boot.view.page_size << int(blocks.orders[i]))
        if boot.view.near_ram(start) and boot.view.near_ram(head) and not head >> 52:
            unknown.append((message, start))
        else:
            fatal.append((message, start, b""))
    if fatal and not boot.handed_off and not _walks_somehow(boot):
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            "the map makes no sense to any kernel, and nothing proves that the image is of the"
            " moment of the jump: a kernel that has booted reuses the map's memory",
            path="/preserved", address=root,
        )  # fmt: skip
        return False
    for message, address, data in fatal[:6]:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"{message}: the kernel dies while it reads the map",
            path="/preserved", address=address, data=data, dmesg="kho_memory_init",
        )  # fmt: skip
    if fatal:
        if len(fatal) > 6:
            boot.notes.append(f"{len(fatal) - 6} more such places in the map")
        return False
    for address in sorted(set(found.absent))[:16]:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "a node of the map is not in the image", path="/preserved",
            address=address,
        )  # fmt: skip
    for message, address in unknown[:16]:
        boot.reasons.add(
            Outcome.CANNOT_TELL, f"{message} memory, but inside a section of it",
            path="/preserved", address=address,
        )  # fmt: skip
    if boot.view.ram is None:
        _without_ram(boot, blocks)
    return not found.absent


def _without_ram(boot: Booting, blocks: PreservedMap) -> None:
    """Nothing tells where RAM is: what lies behind all that the image holds may be outside."""
    unit = SECTION[boot.view.page_size]
    end = max((r.end for r in boot.view.memory.regions), default=0)
    end = -(-end // unit) * unit
    beyond = np.flatnonzero(blocks.ends > end)
    for i in beyond[:4].tolist():
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            f"preserved memory {int(blocks.starts[i]):#x}-{int(blocks.ends[i]):#x} lies behind all"
            " that the image holds, and nothing tells where RAM ends",
            path="/preserved", address=int(blocks.starts[i]),
        )  # fmt: skip
    boot.notes.append(
        "the image does not tell where RAM is: that preserved memory lies in it is assumed"
    )


def _small_bitmaps(boot: Booting, blocks: PreservedMap) -> list[tuple[str, int, bytes]]:
    """Why a map of bitmaps leads out of memory: its writer's bitmaps are no pages."""
    if boot.generation.map_kind is not MapKind.BITMAP_PAGE:
        return []
    bitmaps = blocks.nodes[blocks.nodes % np.uint64(boot.view.page_size) != 0]
    for at in bitmaps[:64].tolist():
        behind = boot.view.read(at + 512, 64) if boot.view.present(at + 512, 64) else b""
        if any(behind) or at == int(bitmaps[-1]):
            return [
                (
                    f"bitmap {at:#x} is no page: its 512 bytes are read as"
                    f" {boot.view.page_size}, with what lies behind them",
                    at + 512,
                    behind,
                )
            ]
    return []


def _walks_somehow(boot: Booting) -> bool:
    """Whether the map makes sense to the kernel that wrote it."""
    from inspector.detect import detect_kho

    candidate = next((c for c in boot.location.candidates if c.address == boot.root), None)
    if candidate is None or candidate.tree is None:
        return True
    trial = detect_kho(boot.view.memory, candidate.tree.root, candidate).trial
    return trial is not None and trial.candidate.fits


def _in_scratch(boot: Booting) -> None:
    assert boot.preserved is not None
    lows, highs = boot.preserved.intervals()
    nodes = boot.preserved.nodes
    for start, size in boot.scratch:
        if not size:
            continue
        for at in nodes[(nodes >= start) & (nodes < start + size)][:1].tolist():
            boot.reasons.add(
                # With zeros more often than with what is no pointer, which would be fatal.
                Outcome.CORRUPTION,
                f"map node {at:#x} lies in scratch {start:#x}+{size:#x}: early boot overwrites it"
                " before it is read, and what it leads to is not protected",
                path="/preserved", address=at,
            )  # fmt: skip
        for i in np.flatnonzero((lows < start + size) & (highs > start))[:4].tolist():
            at = max(int(lows[i]), start)
            boot.reasons.add(
                Outcome.CORRUPTION,
                f"preserved memory {int(lows[i]):#x}-{int(highs[i]):#x} lies in scratch"
                f" {start:#x}+{size:#x}: early boot overwrites it",
                path="/preserved", address=at,
            )  # fmt: skip


def _unread(boot: Booting, root: int) -> None:
    """What the writer of the map preserved, but this kernel does not see."""
    assert boot.preserved is not None
    assert boot.tree is not None
    written = _written_map(boot, root)
    if written is None:
        return
    lows, highs = written.intervals()
    lost = np.flatnonzero(~boot.preserved.covers(lows, highs - lows))
    if not len(lost):
        return
    i = int(lost[0])
    boot.reasons.add(
        Outcome.CORRUPTION,
        "the map was written with bitmaps of a page, this kernel reads 512 bytes of each:"
        f" {written.page_count - boot.preserved.page_count} preserved pages are unprotected, the"
        f" first in {int(lows[i]):#x}-{int(highs[i]):#x}",
        path="/preserved", address=int(lows[i]),
    )  # fmt: skip


def _written_map(boot: Booting, root: int) -> PreservedMap | None:
    """The map as its writer meant it, if that is not what this kernel reads."""
    if boot.generation.map_kind is not MapKind.BITMAP_512:
        return None
    assert boot.preserved is not None
    assert boot.tree is not None
    page = boot.view.page_size
    bitmaps = boot.preserved.nodes[boot.preserved.node_sizes == 512]
    if (bitmaps % np.uint64(page)).any():
        return None  # objects of a slab
    from abi import registry

    large = registry.get("kho", "kho-v1-bitmap-page")
    assert isinstance(large, KhoGeneration)
    survey = Survey(boot.view.memory, page, Findings(per_code=4))
    written = walk_map(survey, large, root)
    if not written.complete:
        return None
    if len(bitmaps) == 1 and boot.tree.child(b"LUO") is None:
        return None if written.page_count == boot.preserved.page_count else written
    return written
