"""The preserved-memory map and the lists of pages."""

from __future__ import annotations

import numpy as np

from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule


def _aligned(context: Context) -> None:
    preserved = context.image.preserved
    if preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    block = np.uint64(preserved.page_size) << preserved.orders.astype(np.uint64)
    for i in np.flatnonzero(preserved.starts % block != 0)[:64]:
        context.report(
            f"block {int(preserved.starts[i]):#x} of order {int(preserved.orders[i])} is not"
            " aligned to its size",
            path="/preserved", address=int(preserved.starts[i]),
        )  # fmt: skip


def _nodes_in_map(context: Context) -> None:
    preserved = context.image.preserved
    if preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    inside = preserved.covers(preserved.nodes, preserved.node_sizes)
    for pa in preserved.nodes[inside][:64].tolist():
        context.report(f"map node {pa:#x} is itself preserved", path="/preserved", address=pa)


def _vmalloc_blocks(context: Context) -> None:
    """Each entry of an area is one preserved block of the area's order, or a larger one."""
    preserved = context.image.preserved
    if preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    page = preserved.page_size
    for claim in context.image.survey.claims:
        if claim.kind != "vmalloc-data" or not len(claim.starts) or int(claim.sizes[0]) <= page:
            continue
        orders, found = preserved.orders_at(claim.starts)
        whole = np.uint64(page) << orders.astype(np.uint64) >= claim.sizes
        whole &= preserved.heads_at(claim.starts)
        # What is not preserved at all breaks another rule.
        bad = found & ~whole & preserved.covers(claim.starts, claim.sizes)
        for pa, size in zip(claim.starts[bad].tolist(), claim.sizes[bad].tolist(), strict=True):
            context.report(
                f"{pa:#x}, {size:#x} bytes, is not one preserved block", path=claim.owner,
                address=pa,
            )  # fmt: skip


RULES = (
    Rule(
        "KHO-MAP-001", ERROR, "A node of the map has no usable address.",
        "7.3 faults in the walk of the tree during early boot; 6.18 in kho_memory_init.",
    ),
    Rule(
        "KHO-MAP-002", ERROR, "A node of the map is reached twice.",
        "No kernel shares nodes: its blocks are reserved twice, or the walk does not end.",
    ),
    Rule(
        "KHO-MAP-003", ERROR, "A key of the map is wider than the page size allows.",
        "7.3 refuses it with -ERANGE; before, it meant another block.",
    ),
    Rule(
        "KHO-MAP-004", ERROR, "A preserved block lies beyond any memory.",
        "7.3 dies without output while it reserves the block.",
    ),
    Rule(
        "KHO-MAP-005", WARNING, "Two preserved blocks overlap.",
        "No kernel notices. Where two begin at one page, 7.1 on restores the smallest, 6.16 to 7.0"
        " the last in the list; the second restore of a page fails.",
        "kho preserved IMAGE",
    ),
    Rule(
        "KHO-MAP-006", ERROR, "A block of the map has an impossible order.",
        "The consumer reserves nonsense.",
    ),
    Rule(
        "KHO-MAP-007", ERROR, "A bitmap begins at an address that is no multiple of its span.",
        "It is a bitmap of another size: 512 bytes up to 6.17, a page from 6.18 on.",
    ),
    Rule(
        "KHO-MAP-008", ERROR, "A chunk counts more bitmaps than a page holds.",
        "The consumer reads beyond the page.",
    ),
    Rule(
        "KHO-MAP-009", ERROR, "A block is not aligned to its size.",
        "The consumer sets the restore token on the wrong pages.", test=_aligned,
    ),
    Rule(
        "KHO-MAP-010", INFO, "The map is lost: the next kernel has booted and reused its nodes.",
        "None: it has read the map by then.",
    ),
    Rule(
        "KHO-MAP-011", WARNING, "A node of the map is itself preserved.",
        "It is never freed: no kernel preserves nodes.", test=_nodes_in_map,
    ),
    Rule(
        "KHO-MAP-012", WARNING,
        "The map is lost, and nothing else tells that the next kernel has booted.",
        "None if it has; else it panics, or frees what was preserved.",
    ),
    Rule(
        "KHO-LST-001", ERROR, "A list of pages has a cycle.",
        "Block lists: -EINVAL and panic at boot (7.2 on); elsewhere the walk does not end.",
    ),
    Rule(
        "KHO-LST-002", ERROR, "A page is in two lists.",
        "The second restore of the page fails.",
    ),
    Rule("KHO-LST-003", ERROR, "There are more list nodes than any image has.", "As a cycle."),
    Rule(
        "KHO-LST-004", ERROR, "A list has more pages than its kind allows.",
        "Block lists of more than 10000 blocks give -EINVAL and a panic at boot.",
    ),
    Rule(
        "KHO-LST-005", ERROR, "A page counts more entries than it holds.",
        "-EINVAL; for LUO's lists a panic at boot (7.2 on).",
    ),
    Rule(
        "KHO-LST-006", INFO, "A page before the last of its list is not full.",
        "Readers accept it; no kernel writes it.",
    ),
    Rule(
        "KHO-LST-007", ERROR, "A block counts no entries.",
        "-EINVAL and a panic at boot (7.2 on).",
    ),
    Rule(
        "KHO-LST-010", WARNING, "There is more of something than decoding has a budget for.",
        "Nothing: the decoding gave up, not the kernel. No kernel writes more than lies in pages"
        " of its own.",
    ),
    Rule(
        "KHO-VML-001", ERROR, "A vmalloc area has an impossible order.",
        "Nothing is restored: -EINVAL for its file.",
    ),
    Rule(
        "KHO-VML-002", WARNING, "A vmalloc area has unknown flags.", "7.3 ignores them.",
    ),
    Rule(
        "KHO-VML-003", ERROR, "A vmalloc area's blocks do not add up to its page count.",
        "Nothing is restored: -EINVAL for its file.",
    ),
    Rule(
        "KHO-VML-004", ERROR, "A block of a vmalloc area is not aligned to its order.",
        "The restore of the block fails: -EINVAL for its file.",
    ),
    Rule(
        "KHO-VML-005", WARNING, "A block of a vmalloc area is not one preserved block.",
        "7.3 looks at the mark of the first page only: the others keep theirs.",
        "kho preserved IMAGE", _vmalloc_blocks,
    ),
)  # fmt: skip
