"""Findings as SARIF 2.1.0, for tools that collect them."""

from __future__ import annotations

from typing import Any

from inspector.check import catalogue
from inspector.findings import Finding, Severity

_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


def sarif(findings: tuple[Finding, ...], source: str) -> dict[str, Any]:
    """One run over one image. Addresses are SARIF physical addresses, paths logical locations."""
    rules = catalogue()
    used = sorted({f.code for f in findings})
    index = {code: i for i, code in enumerate(used)}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "kho",
                        "rules": [_rule(code) for code in used],
                    }
                },
                "artifacts": [{"location": {"uri": source}}],
                "results": [
                    {
                        "ruleId": f.code,
                        "ruleIndex": index[f.code],
                        "level": _LEVELS[rules[f.code].severity if f.code in rules else f.severity],
                        "message": {"text": f.message},
                        "locations": [_location(f)],
                    }
                    for f in findings
                ],
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    rule = catalogue().get(code)
    if rule is None:
        return {"id": code}
    return {
        "id": code,
        "shortDescription": {"text": rule.statement},
        "fullDescription": {"text": f"{rule.statement} {rule.kernel}"},
        "help": {"text": rule.look},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _location(finding: Finding) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"index": 0}}
    if finding.address is not None:
        physical["address"] = {"absoluteAddress": finding.address}
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.path:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.path}]
    return location
