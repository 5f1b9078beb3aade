"""Memory files, and what all files of folios have in common."""

from __future__ import annotations

import numpy as np

from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule

_FOLIO_FLAGS = 3


def _orders(context: Context) -> None:
    """Each folio is one preserved block."""
    image = context.image
    if image.preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    for path, memfd in image.folio_files():
        pfn = memfd.folios.pfn
        if not len(pfn) or not len(image.preserved.starts):
            continue
        starts = memfd.addresses
        inside = image.preserved.covers(starts) & ~image.preserved.heads_at(starts)
        bad = np.flatnonzero((pfn != 0) & inside)
        for i in bad[:8]:
            context.report(
                f"folio {int(starts[i]):#x} is not the start of a preserved block",
                path=path, address=int(starts[i]),
            )  # fmt: skip


def _flags(context: Context) -> None:
    for path, memfd in context.image.memfds():
        used = memfd.folios.pfn != 0
        odd = np.flatnonzero(used & (memfd.folios.flags != _FOLIO_FLAGS))
        if len(odd):
            context.report(
                f"{len(odd)} folios have flags {int(memfd.folios.flags[odd[0]]):#x}, not 0x3"
                " (dirty, up to date)",
                path=path, address=memfd.address,
            )  # fmt: skip


RULES = (
    Rule(
        "KHO-MFD-001", ERROR, "Folios of a file overlap.",
        "The second cannot be put into the page cache: an error for that file.",
    ),
    Rule(
        "KHO-MFD-002", WARNING, "A folio begins beyond the end of the file.",
        "It is restored and stays unreachable.",
    ),
    Rule("KHO-MFD-003", ERROR, "A file has unknown seals.", "-EOPNOTSUPP for that file (7.1 on)."),
    Rule(
        "KHO-MFD-004", ERROR, "A file's flags are not zero.",
        "It has to be 0; 7.1 to 7.3 do not look at it.",
    ),
    Rule(
        "KHO-MFD-005", ERROR, "A file counts more folios than its array holds.",
        "The consumer reads beyond the array.",
    ),
    Rule("KHO-MFD-006", INFO, "A file has folio entries without a frame.", "They are skipped."),
    Rule(
        "KHO-MFD-007", ERROR, "A folio is not the start of a preserved block.",
        "Its restore fails: -EIO for that file (6.18 on).",
        "kho preserved IMAGE", _orders,
    ),
    Rule(
        "KHO-MFD-008", INFO, "A folio is not marked dirty and up to date.",
        "Producers up to 7.3 always mark it; clean folios may be dropped.", test=_flags,
    ),
)  # fmt: skip
