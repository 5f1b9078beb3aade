"""Which posting wrote the IOMMU state, the iommufd files, the PCI state and the VFIO files.

Every compatible string of these layers names several layouts. Each candidate is walked as
a trial and held against what any kernel's output must satisfy: pointers, chains, counts,
reserved bytes, flags, and above all references between objects, which must hit the start
of an object. That last one tells strides apart as soon as there are two objects of a kind.
With one object the trailing members of a layout are unknowable: a tie, and said so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from abi import registry
from abi.iommu import DELETED, INCOMING, Counting, Header, IommuGeneration
from abi.iommufd import IommufdGeneration
from abi.registry import Generation
from inspector.budget import Budget
from inspector.budget import trial as trial_budget
from inspector.detect import Verdict, decide
from inspector.evidence import Evidence, Mask, Plausibility, order
from inspector.findings import Findings
from inspector.memory.base import PageState, U64Array
from inspector.survey import Survey
from inspector.walk.iommu import IommuState, Objects, walk_iommu
from inspector.walk.iommufd import Iommufd, walk_iommufd

_KERNEL_POINTER = np.uint64(0xFFFF << 48)
_MAX_REF_COUNT = 1 << 20
_MAX_LEVEL = 5
#: Findings of a trial walk that no kernel's output gives rise to.
_STRUCTURE = {
    "KHO-LST-001": "no page is reached twice",
    "KHO-LST-002": "no page is shared",
    "KHO-LST-003": "the chains end",
    "KHO-LST-004": "the chains end",
    "KHO-MEM-003": "addresses are within the machine's",
    "KHO-MEM-004": "pointers to pages are aligned",
    "KHO-LST-005": "counts are within capacity",
    "KHO-LST-006": "every page before the last is full",
    "KHO-LST-008": "there are as many pages as the counts need",
    "KHO-IOM-001": "the version is known",
    "KHO-IOM-002": "no array pointer is 0",
    "KHO-IOM-003": "objects know their index",
}


@dataclass(frozen=True, slots=True)
class Anchors:
    """What other layers say about this one: the domain addresses that HWPTs name.

    One column for each reading of the iommufd files that is possible.
    """

    domain_data: tuple[U64Array, ...] = ()


def trial_survey(survey: Survey, budget: Budget | None = None) -> Survey:
    """A survey of the same memory that keeps nothing but a few findings."""
    return Survey(
        survey.memory, survey.page_size, Findings(per_code=4), budget=budget or trial_budget()
    )


def detect_iommu(
    survey: Survey,
    likely: Plausibility,
    string: str,
    address: int,
    anchors: Anchors = Anchors(),
    override: Generation | None = None,
) -> Verdict:
    """The verdict on the IOMMU state at ``address`` whose FLB has the name ``string``."""
    tried: list[tuple[Generation, Evidence, int]] = []
    for rank, generation in enumerate(registry.named("iommu", string)):
        generation = cast("IommuGeneration", generation)
        if generation.decodable:
            evidence = judge_iommu(survey, likely, generation, address, anchors)
            partial = generation.id.endswith(("-base", "-partial"))
            tried.append((generation, evidence, rank - 100 * partial))
    return decide("iommu", order(tried), override)


def judge_iommu(
    survey: Survey,
    likely: Plausibility,
    generation: IommuGeneration,
    address: int,
    anchors: Anchors = Anchors(),
) -> Evidence:
    """What walking the state as one generation shows."""
    evidence = Evidence()
    trial = trial_survey(survey)
    state = walk_iommu(trial, generation, address, "/trial")
    evidence.constraint("the root can be read", state is not None, lacking=trial.left_out > 0)
    if state is None:
        return evidence
    met = {f.code for f in trial.findings.items}
    examples = {f.code: f.message for f in reversed(trial.findings.items)}
    for code, rule in _STRUCTURE.items():
        if code in met:
            evidence.violation(f"{rule}: {examples[code]}")
    if "KHO-LST-008" in trial.undecided:
        evidence.violation(_STRUCTURE["KHO-LST-008"], lacking=trial.left_out > 0)
    elif not met & set(_STRUCTURE):
        evidence.reasons.append("the three chains walk to their ends")
    for objects in (state.units, state.domains, state.devices):
        _headers(evidence, objects)
    _units(evidence, state)
    _domains(evidence, likely, state)
    _devices(evidence, state)
    _references(evidence, state, anchors)
    _hints(evidence, trial, state)
    return evidence


def _name(objects: Objects) -> str:  # type: ignore[type-arg]
    return objects.kind.name


def _headers(evidence: Evidence, objects: Objects) -> None:  # type: ignore[type-arg]
    if not len(objects):
        return
    what = _name(objects)
    generation = objects.generation
    if generation.header is Header.FLAGS:
        flags = objects.columns["flags"]
        known = (flags & ~np.uint32(DELETED | INCOMING)) == 0
        evidence.constraint(f"flags of {what} are known", known, lambda i: hex(int(flags[i])))
    else:
        nested = "obj" if generation.header is Header.INDEX_BITS else "hdr"
        state = objects.array.records[nested]["state"]
        evidence.constraint(f"unused flag bits of {what} are 0", (state & 0xFC) == 0)
    count = objects.column("ref_count")
    sane = (count < _MAX_REF_COUNT) & (objects.deleted | (count > 0))
    evidence.constraint(f"reference counts of {what} are sane", sane, lambda i: int(count[i]))
    for name, column in objects.columns.items():
        if name.endswith("padding") and objects.types is None:
            evidence.constraint(f"padding of {what} is 0", (column == 0).all(axis=-1))
    if "sign_extend_bits" in (objects.array.records.dtype.names or ()):
        bits = objects.array.records["sign_extend_bits"]
        evidence.constraint(f"unused bits of {what} are 0", bits <= 1)


def _units(evidence: Evidence, state: IommuState) -> None:
    units = state.units
    if not len(units):
        return
    kinds = units.column("type").astype(np.uint64)
    highest = 2 if "smmuv3" in state.generation.unit_views or not units.views else 1
    evidence.constraint("types of units are known", kinds <= highest, lambda i: int(kinds[i]))
    token = units.column("token")
    evidence.constraint("tokens of units are register bases", (token != 0) & (token % 0x1000 == 0))


def _domains(evidence: Evidence, likely: Plausibility, state: IommuState) -> None:
    domains = state.domains
    if not len(domains):
        return
    live = ~domains.deleted
    table = domains.column("top_table_phys").astype(np.uint64)
    good = likely.aligned(table) & (~live | (table != 0))
    good[live] &= likely.known(table[live])
    evidence.constraint("top tables are pages of memory", good, lambda i: hex(int(table[i])))
    level = domains.column("top_level")
    evidence.constraint("top levels are sane", level <= _MAX_LEVEL, lambda i: int(level[i]))
    restored = domains.column("restored_domain")
    pointer = (restored == 0) | (restored >= _KERNEL_POINTER)
    evidence.constraint(
        "restored_domain is empty or a kernel pointer", pointer, lambda i: hex(int(restored[i]))
    )
    if "vasz" in domains.columns:
        vasz, sign = domains.columns["vasz"], domains.columns["sign_extend"]
        evidence.constraint(
            "input address widths are sane", (vasz > 0) & (vasz <= 64), lambda i: int(vasz[i])
        )
        evidence.constraint("sign_extend is 0 or 1", sign <= 1)


def _devices(evidence: Evidence, state: IommuState) -> None:
    devices = state.devices
    if not len(devices):
        return
    devid = devices.column("devid")
    evidence.constraint("device ids have 16 bits", devid <= 0xFFFF, lambda i: hex(int(devid[i])))
    attachment = devices.column("attachment_id")
    evidence.constraint(
        "attachment ids are sane", attachment < 1 << 20, lambda i: hex(int(attachment[i]))
    )
    if "type" in devices.columns:
        kinds = devices.columns["type"]
        evidence.constraint("types of devices are known", kinds <= 1, lambda i: int(kinds[i]))


def _references(evidence: Evidence, state: IommuState, anchors: Anchors) -> None:
    devices = state.devices
    for name, target in (("domain_phys", state.domains), ("iommu_phys", state.units)):
        if not len(devices):
            break
        _hits(evidence, name, devices, target)
    if any(len(column) for column in anchors.domain_data):
        best = max(anchors.domain_data, key=lambda c: _share(state.domains.array.find(c) >= 0))
        hits = state.domains.array.find(best) >= 0
        evidence.constraint(
            "domain_data of HWPTs hits a domain", hits, lambda i: hex(int(best[i])),
            lacking=state.domains.array.cut,
        )  # fmt: skip


def _hits(
    evidence: Evidence,
    name: str,
    devices: Objects,  # type: ignore[type-arg]
    target: Objects,  # type: ignore[type-arg]
) -> None:
    pointer = devices.column(name).astype(np.uint64)
    # A preserve that failed half way leaves a deleted slot that may be empty.
    good = (target.array.find(pointer) >= 0) | (devices.deleted & (pointer == 0))
    evidence.constraint(
        f"{name} of devices hits an object", good, lambda i: hex(int(pointer[i])),
        lacking=target.array.cut,
    )  # fmt: skip


def _share(mask: Mask) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _hints(evidence: Evidence, trial: Survey, state: IommuState) -> None:
    for objects in (state.units, state.domains, state.devices):
        if len(objects):
            spare = objects.array.slack(trial).any()
            evidence.hint(f"nothing but zeros behind the last of the {_name(objects)}"
                          if not spare else
                          f"there are bytes behind the last of the {_name(objects)}",
                          not spare)  # fmt: skip
    units = state.units
    if "intel.phys_addr" in units.columns and len(units):
        intel = units.column("type") == 1
        same = units.columns["intel.phys_addr"] == units.column("token")
        if intel.any():
            evidence.hint("register bases are there twice", bool(same[intel].all()))


# -- iommufd ----------------------------------------------------------------------------------


def domain_data_readings(survey: Survey, addresses: Sequence[int]) -> Anchors:
    """The domain addresses in iommufd files, in each way the files can be read."""
    readings = [
        _domain_data(survey, generation, addresses)
        for generation in _iommufd_generations()
        if generation.entry is not None
    ]
    return Anchors(tuple(r for r in readings if r is not None))


def _domain_data(
    survey: Survey, generation: IommufdGeneration, addresses: Sequence[int]
) -> U64Array | None:
    """The domain addresses if files are of a generation; None if one of them cannot be."""
    columns: list[U64Array] = []
    budget = trial_budget()
    for address in addresses:
        trial = trial_survey(survey, budget)
        state = walk_iommufd(trial, generation, address, "/trial")
        if trial.given_up:
            break  # those so far tell enough
        if state is None or not state.complete:
            return None
        columns.append(state.records["domain_data"].astype(np.uint64))
    return np.concatenate(columns) if columns else None


def _iommufd_generations() -> Iterable[IommufdGeneration]:
    return cast("Iterable[IommufdGeneration]", registry.generations("iommufd"))


def detect_iommufd(
    survey: Survey,
    likely: Plausibility,
    string: str,
    addresses: Sequence[int],
    iommu: IommuState | None,
    override: Generation | None = None,
) -> Verdict:
    """The verdict on all iommufd files of an image together: one kernel wrote them."""
    companion = _companion(iommu.generation if iommu else None)
    tried: list[tuple[Generation, Evidence, int]] = []
    for rank, generation in enumerate(registry.named("iommufd", string)):
        generation = cast("IommufdGeneration", generation)
        evidence = _judge_iommufd(survey, likely, generation, addresses, iommu)
        if companion:
            evidence.hint(
                f"it goes with {iommu.generation.id if iommu else ''}", generation.id == companion
            )
        tried.append((generation, evidence, rank))
    return decide("iommufd", order(tried), override)


def _companion(generation: IommuGeneration | None) -> str:
    """The form of the iommufd files in the same posting as a form of the IOMMU state."""
    if generation is None:
        return ""
    return "iommufd-13" if generation.counting is Counting.GLOBAL else "iommufd-24"


def _has_domains(iommu: IommuState | None) -> bool:
    return iommu is not None and any(True for _ in iommu.domains.live())


def _behind_count(survey: Survey, generation: IommufdGeneration, address: int) -> bytes:
    """What follows the header of an iommufd in its (zeroed) page, as far as it can be read."""
    first = address + generation.root.size
    size = -first % survey.page_size
    if survey.memory.state(first, size) is not PageState.PRESENT:
        return b""
    return bytes(survey.memory.read(first, size))


def _judge_iommufd(
    survey: Survey,
    likely: Plausibility,
    generation: IommufdGeneration,
    addresses: Sequence[int],
    iommu: IommuState | None,
) -> Evidence:
    evidence = Evidence()
    if generation.entry is None:
        memory = survey.memory
        words = [memory.read(a, 8) for a in addresses if memory.state(a, 8) is PageState.PRESENT]
        pointers = np.frombuffer(b"".join(words), "<u8")
        aligned = pointers & np.uint64(7) == 0
        placeholder = (pointers == 0) | (pointers >= _KERNEL_POINTER) & aligned
        evidence.constraint("the placeholder is empty or a kernel pointer", placeholder)
        # It keeps nothing, so to read an iommufd as one never goes wrong otherwise.
        evidence.constraint("there are no preserved domains for it", not _has_domains(iommu))
        return evidence
    states: list[Iommufd] = []
    trial = trial_survey(survey)
    for number, address in enumerate(addresses):
        state = walk_iommufd(trial, generation, address, "/trial")
        if trial.given_up:
            addresses = addresses[:number]  # those so far tell enough
            break
        if state is not None:
            states.append(state)
    lacking = trial.left_out > 0
    evidence.constraint("every header can be read", len(states) == len(addresses), lacking=lacking)
    evidence.constraint(
        "as many HWPTs as counted",
        np.array([s.complete for s in states], np.bool_),
        lambda i: states[i].nr_hwpts,
        lacking=lacking,
    )
    empty = [s.address for s in states if not s.nr_hwpts]
    unused = [not any(_behind_count(survey, generation, address)) for address in empty]
    evidence.constraint("nothing lies behind a count of 0", np.array(unused, np.bool_))
    states = [s for s in states if len(s.records)]
    if not states:
        return evidence
    # Of more than there can be, what lies behind the first is anybody's.
    records = np.concatenate([s.records if s.complete else s.records[:1] for s in states])
    data = records["domain_data"].astype(np.uint64)
    if iommu is not None:
        hits = iommu.domains.array.find(data) >= 0
        evidence.constraint(
            "domain_data hits a domain", hits, lambda i: hex(int(data[i])),
            lacking=iommu.domains.array.cut,
        )  # fmt: skip
    else:
        evidence.constraint("domain_data is in memory", likely.known(data) & (data != 0))
    evidence.constraint("reclaimed is 0 or 1", records["reclaimed"] <= 1)
    if "padding" in (records.dtype.names or ()):
        evidence.constraint("padding is 0", (records["padding"] == 0).all(axis=1))
    whole = [s for s in states if s.complete]
    unique = [len(np.unique(s.records["token"])) == len(s.records) for s in whole]
    evidence.constraint("tokens are unique in a file", np.array(unique, np.bool_))
    return evidence
