"""Which of the root FDTs in memory is meant: the incoming, the outgoing, or an older one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from abi import fdt
from abi.luo import LuoGeneration
from abi.registry import Generation
from inspector import detect
from inspector.budget import Budget, Cost
from inspector.image import NoRootError, Root
from inspector.locate import Candidate, How, Location
from inspector.memory.base import MemoryFault, PageState, PhysicalMemory
from inspector.survey import Survey
from inspector.walk import clients
from inspector.walk.fdt import read_tree
from inspector.walk.luo import Luo, walk_luo

#: Roots that are looked at.
_MOST = 8
#: Sessions and files of a root that are looked at to tell which root is meant.
_FILES = 1 << 14
#: Records that a kernel is given when it boots.
_BOOTED_FROM = (How.SETUP_DATA, How.CHOSEN)


def chosen_root(
    opened: PhysicalMemory,
    location: Location,
    overrides: Mapping[str, Generation],
    page_size: int | None,
) -> Root:
    """The root a user means. Raises NoRootError, which says why there is none."""
    if not location.candidates or _root_left_out(opened, location):
        raise NoRootError(_why_no_root(opened, location))
    usable: list[Root] = []
    for candidate in location.candidates[:_MOST]:
        found = _read_root(opened, candidate, overrides, page_size)
        if found is not None and found.verdict.trial is not None and len(location.candidates) > 1:
            found.verdict = replace(found.verdict, trial=found.verdict.trial.small())
        if found is not None:
            usable.append(found)
    if not usable:
        raise NoRootError("the pages of the KHO root are not in this image")
    return _best(opened, usable)


def _root_left_out(opened: PhysicalMemory, location: Location) -> bool:
    """Whether the root is in no page of the image: what else is there is an older one's."""
    if any(c.how is How.USER or _led_to(c) for c in location.candidates):
        return False
    return any(
        h.fdt_size and opened.state(h.fdt_address) is PageState.EXCLUDED
        for h in location.handovers
        if h.how in _BOOTED_FROM
    )


def _why_no_root(opened: PhysicalMemory, location: Location) -> str:
    for record in location.handovers:
        try:
            read_tree(opened, record.fdt_address, salvage=True)
        except (MemoryFault, fdt.FdtError) as error:
            others = ", ".join(f"{c.address:#x}" for c in location.candidates[:4])
            older = f", --root reads an older one ({others})" if others else ""
            return (
                f"no KHO root that can be read at {record.fdt_address:#x}, where {record.how}"
                f" leads: {error} ('kho compat IMAGE --to KERNEL' says what a kernel makes of it"
                f"{older})"
            )
    if opened.why_no_root:
        return f"no KHO root: {opened.why_no_root}"
    return (
        "no KHO root in this image (a page table in it can be decoded with"
        " 'kho pagetable --root PA --table FORMAT --levels N')"
    )


def _read_root(
    opened: PhysicalMemory,
    candidate: Candidate,
    overrides: Mapping[str, Generation],
    page_size: int | None,
) -> Root | None:
    try:
        tree = candidate.tree or read_tree(opened, candidate.address, salvage=True)
    except (MemoryFault, fdt.FdtError):
        return None
    verdict = detect.detect_kho(
        opened, tree.root, candidate, override=overrides.get("kho"), page_size=page_size
    )
    return Root(
        candidate.address, candidate.compatible, candidate, tree, verdict, verdict.map_address
    )


def _best(opened: PhysicalMemory, roots: list[Root]) -> Root:
    """The root a user means: see :func:`_promise`."""
    if len(roots) == 1 or roots[0].candidate.given:
        return roots[0]
    # Whether there are sessions is all that counts: the states of all roots are held together.
    surveys = {
        r.address: Survey(opened, r.verdict.page_size, budget=Budget({Cost.FILES: _FILES}))
        for r in roots
    }
    states = {r.address: _luo_of(surveys[r.address], r) for r in roots}
    for root in roots:
        known = states[root.address]
        if _recorded(root) and surveys[root.address].left_out and not _number(known):
            return root  # nothing can tell that another is of a later update
    last = max((_number(states[r.address]) for r in roots if _recorded(r)), default=0)
    return max(
        roots,
        key=lambda r: (
            _promise(r, states[r.address], surveys[r.address].left_out > 0)
            if _number(states[r.address]) >= last
            else -1,
            r.candidate.score,
        ),
    )


def _recorded(root: Root) -> bool:
    """Whether what a kernel boots from leads here."""
    return _led_to(root.candidate)


def _led_to(candidate: Candidate) -> bool:
    return any(h.how in _BOOTED_FROM for h in candidate.handovers)


def _number(luo: Luo | None) -> int:
    """Of which live update it is."""
    return 0 if luo is None or luo.number is None else luo.number


def _promise(root: Root, luo: Luo | None, left_out: bool) -> int:
    """How much a root offers.

    Sessions come first, with a map that still fits; then a hand-over record, which the
    empty root that a booted kernel prepares for its successor has not. A root of an update before
    the one that a record leads to offers nothing, whatever is left of it; what the dump
    ``left_out`` may have been sessions.
    """
    trial = root.verdict.trial
    fits = trial is not None and trial.candidate.fits
    handed = root.candidate.handovers or root.candidate.how is How.KHO_IN
    promise = (4 if handed else 0) + fits
    if left_out or (luo is not None and luo.sessions):
        promise += 8 + 5 * fits
    return promise


def _luo_of(survey: Survey, root: Root) -> Luo | None:
    """The sessions that a root leads to, as far as they can be read."""
    blobs = clients.walk_blobs(survey, root.generation, root.tree.root)
    blob = next((b for b in blobs if b.name == b"LUO"), None)
    raw = clients.read_client(survey, blob) if blob is not None else None
    if blob is None or raw is None:
        return None
    verdict = detect.detect_luo(raw, root.generation, root.verdict.page_size)
    generation = cast("LuoGeneration | None", verdict.generation)
    return walk_luo(survey, generation, blob.address, raw) if generation is not None else None
