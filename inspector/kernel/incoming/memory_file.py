"""Memory files in the kernel that takes over: retrieve and finish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from abi.memfd import (
    MEMFD_LUO_ALL_SEALS,
    MEMFD_LUO_FEATURE_FOLIOS,
    MEMFD_LUO_FEATURE_SEALS,
)
from abi.schema import Struct, resolve
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.in_use import untouched
from inspector.kernel.incoming.luo import FileEntry
from inspector.kernel.incoming.pages import Area, free_area, release, restore_vmalloc, take_folios
from inspector.kernel.incoming.restore import I8Array
from inspector.kernel.incoming.view import PageFault, View
from inspector.memory.base import U64Array

_PFN_BITS = np.uint64(52)
_PFN = np.uint64((1 << 52) - 1)
_PIECE = 1 << 20
_SEAL_SEAL, _SEAL_EXEC = 0x1, 0x20
#: F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE and F_SEAL_FUTURE_WRITE.
_IMPLIED = 0x1E
_KNOWN_FEATURES = MEMFD_LUO_FEATURE_SEALS | MEMFD_LUO_FEATURE_FOLIOS


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredFolios:
    """A file of folios after retrieve.

    ``frames`` are the first frames of its folios, ``orders`` their orders, ``index`` where they
    are in the file, in pages.
    """

    path: str
    token: int
    size: int
    frames: U64Array
    orders: I8Array
    index: U64Array
    view: View = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether the image holds the whole content."""
        return not any(piece is None for _, _, piece in self.pieces())

    def pieces(self) -> Iterator[tuple[int, int, bytes | None]]:
        """(offset, size, data) from 0 to the size; data None where the image lacks it."""
        page, shift = self.view.page_size, self.view.page_shift
        at = 0
        for i in np.argsort(self.index, kind="stable").tolist():
            start = int(self.index[i]) << shift
            if start >= self.size:
                break
            yield from _zeros(at, start)
            end = min(start + (page << int(self.orders[i])), self.size)
            base = int(self.frames[i]) << shift
            for offset in range(start, end, _PIECE):
                size = min(_PIECE, end - offset)
                pa = base + offset - start
                data = self.view.read(pa, size) if self.view.present(pa, size) else None
                yield offset, size, data
            at = end
        yield from _zeros(at, self.size)

    def read(self) -> bytes:
        """The content. Raises KernelErrno (EIO) where the image lacks it."""
        parts = []
        for offset, _, data in self.pieces():
            if data is None:
                raise KernelErrno("EIO", f"content at {offset:#x} is not in the image")
            parts.append(data)
        return b"".join(parts)

    def sha256(self) -> str | None:
        """Digest of the content, None if the image lacks part of it."""
        digest = hashlib.sha256()
        for _, _, data in self.pieces():
            if data is None:
                return None
            digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredMemfd(RestoredFolios):
    """A memory file after retrieve.

    ``seals`` are 0 where the format carries none (``seals_known`` False).
    """

    pos: int
    seals: int
    seals_known: bool

    @property
    def seals_now(self) -> int:
        """The seals that the file has after retrieve, which are not always those it had.

        A format without seals gives F_SEAL_SEAL; F_SEAL_EXEC on a file with the default mode
        brings shrink, grow, write and future-write along.
        """
        if not self.seals_known:
            return _SEAL_SEAL
        return self.seals | _IMPLIED if self.seals & _SEAL_EXEC else self.seals


def _covered(boot: Booting, address: int, size: int) -> bool:
    """Whether the pages of a struct were handed over, and not freed long ago."""
    assert boot.preserved is not None
    start = address - address % boot.view.page_size
    covered = boot.preserved.covers(np.array([start], np.uint64), address + size - start)[0]
    frame = np.array([address >> boot.view.page_shift], np.uint64)
    return bool(covered and not boot.lost.contains(frame)[0])


