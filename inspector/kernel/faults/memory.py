"""Faults of kho_vmalloc areas and of memory files."""

from __future__ import annotations

import numpy as np

from abi.schema import Struct
from abi.vmalloc import kho_vmalloc
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.outgoing.memfd import MemfdHandler, MemfdState

fault = Library()

_TOTAL = kho_vmalloc.field("total_pages").offset
_FLAGS = kho_vmalloc.field("flags").offset
_ENTRY = 16
_PFN = (1 << 52) - 1


def _descriptor(target: Target, state: MemfdState) -> int:
    """Address of the descriptor inside a memory file's struct."""
    return state.ser + _layout(target).field("folios").offset


def _layout(target: Target) -> Struct:
    return next(h.layout for h in target.luo.handlers if isinstance(h, MemfdHandler))


def _folio(target: Target, state: MemfdState, index: int) -> int:
    """Address of the folio entry number ``index`` of a memory file."""
    assert state.area is not None
    block, at = divmod(index * _ENTRY, target.page << state.area.order)
    return int(state.area.frames[block]) * target.page + at


def _first(target: Target, folios: int = 1) -> MemfdState:
    return target.memfds(folios)[0]


# -- vmalloc --------------------------------------------------------------------------------


@fault("vmalloc-total-pages", 7, "total_pages off by one: EINVAL for the file")
def _total(target: Target) -> None:
    at = _descriptor(target, _first(target)) + _TOTAL
    target.write_u32(at, int.from_bytes(target.read(at, 4), "little") + 1)


@fault("vmalloc-flags", 7, "an unknown flag in a descriptor: ignored")
def _vmalloc_flags(target: Target) -> None:
    at = _descriptor(target, _first(target)) + _FLAGS
    flags = int.from_bytes(target.read(at, 2), "little")
    target.write(at, (flags | 0x40).to_bytes(2, "little"))


@fault("vmalloc-entry-unaligned", 7, "an entry of a vmalloc chunk is no page address")
def _vmalloc_entry(target: Target) -> None:
    at = _first(target).descriptor.first + 8
    target.write_u64(at, target.u64(at) + 64)


@fault("vmalloc-entry-not-preserved", 7, "a page of a vmalloc area missing in the map")
def _vmalloc_unpreserved(target: Target) -> None:
    area = _first(target).area
    assert area is not None
    target.set_block(int(area.frames[0]), area.order, on=False)


@fault("vmalloc-chunk-cycle", 6, "the chunks of a vmalloc area are a cycle")
def _vmalloc_cycle(target: Target) -> None:
    """The last chunk is filled to its end, since a zero entry ends the list before ``next``."""
    state = _first(target)
    chunk = state.descriptor.chunks[-1]
    body = np.frombuffer(target.read(chunk, target.page), "<u8").copy()
    if not body[1]:
        raise Inapplicable("the last chunk is empty")
    body[0] = state.descriptor.first
    body[1:][body[1:] == 0] = body[1]
    target.write(chunk, body.tobytes())


@fault("vmalloc-chunk-not-preserved", 2, "page of a vmalloc chunk missing in the map")
def _chunk_unpreserved(target: Target) -> None:
    target.set_block(_first(target).descriptor.first // target.page, 0, on=False)


# -- memory files ---------------------------------------------------------------------------


@fault("memfd-index-duplicate", 11, "two folios of a file at one index")
def _index_twice(target: Target) -> None:
    state = _first(target, 2)
    target.write_u64(_folio(target, state, 1) + 8, target.u64(_folio(target, state, 0) + 8))


@fault("memfd-index-beyond-size", 11, "a folio beyond the end of its file")
def _index_beyond(target: Target) -> None:
    state = _first(target)
    last = state.area.size // _ENTRY - 1 if state.area is not None else 0
    target.write_u64(_folio(target, state, last) + 8, (state.size // target.page + 1) << 16)


@fault("memfd-folio-not-preserved", 11, "a folio of a file missing in the map: EIO for the file")
def _folio_unpreserved(target: Target) -> None:
    state = _first(target)
    word = target.u64(_folio(target, state, 0))
    frame = word & _PFN
    for order in range(20):
        if target.preserved(frame, order):
            target.set_block(frame, order, on=False)
            return
    raise Inapplicable("the folio is not in the map")


@fault("memfd-folio-order", 11, "a folio is preserved with a larger order than the file says")
def _folio_order(target: Target) -> None:
    for state in target.memfds(2):
        assert state.area is not None
        for i in range(min(state.area.size // _ENTRY - 1, 512)):
            frame = target.u64(_folio(target, state, i)) & _PFN
            after = target.u64(_folio(target, state, i + 1)) & _PFN
            small = target.preserved(frame, 0) and target.preserved(after, 0)
            if small and frame % 2 == 0 and after == frame + 1:
                target.set_block(frame, 0, on=False)
                target.set_block(after, 0, on=False)
                target.set_block(frame, 1)
                return
    raise Inapplicable("needs two neighbouring folios of order 0")


@fault("memfd-folio-shared", 11, "two files own one folio")
def _folio_shared(target: Target) -> None:
    first, second = target.memfds(1, count=2)[:2]
    target.write_u64(_folio(target, second, 0), target.u64(_folio(target, first, 0)))


@fault("memfd-folio-hole", 11, "the first folio of a file is an entry with frame 0")
def _folio_hole(target: Target) -> None:
    target.write_u64(_folio(target, _first(target), 0), 0)


@fault("memfd-seals", 11, "an unknown seal: EOPNOTSUPP for the file")
def _seals(target: Target) -> None:
    layout = _layout(target)
    if not any(f.name == "flags" for f in layout.fields):
        raise Inapplicable("the format carries no seals")
    at = target.memfds()[0].ser + layout.field("seals").offset
    target.write_u32(at, int.from_bytes(target.read(at, 4), "little") | 0x4000)


@fault("memfd-flags", 11, "flags that are not 0: 7.1 to 7.3 do not look at them")
def _memfd_flags(target: Target) -> None:
    layout = _layout(target)
    if not any(f.name == "flags" for f in layout.fields):
        raise Inapplicable("the format carries no flags")
    target.write_u32(target.memfds()[0].ser + layout.field("flags").offset, 1)


@fault("memfd-folio-count", 7, "a file counts more folios than its array has room for")
def _folio_count(target: Target) -> None:
    at = _first(target).ser + _layout(target).field("nr_folios").offset
    target.write_u64(at, 1 << 40)
