"""The mappings of domains as columns, and what user space calls the domains.

That is session, iommufd and HWPT token; without a HWPT the devices that use a domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inspector import passthrough
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.passthrough.domains import DomainTables
from inspector.walk.iommu import Domain

COLUMNS = ("iova", "pa", "size", "rights")


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


def chunks(tables: DomainTables, domain: Domain) -> Iterator[Mappings]:
    """What a domain maps, some at a time. Raises UsageError if its page table cannot be one."""
    for chunk in tables.walk(tables.root(domain)).ranges():
        # Copied: the walk reuses its columns.
        yield Mappings(
            np.array(chunk.iova),
            np.array(chunk.pa),
            np.array(chunk.size),
            np.array(chunk.permissions),
        )


class Side:
    """A stream of ranges: what was read of it and not handed out yet."""

    def __init__(self, chunks: Iterator[Mappings]) -> None:
        self._chunks: Iterator[Mappings] | None = chunks
        empty = np.empty(0, np.uint64)
        self.held = Mappings(empty, empty, empty, np.empty(0, np.uint8))

    def fill(self, window: int) -> int | None:
        """Read on until there are so many ranges; the last byte held, None once all is read."""
        parts, rows = [self.held], len(self.held)
        while rows < window and self._chunks is not None:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._chunks = None
                break
            parts.append(chunk)
            rows += len(chunk)
        if len(parts) > 1:
            self.held = Mappings(*(np.concatenate([getattr(p, c) for p in parts]) for c in COLUMNS))
        if self._chunks is None:
            return None
        return int(self.held.iova[-1]) + int(self.held.size[-1]) - 1

    def take(self, last: int) -> Mappings:
        """What is mapped up to the byte ``last``; the rest stays. Cuts a range that goes on."""
        held = self.held
        end = int(np.searchsorted(held.iova, np.uint64(last), "right"))
        out = Mappings(*(getattr(held, c)[:end] for c in COLUMNS))
        rest = Mappings(*(getattr(held, c)[end:] for c in COLUMNS))
        inside = last + 1 - int(out.iova[-1]) if end else 0
        if end and inside < int(out.size[-1]):
            cut = np.uint64(inside)
            rest = Mappings(
                np.append(out.iova[-1:] + cut, rest.iova),
                np.append(out.pa[-1:] + cut, rest.pa),
                np.append(out.size[-1:] - cut, rest.size),
                np.append(out.rights[-1:], rest.rights),
            )
            out = Mappings(out.iova, out.pa, np.append(out.size[:-1], cut), out.rights)
        self.held = rest
        return out
