"""Find the root of a hand-over in physical memory, with no symbols and no hint.

Where to look, in this order (DESIGN section 5): an address the user gives; the
``setup_data`` list of x86 ``boot_params`` (found by the magic of its header) and
``/chosen`` of a device tree; any page that starts with a device tree whose root is
``compatible = "kho-v..."``. On a live host the kernel's own records tell, and memory is searched
only where they do not. Once a root is known, the
32 bytes of ``struct kho_data`` that point to it are searched for, since on x86 the
boot_params that led there do not outlive early boot.

Several roots are normal (incoming, outgoing, stale): all are listed, ranked, with reasons.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from abi import boot, fdt
from abi.errors import UsageError
from inspector import progress
from inspector.memory.base import MemoryFault, PageState, PhysicalMemory, Region, U64Array
from inspector.memory.ranges import merged
from inspector.memory.scan import find_words
from inspector.text import plural, size_text
from inspector.tree_budget import TreeBudget, tree_size
from inspector.walk.fdt import MAX_SIZE, read_blob, try_tree

#: Smallest page size: roots, trees and boot_params start at a multiple of it.
STRIDE = 0x1000
#: More than anything else can add to a candidate's score.
_GIVEN = 1000
#: Present memory beyond this is not searched for kho_data (every word must be read).
KHO_DATA_SCAN_LIMIT = 16 << 30
_MAX_TREES = 4096
_MAX_TREE_BYTES = 256 << 20
_MAX_SETUP_DATA = 64
#: Records that are kept, of all and of those to one root; a machine leaves a handful.
_MAX_HANDOVERS, _MAX_FOR_ROOT = 4096, 64
#: Sizes that a record may give.
_MAX_SIZE = 1 << 16
_FEW_ROOTS, _FEW_RECORDS = 4, 64


class How(enum.StrEnum):
    """What led to a root or to a hand-over record."""

    USER = "address given"
    SETUP_DATA = "setup_data of boot_params"
    CHOSEN = "/chosen of a device tree"
    KHO_DATA = "struct kho_data found by scanning"
    KHO_IN = "kho_in of the running kernel"
    KHO_OUT = "kho_out of the running kernel"
    SCAN = "page scan"


@dataclass(frozen=True, slots=True)
class Handover:
    """What one kernel tells the next: addresses and sizes in bytes.

    ``address`` is where the record itself lies (kho_data, or the device tree), ``parent``
    the boot_params page that leads to it on x86.
    """

    how: How
    address: int
    fdt_address: int
    fdt_size: int
    scratch_address: int
    scratch_size: int
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible root FDT."""

    address: int
    compatible: tuple[bytes, ...]
    how: How
    handovers: tuple[Handover, ...] = ()
    reasons: tuple[str, ...] = ()
    score: int = 0
    #: The tree, where finding it meant parsing it.
    tree: fdt.Fdt | None = field(default=None, compare=False, repr=False)

    @property
    def handover(self) -> Handover | None:
        """The record that leads here, the most trustworthy first."""
        return self.handovers[0] if self.handovers else None

    @property
    def given(self) -> bool:
        """Whether the user insists on this one."""
        return self.score >= _GIVEN


@dataclass(slots=True)
class Location:
    """All that was found: ``candidates`` best first."""

    candidates: list[Candidate] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    #: boot_params pages with a setup_data list.
    boot_params: list[int] = field(default_factory=list)
    #: Nodes of those lists.
    setup_data: list[int] = field(default_factory=list)
    #: Whether such a list goes on in a page that the image lacks.
    cut: bool = False
    #: Device trees that a kernel boots from.
    device_trees: list[int] = field(default_factory=list)
    #: What was not looked at for want of a budget, a sentence each.
    unsearched: list[str] = field(default_factory=list)
    #: Addresses of trees that records lead to and that were not looked at for that reason.
    unread: set[int] = field(default_factory=set)


