"""SARIF 2.1.0, the form in which code hosts and CI systems take the results of a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from inspector.findings import Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


@dataclass(frozen=True, slots=True)
class Result:
    """One finding.

    ``where`` is the name of a struct, a member or an object of an image, ``source`` the file
    it is in, ``address`` the physical address of the bytes.
    """

    code: str
    severity: Severity
    message: str
    where: str = ""
    source: str = ""
    address: int | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code means: a sentence, what follows from it, how to look further."""

    statement: str
    consequence: str = ""
    look: str = ""


def document(
    results: Iterable[Result], rules: Mapping[str, str] | Mapping[str, Meaning]
) -> dict[str, Any]:
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
                        "rules": [_rule(code, rules.get(code, code)) for code in codes],
                    }
                },
                "results": [_result(r, index[r.code]) for r in found],
            }
        ],
    }


def _rule(code: str, meaning: str | Meaning) -> dict[str, Any]:
    if isinstance(meaning, str):
        meaning = Meaning(meaning)
    rule: dict[str, Any] = {"id": code, "shortDescription": {"text": meaning.statement}}
    if meaning.consequence:
        text = f"{meaning.statement} {meaning.consequence}"
        rule["fullDescription"] = {"text": text}
    if meaning.look:
        rule["help"] = {"text": meaning.look}
    return rule


def _result(result: Result, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {}
    physical: dict[str, Any] = {}
    if result.source:
        # Only the file's name: a log must not depend on where the file lay.
        name = result.source.rsplit("/", 1)[-1]
        physical["artifactLocation"] = {"uri": quote(name)}
    if result.address is not None:
        physical["address"] = {"absoluteAddress": result.address}
    if physical:
        location["physicalLocation"] = physical
    if result.where:
        kind = "object" if result.where.startswith("/") else "type"
        location["logicalLocations"] = [{"fullyQualifiedName": result.where, "kind": kind}]
    out: dict[str, Any] = {
        "ruleId": result.code,
        "ruleIndex": index,
        "level": _LEVELS[result.severity],
        "message": {"text": result.message},
    }
    if location:
        out["locations"] = [location]
    return out


def _version() -> str:
    try:
        return version("kho-inspector")
    except PackageNotFoundError:
        return "unknown"
