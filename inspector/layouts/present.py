"""Results of ``kho abi verify``, ``diff`` and ``lint`` for people, programs and CI systems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from inspector import sarif
from inspector.findings import Severity
from inspector.layouts.compare import Change, ChangeKind, LayerDiff, Verdict
from inspector.layouts.lint import WHY, Hazard, Rule
from inspector.layouts.verify import LayerReport, Report
from inspector.text import display

#: What each code means, in one sentence.
MEANINGS: dict[str, str] = {
    ChangeKind.STRUCT_REMOVED: "A serialized struct is gone.",
    ChangeKind.STRUCT_ADDED: "A serialized struct is new.",
    ChangeKind.SIZE: "The size of a struct changed: arrays of it have another stride.",
    ChangeKind.FIELD_REMOVED: "A member is gone; what lies there now is misread.",
    ChangeKind.FIELD_ADDED: "A member is new.",
    ChangeKind.FIELD_MOVED: "A member lies at another offset.",
    ChangeKind.FIELD_RESIZED: "A member has another size.",
    ChangeKind.FIELD_RENAMED: "A member has another name and the same bytes.",
    ChangeKind.FIELD_TYPE: "A member has another type and the same bytes.",
    ChangeKind.RESERVED_USED: "A reserved member was put to use.",
    ChangeKind.CONSTANT: "A constant that determines a layout has another value.",
    ChangeKind.STRING: "The compatible strings changed.",
    ChangeKind.AMBIGUOUS: "One kernel has several layouts under one struct name.",
    "KHO-ABI-020": "A layout changed incompatibly and its compatible string did not.",
    "KHO-ABI-021": "A struct looks serialized and no schema knows it.",
    "KHO-ABI-022": "The kernel has no struct of the hand-over.",
    **dict(WHY.items()),
}
UNANNOUNCED, UNKNOWN_STRUCT, NOTHING = "KHO-ABI-020", "KHO-ABI-021", "KHO-ABI-022"

_MARK = {
    Verdict.NO_CHANGE: "ok",
    Verdict.COMPATIBLE: "compatible",
    Verdict.INCOMPATIBLE: "INCOMPATIBLE",
    Verdict.INCOMPATIBLE_UNANNOUNCED: "INCOMPATIBLE, UNANNOUNCED",
}


def change_json(change: Change) -> dict[str, Any]:
    """One difference."""
    return {
        "code": str(change.kind),
        "struct": change.struct,
        "field": change.field or None,
        "message": change.message,
        "breaks": change.breaks,
    }


def _change_results(
    layer: str, verdict: Verdict, changes: Iterable[Change], source: str
) -> Iterator[sarif.Result]:
    for change in changes:
        severity = Severity.ERROR if change.breaks else Severity.WARNING
        yield sarif.Result(str(change.kind), severity, change.message, change.where, source)
    if verdict is Verdict.INCOMPATIBLE_UNANNOUNCED:
        message = f"layer {layer} changed incompatibly and its compatible string did not"
        yield sarif.Result(UNANNOUNCED, Severity.ERROR, message, layer, source)


def _change_lines(verdict: Verdict, changes: Iterable[Change]) -> Iterator[str]:
    for change in changes:
        yield f"    {change.kind}  {'! ' if change.breaks else '  '}{display(change.message)}"
    if verdict is Verdict.INCOMPATIBLE_UNANNOUNCED:
        yield f"    {UNANNOUNCED}  ! the layout changed, the compatible string did not"


# -- verify --------------------------------------------------------------------------------


def _strings(report: LayerReport) -> str:
    if report.strings is None:
        return "strings unknown"
    return ", ".join(map(display, sorted(report.strings))) or "no string of its own"


def verify_text(report: Report, source: str) -> Iterator[str]:
    """Lines for a terminal."""
    kernel = report.kernel
    release = f"Linux {display(kernel.release)}, " if kernel.release else ""
    size = report.page_size // 1024
    yield f"{display(source)}: {release}{kernel.origin}, {size}K pages"
    if not report.layers:
        yield "  no KHO structs in it: built without CONFIG_KEXEC_HANDOVER"
        return
    width = max(len(r.layer) for r in report.layers)
    for layer in report.layers:
        also = "".join(f" or {g.id}" for g in layer.also)
        yield (
            f"  {layer.layer:<{width}}  {_MARK[layer.verdict]:<12}  {layer.generation.id}{also}"
            f"  ({_strings(layer)}; {_matches(len(layer.matched))})"
        )
        yield from _change_lines(layer.verdict, layer.changes)
        if layer.missing:
            yield f"    not in this kernel: {', '.join(layer.missing)}"
    for name in report.unknown:
        yield f"  {UNKNOWN_STRUCT}    struct {display(name)} looks serialized and has no schema"
    yield f"{report.verdict}"


def _matches(number: int) -> str:
    if not number:
        return "no structs"
    return "1 struct matches" if number == 1 else f"{number} structs match"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def verify_json(report: Report, source: str) -> dict[str, Any]:
    """The report as a document."""
    kernel = report.kernel
    return {
        "source": source,
        "origin": kernel.origin,
        "release": kernel.release or None,
        "page_size": report.page_size,
        "verdict": str(report.verdict) if report.layers else None,
        "layers": [
            {
                "layer": r.layer,
                "verdict": str(r.verdict),
                "generation": r.generation.id,
                "also": [g.id for g in r.also],
                "strings": None if r.strings is None else sorted(r.strings),
                "announced": r.announced,
                "matched": list(r.matched),
                "missing": list(r.missing),
                "changes": [change_json(c) for c in r.changes],
            }
            for r in report.layers
        ],
        "unknown": list(report.unknown),
    }


def verify_sarif(report: Report, source: str) -> dict[str, Any]:
    """The report as a SARIF log."""
    results: list[sarif.Result] = []
    for layer in report.layers:
        results += _change_results(layer.layer, layer.verdict, layer.changes, source)
    for name in report.unknown:
        message = f"struct {name} looks serialized and has no schema"
        results.append(sarif.Result(UNKNOWN_STRUCT, Severity.INFO, message, name, source))
    if not report.layers:
        results.append(
            sarif.Result(NOTHING, Severity.ERROR, "no KHO structs in this kernel", "", source)
        )
    return sarif.document(results, MEANINGS)


# -- diff ----------------------------------------------------------------------------------


def worst(diffs: Iterable[LayerDiff]) -> Verdict:
    """The worst verdict of all layers."""
    return max((d.verdict for d in diffs), key=list(Verdict).index, default=Verdict.NO_CHANGE)


def diff_text(diffs: list[LayerDiff], old: str, new: str) -> Iterator[str]:
    """Lines for a terminal."""
    yield f"{display(old)} -> {display(new)}"
    width = max((len(d.layer) for d in diffs), default=0)
    for diff in diffs:
        unsure = diff.announced is None and diff.verdict is Verdict.INCOMPATIBLE
        note = "  (strings unknown: cannot tell whether it is announced)" if unsure else ""
        yield f"  {diff.layer:<{width}}  {_MARK[diff.verdict]}{note}"
        yield from _change_lines(diff.verdict, diff.changes)
    if not diffs:
        yield "  nothing to compare: neither side has KHO structs"
    yield f"{worst(diffs)}"


def diff_json(diffs: list[LayerDiff], old: str, new: str) -> dict[str, Any]:
    """The comparison as a document."""
    return {
        "old": old,
        "new": new,
        "verdict": str(worst(diffs)),
        "layers": [
            {
                "layer": d.layer,
                "verdict": str(d.verdict),
                "announced": d.announced,
                "changes": [change_json(c) for c in d.changes],
            }
            for d in diffs
        ],
    }


def diff_sarif(diffs: list[LayerDiff], new: str) -> dict[str, Any]:
    """The comparison as a SARIF log."""
    results = [
        result for d in diffs for result in _change_results(d.layer, d.verdict, d.changes, new)
    ]
    return sarif.document(results, MEANINGS)


# -- lint ----------------------------------------------------------------------------------


def lint_text(hazards: list[Hazard], source: str, checked: int) -> Iterator[str]:
    """Lines for a terminal."""
    warnings = sum(h.severity >= Severity.WARNING for h in hazards)
    yield f"{display(source)}: {_count(checked, 'struct')}, {_count(warnings, 'warning')}"
    for hazard in hazards:
        yield f"  {hazard.rule}  {hazard.severity.name.lower():<7}  {display(hazard.message)}"
    for rule in sorted({h.rule for h in hazards}):
        yield f"{rule}: {WHY[Rule(rule)]}"


def lint_json(hazards: list[Hazard], source: str, checked: int) -> dict[str, Any]:
    """The hazards as a document."""
    return {
        "source": source,
        "structs": checked,
        "findings": [
            {
                "code": str(h.rule),
                "severity": h.severity.name.lower(),
                "struct": h.struct,
                "field": h.field or None,
                "message": h.message,
            }
            for h in hazards
        ],
        "rules": {str(r): WHY[r] for r in sorted({h.rule for h in hazards})},
    }


def lint_sarif(hazards: list[Hazard], source: str) -> dict[str, Any]:
    """The hazards as a SARIF log."""
    results = [sarif.Result(str(h.rule), h.severity, h.message, h.where, source) for h in hazards]
    return sarif.document(results, MEANINGS)
