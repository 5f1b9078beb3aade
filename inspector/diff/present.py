"""Differences for people and programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inspector.diff.changes import Diff, Kind
from inspector.text import display, plural, size_text

_SIGNS = {Kind.ADDED: "+", Kind.REMOVED: "-", Kind.CHANGED: "~", Kind.MOVED: ">"}
_COLOURS = {
    Kind.ADDED: "\x1b[32m", Kind.REMOVED: "\x1b[31m", Kind.CHANGED: "\x1b[33m",
    Kind.MOVED: "\x1b[36m",
}  # fmt: skip


def lines(found: Diff, *, colour: bool = False) -> Iterator[str]:
    """A summary, then a line for each change."""
    counts = found.counts()
    if found.empty:
        yield "no differences"
        return
    yield ", ".join(f"{counts[k]:,} {k}" for k in map(str, Kind) if counts[k])
    for change in found.changes:
        sign = _SIGNS[change.kind]
        head = f"{_COLOURS[change.kind]}{sign}\x1b[0m" if colour else sign
        what = display(change.what)
        values = ""
        if change.before is not None or change.after is not None:
            values = f": {display(_value(change.before))} -> {display(_value(change.after))}"
        if change.kind is Kind.ADDED:
            values = f": {display(_value(change.after))}"
        elif change.kind is Kind.REMOVED:
            values = f": {display(_value(change.before))}"
        why = f"  ({change.why})" if change.why else ""
        yield f"{head} {display(change.path)} {what}{values}{why}"
    if found.truncated:
        yield f"... and {plural(sum(found.truncated.values()), 'more change')}"


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        if value.keys() == {"size", "order"}:
            return f"{size_text(value['size'])} of order {value['order']}"
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, (dict, list)))
    if isinstance(value, list):
        return plural(len(value), "entry")
    return str(value)


def document(found: Diff) -> dict[str, Any]:
    """The diff as a document."""
    return {
        "summary": dict(found.counts()),
        "changes": [
            {
                "kind": str(c.kind),
                "path": c.path,
                "what": c.what,
                "before": c.before,
                "after": c.after,
                "why": c.why or None,
            }
            for c in found.changes
        ],
        "truncated": dict(found.truncated),
    }
