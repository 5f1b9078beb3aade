"""What a user may name as an ABI: a kernel's file, a release, a generation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from abi import registry
from abi.errors import UsageError
from abi.registry import Generation
from inspector.layouts.compare import (
    COVERED_BY,
    ChangeKind,
    LayerDiff,
    Side,
    compare,
    judge,
    layer_strings,
    side_of_generation,
    side_of_kernel,
)
from inspector.layouts.lint import Hazard, lint
from inspector.layouts.measure import known_structs, measure
from inspector.layouts.measured import MeasuredKernel, MeasuredStruct
from inspector.layouts.verify import DEFAULT_PAGE_SIZE, resolve_generation


@dataclass(frozen=True, slots=True)
class Abi:
    """One side of a comparison: a measured kernel, or generations by layer."""

    name: str
    kernel: MeasuredKernel | None = None
    generations: dict[str, Generation] | None = None

    def side(self, layer: str, page_size: int) -> Side | None:
        """One layer; None if this ABI does not have it."""
        if self.kernel is not None:
            side = side_of_kernel(self.kernel, layer)
            own = side.structs.keys() - {"setup_data", "kho_data"}
            versioned = any("-v" in s for s in side.strings or ())
            return side if own or (versioned and not _has_layouts(layer)) else None
        chosen = self.generations or {}
        if layer not in chosen:
            return None
        side = side_of_generation(chosen[layer], page_size)
        cover = chosen.get(COVERED_BY.get(layer, ""))
        return side if cover is None else replace(side, cover=frozenset(cover.strings))


def _has_layouts(layer: str) -> bool:
    return any(g.layouts for g in registry.generations(layer))


def resolve(text: str, *, base: str | None = None, prefer: str = "btf") -> Abi:
    """A file if there is one of this name (or ``-``), else a release or generation.

    :raises UsageError: neither.
    """
    if text == "-" or os.path.exists(text):
        return Abi(text, kernel=measure(text, base=base, prefer=prefer))
    try:
        return Abi(text, generations=resolve_generation(text))
    except UsageError as error:
        raise UsageError(f"{text!r} is no file, and {error}") from None


def diff(old: Abi, new: Abi, page_size: int | None = None) -> list[LayerDiff]:
    """Compare two ABIs layer by layer. Layers that neither has are left out."""
    measured = next((a.kernel.page_size for a in (old, new) if a.kernel is not None), None)
    size = page_size or measured or DEFAULT_PAGE_SIZE
    out = []
    for layer in registry.LAYERS:
        before, after = old.side(layer, size), new.side(layer, size)
        if before is None and after is None:
            continue
        empty = Side("", {}, {}, frozenset(), None)
        result = compare(layer, before or empty, after or empty)
        if (old.kernel is None) != (new.kernel is None) and before and after:
            result = _without_absent(result)
        out.append(result)
    return out


def _without_absent(result: LayerDiff) -> LayerDiff:
    """Between a kernel and a generation, a struct that only one of them describes is no change."""
    absent = (ChangeKind.STRUCT_REMOVED, ChangeKind.STRUCT_ADDED)
    changes = [c for c in result.changes if c.kind not in absent]
    verdict = judge(changes, result.announced)
    return LayerDiff(
        result.layer, verdict, tuple(changes), result.announced, result.old, result.new
    )


def lint_abi(
    abi: Abi, structs: list[str] | None = None, page_size: int | None = None
) -> tuple[list[Hazard], int]:
    """Hazards of an ABI's structs, or of those named; and how many structs were looked at."""
    if abi.kernel is not None:
        names = set(structs) if structs else known_structs() - {"setup_data"}
        found = {n: s[0] for n, s in abi.kernel.structs.items() if n in names or not _known(n)}
        if structs:
            found = {n: s for n, s in found.items() if n in names}
        covered = _covered_by_kernel(abi.kernel)
    else:
        size = page_size or DEFAULT_PAGE_SIZE
        found, covered = {}, set()
        for generation in (abi.generations or {}).values():
            side = side_of_generation(generation, size)
            found |= {n: s[0] for n, s in side.structs.items()}
            if any("-v" in s for s in generation.strings):
                covered |= side.structs.keys()
        if structs:
            found = {n: s for n, s in found.items() if n in structs}
    if structs and (lost := [n for n in structs if n not in found]):
        raise UsageError(f"{abi.name}: no struct {lost[0]!r}")
    ordered: list[MeasuredStruct] = [found[n] for n in sorted(found)]
    return lint(ordered, versioned=covered.__contains__), len(ordered)


def _known(name: str) -> bool:
    return name in known_structs()


def _covered_by_kernel(kernel: MeasuredKernel) -> set[str]:
    covered: set[str] = set()
    for layer in registry.LAYERS:
        strings = layer_strings(layer, kernel.strings or frozenset())
        # Without strings nothing can be said: do not accuse.
        if kernel.strings is None or any("-v" in s for s in strings):
            covered |= side_of_kernel(kernel, layer).structs.keys()
    return covered
