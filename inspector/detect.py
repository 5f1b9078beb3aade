"""Which generation wrote a layer: evidence, ranking, and an honest tie.

A compatible string is not a layout. Every generation that a string may mean is tried; a
candidate that breaks a hard constraint loses to one that does not, and two that fit the
same bytes equally well are reported as a tie, of which the released one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from abi import fdt, registry
from abi.kho import KhoGeneration, MapKind
from abi.luo import LuoGeneration
from abi.registry import Generation
from abi.schema import PAGE_SIZES, resolve
from inspector.locate import Candidate as RootCandidate
from inspector.memory.base import PageState, PhysicalMemory
from inspector.survey import Survey
from inspector.walk.bitmap_chunks import pointers_behind
from inspector.walk.preserved import PreservedMap, walk_map

if TYPE_CHECKING:
    from inspector.image import Image

#: A trial walk that breaks this many rules is over.
TRIAL_LIMIT = 64
#: Runs of a map that a trial keeps.
_MOST_KEPT = 1 << 22


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generation on trial.

    ``violations`` are the hard constraints it breaks, ``reasons`` what speaks for it, ``broken``
    which part of all that is asked of it does not hold, from 0 to 1; ``score`` ranks candidates
    that are equal in that. So many of the violations as ``lacking`` says may be due to pages that
    the dump left out.
    """

    generation: Generation
    score: int = 0
    reasons: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    broken: float = 0.0
    lacking: int = 0

    @property
    def fits(self) -> bool:
        """Whether no hard constraint is broken, as far as the dump tells."""
        return len(self.violations) == self.lacking


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a layer was decoded as, and why.

    ``tied`` are other generations that the same bytes fit as well; ``how`` is ``override``,
    ``string`` (only one generation has it), ``evidence`` or ``unknown``.
    """

    layer: str
    generation: Generation | None
    candidates: tuple[Candidate, ...] = ()
    tied: tuple[Generation, ...] = ()
    how: str = "string"

    @property
    def certain(self) -> bool:
        """Whether nothing else fits as well."""
        return self.generation is not None and not self.tied


def decide(
    layer: str, candidates: Iterable[Candidate], override: Generation | None = None
) -> Verdict:
    """Rank candidates: fewest violations, then highest score, then released, then newest.

    Of equally many violations those weigh less that break a smaller part of what is asked: a
    placeholder that is none breaks its only constraint, a damaged structure one of many, and
    that for one object of many. What left-out pages may be the reason of weighs least.
    """
    ranked = sorted(
        enumerate(candidates),
        key=lambda item: (*_rank(item[1]), not item[1].generation.released, -item[0]),
    )
    listed = tuple(c for _, c in ranked)
    if override is not None:
        return Verdict(layer, override, listed, how="override")
    if not listed:
        return Verdict(layer, None, how="unknown")
    best = listed[0]
    tied = tuple(c.generation for c in listed[1:] if _rank(c) == _rank(best))
    return Verdict(
        layer, best.generation, listed, tied, "string" if len(listed) == 1 else "evidence"
    )


def _rank(candidate: Candidate) -> tuple[int, int, float, int]:
    count = len(candidate.violations)
    return count - candidate.lacking, count, round(candidate.broken, 6), -candidate.score


def by_string(layer: str, string: bytes, override: Generation | None = None) -> Verdict:
    """The verdict that a string alone allows."""
    named = registry.named(layer, string.decode("utf-8", "replace"))
    return decide(
        layer,
        [
            Candidate(
                g,
                int(g.released),
                (f"it says {_text(string)}", *(("released kernels write it",) * g.released)),
            )
            for g in named
        ],
        override,
    )


def note(image: Image, layer: str, verdict: Verdict) -> None:
    """Keep the verdict on a layer with the image; say so where it is a tie or nothing fits."""
    image.verdicts.setdefault(layer, verdict)
    findings = image.survey.findings
    if verdict.tied:
        assert verdict.generation is not None
        others = ", ".join(g.id for g in verdict.tied)
        findings.info(
            "KHO-GEN-001",
            f"{layer}: the bytes fit {verdict.generation.id} and {others} equally well",
            path="/LUO",
        )
    best = verdict.candidates[0] if verdict.candidates else None
    if best is None or not best.violations or verdict.how == "override":
        return
    if best.fits:
        image.survey.cannot_tell(
            "KHO-GEN-002", f"pages of {layer} state were left out of the image"
        )
    else:
        findings.warning(
            "KHO-GEN-002",
            f"{layer}: no known layout fits; {best.generation.id} does best,"
            f" but: {'; '.join(best.violations[:3])}",
            path="/LUO",
        )


# -- KHO: the root, the map and the page size -----------------------------------------------


@dataclass(frozen=True, slots=True)
class KhoTrial:
    """One walk of the map as one generation with one page size.

    ``cut_short`` says that the walk gave up, ``dropped`` that the runs of its map were not kept.
    """

    generation: KhoGeneration
    page_size: int
    mapped: bool
    preserved: PreservedMap
    anchors: int
    anchored: int
    candidate: Candidate
    #: What the walk recorded.
    survey: Survey
    cut_short: bool
    dropped: bool = False

    def small(self) -> KhoTrial:
        """Itself, without a very large map: many trials are held together."""
        if len(self.preserved.starts) <= _MOST_KEPT:
            return self
        return replace(self, preserved=self.preserved.without_runs(), dropped=True)


@dataclass(frozen=True, slots=True)
class KhoVerdict:
    """The root's generation and the page size, and how the map fared.

    ``map_address`` is what the root says; ``trial`` the winning walk, None where the
    generation is unknown. ``page_size_reasons`` say how the page size is known.
    """

    verdict: Verdict
    page_size: int
    page_size_certain: bool
    page_size_reasons: tuple[str, ...]
    map_address: int | None
    trial: KhoTrial | None


def detect_kho(
    memory: PhysicalMemory,
    root: fdt.Node,
    candidate: RootCandidate,
    *,
    override: Generation | None = None,
    page_size: int | None = None,
) -> KhoVerdict:
    """Try every generation the root's string may mean with every page size that is possible."""
    known = {g.id: g for name in candidate.compatible for g in registry.named("kho", _text(name))}
    if override is not None:
        known = {override.id: override}
    sizes, hints = _page_sizes(memory, candidate, page_size)
    anchors = [candidate.address, *_blob_addresses(root)]
    trials: list[KhoTrial] = []
    for generation in cast("Iterable[KhoGeneration]", known.values()):
        address = _u64(root.get(generation.map_property.encode()))
        for size in sizes:
            trial = _try(memory, generation, size, address, anchors, hints)
            trials.append(trial if len(known) == len(sizes) == 1 else trial.small())
    if not trials:
        size = sizes[0]
        reasons = tuple(hints.get(size, ())) or ("assumed: nothing tells",)
        return KhoVerdict(
            Verdict("kho", None, how="unknown"), size, size in hints, reasons, None, None
        )
    if any(t.mapped for t in trials):
        # A root without the property that a generation's map hangs on is not of it.
        trials = [t for t in trials if t.mapped]
    trials.sort(key=lambda t: _rank(t.candidate))
    best = trials[0]
    rivals = [t for t in trials[1:] if _equal(t, best)]
    verdict = decide("kho", _best_of_each(trials), override)
    if verdict.generation is not None:
        best = next((t for t in trials if t.generation is verdict.generation), best)
        same = [t for t in trials if t.generation is best.generation and _equal(t, best)]
        best = same[0]
    if best.dropped:
        address = _u64(root.get(best.generation.map_property.encode()))
        best = _try(memory, best.generation, best.page_size, address, anchors, hints)
    certain = all(t.page_size == best.page_size for t in rivals)
    why = list(hints.get(best.page_size, ()))
    others = sorted({t.page_size for t in trials} - {best.page_size})
    if not best.candidate.violations and others and certain:
        why.append(
            "the map does not walk with "
            + " or ".join(f"{size >> 10}K" for size in others)
            + " pages"
        )
    return KhoVerdict(
        verdict, best.page_size, certain or bool(hints.get(best.page_size)),
        tuple(why) or ("assumed: the map fits several page sizes",),
        _u64(root.get(best.generation.map_property.encode())), best,
    )  # fmt: skip


