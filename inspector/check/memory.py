"""Pointers and pages, whatever the layer."""

from __future__ import annotations

import numpy as np

from inspector import passthrough
from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.check.tables import hardware
from inspector.image import Moment
from inspector.memory.base import U64Array

#: What is read there is not in the map: its own nodes, and what leads to the root.
_OUTSIDE_MAP = frozenset({"", "/", "/preserved", "/scratch"})


def _wanted(context: Context) -> tuple[list[str], U64Array]:
    """What the image lacks, each once: paths of the objects that want it, and the pages."""
    page = context.image.page_size
    wanted = dict.fromkeys((pa - pa % page, path) for pa, path in context.image.survey.holes)
    return [path for _, path in wanted], np.array([pa for pa, _ in wanted], np.uint64)


def _unpreserved(context: Context) -> None:
    owned, page = context.ownership, context.image.page_size
    preserved = context.whole_map()
    if preserved is None:
        return
    extents = owned.unpreserved
    paths, pages = _wanted(context)
    lost = np.flatnonzero(~preserved.covers(pages, page))
    # What could not be read was not claimed.
    rows = np.flatnonzero(np.isin(extents.starts, pages[lost]))
    pairs = zip(extents.starts[rows].tolist(), extents.claim[rows].tolist(), strict=True)
    told = {(start, owned.claims[number].owner) for start, number in pairs}
    shown = slice(0, context.room)
    for start, end, number in zip(
        extents.starts[shown].tolist(),
        extents.ends[shown].tolist(),
        extents.claim[shown].tolist(),
        strict=True,
    ):
        claim = owned.claims[number]
        context.report(
            f"{claim.kind} at {start:#x}, {end - start:#x} bytes, is not in the preserved map",
            path=claim.owner,
            address=start,
        )
    context.count(max(len(extents) - shown.stop, 0))
    for i in lost.tolist():
        pa, path = int(pages[i]), paths[i]
        if path not in _OUTSIDE_MAP and (pa, path) not in told:
            context.report(
                f"page {pa:#x}, which it points to, is not in the preserved map",
                path=path,
                address=pa,
            )


def _outside_ram(context: Context) -> None:
    ram = context.image.ram
    if ram is None:
        if context.image.survey.holes:
            context.undecidable("the image holds no RAM map (e820 or device tree)")
        return
    paths, pages = _wanted(context)
    outside = np.ones(len(pages), np.bool_)
    for region in ram:
        outside &= (pages < np.uint64(region.start)) | (pages >= np.uint64(region.end))
    for i in np.flatnonzero(outside).tolist():
        pa = int(pages[i])
        context.report(f"page {pa:#x} is not in RAM", path=paths[i], address=pa)


def _conflicts(context: Context) -> None:
    owned = context.ownership
    for one, other, at in owned.conflicts:
        first, second = owned.claims[one], owned.claims[other]
        context.report(
            f"{at:#x} is used as {second.kind} of {second.owner} and as {first.kind} of"
            f" {first.owner}",
            path=second.owner,
            address=at,
        )


def _leaks(context: Context) -> None:
    owned = context.ownership
    if not owned.known:
        context.undecidable("the preserved-memory map is lost")
        return
    if not owned.leaked:
        return
    image = context.image
    if image.moment is Moment.OUTGOING and image.luo is not None and not image.luo.sessions:
        context.undecidable(
            f"{owned.leaked:#x} preserved bytes are not claimed, but sessions are written down"
            " only when the kernel hands over"
        )
        return
    unknown = [f.path for f in context.image.findings if f.code in ("KHO-LUO-014", "KHO-ROOT-008")]
    if context.image.luo is None and any(b.name == b"LUO" for b in context.image.blobs):
        unknown.append("/LUO")
    iommu = passthrough.iommu_state(context.image)
    if iommu is not None and not iommu.generation.unit_views:
        unknown.append(f"{iommu.path}, which does not say where the units' tables lie,")
    hardware(context)
    missing = (
        bool(context.image.survey.wanting or context.image.survey.left_out)
        or any(not table.reach.complete for table in context.walked.values())
        or bool(context.memo["hardware undecided"])
    )
    if missing or unknown:
        why = "pages are missing" if missing else f"{unknown[0]} is not decoded"
        context.undecidable(f"{owned.leaked:#x} preserved bytes are not claimed, but {why}")
        return
    room = context.room
    starts, ends = owned.leak_starts[:room], owned.leak_ends[:room]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        context.report(
            f"{start:#x}, {end - start:#x} bytes, is preserved but nobody's",
            path="/preserved",
            address=start,
        )
    context.count(len(owned.leak_starts) - len(starts))


def _beyond_ram(context: Context) -> None:
    image = context.image
    if image.preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    if image.ram is None:
        context.undecidable("the image holds no RAM map (e820 or device tree)")
        return
    starts, ends = image.preserved.intervals()
    reach = starts
    for region in image.ram:
        inside = (reach >= np.uint64(region.start)) & (reach < np.uint64(region.end))
        reach = np.where(inside, np.minimum(ends, np.uint64(region.end)), reach)
    wrong = np.flatnonzero(reach < ends)
    shown = wrong[: context.room]
    for i in shown.tolist():
        context.report(
            f"preserved range {int(starts[i]):#x}-{int(ends[i]):#x} leaves RAM at"
            f" {int(reach[i]):#x}",
            path="/preserved",
            address=int(reach[i]),
        )
    context.count(len(wrong) - len(shown))


RULES = (
    Rule(
        "KHO-MEM-001", INFO, "A page that an object lies in was left out of the dump.",
        "Nothing: the dump lacks it, not the machine.",
        "take the dump with fewer pages filtered",
    ),
    Rule(
        "KHO-MEM-002", WARNING, "A pointer leads to a page that the image does not hold.",
        "If the page is outside RAM, the consumer dies on the first access to it.",
    ),
    Rule(
        "KHO-MEM-003", ERROR, "A pointer has more bits than any physical address.",
        "The consumer faults on it.",
    ),
    Rule(
        "KHO-MEM-004", ERROR, "A pointer is not aligned as what it points to must be.",
        "The consumer reads the wrong bytes, or faults.",
    ),
    Rule(
        "KHO-MEM-010", ERROR, "Memory in use by an object is not in the preserved map.",
        "The next kernel hands the page out: silent corruption, or -EIO where the restore"
        " token of the page is checked (6.18 on).",
        "kho preserved --ranges IMAGE", _unpreserved,
    ),
    Rule(
        "KHO-MEM-011", ERROR, "A page is used by two owners.",
        "The first to be restored gets it, the second fails or shares it.",
        test=_conflicts,
    ),
    Rule(
        "KHO-MEM-012", WARNING, "A block is preserved but belongs to no object.",
        "It stays reserved until the next cold boot: memory is lost.",
        "kho preserved --ranges IMAGE", _leaks,
    ),
    Rule(
        "KHO-MEM-013", ERROR, "A preserved block lies outside the machine's RAM.",
        "7.3 dies without output while it reserves the block.",
        test=_beyond_ram,
    ),
    Rule(
        "KHO-MEM-014", ERROR, "A pointer leads outside the machine's RAM.",
        "The consumer dies on the first access to it.",
        test=_outside_ram,
    ),
)  # fmt: skip