def locate(memory: PhysicalMemory, root: int | None = None) -> Location:
    """Every root in ``memory``, ranked by what points to it and what it says.

    ``root`` is an address the user insists on; UsageError if no device tree is there.
    """
    found = Location()
    named = _named(memory)
    if named:
        if root is not None:
            named = [_given(memory, root), *(c for c in named if c.address != root)]
        found.candidates = sorted(named, key=lambda c: (-c.score, c.address))
        return found
    size = memory.regions.present.bytes
    with progress.phase("looking for roots", size) as advance:
        trees = dict(_trees(memory, found, advance))
    with progress.phase("looking for boot parameters", size) as advance:
        _boot_params(memory, found, advance)
    if root is not None:
        tree = _given(memory, root).tree
        assert tree is not None
        trees = {root: tree, **trees}
    # A budget of its own: what lies about must not use up that of what a record leads to.
    budget = TreeBudget(memory, salvage=True)
    led = {h.fdt_address for h in found.handovers} - trees.keys()
    for address in sorted(led, key=lambda at: (tree_size(memory, at) or 0, at)):
        tree = budget.tree(address)
        if tree is not None:
            trees[address] = tree
    if budget.unread:
        found.unread = budget.unread
        found.unsearched.append(
            f"{plural(len(budget.unread), 'device tree')} that records lead to,"
            " behind others too large to be real"
        )
    unclaimed = set(trees) - {h.fdt_address for h in found.handovers}
    if unclaimed and memory.machine in (None, "x86_64"):
        with progress.phase("looking for hand-over records", size) as advance:
            _kho_data(memory, sorted(unclaimed), found, advance)
    if memory.aliased:
        found.unsearched.append(
            "addresses that show the same bytes of the file as a lower address do"
        )
    by_root: dict[int, list[Handover]] = {}
    for handover in found.handovers:
        by_root.setdefault(handover.fdt_address, []).append(handover)
    for address, tree in trees.items():
        records = tuple(by_root.get(address, ()))
        how = records[0].how if records else How.SCAN
        found.candidates.append(
            _ranked(
                Candidate(
                    address,
                    tree.root.compatible,
                    How.USER if address == root else how,
                    records,
                    tree=tree,
                )
            )
        )
    found.candidates.sort(key=lambda c: (-c.score, c.address))
    return found


def _named(memory: PhysicalMemory) -> list[Candidate]:
    """The roots that a running kernel names itself."""
    found = []
    for address, side in memory.kernel_roots.items():
        tree = try_tree(memory, address, salvage=True)
        if tree is not None and _is_root(tree):
            how = How.KHO_IN if side == "in" else How.KHO_OUT
            found.append(_ranked(Candidate(address, tree.root.compatible, how, tree=tree)))
    return found


def _given(memory: PhysicalMemory, root: int) -> Candidate:
    """The root at an address that the user insists on; UsageError if there is no tree."""
    tree = try_tree(memory, root, salvage=True)
    if tree is None:
        raise UsageError(f"there is no device tree at {root:#x}; without --root it is searched for")
    how = {"in": How.KHO_IN, "out": How.KHO_OUT}.get(memory.kernel_roots.get(root, ""), How.USER)
    found = _ranked(Candidate(root, tree.root.compatible, How.USER, tree=tree))
    return replace(found, how=how)


def _is_root(tree: fdt.Fdt) -> bool:
    return any(name.startswith(b"kho-v") for name in tree.root.compatible)


def _ranked(candidate: Candidate) -> Candidate:
    score, reasons = 0, []
    if candidate.how is How.USER:
        score += _GIVEN
        reasons.append("its address was given")
    if candidate.how in (How.KHO_IN, How.KHO_OUT):
        reasons.append(f"{candidate.how} points to it")
    reasons += [f"{h.how} at {h.address:#x} points to it" for h in candidate.handovers]
    score += 20 * min(len(candidate.handovers), 1)
    name = candidate.compatible[0] if candidate.compatible else b""
    if name.startswith(b"kho-v"):
        score += 1
        reasons.append(f"it says {name.decode('ascii', 'backslashreplace')}")
    return replace(candidate, score=score, reasons=tuple(reasons))