def _equal(a: KhoTrial, b: KhoTrial) -> bool:
    return _rank(a.candidate) == _rank(b.candidate)


def _best_of_each(trials: list[KhoTrial]) -> list[Candidate]:
    best: dict[str, Candidate] = {}
    for trial in trials:
        best.setdefault(trial.generation.id, trial.candidate)
    return list(best.values())


def _page_sizes(
    memory: PhysicalMemory, candidate: RootCandidate, given: int | None
) -> tuple[list[int], dict[int, list[str]]]:
    """Page sizes worth trying, the likeliest first, and what speaks for each."""
    hints: dict[int, list[str]] = {}
    if given is not None:
        return [given], {given: ["it was given"]}
    if memory.page_size is not None and memory.page_size in PAGE_SIZES:
        hints.setdefault(memory.page_size, []).append("the dump's header says so")
    if memory.machine == "x86_64":
        return [0x1000], {0x1000: ["x86-64 has no other"]}
    if any(handover.parent is not None for handover in candidate.handovers):
        return [0x1000], {0x1000: ["boot_params lead to it: x86-64 has no other"]}
    for handover in candidate.handovers:
        if handover.fdt_size in PAGE_SIZES:
            hints.setdefault(handover.fdt_size, []).append(
                f"the hand-over gives the root FDT {handover.fdt_size >> 10}K, one page"
            )
    possible = [size for size in PAGE_SIZES if candidate.address % size == 0]
    possible.sort(key=lambda size: size not in hints)
    return possible or [0x1000], hints


