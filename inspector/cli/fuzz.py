"""``kho fuzz``: structure-aware mutation of images."""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abi.errors import UsageError
from inspector.cli.common import Format, FormatOption, write_json

if TYPE_CHECKING:
    from inspector.fuzz.run import Report
    from inspector.fuzz.target import Target


class TargetName(enum.StrEnum):
    """Targets by name: whole images first, then single codecs."""

    DECODE = "decode"
    DUMP = "dump"
    CHECK = "check"
    DIFF = "diff"
    EXTRACT = "extract"
    COMPAT = "compat"
    DEVICES = "devices"
    REPORT = "report"
    KAITAI = "kaitai"
    DIFFERENTIAL = "differential"
    FDT = "fdt"
    MAP = "map"
    ARRAYS = "arrays"
    BLOCKS = "blocks"
    PAGETABLE = "pagetable"


def fuzz(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE|SCENARIO]...",
            help="What to mutate: images, scenarios; small simulated ones of every release if "
            "none are given.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[TargetName] | None,
        typer.Option("--target", "-t", help="What consumes the cases; repeat for several."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", min=0, help="Cases for each target.")
    ] = 0,
    seconds: Annotated[
        float, typer.Option("--seconds", "-s", metavar="S", min=0, help="Time for all targets.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Which cases.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Processes.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write the cases that fail here."),
    ] = None,
    command: Annotated[
        str,
        typer.Option(
            "--exec", metavar="CMD", help="Run this on each image instead, which it names by @@."
        ),
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="For --exec.")
    ] = 10.0,
    accept: Annotated[
        str,
        typer.Option(
            "--accept", metavar="N,N", help="For --exec: the only exit statuses that are fine."
        ),
    ] = "",
    crash_pattern: Annotated[
        str,
        typer.Option("--crash-pattern", metavar="REGEX", help="For --exec: output of a crash."),
    ] = "",
    only: Annotated[
        int | None, typer.Option("--only", metavar="N", min=0, help="Case N alone.")
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option("--replay", metavar="CASE", help="Repeat a stored case; nothing else."),
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink/--no-shrink", help="Make failing cases small.")
    ] = True,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Let code coverage steer (needs atheris).")
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Mutate images by the meaning of their fields and feed them to a consumer.

    Without --count and --seconds it runs for a minute. Case N of a seed is always the same.
    Exit status 4 if a case failed: an exception, a hang, too much memory, a crash.
    """
    if replay:
        _replay(replay)
        return
    names = [t.value for t in target or [TargetName.DECODE]]
    if coverage:
        _coverage(names, images or [], seconds, seed, out)
        return
    from inspector.fuzz.run import Plan

    if not count and not seconds and only is None:
        seconds = 60.0
    targets = _targets(names, images or [], command, timeout, accept, crash_pattern)
    if only is not None:
        raise typer.Exit(_only(targets[0], seed, only))
    plan = Plan(seed, count, seconds / len(targets), jobs)
    reports = [_run(each, plan, out, shrink) for each in targets]
    if format is Format.JSON:
        write_json({"runs": [_document(report) for report in reports]})
    else:
        for report in reports:
            for line in _lines(report):
                typer.echo(line)
    raise typer.Exit(4 if any(r.findings for r in reports) else 0)


def _targets(
    names: list[str], images: list[str], command: str, timeout: float, accept: str, pattern: str
) -> list[Target]:
    from inspector.fuzz import base, targets

    bases = [base.load(image) for image in images] if images else list(base.defaults())
    if not command:
        return [targets.make(name, bases) for name in names]
    from inspector.fuzz.external import Command, ExternalTarget

    try:
        statuses = frozenset(int(n) for n in accept.split(",")) if accept else None
    except ValueError:
        raise UsageError(f"--accept: {accept!r} is no list of numbers") from None
    return [ExternalTarget(bases, Command(command, timeout, statuses, pattern))]


def _run(target: Target, plan: Any, out: Path | None, shrink: bool) -> Report:
    from inspector.fuzz import run

    progress = _progress if sys.stderr.isatty() else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    report = run.run(target, plan, progress)
    if progress is not None:
        print("\r\x1b[K", end="", file=sys.stderr)
    if out is not None:
        _store(target, report, out, shrink)
    return report


def _progress(report: Report) -> None:
    rate = report.cases / max(report.elapsed, 0.001)
    print(
        f"\r{report.target}: {report.cases} cases, {rate:.0f}/s, {report.findings} failed\x1b[K",
        end="", file=sys.stderr, flush=True,
    )  # fmt: skip


def _store(target: Target, report: Report, out: Path, shrink: bool) -> None:
    """Write the kept findings, shrunk unless their process died."""
    from inspector.fuzz import cases
    from inspector.fuzz import shrink as shrinking
    from inspector.fuzz.guard import Kind
    from inspector.fuzz.mutate import rng_of
    from inspector.memory.elfcore import write_core

    for found in report.found:
        if found.number < 0:
            continue
        base, edits = target.pick(rng_of(report.seed, found.number))
        memory = None
        alive = target.slow or found.outcome.kind is not Kind.CRASH
        if shrink and alive:
            edits, memory = shrinking.shrink(target, base, edits, found.outcome)
        case = shrinking.case_of(
            target, report.seed, found.number, base, edits, found.outcome, memory
        )
        name = f"{report.target}-{found.outcome.kind}-{report.seed}-{found.number}"
        cases.save(case, out / f"{name}.json")
        if memory is not None and memory.pages():
            write_core(out / f"{name}.elf", memory, memory.machine or "x86_64", force=True)


def _lines(report: Report) -> list[str]:
    from inspector.text import display

    rate = report.cases / max(report.cpu, 0.001)
    lines = [
        f"{report.target}: {report.cases} cases of seed {report.seed} in {report.elapsed:.1f} s"
        f" ({rate:.0f} a second of processor time)",
        "  " + ", ".join(f"{kind} {n}" for kind, n in report.counts.most_common()),
        f"  slowest case {report.slowest * 1000:.0f} ms (number {report.slowest_case}), memory"
        f" {report.peak >> 20} MiB, {report.grown >> 20} MiB more than at the start",
    ]
    for found in report.found:
        lines.append(f"  case {found.number}: {found.outcome.kind}: {display(found.outcome.key)}")
        lines += [f"    {display(line)}" for line in found.outcome.detail.splitlines()[-8:]]
    lines += [f"  {n} times: {display(key)}" for key, n in report.keys.most_common(20)]
    return lines


def _document(report: Report) -> dict[str, Any]:
    return {
        "target": report.target,
        "seed": report.seed,
        "cases": report.cases,
        "outcomes": dict(report.counts),
        "refused": dict(report.refused),
        "findings": dict(report.keys),
        "slowest_seconds": report.slowest,
        "slowest_case": report.slowest_case,
        "peak_bytes": report.peak,
        "grown_bytes": report.grown,
        "elapsed_seconds": report.elapsed,
        "cpu_seconds": report.cpu,
        "found": [
            {
                "case": f.number,
                "kind": str(f.outcome.kind),
                "key": f.outcome.key,
                "detail": f.outcome.detail,
            }
            for f in report.found
        ],
    }


def _only(target: Target, seed: int, number: int) -> int:
    """Run one case here and show its edits."""
    from inspector.fuzz.guard import Guard
    from inspector.fuzz.mutate import rng_of
    from inspector.fuzz.run import attempt
    from inspector.text import display

    base, edits = target.pick(rng_of(seed, number))
    typer.echo(f"case {number} of seed {seed}: {base.name}")
    for edit in edits:
        data = "left out" if edit.data is None else edit.data[:32].hex()
        typer.echo(f"  {edit.address:#x} {edit.note}: {data}")
    with Guard() as guard:
        outcome = attempt(target, base, edits, guard)
    return _show(outcome, display)


def _show(outcome: Any, display: Any) -> int:
    typer.echo(f"{outcome.kind} {display(outcome.key)}".rstrip())
    for line in outcome.detail.splitlines():
        typer.echo(f"  {display(line)}")
    return 0 if outcome.fine else 4


def _replay(paths: list[Path]) -> None:
    from inspector.fuzz import cases
    from inspector.text import display

    status = 0
    for path in paths:
        outcome = cases.replay(cases.read(path))
        typer.echo(f"{path}: ", nl=False)
        status |= _show(outcome, display)
    raise typer.Exit(status)


def _coverage(
    names: list[str], images: list[str], seconds: float, seed: int, out: Path | None
) -> None:
    """Start anew with atheris: it must be there before what it is to watch."""
    import importlib.util

    if importlib.util.find_spec("atheris") is None:
        raise UsageError("--coverage needs atheris: pip install 'kho-inspector[fuzz]'")
    if len(names) != 1:
        raise UsageError("--coverage takes one target")
    arguments = ["--target", names[0], "--seed", str(seed), "--seconds", str(int(seconds or 60))]
    if out is not None:
        arguments += ["--out", str(out)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "inspector.fuzz.coverage", *arguments, *images])


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(fuzz)
