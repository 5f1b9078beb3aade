"""The decoder and the Kaitai reader, which share no code, on one mutated image.

They differ in what they forgive: one cuts a count that is too large, the other refuses the
block. So only an image with which both are content is compared, object by object.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from inspector.findings import Severity
from inspector.fuzz.base import Base
from inspector.fuzz.target import Mismatch
from inspector.image import Image
from inspector.walk.folio_file import FolioFile

_MAX_BLOCKS = 1 << 14
#: Members of files' states that the decoder calls as the parsers do.
_MEMBERS = (
    "size", "pos", "seals", "flags", "nr_folios", "order", "vm_token", "type", "vcpu_id",
    "arch_state", "cb", "max_blocks", "mode",
)  # fmt: skip


def compare(base: Base) -> None:
    """Raises :class:`Mismatch` where two content readers disagree."""
    from inspector.decode import decode
    from specs.reader import ImageReader, Layouts

    ours = decode(base.memory, root=base.root)
    generation = ours.root.generation
    if generation is None or any(f.severity >= Severity.WARNING for f in ours.findings):
        return
    if ours.verdicts["kho"].tied or ours.lost:
        return
    memfd, kvm = ours.generation("memfd"), ours.generation("kvm")
    layouts = Layouts(
        bitmap_size=512 if generation.map_kind.name == "BITMAP_512" else None,
        memfd=memfd.id if memfd is not None else None,
        kvm=kvm.id if kvm is not None else None,
    )
    reader = ImageReader(base.memory, ours.page_size, layouts)
    theirs = reader.image(ours.root.address)
    blocks = list(islice(reader.blocks(theirs), _MAX_BLOCKS))
    if reader.follower.problems:
        return
    blobs = {b.name: b.address for b in ours.blobs if b.address}
    _same("blobs", blobs, {name: pa for name, (pa, _) in theirs.blobs.items()})
    if ours.preserved is not None and ours.preserved.block_count < _MAX_BLOCKS:
        mine = [
            (a, o)
            for addresses, orders in ours.preserved.blocks()
            for a, o in zip(addresses.tolist(), orders.tolist(), strict=True)
        ]
        _same("preserved blocks", sorted(mine), sorted(blocks))
    if ours.reserve_mem is not None:
        _same(
            "reserve_mem",
            [(r.name, r.start, r.size) for r in ours.reserve_mem],
            [(r.name, r.start, r.size) for r in theirs.reserve_mem],
        )
    if ours.luo is not None and theirs.luo is not None:
        _same_luo(ours, theirs.luo)


def _same_luo(ours: Image, theirs: Any) -> None:
    luo = ours.luo
    assert luo is not None
    _same("liveupdate number", luo.number, theirs.liveupdate_num)
    _same(
        "sessions",
        [(s.address, s.name, s.files_address, s.count) for s in luo.sessions],
        [(s.pa, s.name, s.files_pa, s.count) for s in theirs.sessions],
    )
    for one, other in zip(luo.sessions, theirs.sessions, strict=True):
        _same(
            f"files of {one.path}",
            [(f.address, f.compatible, f.data, f.token) for f in one.files],
            [(f.pa, f.handler, f.data, f.token) for f in other.files],
        )
        for file, theirs_file in zip(one.files, other.files, strict=True):
            _same_state(file.path, file.state, theirs_file.body)
    _same(
        "FLBs",
        [(f.address, f.name, f.data, f.count) for f in luo.flbs],
        [(f.pa, f.name, f.data, f.count) for f in theirs.flbs],
    )


def _same_state(path: str, state: Any, body: Any) -> None:
    """Folios one by one; of everything else the members that both have by that name."""
    if state is None or body is None:
        return
    if isinstance(state, FolioFile):
        columns = state.folios
        parts = (columns.pfn, columns.flags, columns.index)
        mine = list(zip(*(part.tolist() for part in parts), strict=True))
        _same(f"folios of {path}", mine, body.folios)
    for name in _MEMBERS:
        own, theirs = getattr(state, name, None), getattr(body.ser, name, None)
        if isinstance(own, int) and isinstance(theirs, int):
            _same(f"{name} of {path}", own, theirs)


def _same(what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise Mismatch(f"{what}: decoder {_short(ours)}, Kaitai {_short(theirs)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
