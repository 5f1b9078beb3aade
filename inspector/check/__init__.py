"""fsck for KHO images: a catalogue of rules, one module a layer.

Each module has ``RULES``. A rule either tests the decoded image or names what decoding
finds by itself; either way the catalogue says what it means and what the kernel does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from abi.errors import UsageError
from inspector.check.rule import Context, Report, Rule
from inspector.findings import Finding, Severity
from inspector.image import Image

if TYPE_CHECKING:
    from inspector.device_tables.claims import WalkedTable

#: Modules with rules, in the order in which findings are shown.
MODULES = ("memory", "root", "map", "luo", "memfd", "handlers", "passthrough", "tables")


@cache
def catalogue() -> dict[str, Rule]:
    """Every rule by code."""
    rules: dict[str, Rule] = {}
    for name in MODULES:
        for rule in import_module(f"inspector.check.{name}").RULES:
            if rule.code in rules:
                raise AssertionError(f"two rules {rule.code}")
            rules[rule.code] = rule
    return rules


def explain(code: str) -> Rule:
    """The rule of a code. Raises UsageError that names the nearest."""
    rules = catalogue()
    if code.upper() not in rules:
        near = difflib.get_close_matches(code.upper(), rules, 1, 0.3)
        hint = f"did you mean {near[0]}?" if near else "'kho explain' lists them"
        raise UsageError(f"no rule {code!r}; {hint}")
    return rules[code.upper()]


def check(
    image: Image, *, rules: Iterable[str] | None = None, at_least: Severity = Severity.INFO
) -> Report:
    """Run the rules (all, or those whose code starts with one of ``rules``) on an image."""
    from inspector.check.ownership import account

    chosen = _chosen(rules)
    walked: dict[int, WalkedTable] = {}
    context = Context(image, account(image, walked=walked), walked=walked)
    for rule in chosen.values():
        if rule.test is not None:
            context.rule = rule
            rule.test(context)
    found = [
        replace(f, severity=catalogue()[f.code].severity) if f.code in catalogue() else f
        for f in (*image.findings, *context.findings.items)
        if f.code in chosen or (rules is None and f.code not in catalogue())
    ]
    kept = _distinct(f for f in found if f.severity >= at_least)
    kept.sort(key=lambda f: -f.severity)
    suppressed = dict(image.survey.findings.suppressed)
    for code, count in context.findings.suppressed.items():
        suppressed[code] = suppressed.get(code, 0) + count
    suppressed = {
        code: count
        for code, count in suppressed.items()
        if (chosen[code].severity >= at_least if code in chosen else rules is None)
    }
    undecided = {code: why for code, why in image.survey.undecided.items() if code in chosen}
    return Report(tuple(kept), undecided | context.undecided, suppressed, context.ownership)


def _chosen(prefixes: Iterable[str] | None) -> dict[str, Rule]:
    rules = catalogue()
    if prefixes is None:
        return rules
    chosen: dict[str, Rule] = {}
    for prefix in prefixes:
        matching = {c: r for c, r in rules.items() if c.startswith(prefix.upper())}
        if not matching:
            explain(prefix)
        chosen |= matching
    return chosen


def _distinct(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
