"""``kho abi verify|diff|lint``: layouts of compiled kernels against the schemas."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from inspector.cli.common import finish, printer, write_json


class ReportFormat(enum.StrEnum):
    """For people, programs, and CI systems."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class Debug(enum.StrEnum):
    """Which description of its types to believe where a file has two."""

    BTF = "btf"
    DWARF = "dwarf"


_KERNEL_HELP = (
    "A vmlinux, bzImage, module or object file with BTF or DWARF, a raw BTF blob such as"
    " /sys/kernel/btf/vmlinux, or a record of 'kho abi verify --record'; '-' reads standard input."
)
_KernelArgument = Annotated[
    str, typer.Argument(metavar="KERNEL", help=_KERNEL_HELP, show_default=False)
]
_FormatOption = Annotated[ReportFormat, typer.Option("--format", "-f", help="Output format.")]
_DebugOption = Annotated[
    Debug, typer.Option("--prefer", help="Which to read where a file has both.")
]
_BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="VMLINUX",
        help="For a module: the vmlinux that its BTF continues.",
        show_default=False,
    ),
]
_PageSizeOption = Annotated[
    str | None,
    typer.Option("--page-size", metavar="SIZE", help="4K, 16K or 64K, if the structs do not tell."),
]


def verify(
    kernel: _KernelArgument,
    generation: Annotated[
        list[str] | None,
        typer.Option(
            "--generation",
            "-g",
            metavar="G",
            help="What the kernel is meant to be: a release such as 7.3, LAYER=ID, or an id;"
            " may be repeated. Without it, each layer is compared with what its strings say.",
            show_default=False,
        ),
    ] = None,
    base: _BaseOption = None,
    prefer: _DebugOption = Debug.BTF,
    page_size: _PageSizeOption = None,
    record: Annotated[
        str | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Also write what was measured (names, offsets, sizes) to a file.",
            show_default=False,
        ),
    ] = None,
    format: _FormatOption = ReportFormat.TEXT,
) -> None:
    """Compare a kernel's struct layouts with the schemas.

    Exit status 0: every layer fits. 1: differences that harm no reader. 4: incompatible with
    the generation that the compatible strings name. 16: no KHO structs in the kernel.
    """
    from inspector.cli.common import page_size as parse_page_size
    from inspector.layouts import present
    from inspector.layouts.measure import measure
    from inspector.layouts.verify import resolve_generation, verify

    wanted = {}
    for spec in generation or []:
        wanted.update(resolve_generation(spec))
    measured = measure(kernel, base=base, prefer=prefer.value)
    if record is not None:
        _write_record(record, measured.to_json())
    report = verify(measured, generations=wanted or None, page_size=parse_page_size(page_size))
    _write(
        format,
        lambda: present.verify_text(report, kernel),
        lambda: present.verify_json(report, kernel),
        lambda: present.verify_sarif(report, kernel),
    )
    finish(report.exit_status if report.layers else 16)


def diff(
    old: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A kernel, a release such as 7.1, or LAYER=ID.", show_default=False
        ),
    ],
    new: Annotated[str, typer.Argument(metavar="B", help="The same.", show_default=False)],
    prefer: _DebugOption = Debug.BTF,
    page_size: _PageSizeOption = None,
    format: _FormatOption = ReportFormat.TEXT,
) -> None:
    """Compare two ABIs: may state that A wrote be read by B?

    Verdicts: NO_CHANGE, COMPATIBLE (exit status 1), INCOMPATIBLE (4), and
    INCOMPATIBLE_UNANNOUNCED (4): the bytes differ and the compatible string does not say so.
    """
    from inspector.cli.common import page_size as parse_page_size
    from inspector.layouts import present, sides

    before = sides.resolve(old, prefer=prefer.value)
    after = sides.resolve(new, prefer=prefer.value)
    diffs = sides.diff(before, after, parse_page_size(page_size))
    _write(
        format,
        lambda: present.diff_text(diffs, old, new),
        lambda: present.diff_json(diffs, old, new),
        lambda: present.diff_sarif(diffs, new),
    )
    finish(present.worst(diffs).exit_status)


def lint(
    abi: Annotated[
        str,
        typer.Argument(
            metavar="KERNEL|GENERATION",
            help="A kernel, a release such as 7.3, or LAYER=ID.",
            show_default=False,
        ),
    ],
    structs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STRUCT]...", help="Only these.", show_default=False),
    ] = None,
    prefer: _DebugOption = Debug.BTF,
    format: _FormatOption = ReportFormat.TEXT,
) -> None:
    """Warn about hazards in a layout before it becomes ABI.

    Of a kernel, structs that no schema knows and whose names end in '_ser' are looked at too.
    Exit status 1 if there are warnings.
    """
    from inspector.findings import Severity
    from inspector.layouts import present, sides

    side = sides.resolve(abi, prefer=prefer.value)
    hazards, checked = sides.lint_abi(side, structs)
    _write(
        format,
        lambda: present.lint_text(hazards, abi, checked),
        lambda: present.lint_json(hazards, abi, checked),
        lambda: present.lint_sarif(hazards, abi),
    )
    finish(int(any(h.severity >= Severity.WARNING for h in hazards)))


def _write(
    format: ReportFormat,
    text: Callable[[], Iterable[str]],
    document: Callable[[], dict[str, Any]],
    log: Callable[[], dict[str, Any]],
) -> None:
    if format is ReportFormat.JSON:
        write_json(document())
    elif format is ReportFormat.SARIF:
        import json
        import sys

        json.dump(log(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        out = printer()
        for line in text():
            out.line(line)


def _write_record(path: str, document: dict[str, Any]) -> None:
    import json
    import os

    from inspector.output import atomic_output

    # Only the file's name: a record does not tell where it was made.
    document["source"] = os.path.basename(document["source"])
    with atomic_output(path, force=True) as fd:
        data = json.dumps(document, indent=1).encode() + b"\n"
        while data:
            data = data[os.write(fd, data) :]


def register(group: typer.Typer) -> None:
    """Add the commands to ``kho abi``."""
    group.command("verify")(verify)
    group.command("diff")(diff)
    group.command("lint")(lint)
