"""What a walk of the preserved-memory map finds: runs of blocks, nodes and problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from abi.memory_map import RadixGeometry
from inspector.budget import Cost
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import PHYSICAL_BITS, Survey
from inspector.walk.runs import RunColumns

#: Object path of what concerns the map.
PATH = "/preserved"
#: lg2 of the largest block, in bytes.
MAX_ORDER = 51


@dataclass(slots=True)
class MapCollector:
    """Runs, nodes and problems of one walk."""

    survey: Survey
    give_up_after: int
    runs: RunColumns
    nodes: list[U64Array] = field(default_factory=list)
    node_sizes: list[int] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    allowed: int = 0

    @property
    def hopeless(self) -> bool:
        if not self.problems and not self.missing:
            return False
        return sum(self.problems.values()) + self.missing >= self.give_up_after

    def problem(self, code: str, message: str, address: int) -> None:
        self.problems[code] += 1
        self.survey.findings.error(code, message, path=PATH, address=address)

    def fits(self, wanted: int) -> bool:
        """Whether the budget allows ``wanted`` runs more."""
        wanted += len(self.runs)
        if wanted > self.allowed:
            self.allowed = self.survey.budget.room(Cost.RUNS, wanted, self.survey.memory)
        return wanted <= self.allowed

    def give_up(self, address: int) -> None:
        """The budget does not allow the node at ``address``: the map counts as incomplete."""
        self.survey.give_up(Cost.RUNS, PATH, address)
        self.missing += 1

    def add_nodes(self, addresses: U64Array, size: int) -> None:
        if len(addresses):
            self.nodes.append(addresses)
            self.node_sizes.append(size)
            self.survey.claim("map-node", PATH, addresses, size)

    def usable(self, addresses: U64Array, size: int, align: int) -> npt.NDArray[np.bool_]:
        """Which addresses can be read as nodes; the others become problems."""
        good = (addresses % np.uint64(align) == 0) & (addresses >> np.uint64(PHYSICAL_BITS) == 0)
        for pa in addresses[~good][:64]:
            self.problem("KHO-MAP-001", f"map node {int(pa):#x} is no page address", int(pa))
        present = self.survey.memory.states(np.where(good, addresses, 0), size)
        lacking = good & (present != PageState.PRESENT)
        for pa, state in zip(addresses[lacking], present[lacking], strict=True):
            self.missing += 1
            self.survey.hole(int(pa), PATH, PageState(int(state)))
        return np.asarray(good & ~lacking)

    def add_keys(self, geometry: RadixGeometry, low: U64Array, high: U64Array) -> None:
        """Add the blocks of ascending runs of keys."""
        starts, counts, orders = geometry.decode_runs(low, high)
        if len(orders) and orders[0] > MAX_ORDER - geometry.page_shift:
            # Orders fall: the impossible ones come first.
            wrong = int(np.count_nonzero(orders > MAX_ORDER - geometry.page_shift))
            for key in low[: min(wrong, 16)]:
                self.problem("KHO-MAP-006", f"key {int(key):#x} gives an impossible order", 0)
            starts, counts, orders = starts[wrong:], counts[wrong:], orders[wrong:]
        # Of each order the last run reaches farthest.
        last = np.append((orders[1:] != orders[:-1]).nonzero()[0], len(orders) - 1)
        if len(orders) and _beyond(geometry, starts[last], counts[last], orders[last]).any():
            far = _beyond(geometry, starts, counts, orders)
            for pa in starts[far][:16]:
                self.problem(
                    "KHO-MAP-004", f"preserved block {int(pa):#x} lies beyond any memory", int(pa)
                )
            starts, counts, orders = starts[~far], counts[~far], orders[~far]
        self.runs.add(starts, counts, orders)

    def first_visits(
        self, addresses: U64Array, prefixes: U64Array, seen: U64Array
    ) -> tuple[U64Array, U64Array]:
        """Drop nodes met before: the kernel never shares them, and a hostile map would."""
        rank = np.argsort(addresses, kind="stable")
        ascending = addresses[rank]
        fresh = np.ones(len(addresses), np.bool_)
        fresh[rank[1:][ascending[1:] == ascending[:-1]]] = False
        fresh &= ~_among(addresses, seen)
        for pa in addresses[~fresh][:64]:
            self.problem("KHO-MAP-002", f"map node {int(pa):#x} is reached twice", int(pa))
        return addresses[fresh], prefixes[fresh]

    def node_columns(self) -> tuple[U64Array, U64Array]:
        """(addresses, sizes) of the nodes met."""
        nodes = np.concatenate(self.nodes) if self.nodes else np.empty(0, np.uint64)
        counts = [len(part) for part in self.nodes]
        return nodes, np.repeat(np.array(self.node_sizes, np.uint64), counts)


def _beyond(
    geometry: RadixGeometry, starts: U64Array, counts: U64Array, orders: U8Array
) -> npt.NDArray[np.bool_]:
    """Which runs reach beyond any physical address."""
    reach = (counts - np.uint64(1)) << (orders + np.uint8(geometry.page_shift)).astype(np.uint64)
    far: npt.NDArray[np.bool_] = (starts | (starts + reach)) >> np.uint64(PHYSICAL_BITS) != 0
    return far


def _among(values: U64Array, ascending: U64Array) -> npt.NDArray[np.bool_]:
    """Which values occur in a sorted column."""
    if len(ascending) == 0:
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.asarray(ascending[at] == values)
