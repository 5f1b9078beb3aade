"""SARIF 2.1.0, the form in which code hosts and CI systems take the results of a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from inspector.findings import Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


@dataclass(frozen=True, slots=True)
class Result:
    """One finding: ``where`` is the name of a struct or member, ``source`` the file it is in."""

    code: str
    severity: Severity
    message: str
    where: str = ""
    source: str = ""


def document(results: Iterable[Result], rules: Mapping[str, str]) -> dict[str, Any]:
    """A whole log with one run.

    :param rules: what each code means; those that were found are listed.
    """
    found = list(results)
    codes = sorted({r.code for r in found})
    index = {code: i for i, code in enumerate(codes)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "kho",
                        "version": _version(),
                        "rules": [
                            {"id": code, "shortDescription": {"text": rules.get(code, code)}}
                            for code in codes
                        ],
                    }
                },
                "results": [_result(r, index[r.code]) for r in found],
            }
        ],
    }


def _result(result: Result, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if result.source:
        # Only the file's name: a log must not depend on where the file lay.
        name = result.source.rsplit("/", 1)[-1]
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(name)}}
    if result.where:
        location["logicalLocations"] = [{"fullyQualifiedName": result.where, "kind": "type"}]
    out: dict[str, Any] = {
        "ruleId": result.code,
        "ruleIndex": index,
        "level": _LEVELS[result.severity],
        "message": {"text": result.message},
    }
    if location:
        out["locations"] = [location]
    return out


def _uri(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _version() -> str:
    try:
        return version("kho-inspector")
    except PackageNotFoundError:
        return "0"
