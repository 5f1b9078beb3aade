"""Maps of bitmaps of another size than the kernel's: 512 bytes up to 6.17, a page from 6.18 on.

Both call themselves kho-v1, so that each kernel takes the other's map over. One that reads less
than was written leaves pages unprotected. One that reads more takes what lies behind the bitmap
in its slab for bits: where these stand for memory that is not there, it dies; where they stand
for memory, it reserves pages that nobody preserved, which costs nothing but these pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abi import registry
from abi.kho import KhoGeneration, MapKind
from abi.luo import LUO_KHO_ENTRY_NAME
from inspector.findings import Findings, Outcome
from inspector.kernel.incoming.boot import Booting
from inspector.locate import Candidate
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map

if TYPE_CHECKING:
    from inspector.detect import KhoTrial

#: So many chunks and bitmaps do not all begin pages by chance.
_CHANCE = 16
_OTHER = {
    MapKind.BITMAP_512: "kho-v1-bitmap-page",
    MapKind.BITMAP_PAGE: "kho-v1-bitmap512",
}


def written_map(boot: Booting, root: int) -> PreservedMap | None:
    """The map as its writer meant it, if that is not what this kernel reads."""
    assert boot.preserved is not None
    if boot.generation.map_kind not in _OTHER or not _other_size(boot, boot.preserved):
        return None
    other = registry.get("kho", _OTHER[boot.generation.map_kind])
    assert isinstance(other, KhoGeneration)
    survey = Survey(boot.view.memory, boot.view.page_size, Findings(per_code=4))
    written = walk_map(survey, other, root)
    return written if written.complete else None


def _other_size(boot: Booting, read: PreservedMap) -> bool:
    """Whether the bitmaps were written by a kernel with the other size."""
    assert boot.tree is not None
    mine = boot.generation.map_kind
    if (read.nodes % np.uint64(boot.view.page_size)).any():
        return mine is MapKind.BITMAP_PAGE  # objects of a slab
    if len(read.nodes) > _CHANCE or boot.tree.child(LUO_KHO_ENTRY_NAME.encode()) is not None:
        return mine is MapKind.BITMAP_512  # nobody had a LUO before 6.19
    trial = detected(boot)
    return trial is not None and trial.generation.map_kind is not mine


def candidate_of(boot: Booting) -> Candidate | None:
    """What was found at the root's address while the image was searched."""
    return next((c for c in boot.location.candidates if c.address == boot.root), None)


def detected(boot: Booting) -> KhoTrial | None:
    """The walk of the map in the form that its bytes fit best."""
    from inspector.detect import detect_kho

    candidate = candidate_of(boot)
    if candidate is None or candidate.tree is None:
        return None
    return detect_kho(boot.view.memory, candidate.tree.root, candidate).trial


def unread(boot: Booting, written: PreservedMap) -> None:
    """What the writer of the map preserved, but this kernel does not see."""
    assert boot.preserved is not None
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


def behind_bitmaps(boot: Booting, read: PreservedMap) -> list[tuple[str, int, bytes]]:
    """Why a map of bitmaps leads out of memory: its writer's bitmaps are no pages.

    (message, address, bytes) of the first bitmap with something behind it.
    """
    if boot.generation.map_kind is not MapKind.BITMAP_PAGE:
        return []
    bitmaps = read.nodes[read.nodes % np.uint64(boot.view.page_size) != 0]
    for at in bitmaps[:64].tolist():
        behind = boot.view.read(at + 512, 64) if boot.view.present(at + 512, 64) else b""
        if any(behind) or at == int(bitmaps[-1]):
            message = (
                f"bitmap {at:#x} is no page: its 512 bytes are read as {boot.view.page_size},"
                " with what lies behind them"
            )
            return [(message, at + 512, behind)]
    return []


def junk(boot: Booting, written: PreservedMap) -> None:
    """What becomes of pages that nobody preserved, and this kernel reserves."""
    assert boot.preserved is not None
    extra = _pages(boot.preserved) - _pages(written)
    if extra <= 0:
        return
    boot.notes.append(
        f"bitmaps of 512 bytes are read as {boot.view.page_size} with what lies behind them:"
        f" {extra} pages that nobody preserved are reserved and never freed"
    )
    for start, size in boot.scratch:
        hit = _touched(boot.preserved, start, start + size)
        if hit is not None and boot.x86 and _touched(written, start, start + size) is None:
            boot.reasons.add(
                Outcome.TAKEN_OVER_WITH_WARNINGS,
                f"pages that nobody preserved are reserved in scratch {start:#x}+{size:#x}: where"
                " the kernel lies in them, each change of its text warns",
                path="/preserved", address=hit, dmesg="__text_poke",
            )  # fmt: skip


def _pages(preserved: PreservedMap) -> int:
    lows, highs = preserved.intervals()
    return int((highs - lows).sum()) // preserved.page_size


def _touched(preserved: PreservedMap, start: int, end: int) -> int | None:
    """The first preserved address in a range."""
    lows, highs = preserved.intervals()
    hits = np.flatnonzero((lows < end) & (highs > start))
    return max(int(lows[hits[0]]), start) if len(hits) else None
