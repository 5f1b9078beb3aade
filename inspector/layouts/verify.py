"""Verify a kernel's layouts against the schemas.

For each layer that a kernel has: which generation fits, what deviates, and above all whether
a struct or a constant changed while its compatible string did not.
"""

from __future__ import annotations

from dataclasses import dataclass

from abi import registry
from abi.errors import UsageError
from abi.registry import Generation
from inspector.layouts.compare import (
    COVERED_BY,
    Change,
    ChangeKind,
    Side,
    Verdict,
    diff_structs,
    judge,
    layer_strings,
    listed,
    side_of_generation,
    side_of_kernel,
)
from inspector.layouts.measure import SERIALIZED, known_structs
from inspector.layouts.measured import KERNEL_NAMES, MeasuredKernel

#: Kernel structs that say nothing about the hand-over by being there.
_EVERYWHERE = frozenset({*KERNEL_NAMES.values(), "kho_data"})
DEFAULT_PAGE_SIZE = 0x1000


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of one kernel.

    ``generation`` fits best, ``also`` fit as well. ``strings`` are the kernel's own for this
    layer (None: not known). ``matched`` names the structs that agree, ``missing`` those that
    the generation has and the kernel does not describe.
    """

    layer: str
    verdict: Verdict
    generation: Generation
    also: tuple[Generation, ...]
    strings: frozenset[str] | None
    announced: bool | None
    changes: tuple[Change, ...]
    matched: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All layers of one kernel. ``unknown``: structs that look serialized and have no schema."""

    kernel: MeasuredKernel
    page_size: int
    layers: tuple[LayerReport, ...]
    unknown: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the layers."""
        order = list(Verdict)
        return max((r.verdict for r in self.layers), key=order.index, default=Verdict.NO_CHANGE)

    @property
    def exit_status(self) -> int:
        """0: all fits; 1: differences that harm no reader; 4: incompatible."""
        return self.verdict.exit_status


def verify(
    kernel: MeasuredKernel,
    *,
    generations: dict[str, Generation] | None = None,
    page_size: int | None = None,
) -> Report:
    """Compare a kernel with the schemas.

    :param generations: by layer, what the kernel is meant to be; without, each layer is
        compared with the generation that its strings name, or that fits best.
    :param page_size: if the kernel's own structs do not tell it.
    """
    size = page_size or kernel.page_size or DEFAULT_PAGE_SIZE
    release = ".".join(kernel.release.split(".")[:2])
    reports = []
    for layer in registry.LAYERS:
        wanted = (generations or {}).get(layer)
        if generations and wanted is None:
            continue
        side = side_of_kernel(kernel, layer)
        if wanted is None and not _present(layer, side):
            continue
        candidates = (wanted,) if wanted else registry.generations(layer)
        reports.append(_verify_layer(layer, side, candidates, size, release))
    unknown = sorted(n for n in kernel.structs if SERIALIZED.match(n) and n not in known_structs())
    return Report(kernel, size, tuple(reports), tuple(unknown))


def resolve_generation(text: str) -> dict[str, Generation]:
    """Generations by layer out of ``LAYER=ID``, a bare id, or a kernel release such as ``7.3``.

    :raises UsageError: nothing is called so.
    """
    if "=" in text:
        return registry.parse_overrides([text])
    release = text.removeprefix("linux-").removeprefix("v")
    by_kernel = {layer: registry.of_kernel(layer, release) for layer in registry.LAYERS}
    found = {layer: g for layer, g in by_kernel.items() if g is not None}
    if found:
        return found
    by_id = {g.layer: g for g in registry.every() if g.id == text}
    if len(by_id) > 1:
        choices = ", ".join(map(str, by_id.values()))
        raise UsageError(f"{text!r} is the id of several generations: {choices}")
    if not by_id:
        raise UsageError(f"no kernel release and no generation is called {text!r}")
    return by_id


def _present(layer: str, side: Side) -> bool:
    if side.structs.keys() - _EVERYWHERE:
        return True
    has_layouts = any(g.layouts for g in registry.generations(layer))
    return not has_layouts and any("-v" in s for s in side.strings or ())


@dataclass(frozen=True, slots=True)
class _Fit:
    generation: Generation
    side: Side
    changes: list[Change]
    missing: tuple[str, ...]
    extra: int
    agreeing: int
    unexplained: int
    named: int
    absent: int
    other_release: bool

    @property
    def breaks(self) -> int:
        return sum(c.breaks for c in self.changes)

    @property
    def rank(self) -> tuple[int, ...]:
        foreign = len(self.missing) + self.extra
        return (
            self.breaks,
            self.absent,
            foreign,
            len(self.changes),
            -self.agreeing,
            self.other_release,
            not self.generation.released,
        )


def _fit(generation: Generation, kernel: Side, page_size: int, release: str) -> _Fit:
    side = side_of_generation(generation, page_size)
    changes: list[Change] = []
    missing: list[str] = []
    extra = 0
    for change in diff_structs(side.structs, kernel.structs):
        if change.kind is ChangeKind.STRUCT_REMOVED:
            missing.append(change.struct)
        elif change.kind is ChangeKind.STRUCT_ADDED:
            extra += 1
        else:
            changes.append(change)
    common = side.constants.keys() & kernel.constants.keys()
    for name in sorted(common):
        meant, found = side.constants[name], kernel.constants[name]
        if meant != found:
            message = f"{name} is {found}, should be {meant}"
            changes.append(Change(ChangeKind.CONSTANT, name, "", message, True))
    strings = kernel.strings or frozenset()
    versioned = {s for s in strings if "-v" in s}
    return _Fit(
        generation,
        side,
        changes,
        tuple(missing),
        extra=extra,
        agreeing=len(common) + len(side.structs.keys() & kernel.structs.keys()),
        unexplained=len(versioned - set(generation.strings)),
        named=len(strings & set(generation.strings)),
        absent=len(set(generation.strings) - strings) if strings else 0,
        other_release=release not in generation.kernels,
    )


def _verify_layer(
    layer: str,
    kernel: Side,
    candidates: tuple[Generation, ...],
    page_size: int,
    release: str,
) -> LayerReport:
    fits = [_fit(g, kernel, page_size, release) for g in candidates]
    claimed = _claimed(layer, kernel, fits)
    best = min(claimed or fits, key=lambda f: f.rank)
    ties = [f for f in claimed or fits if f is not best and f.rank[:6] == best.rank[:6]]
    announced = _announced(layer, kernel, best, bool(claimed))
    changes = list(best.changes)
    if best.side.structs and not best.side.structs.keys() - _EVERYWHERE & kernel.structs.keys():
        # Only where a generation was demanded: nothing to compare is not the same as fitting.
        message = f"this kernel has no struct of layer {layer}"
        changes.append(Change(ChangeKind.STRUCT_REMOVED, layer, "", message, True))
        announced = None
    elif announced:
        message = (
            f"the kernel's strings are {listed(kernel.cover or ())}, "
            f"those of {best.generation} {listed(best.side.cover or ())}"
        )
        changes.append(Change(ChangeKind.STRING, "compatible", "", message, True))
    compared = best.side.structs.keys() & kernel.structs.keys()
    changed = {c.struct for c in changes if c.kind is not ChangeKind.AMBIGUOUS}
    return LayerReport(
        layer,
        judge(changes, announced),
        best.generation,
        tuple(f.generation for f in ties),
        kernel.strings,
        announced,
        tuple(changes),
        tuple(sorted(compared - changed)),
        best.missing,
    )


def _claimed(layer: str, kernel: Side, fits: list[_Fit]) -> list[_Fit]:
    """The fits that the kernel's strings name; all of them where strings decide nothing."""
    own = kernel.strings
    if not own or layer in COVERED_BY or not any(f.generation.strings for f in fits):
        return fits
    named = [f for f in fits if f.named]
    least = min((f.unexplained for f in named), default=0)
    return [f for f in named if f.unexplained == least]


def _announced(layer: str, kernel: Side, best: _Fit, claimed: bool) -> bool | None:
    """Whether the kernel's strings say that it differs from the generation."""
    if layer in COVERED_BY:
        # Another layer's string answers for these bytes: is it one that goes with them?
        if kernel.cover is None:
            return None
        known = {
            string
            for g in registry.generations(COVERED_BY[layer])
            for string in g.strings
            if not best.generation.kernels or set(g.kernels) & set(best.generation.kernels)
        }
        return not kernel.cover & known if kernel.cover else None
    if not kernel.strings:
        return None if best.generation.strings else False
    if not claimed:
        return True
    return not layer_strings(layer, kernel.strings) & set(best.generation.strings)