def _trees(
    memory: PhysicalMemory, found: Location, advance: progress.Advance
) -> Iterator[tuple[int, fdt.Fdt]]:
    """Root FDTs by page scan; device trees with /chosen properties become hand-overs."""
    budget, read = TreeBudget(memory), 0
    places = _places(memory, found, advance)
    for at, (size, address) in enumerate(places):
        read += size
        if read > _MAX_TREE_BYTES or budget.spent:
            found.unsearched.append(
                f"{plural(len(places) - at, 'device tree')} of {size_text(size)} and more: those"
                " before are too many or too large to be real"
            )
            break
        try:
            blob = read_blob(memory, address, MAX_SIZE)
        except (fdt.FdtError, MemoryFault):
            continue
        if b"kho-v" not in blob and b"linux,kho-fdt" not in blob:
            continue
        tree = budget.tree(address, blob)
        if tree is None:
            continue
        if _is_root(tree):
            yield address, tree
        handover = _chosen(tree, address)
        if handover is not None:
            found.device_trees.append(address)
            found.handovers.append(handover)
    found.device_trees.sort()
    found.handovers.sort(key=lambda h: h.address)


def _places(
    memory: PhysicalMemory, found: Location, advance: progress.Advance
) -> list[tuple[int, int]]:
    """Sizes and addresses of what looks like device trees; the small first, as roots are."""
    places: list[tuple[int, int]] = []
    magic = int.from_bytes(fdt.MAGIC_BYTES, "little")
    for seen, address in enumerate(find_words(memory, magic, STRIDE, progress=advance)):
        if seen >= _MAX_TREES:
            found.unsearched.append(f"device trees from {address:#x} on: too many lie before")
            break
        size = tree_size(memory, address)
        if size is not None and size <= MAX_SIZE:
            places.append((size, address))
    return sorted(places)


def _chosen(tree: fdt.Fdt, address: int) -> Handover | None:
    chosen = tree.root.child(b"chosen")
    if chosen is None:
        return None
    widths = fdt.cell_counts(tree.root)
    values = []
    for name in (boot.CHOSEN_KHO_FDT, boot.CHOSEN_KHO_SCRATCH):
        value = chosen.get(name)
        if value is None or len(value) != 4 * sum(widths):
            return None
        values.append(fdt.cells(value, *widths)[0])
    (root, size), (scratch, scratch_size) = values
    return Handover(How.CHOSEN, address, root, size, scratch, scratch_size)


def _boot_params(memory: PhysicalMemory, found: Location, advance: progress.Advance) -> None:
    magic = int.from_bytes(boot.HDRS_MAGIC, "little")
    pages = find_words(memory, magic, STRIDE, offset=boot.HDRS_OFFSET, progress=advance)
    walked: set[int] = set()
    to_root: Counter[int] = Counter()
    for seen, at in enumerate(pages):
        if seen >= _MAX_TREES or len(found.handovers) >= _MAX_HANDOVERS:
            found.unsearched.append(f"boot_params from {at:#x} on: too many lie before")
            break
        page = at - at % STRIDE
        try:
            node = int.from_bytes(memory.read(page + boot.SETUP_DATA_OFFSET, 8), "little")
        except MemoryFault:
            continue
        if node:
            found.boot_params.append(page)
        for _ in range(_MAX_SETUP_DATA):
            if not node or node >> 52 or node in walked:
                break
            walked.add(node)
            try:
                head = boot.setup_data_hdr.unpack(memory.read(node, boot.setup_data_hdr.size))
                found.setup_data.append(node)
                if head["type"] == boot.SETUP_KEXEC_KHO and head["len"] >= boot.kho_data.size:
                    at = node + boot.setup_data_hdr.size
                    handover = _record(memory, at, How.SETUP_DATA, page)
                    if handover is not None and to_root[handover.fdt_address] < _MAX_FOR_ROOT:
                        to_root[handover.fdt_address] += 1
                        found.handovers.append(handover)
            except MemoryFault as fault:
                found.cut |= fault.state is PageState.EXCLUDED
                break
            node = head["next"]


def _record(
    memory: PhysicalMemory, at: int, how: How, parent: int | None = None
) -> Handover | None:
    try:
        data = boot.kho_data.unpack(memory.read(at, boot.kho_data.size))
    except MemoryFault:
        return None
    return Handover(
        how, at, data["fdt_addr"], data["fdt_size"], data["scratch_addr"],
        data["scratch_size"], parent,
    )  # fmt: skip


