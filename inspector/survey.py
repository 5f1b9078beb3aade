"""A survey: what one decoding of one image reads, places, claims and finds.

Walkers are functions that take a :class:`Survey` first. It reads memory for them and
keeps the record that everything above lives on:

* ``findings``: what is wrong;
* ``placed``: which struct lies where (what a fuzzer mutates, what other engines re-read);
* ``claims``: which bytes belong to whom (what an fsck accounts for, what an extract keeps).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from abi.schema import Struct
from inspector.budget import Budget, Cost
from inspector.findings import Findings
from inspector.memory.base import MemoryFault, PageState, PhysicalMemory, U8Array, U64Array

#: No machine has more physical address bits than this.
PHYSICAL_BITS = 52
#: So many holes are kept.
MAX_HOLES = 1 << 16
_PRESENT = PageState.PRESENT


@lru_cache(256)
def _one(size: int) -> U64Array:
    """A column of one number, shared by all who want it, hence read only."""
    column = np.array([size], np.uint64)
    column.flags.writeable = False
    return column


# Not frozen: there are thousands, and a frozen one takes three times as long to make.
@dataclass(slots=True, eq=False)
class Placed:
    """``struct`` lies at each of ``addresses``."""

    struct: Struct
    addresses: U64Array
    path: str


@dataclass(slots=True, eq=False)
class Claim:
    """``owner`` (an object's path) uses the bytes ``[start, start + size)`` of each column row.

    ``kind`` is what they are used for: ``root``, ``blob``, ``map-node``, ``scratch``,
    ``session-block``, ``file-block``, ``flb``, ``vmalloc-chunk``, ``vmalloc-data``,
    ``folio``, ``struct``, ``guest-state``, ``reserve-mem``, ``page-table``, ``array-page``, ...
    """

    kind: str
    owner: str
    starts: U64Array
    sizes: U64Array


@dataclass(slots=True)
class Survey:
    """The state of one decoding. ``page_size`` is that of the kernel that wrote the image."""

    memory: PhysicalMemory
    page_size: int
    findings: Findings = field(default_factory=Findings)
    placed: list[Placed] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    #: What was read only to tell which form something has.
    looked: list[Claim] = field(default_factory=list)
    #: Where something was that the booted kernel has overwritten: anything may be there now.
    remnants: list[Claim] = field(default_factory=list)
    #: Pages a walker wanted and the image lacks: (address, object path).
    holes: list[tuple[int, str]] = field(default_factory=list)
    #: How often something was wanted that the dump left out.
    left_out: int = 0
    #: Codes of rules that cannot be decided, since pages were left out, and why.
    undecided: dict[str, str] = field(default_factory=dict)
    #: Pages (or sub-page objects) already used as a list node -> by whom.
    nodes: dict[int, str] = field(default_factory=dict)
    #: How many list nodes of any kind one image may have.
    max_nodes: int = 1 << 20
    #: What all walks together may cost.
    budget: Budget = field(default_factory=Budget)
    #: How often something was not read since the budget was spent.
    given_up: int = 0
    _told: set[Cost] = field(default_factory=set)

    @property
    def wanting(self) -> int:
        """How much was wanted so far that was not to be had, or given up."""
        return len(self.holes) + self.given_up

    # -- reading ---------------------------------------------------------------------

    def read(self, pa: int, size: int, path: str) -> bytes | None:
        """Bytes at ``pa``, or None with the hole recorded."""
        try:
            return self.memory.read(pa, size)
        except MemoryFault as fault:
            self.hole(fault.address, path, fault.state)
            return None

    def unpack(self, struct: Struct, pa: int, path: str, *views: str) -> dict[str, Any] | None:
        """One struct as a flat dict (see :meth:`abi.schema.Struct.unpack`), placed; or None."""
        data = self.read(pa, struct.size, path)
        if data is None:
            return None
        self.place(struct, pa, path)
        return struct.unpack(data, 0, *views)

    def rows(self, addresses: U64Array, size: int, path: str) -> tuple[U8Array, U64Array]:
        """``size`` bytes at each address that is wholly present, and those addresses."""
        if len(addresses) == 1:
            state = self.memory.state(int(addresses[0]), size)
            if state is not _PRESENT:
                self.hole(int(addresses[0]), path, state)
                addresses = addresses[:0]
            return self.memory.gather(addresses, size), addresses
        states = self.memory.states(addresses, size)
        present = states == PageState.PRESENT
        if not present.all():
            self.lacking(addresses[~present], states[~present], path)
            addresses = addresses[present]
        return self.memory.gather(addresses, size), addresses

    # -- recording -------------------------------------------------------------------

    def hole(self, pa: int, path: str, state: PageState) -> None:
        """Record that the image lacks ``pa``."""
        if pa >> PHYSICAL_BITS:
            self.findings.error(
                "KHO-MEM-003",
                f"address {pa:#x} has more than {PHYSICAL_BITS} bits",
                path=path,
                address=pa,
            )
            return
        if len(self.holes) < MAX_HOLES:
            self.holes.append((pa, path))
        if state is PageState.EXCLUDED:
            self.left_out += 1
            self.findings.info(
                "KHO-MEM-001", f"page {pa:#x} was left out of the image", path=path, address=pa
            )
        else:
            self.findings.warning(
                "KHO-MEM-002", f"page {pa:#x} is not in the image", path=path, address=pa
            )

    def lacking(self, addresses: U64Array, states: U8Array, path: str) -> None:
        """Record many holes: those that nobody will look at are counted only."""
        most = max(MAX_HOLES - len(self.holes), self.findings.per_code)
        for pa, state in zip(addresses[:most].tolist(), states[:most].tolist(), strict=True):
            self.hole(pa, path, PageState(state))
        addresses, states = addresses[most:], states[most:]
        far = addresses >> np.uint64(PHYSICAL_BITS) != 0
        excluded = ~far & (states == PageState.EXCLUDED)
        counts = [int(np.count_nonzero(which)) for which in (far, excluded)]
        self.left_out += counts[1]
        for code, count in zip(
            ("KHO-MEM-003", "KHO-MEM-001", "KHO-MEM-002"),
            (*counts, len(addresses) - sum(counts)),
            strict=True,
        ):
            self.findings.suppress(code, count)

    def room(self, cost: Cost, wanted: int, path: str, address: int | None = None) -> int:
        """How much of ``wanted`` the budget allows; one finding says that it is not all."""
        room = self.budget.room(cost, wanted, self.memory)
        if room < wanted:
            self.give_up(cost, path, address)
        return room

    def give_up(self, cost: Cost, path: str, address: int | None = None) -> None:
        """Record that something is not read since the budget is spent."""
        self.given_up += 1
        if cost in self._told:
            self.findings.suppress("KHO-LST-010", 1)
            return
        self._told.add(cost)
        self.findings.warning(
            "KHO-LST-010",
            f"more {cost.what} than an image of this size can have: the rest is not read",
            path=path,
            address=address,
        )

    def cannot_tell(self, code: str, why: str) -> None:
        """A rule cannot be decided: what it looks at was left out of the dump."""
        self.undecided.setdefault(code, why)

    def place(self, struct: Struct, pa: int | U64Array, path: str) -> None:
        """Record that ``struct`` lies at ``pa`` (or at each of a column)."""
        addresses = np.array([pa], np.uint64) if isinstance(pa, int) else pa
        self.placed.append(Placed(struct, addresses, path))

    def place_many(self, struct: Struct, pa: int, count: int, path: str) -> None:
        """Record that ``count`` structs lie one after the other from ``pa`` on."""
        step = np.arange(count, dtype=np.uint64) * np.uint64(struct.size)
        self.place(struct, np.uint64(pa) + step, path)

    def claim(self, kind: str, owner: str, pa: int | U64Array, size: int | U64Array) -> None:
        """Record that ``owner`` uses ``size`` bytes at ``pa`` (scalars or columns)."""
        starts = np.array([pa], np.uint64) if isinstance(pa, int) else pa
        if isinstance(size, int) and len(starts) == 1:
            sizes = _one(size)  # a broadcast takes much longer
        else:
            sizes = np.broadcast_to(np.asarray(size, np.uint64), starts.shape)
        self.claims.append(Claim(kind, owner, starts, sizes))

    def adopt(self, other: Survey) -> None:
        """Take over what another survey of the same memory has recorded."""
        self.findings.extend(other.findings)
        self.placed += other.placed
        self.claims += other.claims
        self.looked += other.looked
        self.remnants += other.remnants
        self.holes += other.holes[: MAX_HOLES - len(self.holes)]
        self.left_out += other.left_out
        self.given_up += other.given_up
        self.undecided = other.undecided | self.undecided
        self.nodes.update(other.nodes)

    # -- pointers --------------------------------------------------------------------

    def pointer(self, pa: int, path: str, what: str, align: int = 0) -> bool:
        """Whether ``pa`` can be a pointer to ``what``; a finding says why not.

        ``align`` defaults to the page size. A null pointer is not an anomaly here: the
        caller knows whether it may be absent.
        """
        align = align or self.page_size
        if pa % align:
            self.findings.error(
                "KHO-MEM-004",
                f"pointer to {what} {pa:#x} is not aligned to {align:#x}",
                path=path,
                address=pa,
            )
            return False
        if pa >> PHYSICAL_BITS:
            self.hole(pa, path, PageState.OUTSIDE)
            return False
        return pa != 0

    def enter(self, pa: int, path: str, what: str) -> bool:
        """Whether ``pa`` may be used as a node of ``what``: not met before, within budget."""
        owner = self.nodes.get(pa)
        if owner is not None:
            self.findings.error(
                "KHO-LST-001" if owner == path else "KHO-LST-002",
                f"cycle: {what} {pa:#x} is reached twice"
                if owner == path
                else f"{what} {pa:#x} is also used by {owner}",
                path=path,
                address=pa,
            )
            return False
        if len(self.nodes) >= self.max_nodes:
            self.findings.error(
                "KHO-LST-003",
                f"more than {self.max_nodes} list nodes: gave up",
                path=path,
                address=pa,
            )
            return False
        self.nodes[pa] = path
        return True
