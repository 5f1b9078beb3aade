"""Translation of many input addresses at once, level by level."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Kind
from inspector.memory.base import PageState, PhysicalMemory
from inspector.pagetable.batch import or_and
from inspector.pagetable.columns import RangeColumns
from inspector.pagetable.plan import LevelPlan, level_plans
from inspector.pagetable.tree import Table

#: Addresses translated together.
_CHUNK: Final = 1 << 16
#: Below it, the tables between the lowest and the highest address are not looked up first.
_WINDOW: Final = 1 << 6


class TranslationState(enum.IntEnum):
    """What became of an input address."""

    UNMAPPED = 0
    MAPPED = 1
    #: A table on the way is outside memory or not in the image.
    MISSING = 2
    #: An entry on the way is invalid.
    INVALID = 3
    #: The address is not canonical, or has more bits than the tables translate.
    BEYOND = 4


@dataclass(frozen=True, slots=True)
class Translation(RangeColumns):
    """One row an input address: where it leads.

    ``iova`` as asked; ``pa`` of that very byte; ``size`` of the leaf that holds it, 0 unless
    mapped (in a contiguous group, that of the group where entries encode it);
    ``state``: a :class:`TranslationState` each.
    """

    state: npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Nodes:
    """How far lookups have come: the entry last read for each key.

    ``level``: that of the table to read next, -1 if there is none. ``found``: level of the
    leaf. ``codes``: the table rules in force.
    """

    pa: U64
    level: npt.NDArray[np.int8]
    entry: U64
    found: npt.NDArray[np.int8]
    state: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.uint8]

    def pick(self, which: npt.NDArray[np.intp]) -> _Nodes:
        return _Nodes(
            self.pa[which],
            self.level[which],
            self.entry[which],
            self.found[which],
            self.state[which],
            self.codes[which],
        )


class Translator:
    """Translates through one tree. Raises nothing for what the tables hold."""

    def __init__(self, memory: PhysicalMemory, tree: Table) -> None:
        self.memory = memory
        self.tree = tree
        self._plans = level_plans(tree.format, None)

    def translate(self, iovas: npt.ArrayLike) -> Translation:
        """Translate addresses; the columns are in their order."""
        asked = np.atleast_1d(np.asarray(iovas, np.uint64))
        count = len(asked)
        out = Translation(
            self.tree.format,
            asked,
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint8),
        )
        for first in range(0, count, _CHUNK):
            self._chunk(out, slice(first, first + _CHUNK))
        return out

    def _chunk(self, out: Translation, part: slice) -> None:
        iovas = out.iova[part]
        bits = self.tree.input_bits
        inside = None
        if int(iovas.max()) >> (bits - 1 if self.tree.sign_extend else bits):
            unused = np.uint64(64 - bits)
            within = (iovas << unused) >> unused
            extended = within
            if self.tree.sign_extend:
                extended = ((iovas << unused).view(np.int64) >> np.int64(64 - bits)).view(np.uint64)
            legal = extended == iovas
            if not legal.all():
                inside = np.flatnonzero(legal)
                out.state[part][~legal] = TranslationState.BEYOND
                within = within[inside]
            iovas = within
        if not len(iovas):
            return
        if inside is None and self._all_small(out, part, iovas):
            return
        nodes = self._look_up(0, iovas >> np.uint64(self._plans[0].shift))
        for name, column in self._results(iovas, nodes).items():
            target = getattr(out, name)[part]
            if inside is None:
                target[:] = column
            else:
                target[inside] = column

    def _all_small(self, out: Translation, part: slice, iovas: U64) -> bool:
        """Fill in a chunk if all its addresses are mapped by plain leaves of level 0."""
        plan, tree = self._plans[0], self.tree
        if not tree.top:
            return False
        keys = iovas >> np.uint64(plan.shift)
        bits = np.uint64(tree.format.index_bits)
        parents = keys >> bits
        low, high = int(parents.min()), int(parents.max())
        if high - low >= max(len(keys) // 2, 1):
            return False
        above = self._look_up(1, np.arange(low, high + 1, dtype=np.uint64))
        code = int(above.codes[0])
        if above.level.any() or (above.codes != code).any():
            return False  # not all point to tables of level 0
        parents -= np.uint64(low)
        address = above.pa.take(parents.view(np.int64), mode="clip")
        keys &= np.uint64(tree.format.entries - 1)
        keys <<= np.uint64(3)
        address += keys
        entries = self._read(address)
        some, every = or_and(entries)
        if (some ^ every) & plan.kind_mask or plan.kind(every) != Kind.LEAF:
            return False
        if plan.is_odd(some, every, code):
            return False
        pa = np.bitwise_and(iovas, np.uint64(plan.step - 1), out=out.pa[part])
        pa += plan.pa(entries)
        out.size[part] = plan.step
        out.state[part] = TranslationState.MAPPED
        if (some ^ every) & plan.attribute_sources:
            out.attributes[part] = plan.attributes_of(entries)
        else:
            out.attributes[part] = int(plan.attributes_of(entries[:1])[0])
        return True

    # -- going down ------------------------------------------------------------------

    def _look_up(self, level: int, keys: U64) -> _Nodes:
        """Entries of ``level`` (or leaves above it) for input addresses >> its shift."""
        tree = self.tree
        count = len(keys)
        if level == tree.top:
            nodes = _Nodes(
                np.full(count, tree.root, np.uint64),
                np.full(count, level, np.int8),
                np.zeros(count, np.uint64),
                np.full(count, -1, np.int8),
                np.zeros(count, np.uint8),
                np.zeros(count, np.uint8),
            )
            size = tree.start_entries * 8
            if self.memory.state(tree.root, size) is not PageState.PRESENT:
                nodes.level[:], nodes.state[:] = -1, TranslationState.MISSING
                return nodes
            self._step(level, keys, keys, nodes)
            return nodes
        bits = np.uint64(tree.format.index_bits)
        parents = keys >> bits
        low, high = int(parents.min()), int(parents.max())
        if high - low < max(count // 2, min(count, _WINDOW)):
            window = np.arange(low, high + 1, dtype=np.uint64)
            above = self._look_up(level + 1, window)
            at = (parents - np.uint64(low)).view(np.int64)
            nodes = above.pick(at)
        else:
            nodes = self._look_up(level + 1, parents)
        index = keys & np.uint64(tree.format.entries - 1)
        self._step(level, keys, index, nodes)
        return nodes

    def _step(self, level: int, keys: U64, index: U64, nodes: _Nodes) -> None:
        """Read the entries of ``level``, for the nodes whose next table has that level."""
        format, plan = self.tree.format, self._plans[level]
        going = nodes.level == level
        if not going.all():
            skipping = np.flatnonzero((nodes.level >= 0) & ~going)
            # The index bits of a level that is skipped must be zero.
            stray = skipping[index[skipping] != 0]
            nodes.level[stray] = -1
            some = np.flatnonzero(going)
            if not len(some):
                return
        else:
            some = None
        base = nodes.pa if some is None else nodes.pa[some]
        index = index if some is None else index[some]
        entries = self._read(base + (index << np.uint64(3)))
        kinds = plan.kind_of(entries)
        state = _STATES[kinds]
        found = np.where(state == TranslationState.MAPPED, np.int8(level), np.int8(-1))
        next_level = np.full(len(entries), -1, np.int8)
        pointer = np.flatnonzero(kinds == Kind.TABLE)
        if len(pointer):
            tables = format.table_pa(entries[pointer])
            base[pointer] = tables
            next_level[pointer] = level - 1
            if format.next_level is not None:
                named = entries[pointer] >> np.uint64(format.next_level) & np.uint64(7)
                next_level[pointer] = named.astype(np.int8) - np.int8(1)
            missing = self.memory.states(tables, 8 * format.entries) != PageState.PRESENT
            next_level[pointer[missing]] = -1
            state[pointer[missing]] = TranslationState.MISSING
            codes = nodes.codes if some is None else nodes.codes[some]
            for bit, rule in enumerate(format.table_rules):
                hit = (entries & np.uint64(rule.mask)) == rule.value
                codes |= (hit & (kinds == Kind.TABLE)).astype(np.uint8) << np.uint8(bit)
            if some is not None:
                nodes.codes[some] = codes
        if some is None:
            nodes.pa, nodes.entry, nodes.state = base, entries, state
            nodes.found, nodes.level = found, next_level
        else:
            nodes.pa[some], nodes.entry[some], nodes.state[some] = base, entries, state
            nodes.found[some], nodes.level[some] = found, next_level

    def _read(self, addresses: U64) -> U64:
        words: U64 = self.memory.gather(addresses, 8).reshape(-1).view("<u8")
        return words

    # -- results ---------------------------------------------------------------------

    def _results(self, iovas: U64, nodes: _Nodes) -> dict[str, npt.NDArray[np.generic]]:
        count = len(iovas)
        pa, size, attributes = (np.zeros(count, np.uint64) for _ in range(3))
        state = nodes.state
        for plan in self._plans[: self.tree.depth]:
            which = np.flatnonzero(nodes.found == plan.number)
            if not len(which):
                continue
            at = slice(None) if len(which) == count else which
            state[at] = self._leaves(plan, iovas, nodes, at, pa, size, attributes)
        return {"pa": pa, "size": size, "attributes": attributes, "state": state}

    def _leaves(
        self,
        plan: LevelPlan,
        iovas: U64,
        nodes: _Nodes,
        at: npt.NDArray[np.intp] | slice,
        pa: U64,
        size: U64,
        attributes: U64,
    ) -> npt.NDArray[np.uint8]:
        """Fill in the rows whose leaves are of one level; return their states."""
        format = plan.format
        entries, inside = nodes.entry[at], iovas[at]
        state = nodes.state[at]
        attributes[at] = plan.attributes_of(plan.words(entries, nodes.codes[at]))
        leaf_size = np.full(len(entries), plan.step, np.uint64)
        address = format.leaf_pa(plan.number, entries)
        group = np.flatnonzero(plan.kind_of(entries) == Kind.GROUP) if _groups(plan) else ()
        if len(group):
            leaf_size[group] = format.group_sizes(plan.number, entries[group])
            address[group] = format.table_pa(entries[group])
            address &= ~(leaf_size - np.uint64(1))
            state[leaf_size == 0] = TranslationState.INVALID
            leaf_size[leaf_size == 0] = 1
        pa[at] = address + (inside & (leaf_size - np.uint64(1)))
        size[at] = leaf_size
        invalid = state != TranslationState.MAPPED
        if invalid.any():
            rows = np.arange(len(iovas))[at][invalid]
            pa[rows] = size[rows] = attributes[rows] = 0
        return state


def _groups(plan: LevelPlan) -> bool:
    """Whether entries of a level may encode a size."""
    return Kind.GROUP in plan.kinds or bool(plan.kind_mask >> 63)


_STATES: Final = np.zeros(len(Kind), np.uint8)
_STATES[[Kind.LEAF, Kind.GROUP]] = TranslationState.MAPPED
_STATES[[Kind.BAD, Kind.BAD_SIZE]] = TranslationState.INVALID