def _try(
    memory: PhysicalMemory,
    generation: KhoGeneration,
    page_size: int,
    address: int | None,
    anchors: list[int],
    hints: dict[int, list[str]],
) -> KhoTrial:
    survey = Survey(memory, page_size)
    reasons: list[str] = []
    violations: list[str] = []
    # An extract says what it was told besides: that makes it no likelier.
    score = 4 * bool(hints.get(page_size))
    mapped = address is not None
    if address is None:
        violations.append(f"the root has no property {generation.map_property}")
        address = 0
    preserved = walk_map(survey, generation, address, give_up_after=TRIAL_LIMIT)
    for code, count in preserved.problems.items():
        broken = "the list of its chunks is broken"  # said by the findings of the list
        example = next((f.message for f in survey.findings.items if f.code == code), broken)
        violations.append(f"{count} x {code}: {example}")
    lacking = 0
    if survey.given_up:
        lacking += 1
        violations.append("not all of the map is read")
    elif preserved.missing:
        lacking += survey.left_out > 0
        violations.append(f"{preserved.missing} map nodes are not in the image")
    if generation.map_kind is MapKind.BITMAP_PAGE and preserved.complete:
        pointers = pointers_behind(memory, preserved.nodes, page_size)
        if pointers:
            violations.append(
                f"{pointers} kernel pointers lie behind the first 512 bytes of its bitmaps"
            )
    pages = np.array(anchors, np.uint64)
    pages -= pages % np.uint64(page_size)
    covered = int(preserved.covers(pages, page_size).sum())
    if preserved.complete:
        score += 2
        reasons.append(f"its map walks: {preserved.block_count} blocks")
    if covered == len(anchors):
        score += 2
        reasons.append("the root and every blob are in the map")
    elif address:
        lacking += survey.left_out > 0 or survey.given_up > 0
        violations.append(f"{len(anchors) - covered} of {len(anchors)} blobs are not in the map")
    if generation.size_property is not None or generation.blob_property == "fdt":
        score += 1
    return KhoTrial(
        generation, page_size, mapped, preserved, len(anchors), covered,
        Candidate(
            generation, score, tuple(reasons), tuple(violations), lacking=lacking
        ), survey,
        sum(preserved.problems.values()) + preserved.missing >= TRIAL_LIMIT,
    )  # fmt: skip