def _zeros(start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    for at in range(start, end, _PIECE):
        size = min(_PIECE, end - at)
        yield at, size, bytes(size)


def retrieve(boot: Booting, entry: FileEntry) -> RestoredMemfd:
    """Build the file again. Raises KernelErrno, Absent, PageFault."""
    layout = resolve(boot.kernel["memfd"].layouts["memfd_luo_ser"], boot.view.page_size)
    raw = boot.view.read(entry.data, layout.size)
    taken = boot.marks.peek(entry.data >> boot.view.page_shift) < 0
    covered = not taken or _covered(boot, entry.data, layout.size)
    if not covered and not untouched(boot, entry.data, layout.size):
        # Seals, features and the folios' list are checked: chance does not pass.
        raise KernelErrno(
            "EINVAL",
            f"struct memfd_luo_ser at {entry.data:#x} is not preserved, or was freed before: it is"
            " read when its memory is in use already",
        )
    values = layout.unpack(raw)
    seals = _seals(layout, values)
    frames, orders, index, _ = restore_folios(
        boot, entry, layout.nested(values, "folios"), values["nr_folios"]
    )
    if not release(boot, entry.data) and boot.kernel.since("6.18"):
        boot.reasons.add(
            Outcome.TAKEN_OVER_WITH_WARNINGS,
            f"struct memfd_luo_ser at {entry.data:#x} begins no preserved block, or was freed"
            " with another file: it cannot be restored",
            path=entry.path, address=entry.data, dmesg="kho_restore_page",
        )  # fmt: skip
    if not entry.data:
        boot.reasons.add(
            Outcome.CORRUPTION,
            "the file's data are a null pointer: the file is made of what page 0 holds",
            path=entry.path, address=entry.data,
        )  # fmt: skip
    known = "seals" in values or "word" in values
    return RestoredMemfd(
        path=entry.path, token=entry.token, size=values["size"], frames=frames, orders=orders,
        index=index, view=boot.view, pos=values["pos"], seals=seals, seals_known=known,
    )  # fmt: skip


def restore_folios(
    boot: Booting, entry: FileEntry, descriptor: dict[str, int], count: int, *, unit: int = 0
) -> tuple[U64Array, I8Array, U64Array, U64Array]:
    """(first frames, orders, indices in pages, flags) of a file's folios, whose list is freed.

    An index counts ``2 ** unit`` pages. Raises KernelErrno, Absent, PageFault.
    """
    if not count:
        empty = np.empty(0, np.uint64)
        return empty, np.empty(0, np.int8), empty, empty
    area = restore_vmalloc(boot, descriptor, entry.path)
    frames, index, flags = _entries(boot, area, count)
    if unit:
        index = np.minimum(index, np.uint64((1 << (64 - unit)) - 1)) << np.uint64(unit)
    free_area(boot, area)
    orders = take_folios(boot, frames)
    end = _check(boot, entry, frames, orders, index)
    return frames[:end], orders[:end], index[:end], flags[:end]


def _seals(layout: Struct, values: dict[str, int]) -> int:
    if "supp" in values or "features.supp" in values:
        header = layout.nested(values, "features")
        unknown = (header["req"] | header["active"]) & ~_KNOWN_FEATURES
        if unknown:
            raise KernelErrno("EOPNOTSUPP", f"features {unknown:#x} are not supported")
    seals = values.get("seals", 0)
    if seals & ~MEMFD_LUO_ALL_SEALS:
        raise KernelErrno("EOPNOTSUPP", f"unknown seals {seals:#x}")
    # Flags have to be 0, but 7.1 to 7.3 do not look at them.
    return seals


def _entries(boot: Booting, area: Area, count: int) -> tuple[U64Array, U64Array, U64Array]:
    """First frames, indices and flags of the folios; holes are skipped."""
    if count * 16 > area.size:
        raise PageFault(int(area.frames[-1]) << boot.view.page_shift)
    words = area.words(boot, 2 * count)
    frames, index, flags = words[0::2] & _PFN, words[1::2], words[0::2] >> _PFN_BITS
    used = frames != 0
    if used.all():
        return frames, index, flags
    return frames[used], index[used], flags[used]


def _check(
    boot: Booting, entry: FileEntry, frames: U64Array, orders: I8Array, index: U64Array
) -> int:
    """How many folios get into the file. What stops the kernel raises KernelErrno.

    Then all are discarded, that is, freed.
    """
    if not len(frames):
        return 0
    first = int((orders < 0).argmax())
    bad = bool(orders[first] < 0)
    first = first if bad else len(frames)
    span = np.uint64(1) << np.maximum(orders, 0).astype(np.uint64)
    if len(index) > 1 and not (index[1:] >= index[:-1] + span[:-1]).all():
        twice = _overlap(index[:first], span[:first])
        if twice is not None:
            discard(boot, frames, orders)
            raise KernelErrno("EEXIST", f"two folios at index {int(index[twice]):#x}")
    if bad:
        pa = int(frames[first]) << boot.view.page_shift
        what = f"folio {pa:#x} (index {int(index[first]):#x}) is not preserved"
        if first and boot.kernel.forgets_folio_errors:
            boot.reasons.add(
                Outcome.CORRUPTION,
                f"{what}: the file ends up without it and the {len(frames) - first - 1} after it,"
                " and user space is told of success",
                path=entry.path, address=pa, dmesg="Unable to restore folio",
            )  # fmt: skip
            return first
        discard(boot, frames, orders)
        raise KernelErrno("EIO", what)
    return len(frames)


def _overlap(index: U64Array, span: U64Array) -> int | None:
    rank = np.argsort(index, kind="stable")
    low, high = index[rank], index[rank] + span[rank]
    clash = np.flatnonzero(high[:-1] > low[1:])
    return int(rank[clash[0] + 1]) if len(clash) else None


def discard(boot: Booting, frames: U64Array, orders: I8Array) -> None:
    """Free what was restored of folios."""
    for order in np.unique(orders[orders >= 0]).tolist():
        boot.freed.add(frames[orders == order], order)
