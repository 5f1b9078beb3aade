"""Virtual machines, guest memory, huge pages and mounts: handlers that are in no release."""

from __future__ import annotations

from collections import Counter

import numpy as np

from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.image import Image

_UNKNOWN = "Not known: no kernel with this handler was observed."


def _has(image: Image, *strings: bytes) -> bool:
    """Whether a file has one of the handlers; keeps their modules out of other images."""
    return image.luo is not None and any(f.compatible in strings for _, f in image.luo.files())


def _not_uptodate(context: Context) -> None:
    if not _has(context.image, b"guest_memfd_luo_v1"):
        return
    from inspector.handlers import guest_memfds

    for _, file, state in guest_memfds(context.image):
        stale = int(state.used.sum()) - state.uptodate
        if stale:
            context.report(
                f"{stale} folios are not marked up to date", path=file.path, address=state.address
            )


def _huge_orders(context: Context) -> None:
    """Each huge page is a preserved block of its file's order."""
    image = context.image
    if not _has(image, b"huge-memfd-v1"):
        return
    from inspector.handlers import huge_memfds

    if image.preserved is None:
        context.undecidable("the preserved-memory map is lost")
        return
    for _, file, state in huge_memfds(image):
        order, found = image.preserved.orders_at(state.addresses)
        for i in np.flatnonzero(state.used & found & (order != state.order))[:8].tolist():
            context.report(
                f"huge page {int(state.addresses[i]):#x} is a block of order {int(order[i])},"
                f" the file's are of order {state.order}",
                path=file.path, address=int(state.addresses[i]),
            )  # fmt: skip


def _pools(context: Context) -> None:
    """Pool by pool: is there one for each file?"""
    image = context.image
    if not _has(image, b"huge-memfd-v1"):
        return
    from inspector.handlers import huge_memfds, hugetlb

    pools = hugetlb(image)
    if pools is None:
        if image.incomplete:
            context.undecidable("no pools could be read")
            return
        for _, file, state in huge_memfds(image):
            context.report("no pools are handed over", path=file.path, address=state.address)
        return
    for _, file, state in huge_memfds(image):
        if pools.pool(state.order) is None:
            context.report(
                f"its huge pages are of order {state.order}, which no pool has",
                path=file.path, address=state.address,
            )  # fmt: skip


def _pool_sizes(context: Context) -> None:
    image = context.image
    if not _has(image, b"huge-memfd-v1"):
        return
    from inspector.handlers import huge_memfds, hugetlb

    pools = hugetlb(image)
    if pools is None:
        return
    used: Counter[int] = Counter()
    for _, _, state in huge_memfds(image):
        used[state.order] += int(state.used.sum())
    for pool in pools.pools:
        if used[pool.order] > pool.nr_pages:
            context.report(
                f"files have {used[pool.order]} pages of order {pool.order}, the pool counts"
                f" {pool.nr_pages}",
                path=pool.path, address=pool.address,
            )  # fmt: skip


def _vcpu_twice(context: Context) -> None:
    if not _has(context.image, b"kvm_vcpu_luo_v1"):
        return
    from inspector.handlers import vcpus

    seen: dict[tuple[str, int], str] = {}
    for _, file, state in vcpus(context.image):
        if state.vm is None:
            continue
        first = seen.setdefault((state.vm, state.vcpu_id), file.path)
        if first != file.path:
            context.report(
                f"vCPU {state.vcpu_id} of {state.vm} is {first} already",
                path=file.path, address=state.address,
            )  # fmt: skip


RULES = (
    Rule("KHO-GMF-001", ERROR, "A guest_memfd has unknown flags.", _UNKNOWN),
    Rule("KHO-GMF-002", ERROR, "Folios of a guest_memfd have unknown flags.", _UNKNOWN),
    Rule(
        "KHO-GMF-003", INFO, "A folio of a guest_memfd is not marked up to date.",
        "Its content is none that the guest has to find again.", test=_not_uptodate,
    ),
    Rule("KHO-HTL-001", ERROR, "Huge pages have an impossible order.", _UNKNOWN),
    Rule("KHO-HTL-002", WARNING, "Entries of huge pages have reserved bits set.", _UNKNOWN),
    Rule(
        "KHO-HTL-003", ERROR, "More pools of huge pages are counted than there is room for.",
        "What lies behind the array would be taken for pools.",
    ),
    Rule("KHO-HTL-004", ERROR, "Two pools of huge pages have the same order.", _UNKNOWN),
    Rule(
        "KHO-HTL-005", ERROR, "A pool counts more pages than its array holds.",
        "The consumer reads beyond the array.",
    ),
    Rule(
        "KHO-HTL-006", ERROR, "A huge page is no preserved block of its file's order.",
        "A kernel restores the block that was preserved, whatever the file says (6.18 on).",
        "kho preserved IMAGE", _huge_orders,
    ),
    Rule(
        "KHO-HTL-007", ERROR, "No pool has the order of a file's huge pages.", _UNKNOWN,
        "kho dump IMAGE /LUO/flbs", _pools,
    ),
    Rule(
        "KHO-HTL-008", WARNING, "Files have more huge pages of an order than the pool counts.",
        _UNKNOWN, "kho dump IMAGE /LUO/flbs", _pool_sizes,
    ),
    Rule(
        "KHO-KVM-001", ERROR, "A machine counts more memory attributes or folios than there are.",
        "The consumer reads beyond the array.",
    ),
    Rule("KHO-KVM-002", ERROR, "A guest frame has memory attributes twice.", _UNKNOWN),
    Rule(
        "KHO-KVM-003", ERROR, "An address in a machine's list of folios is none.",
        "It cannot be restored.",
    ),
    Rule("KHO-KVM-010", ERROR, "A vCPU has unknown flags.", _UNKNOWN),
    Rule("KHO-KVM-011", ERROR, "A vCPU has no architectural state.", _UNKNOWN),
    Rule("KHO-KVM-012", ERROR, "A caretaker is in an unknown state.", _UNKNOWN),
    Rule("KHO-KVM-013", ERROR, "A vCPU's control block is that of another vCPU.", _UNKNOWN),
    Rule("KHO-KVM-014", WARNING, "A control block has reserved bits set.", _UNKNOWN),
    Rule("KHO-KVM-015", ERROR, "A caretaker runs a vCPU that has no control block.", _UNKNOWN),
    Rule(
        "KHO-KVM-016", ERROR, "Two vCPU files are the same vCPU of a machine.",
        "A machine has one vCPU of a number: creating the second gives -EEXIST.",
        test=_vcpu_twice,
    ),
    Rule(
        "KHO-KVM-020", ERROR, "A vm_token names no virtual machine of the session.",
        "There is no machine to give the memory or the vCPU to.",
        "kho dump IMAGE /LUO/sessions",
    ),
    Rule("KHO-TMP-001", WARNING, "A mount's mode is that of no directory.", _UNKNOWN),
)  # fmt: skip
