"""``kho check`` and ``kho explain``: an fsck for images."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from inspector.cli.common import (
    AbiOption,
    Format,
    FormatOption,
    ImageArgument,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    open_image,
    printer,
    write_json,
)


class CheckFormat(enum.StrEnum):
    """Outputs of ``kho check``."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class Level(enum.StrEnum):
    """Severities by name."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def check(
    image: ImageArgument,
    format: Annotated[
        CheckFormat, typer.Option("--format", "-f", help="Output format.")
    ] = CheckFormat.TEXT,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="CODE", help="Only rules whose code starts like this."),
    ] = None,
    min_severity: Annotated[
        Level, typer.Option("--min-severity", help="Leave out what matters less.")
    ] = Level.INFO,
    every: Annotated[
        bool, typer.Option("--all", help="Show each of many findings with one code.")
    ] = False,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Check an image against every rule the kernels and their formats impose."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import check as checks
        from inspector.check import present
        from inspector.findings import Severity

        report = checks.check(opened, rules=rule, at_least=Severity[min_severity.name])
        if format is CheckFormat.JSON:
            write_json(present.document(report))
        elif format is CheckFormat.SARIF:
            import json

            typer.echo(json.dumps(present.sarif_log(report, image), indent=2))
        else:
            out = printer()
            for line in present.lines(report, colour=out.colour, every=every):
                out.line(line)
        raise typer.Exit(present.status(report, incomplete=opened.incomplete))


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="[CODE]",
            help="Such as KHO-MAP-005; all are listed if left out.",
            show_default=False,
        ),
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Say what a finding's code means, and what the kernel does about it."""
    from inspector import check as checks
    from inspector.layouts.present import MEANINGS

    meaning = MEANINGS.get(code.upper()) if code else None
    if code and meaning:
        _explain_layout(code.upper(), meaning, format)
        return
    rules = [checks.explain(code)] if code else list(checks.catalogue().values())
    if format is Format.JSON:
        write_json({"rules": [_entry(rule) for rule in rules]})
        return
    out = printer()
    for entry in rules:
        if code is None:
            out.line(f"{entry.code:<14} {entry.severity.name.lower():<8} {entry.statement}")
            continue
        out.line(f"{entry.code} ({entry.severity.name.lower()})")
        out.line(f"  {entry.statement}")
        out.line(f"  kernel: {entry.kernel}")
        out.line(f"  look:   {entry.look}")


def _explain_layout(code: str, meaning: str, format: Format) -> None:
    """A code of ``kho abi verify``, ``diff`` or ``lint``: no rule about an image."""
    look = "kho abi verify, kho abi diff and kho abi lint say where"
    if format is Format.JSON:
        entry = {"code": code, "severity": None, "statement": meaning, "kernel": None}
        write_json({"rules": [{**entry, "look": look}]})
        return
    out = printer()
    for line in (code, f"  {meaning}", f"  look:   {look}"):
        out.line(line)


def _entry(rule: Any) -> dict[str, Any]:
    return {
        "code": rule.code,
        "severity": rule.severity.name.lower(),
        "statement": rule.statement,
        "kernel": rule.kernel,
        "look": rule.look,
    }


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(check)
    app.command()(explain)
