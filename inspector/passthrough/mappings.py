"""The mappings of domains as columns: what two images map, and how that differs.

Domains of two images are the same if user space calls them the same: by session, iommufd
and HWPT token; without a HWPT by the devices that use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector import passthrough
from inspector.device_tables import walk_root
from inspector.diff import Change, Diff, Kind
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.pagetable.columns import RangeColumns
from inspector.passthrough.reach import domain_root
from inspector.text import size_text
from inspector.walk.iommu import Domain


@dataclass(frozen=True, slots=True)
class Mappings:
    """Merged ranges of one domain, ascending by ``iova``; ``rights`` are Permission bits."""

    iova: U64Array
    pa: U64Array
    size: U64Array
    rights: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.iova)


def named_domains(image: Image) -> dict[str, Domain]:
    """Live domains with a page table, by what user space calls them."""
    state = passthrough.iommu_state(image)
    if state is None:
        return {}
    hwpts = passthrough.hwpts_by_domain(image)
    users: dict[int, list[str]] = {}
    for device in state.devices.live():
        users.setdefault(device.domain_phys, []).append(device.name)
    named: dict[str, Domain] = {}
    for domain in state.domains.live():
        if not domain.top_table_phys:
            continue
        names = sorted(use.hwpt.path for use in hwpts.get(domain.address, ()))
        names = names or sorted(users.get(domain.address, ())) or [domain.path]
        named.setdefault(names[0], domain)
    return named


def mappings(image: Image, domain: Domain) -> Mappings | None:
    """What a domain maps; None if its page table cannot be one."""
    try:
        walk = walk_root(image.memory, domain_root(image, domain))
        chunks = [_kept(chunk) for chunk in walk.ranges()]
    except UsageError:
        return None
    empty = np.empty(0, np.uint64)
    if not chunks:
        return Mappings(empty, empty, empty, np.empty(0, np.uint8))
    return Mappings(
        np.concatenate([c.iova for c in chunks]),
        np.concatenate([c.pa for c in chunks]),
        np.concatenate([c.size for c in chunks]),
        np.concatenate([c.rights for c in chunks]),
    )


def _kept(chunk: RangeColumns) -> Mappings:
    """A chunk's columns, copied: the walk reuses them."""
    return Mappings(
        np.array(chunk.iova), np.array(chunk.pa), np.array(chunk.size), np.array(chunk.permissions)
    )


def compare(found: Diff, before: Image, after: Image, addresses: bool) -> None:
    """Record how the mappings of domains of the same name differ."""
    one, other = named_domains(before), named_domains(after)
    for name in sorted(one.keys() & other.keys()):
        left, right = mappings(before, one[name]), mappings(after, other[name])
        if left is None or right is None:
            continue
        for change in _changes(name, left, right):
            if addresses or change.kind is not Kind.MOVED:
                found.add(change)


def _changes(name: str, one: Mappings, other: Mappings) -> Iterator[Change]:
    if len(one) == len(other) and all(
        np.array_equal(getattr(one, c), getattr(other, c)) for c in ("iova", "pa", "size", "rights")
    ):
        return
    edges = np.unique(
        np.concatenate((one.iova, one.iova + one.size, other.iova, other.iova + other.size))
    )
    left, size = edges[:-1], edges[1:] - edges[:-1]
    old, had, old_rights = _at(one, left)
    new, has, new_rights = _at(other, left)
    lost, won = had & ~has, has & ~had
    rights = had & has & (old_rights != new_rights)
    moved = had & has & ~rights & (old != new)
    for kind, which in (
        (Kind.REMOVED, lost), (Kind.ADDED, won), (Kind.CHANGED, rights), (Kind.MOVED, moved),
    ):  # fmt: skip
        rows = np.flatnonzero(which)
        if len(rows) == 0:
            continue
        # Neighbours that go on where the last ended are one change.
        ends = left[rows] + size[rows]
        follows = np.zeros(len(rows), np.bool_)
        follows[1:] = left[rows[1:]] == ends[:-1]
        if kind is Kind.CHANGED:
            follows[1:] &= (old_rights[rows[1:]] == old_rights[rows[:-1]]) & (
                new_rights[rows[1:]] == new_rights[rows[:-1]]
            )
        first = np.flatnonzero(~follows)
        last = np.append(first[1:] - 1, len(rows) - 1)
        for i, j in zip(rows[first].tolist(), rows[last].tolist(), strict=True):
            start, end = int(left[i]), int(left[j] + size[j])
            yield Change(
                kind,
                name,
                f"iova {start:#x}, {size_text(end - start)}",
                _target(old[i], old_rights[i]) if had[i] else None,
                _target(new[i], new_rights[i]) if has[i] else None,
            )


def _target(pa: np.uint64, rights: np.uint8) -> str:
    flags = "".join(c if int(rights) & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
    return f"{int(pa):#x} {flags}"


def _at(
    maps: Mappings, iova: U64Array
) -> tuple[U64Array, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """(physical address, whether mapped, rights) of each address."""
    if len(maps) == 0:
        none = np.zeros(len(iova), np.bool_)
        return np.zeros(len(iova), np.uint64), none, np.zeros(len(iova), np.uint8)
    i = np.searchsorted(maps.iova, iova, side="right") - 1
    j = np.maximum(i, 0)
    mapped = (i >= 0) & (iova - maps.iova[j] < maps.size[j])
    return (
        np.where(mapped, maps.pa[j] + (iova - maps.iova[j]), np.uint64(0)),
        mapped,
        np.where(mapped, maps.rights[j], 0).astype(np.uint8),
    )