def _blob_addresses(root: fdt.Node) -> list[int]:
    found = []
    for node in root.children:
        for name in (b"preserved-data", b"fdt"):
            address = _u64(node.get(name))
            if address:
                found.append(address)
    return found


def _u64(value: bytes | None) -> int | None:
    return fdt.native_u64(value) if value is not None and len(value) == 8 else None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def prefer(verdict: KhoVerdict, reason: str, wanted: Callable[[Generation], bool]) -> KhoVerdict:
    """Break a tie of the root's generation by evidence from another layer."""
    tied = [g for g in verdict.verdict.tied if wanted(g)]
    chosen = verdict.verdict.generation
    if not verdict.verdict.tied or chosen is None:
        return verdict
    keep = ([chosen] if wanted(chosen) else []) + tied
    if not keep:
        return verdict
    listed = tuple(
        replace(c, reasons=(*c.reasons, reason)) if wanted(c.generation) else c
        for c in verdict.verdict.candidates
    )
    return replace(
        verdict,
        verdict=replace(
            verdict.verdict, generation=keep[0], tied=tuple(keep[1:]), candidates=listed
        ),
    )


# -- LUO --------------------------------------------------------------------------------------


def detect_luo(
    blob: bytes, kho: Generation | None, page_size: int, override: Generation | None = None
) -> Verdict:
    """The generation of the LUO blob, from its bytes and what they can lead to.

    An FDT is of the FDT generations; else the string at its start decides; without a
    string the blob of the feature generation has its 128-byte header.
    """
    if override is not None:
        return Verdict("luo", override, how="override")
    known = cast("tuple[LuoGeneration, ...]", registry.generations("luo"))
    if blob[:4] == fdt.MAGIC_BYTES:
        return _detect_luo_fdt(blob, known)
    candidates = []
    for generation in known:
        if generation.root != "struct" or generation.features:
            continue
        # Compared as strings are: what lies behind the NUL does not count.
        string = blob[: generation.string_size].partition(b"\0")[0]
        if _text(string) in generation.strings:
            candidates.append(
                Candidate(generation, len(string), (f"the blob says {_text(string)}",))
            )
    if candidates:
        return decide("luo", candidates)
    features = next((g for g in known if g.features), None)
    if features is not None and _has_feature_header(features, blob, page_size):
        return decide("luo", [Candidate(features, reasons=("the blob has a feature header",))])
    return Verdict("luo", None, how="unknown")


def _has_feature_header(generation: LuoGeneration, blob: bytes, page_size: int) -> bool:
    luo_ser = resolve(generation.layouts["luo_ser"], page_size)
    if len(blob) < luo_ser.size:
        return False
    values = luo_ser.unpack(blob)
    return (
        not any(values["reserved"])
        and values["supp"] | values["req"] | values["active"] < 1 << 16
        and values["supp"] != 0
        and values["sessions_pa"] % page_size == 0
        and values["flbs_pa"] % page_size == 0
    )


def _detect_luo_fdt(blob: bytes, known: tuple[LuoGeneration, ...]) -> Verdict:
    try:
        root = fdt.parse(blob, salvage=True).root
    except fdt.FdtError:
        return Verdict("luo", None, how="unknown")
    names = {_text(n) for n in root.compatible}
    session = root.child(b"luo-session")
    session_names = {_text(n) for n in session.compatible} if session is not None else set()
    has_flb = root.child(b"luo-flb") is not None
    candidates = []
    for generation in known:
        if generation.root != "fdt" or not names & set(generation.strings):
            continue
        reasons, violations = [f"the blob says {', '.join(sorted(names))}"], []
        if session_names and not session_names & set(generation.strings):
            violations.append(f"its session node is {', '.join(sorted(session_names))}")
        if generation.flb != has_flb and "luo_ser" not in generation.layouts:
            violations.append("luo-flb node " + ("present" if has_flb else "missing"))
        candidates.append(Candidate(generation, 0, tuple(reasons), tuple(violations)))
    return decide("luo", candidates)


def readable(memory: PhysicalMemory, address: int, size: int) -> bool:
    """Whether ``size`` bytes at ``address`` are in the image."""
    return memory.state(address, size) is PageState.PRESENT
