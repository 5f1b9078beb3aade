"""The root FDT, its blobs and the scratch areas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from abi.boot import (
    EARLY_MAP_PAGES,
    KHO_SCRATCH_MOST,
    KHO_SCRATCH_READ,
    early_pages,
    kho_scratch,
)
from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.locate import How
from inspector.memory.base import PageState


def _handover_size(context: Context) -> None:
    image = context.image
    record = image.root.candidate.handover
    if record is None:
        context.undecidable("the image holds no hand-over record")
        return
    if record.fdt_size == 0 or record.scratch_size == 0:
        what = "fdt_size" if record.fdt_size == 0 else "scratch_size"
        context.report(f"{what} is 0", path="/", address=record.address)


def _handover_page(context: Context) -> None:
    image = context.image
    record = image.root.candidate.handover
    if record is None:
        context.undecidable("the image holds no hand-over record")
    elif record.fdt_size not in (0, image.page_size):
        context.report(
            f"the hand-over gives the root FDT {record.fdt_size} bytes, not a page",
            path="/", address=record.address,
        )  # fmt: skip


def _handover_mapped(context: Context) -> None:
    record = context.image.root.candidate.handover
    if record is None:
        context.undecidable("the image holds no hand-over record")
    elif record.how is How.SETUP_DATA:
        for what, address, size in (
            ("root FDT", record.fdt_address, record.fdt_size),
            ("scratch array", record.scratch_address, record.scratch_size),
        ):
            if early_pages(address, size) > EARLY_MAP_PAGES:
                context.report(
                    f"the size of the {what} is handed over as {size:#x}", path="/",
                    address=record.address,
                )  # fmt: skip


def _scratch_whole(context: Context) -> None:
    record = context.image.root.candidate.handover
    if record is None:
        context.undecidable("the image holds no hand-over record")
    elif record.scratch_size % 16:
        context.report(
            f"scratch array of {record.scratch_size} bytes is no whole number of entries",
            path="/scratch", address=record.scratch_address,
        )  # fmt: skip


def _scratch_count(context: Context) -> None:
    record = context.image.root.candidate.handover
    if record is None:
        context.undecidable("the image holds no hand-over record")
        return
    count = record.scratch_size // kho_scratch.size
    if count > KHO_SCRATCH_MOST:
        rest = f", {KHO_SCRATCH_READ:,} were looked at" if count > KHO_SCRATCH_READ else ""
        context.report(
            f"the scratch array has {count:,} areas{rest}; a machine has {KHO_SCRATCH_MOST:,}"
            " at most",
            path="/scratch", address=record.scratch_address,
        )  # fmt: skip


def _scratch_areas(context: Context) -> bool:
    if context.image.scratch is None:
        context.undecidable(f"scratch areas are unknown: {context.image.scratch_note}")
        return False
    return True


def _scratch_aligned(context: Context) -> None:
    if not _scratch_areas(context):
        return
    page = context.image.page_size
    for i, area in enumerate(context.image.scratch or ()):
        if area.size and (area.address % page or area.size % page):
            context.report(
                f"area {area.address:#x}, {area.size:#x} bytes, is not page aligned",
                path=f"/scratch/{i}", address=area.address,
            )  # fmt: skip


def _scratch_disjoint(context: Context) -> None:
    if not _scratch_areas(context):
        return
    areas = sorted((a.address, a.size) for a in context.image.scratch or () if a.size)
    for (start, size), (following, _) in pairwise(areas):
        if start + size > following:
            context.report(
                f"areas at {start:#x} and {following:#x} overlap", path="/scratch",
                address=following,
            )  # fmt: skip


def _scratch_free(context: Context) -> None:
    image = context.image
    if not _scratch_areas(context):
        return
    if image.preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    starts, ends = image.preserved.intervals()
    for i, area in enumerate(image.scratch or ()):
        if not area.size:
            continue
        # A hostile area may reach beyond 2^64.
        lo = np.uint64(area.address)
        hi = np.uint64(min(area.address + area.size, (1 << 64) - 1))
        for k in np.flatnonzero((starts < hi) & (ends > lo))[:16]:
            context.report(
                f"preserved range {int(starts[k]):#x}-{int(ends[k]):#x} lies in a scratch area",
                path=f"/scratch/{i}",
                address=max(int(starts[k]), area.address),
            )


def _scratch_in_ram(context: Context) -> None:
    if not _scratch_areas(context):
        return
    ram = context.image.ram
    if ram is None:
        context.undecidable("the image holds no RAM map (e820 or device tree)")
        return
    for i, area in enumerate(context.image.scratch or ()):
        at, end = area.address, area.address + area.size
        for region in ram:
            if region.start <= at < region.end:
                at = min(end, region.end)
        if at < end:
            context.report(
                f"area {area.address:#x}-{end:#x} leaves RAM at {at:#x}",
                path=f"/scratch/{i}", address=area.address,
            )  # fmt: skip


def _nowhere(context: Context) -> None:
    """A hand-over record of boot_params or a device tree must lead to a root."""
    location = context.image.location
    known = {candidate.address for candidate in location.candidates}
    for record in location.handovers:
        if record.fdt_address in known or not record.fdt_size:
            continue
        if context.image.memory.state(record.fdt_address) is PageState.EXCLUDED:
            context.undecidable("the page that the hand-over record leads to was left out")
        elif record.fdt_address in location.unread:
            context.undecidable("the tree that the hand-over record leads to was not looked at")
        else:
            context.report(
                f"{record.how} gives {record.fdt_address:#x} as root, where no root FDT is",
                path="/", address=record.address,
            )  # fmt: skip


def _unsearched(context: Context) -> None:
    for what in context.image.location.unsearched:
        context.report(f"not searched for roots and records: {what}", path="/")


def _root_preserved(context: Context) -> None:
    image = context.image
    preserved = context.whole_map()
    if preserved is None:
        return
    page = np.array([image.root.address], np.uint64)
    if not preserved.covers(page, image.page_size)[0]:
        context.report("the root FDT is not preserved", path="/", address=image.root.address)


RULES = (
    Rule(
        "KHO-ROOT-001", ERROR, "The root names a format that no known kernel writes.",
        "A kernel that does not know it warns, disables KHO and boots: all state is lost.",
    ),
    Rule(
        "KHO-ROOT-002", ERROR, "The root FDT is larger than a page.",
        "The consumer maps one page only.",
    ),
    Rule(
        "KHO-ROOT-003", ERROR, "The root has no usable preserved-memory-map property.",
        "From 6.19 on KHO is disabled; before, nothing counts as preserved.",
    ),
    Rule(
        "KHO-ROOT-004", ERROR, "A blob's address property is missing or has the wrong length.",
        "Looking the blob up gives -EINVAL.",
    ),
    Rule(
        "KHO-ROOT-005", ERROR, "A blob's blob-size is missing or has the wrong length.",
        "From 7.1 on looking the blob up gives -EINVAL.",
    ),
    Rule(
        "KHO-ROOT-006", ERROR, "A blob's size is implausible.",
        "The kernel believes it; the client reads memory that is not the blob's.",
    ),
    Rule(
        "KHO-ROOT-007", ERROR, "A blob that must be a device tree does not parse.",
        "Its client finds nothing to restore.",
    ),
    Rule(
        "KHO-ROOT-008", INFO, "Nothing is known of a blob.",
        "Its client restores it, if there is one.",
    ),
    Rule(
        "KHO-ROOT-009", WARNING, "Two blobs have one name.",
        "Its client finds the first: what hangs off others is lost.",
    ),
    Rule(
        "KHO-ROOT-010", ERROR, "The hand-over record gives a size of 0.",
        "7.3 disables KHO and boots: all state is lost.", test=_handover_size,
    ),
    Rule(
        "KHO-ROOT-011", INFO, "The hand-over record gives the root FDT another size than a page.",
        "7.3 accepts 1024 bytes; nothing compares the size with the tree's own.",
        test=_handover_page,
    ),
    Rule(
        "KHO-ROOT-014", ERROR, "The hand-over record gives a size that cannot be mapped early.",
        "x86 maps 64 pages at most: KHO is disabled, the kernel boots, all state is lost (7.3.4).",
        test=_handover_mapped,
    ),
    Rule(
        "KHO-ROOT-012", WARNING, "The page of the root FDT is not preserved.",
        "7.3 takes the state over all the same, but the page may be reused while it is read.",
        test=_root_preserved,
    ),
    Rule(
        "KHO-ROOT-013", ERROR, "The hand-over record leads to no root FDT.",
        "KHO is disabled, and the kernel boots: all state is lost.", test=_nowhere,
    ),
    Rule(
        "KHO-ROOT-015", ERROR, "The structure of the root FDT breaks off.",
        "libfdt reads as far as it must: what lies before the damage is taken over, the rest lost.",
    ),
    Rule(
        "KHO-ROOT-016", WARNING, "The root FDT has an oddity that libfdt reads over.",
        "Nothing: of two properties of one name it takes the first, others it does not see.",
    ),
    Rule(
        "KHO-ROOT-017", INFO, "Not all of the image was searched for roots and what leads to them.",
        "Nothing: it is told where its root is.", "kho dump IMAGE --root ADDRESS",
        test=_unsearched,
    ),
    Rule(
        "KHO-GEN-001", INFO, "The bytes fit several generations of a layer equally well.",
        "Nothing: a kernel has one layout and reads that.", "kho dump IMAGE --abi LAYER=ID",
    ),
    Rule(
        "KHO-GEN-002", WARNING, "No known generation of a layer fits the bytes.",
        "A kernel has one layout, reads that, and does what the bytes then say.",
        "kho dump IMAGE --abi LAYER=ID",
    ),
    Rule(
        "KHO-SCR-001", WARNING, "The scratch array is no whole number of entries.",
        "The kernel ignores the remainder.", test=_scratch_whole,
    ),
    Rule(
        "KHO-SCR-002", WARNING, "A scratch area is not page aligned.",
        "Early boot rounds it; areas of 7.2 are aligned to the largest buddy block.",
        test=_scratch_aligned,
    ),
    Rule(
        "KHO-SCR-003", ERROR, "Two scratch areas overlap.",
        "Memory is counted twice in early boot.", test=_scratch_disjoint,
    ),
    Rule(
        "KHO-SCR-004", ERROR, "Preserved memory lies in a scratch area.",
        "The next kernel allocates there before it reads the map: silent corruption (7.3).",
        "kho preserved --ranges IMAGE", _scratch_free,
    ),
    Rule(
        "KHO-SCR-005", ERROR, "A scratch area lies outside the machine's RAM.",
        "Early boot allocates memory that is not there; x86 does not use what lies behind all RAM.",
        test=_scratch_in_ram,
    ),
    Rule(
        "KHO-SCR-006", WARNING, "The scratch array has more areas than a machine has nodes.",
        "It takes all of them for memory, whatever lies behind the array; 7.3.4 panics.",
        test=_scratch_count,
    ),
)  # fmt: skip
