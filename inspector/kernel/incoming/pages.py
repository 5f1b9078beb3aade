"""Taking preserved pages over: folios, ranges of pages, vmalloc areas.

What :meth:`~inspector.kernel.incoming.restore.Marks.take` says of a block decides: a block
without a mark cannot be restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inspector.budget import Cost
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.restore import I8Array
from inspector.kernel.machine import MAX_ORDERS
from inspector.memory.base import U64Array


def take_folios(boot: Booting, frames: U64Array, *, whole: bool = True) -> I8Array:
    """Restore the folios that begin at ``frames``: their orders, -1 where that fails.

    Before 6.18 there is no magic in the mark: a page that was not preserved is taken for a
    folio of order 0. Up to 6.18 orders above the buddy maximum are refused. Not ``whole`` are
    folios that are restored as single pages.
    """
    if boot.marks.overlapping and whole and boot.kernel.tails_lose_marks:
        orders = np.array([_take_whole(boot, frame) for frame in frames.tolist()], np.int8)
    else:
        orders = boot.marks.take(frames)
    kernel = boot.kernel
    if not kernel.since("6.18"):
        orders[orders < 0] = 0
    if not kernel.restores_large_orders:
        orders[orders > MAX_ORDERS[boot.view.page_size]] = -1
    return orders


@dataclass(frozen=True, slots=True)
class Area:
    """A restored vmalloc area: frames of its blocks of ``2 ** order`` pages, and its chunks."""

    frames: U64Array
    order: int
    chunks: tuple[int, ...]
    page_size: int

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.frames) * (self.page_size << self.order)

    def words(self, boot: Booting, count: int) -> U64Array:
        """The first ``count`` 64-bit words. Raises Absent, PageFault."""
        view = boot.view
        boot.spend(Cost.ENTRIES, count * 8, int(self.frames[0]) << view.page_shift)
        block = view.page_size << self.order
        need = -(-count * 8 // block)
        frames = self.frames[:need]
        if need == 1:
            data = view.read(int(frames[0]) << view.page_shift, count * 8)
            return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)
        rows = view.gather(frames << np.uint64(view.page_shift), block)
        return rows.reshape(-1)[: count * 8].view("<u8").astype(np.uint64, copy=False)


def restore_vmalloc(boot: Booting, descriptor: Mapping[str, int], path: str) -> Area:
    """Restore a vmalloc area. Raises KernelErrno (EINVAL) where the kernel returns nothing,
    and Absent, PageFault.

    Unknown flags are ignored. Chunks and pages are taken one after the other: what was taken
    before a failure is lost to the next caller.
    """
    view, order, total = boot.view, descriptor["order"], descriptor["total_pages"]
    shift = np.uint64(view.page_shift)
    found: list[U64Array] = []
    chunks: list[int] = []
    at, pages, budget = descriptor["first"], 0, total + (1 << order if order < 20 else 0)
    seen: set[int] = set()
    while at and order < 20:
        if at in seen:
            break
        seen.add(at)
        body = np.frombuffer(view.read(at, view.page_size), "<u8")
        entries = body[1:]
        end = int((entries == 0).argmax())
        if end or not entries[0]:
            entries = entries[:end]
        odd = entries & np.uint64(view.page_size - 1)
        if odd.any():
            at_odd = int(entries[int((odd != 0).argmax())])
            boot.notes.append(
                f"{path}: vmalloc entry {at_odd:#x} is no page: it counts as the one it lies in"
            )
        pages += len(entries) << order
        if pages > budget:
            break
        frames = entries >> shift
        orders = take_folios(boot, frames, whole=False)
        # The order of what was preserved there is not compared.
        if (orders < 0).any():
            i = int(np.argmax(orders < 0))
            raise KernelErrno("EINVAL", f"vmalloc block {int(entries[i]):#x} is not preserved")
        found.append(frames)
        chunks.append(at)
        if take_folio(boot, at >> view.page_shift) < 0:
            raise KernelErrno("EINVAL", f"vmalloc chunk {at:#x} is not preserved")
        at = int(body[0])
    if at or pages != total or not chunks:
        raise KernelErrno("EINVAL", f"the vmalloc area lists {pages} pages, not {total}")
    return Area(np.concatenate(found), order, tuple(chunks), view.page_size)


def take_folio(boot: Booting, frame: int) -> int:
    """:func:`take_folios` of one folio."""
    order = _take_whole(boot, frame)
    if order < 0 and not boot.kernel.since("6.18"):
        return 0
    if order > MAX_ORDERS[boot.view.page_size] and not boot.kernel.restores_large_orders:
        return -1
    return order


def _take_whole(boot: Booting, frame: int) -> int:
    """The mark of one folio; making it may take the marks of blocks that begin inside it."""
    order = boot.marks.take_one(frame)
    if order > 0 and boot.marks.overlapping and boot.kernel.tails_lose_marks:
        refused = order > MAX_ORDERS[boot.view.page_size] and not boot.kernel.restores_large_orders
        if not refused:
            boot.marks.clear(frame + 1, (1 << order) - 1)
    return order


def release(boot: Booting, address: int) -> bool:
    """Restore and free the block at ``address``, as a client does with what it has read.

    False, and nothing is freed, if the block was not preserved or was restored before.
    """
    frame = address >> boot.view.page_shift
    order = take_folio(boot, frame)
    if order < 0:
        return False
    boot.freed.add_one(frame, order)
    return True


def free_area(boot: Booting, area: Area) -> None:
    """Free a restored vmalloc area and its chunks."""
    boot.freed.add(area.frames, area.order)
    for chunk in area.chunks:
        boot.freed.add_one(chunk >> boot.view.page_shift, 0)