def _kho_data(
    memory: PhysicalMemory, roots: list[int], found: Location, advance: progress.Advance
) -> None:
    """kho_data records that point to one of ``roots``: {root, one page, scratch, 16 n}."""
    wanted = np.array(roots, np.uint64)
    read, limit = 0, len(found.handovers) + _MAX_HANDOVERS
    for start, view in memory.distinct():
        read += len(view)
        if read > KHO_DATA_SCAN_LIMIT:
            found.unsearched.append(f"hand-over records from {start:#x} on: more than 16 GiB")
            break
        skip = -start % 8
        words = np.frombuffer(view[skip : skip + (len(view) - skip) // 8 * 8], "<u8")
        for i in _records_in(words, wanted):
            handover = _record(memory, start + skip + 8 * i, How.KHO_DATA)
            if handover is not None and _plausible(handover):
                found.handovers.append(handover)
                if len(found.handovers) >= limit:
                    found.unsearched.append(
                        f"hand-over records behind {handover.address:#x}: too many lie before"
                    )
                    return
        advance(len(view))


def _records_in(words: U64Array, wanted: U64Array) -> list[int]:
    """Where a record that points to one of ``wanted`` may begin; ``wanted`` is ascending."""
    if len(wanted) <= _FEW_ROOTS:
        places = [(words == root).nonzero()[0] for root in wanted]
        at = places[0] if len(places) == 1 else np.sort(np.concatenate(places))
    else:
        # One comparison for all, and a search of what lies in between.
        at = (words - wanted[0] <= wanted[-1] - wanted[0]).nonzero()[0]
        near = wanted[np.searchsorted(wanted, words[at])]
        at = at[words[at] == near]
    if len(at) > _FEW_RECORDS:  # worth a look at all of their sizes together
        inside = at[at < len(words) - 3]
        sizes, scratch = words[inside + 1], words[inside + 3]
        good = (sizes - np.uint64(1) < _MAX_SIZE) & (scratch - np.uint64(1) < _MAX_SIZE)
        at = np.concatenate((inside[good], at[at >= len(words) - 3]))
    places_found: list[int] = at.tolist()
    return places_found


def _plausible(record: Handover) -> bool:
    return (
        0 < record.fdt_size <= _MAX_SIZE
        and 0 < record.scratch_size <= _MAX_SIZE
        and record.scratch_size % 16 == 0
        and record.scratch_address != 0
        and record.scratch_address % 16 == 0
        and record.scratch_address >> 52 == 0
    )


def ram_of(memory: PhysicalMemory, location: Location) -> tuple[Region, ...] | None:
    """The machine's RAM as the hand-over itself tells it, or None.

    From the e820 table of boot_params, or the memory nodes of the device tree; else, of a
    running kernel or an extract of its memory, all that it has, kept or left out.
    """
    for page in location.boot_params:
        try:
            count = memory.read(page + boot.E820_COUNT_OFFSET, 1)[0]
            raw = memory.read(page + boot.E820_TABLE_OFFSET, 20 * min(count, boot.E820_MAX))
        except MemoryFault:
            continue
        entries = [
            (
                int.from_bytes(raw[i : i + 8], "little"),
                int.from_bytes(raw[i + 8 : i + 16], "little"),
            )
            for i in range(0, len(raw), 20)
            if int.from_bytes(raw[i + 16 : i + 20], "little") == boot.E820_TYPE_RAM
        ]
        if entries:
            return tuple(Region(start, size) for start, size in sorted(entries))
    for address in location.device_trees:
        tree = try_tree(memory, address)
        if tree is None:
            continue
        widths = fdt.cell_counts(tree.root)
        regions = []
        for node in tree.root.children:
            value = node.get(b"reg")
            if (
                node.get(b"device_type") == b"memory\0"
                and value
                and not (len(value) % (4 * sum(widths)))
            ):
                regions += [Region(start, size) for start, size in fdt.cells(value, *widths)]
        if regions:
            return tuple(sorted(regions, key=lambda r: r.start))
    if memory.kind == "live" or memory.kernel_roots:
        whole = merged((region.start, region.size) for region in memory.regions)
        return tuple(Region(start, size) for start, size in whole)
    return None
