"""Early boot's walk of the preserved-memory map, and what becomes of the kernel by it."""

from __future__ import annotations

import numpy as np

from abi import fdt
from inspector.findings import Outcome
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.misread import (
    behind_bitmaps,
    candidate_of,
    detected,
    junk,
    unread,
    written_map,
)
from inspector.kernel.incoming.restore import (
    Inherited,
    TooManyBlocks,
    empty_map,
    marks_of,
    read_map,
)
from inspector.kernel.incoming.view import SECTION
from inspector.walk.preserved import PreservedMap

#: No machine preserves more blocks than this.
_MAX_BLOCKS = 1 << 28
#: Fatal blocks that are told of.
_MOST = 64


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
    written = written_map(boot, root)
    if not _judged(boot, found, root, written):
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
    _in_scratch(boot, written or found.preserved)
    if written is not None:
        unread(boot, written)
        junk(boot, written)
    return True


def _judged(boot: Booting, found: Inherited, root: int, written: PreservedMap | None) -> bool:
    """What the walk itself leads to: False if the kernel dies of it, or nothing can be told."""
    blocks = found.preserved
    outside, unknown = _outside(boot, blocks)
    fatal = [*found.fatal, *(behind_bitmaps(boot, blocks) if outside else ()), *outside]
    if written is not None:
        # Pages that nobody meant have their struct pages all the same: no harm is done.
        at = np.array([start for _, start in unknown], np.uint64)
        unknown = [row for row, meant in zip(unknown, written.covers(at), strict=True) if meant]
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


def _outside(
    boot: Booting, blocks: PreservedMap
) -> tuple[list[tuple[str, int, bytes]], list[tuple[str, int]]]:
    """Blocks out of memory: those without struct pages, and those that may have some."""
    fatal: list[tuple[str, int, bytes]] = []
    unknown: list[tuple[str, int]] = []
    for i in np.flatnonzero(~boot.view.inside(blocks.starts, blocks.run_sizes)).tolist():
        start, end = int(blocks.starts[i]), int(blocks.ends[i])
        message = f"preserved memory {start:#x}-{end:#x} (order {int(blocks.orders[i])}) is outside"
        head = end - (boot.view.page_size << int(blocks.orders[i]))
        if boot.view.near_ram(start) and boot.view.near_ram(head) and not head >> 52:
            unknown.append((message, start))
        else:
            fatal.append((message, start, b""))
        if len(fatal) == _MOST:
            break
    return fatal, unknown


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


def _walks_somehow(boot: Booting) -> bool:
    """Whether the map makes sense to the kernel that wrote it."""
    candidate = candidate_of(boot)
    if candidate is None or candidate.tree is None:
        return True
    trial = detected(boot)
    return trial is not None and not trial.candidate.violations


def _in_scratch(boot: Booting, meant: PreservedMap) -> None:
    """Nodes, and blocks that the map's writer meant, in memory that early boot uses."""
    assert boot.preserved is not None
    lows, highs = meant.intervals()
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
