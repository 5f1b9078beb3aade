"""Early boot's walk of the preserved-memory map, and what becomes of the kernel by it."""

from __future__ import annotations

import numpy as np

from abi import fdt
from abi.kho import KhoGeneration, MapKind
from inspector.findings import Findings, Outcome
from inspector.kernel.boot import Booting
from inspector.kernel.restore import Inherited, TooManyBlocks, empty_map, marks_of, read_map
from inspector.kernel.view import SECTION
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map

#: No machine preserves more blocks than this.
_MAX_BLOCKS = 1 << 28


def inherit_map(boot: Booting) -> bool:
    """Read the map and mark its blocks. False if the kernel dies, or nothing can be told."""
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
