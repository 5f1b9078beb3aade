"""``kho compat``: what would this kernel do with that image?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from abi.errors import UsageError
from inspector.cli.common import (
    ConsumerPageSizeOption,
    Format,
    FormatOption,
    RegionMapOption,
    RootOption,
    address,
    finish,
    open_memory,
    page_size,
    printer,
    write_json,
)
from inspector.cli.consume import (
    HardwareOption,
    InitrdSizeOption,
    KernelSizeOption,
    WithOption,
    find_hardware,
    segment_sizes,
)

if TYPE_CHECKING:
    from inspector.compat import Options, Verdict
    from inspector.kernel.machine.hardware import Hardware


def compat(
    image: Annotated[
        str, typer.Argument(metavar="[IMAGE]", help="A memory image.", show_default=False)
    ] = "",
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="KERNEL", help="The kernel that takes over (a name, or a TOML profile)."
        ),
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="KERNEL", help="The kernel that hands over, for no image."),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="All pairs of released kernels, or of --from and --to.")
    ] = False,
    layer: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="With --matrix: all forms of iommu, iommufd, ..."),
    ] = None,
    with_: WithOption = None,
    hardware: HardwareOption = None,
    kernel_size: KernelSizeOption = None,
    initrd_size: InitrdSizeOption = None,
    format: FormatOption = Format.TEXT,
    root: RootOption = None,
    page_size_: ConsumerPageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Foresee what a kernel does with an image, or with what another kernel hands over.

    Exit status: 0 taken over, 1 with warnings, 4 anything incompatible, 16 cannot tell.
    """
    if not image and not matrix and not from_:
        raise UsageError("give an image, or --from and --to, or --matrix")
    if image and (matrix or from_):
        raise UsageError("an image hands over by itself: no --from, no --matrix")
    if layer and not matrix:
        raise UsageError("--layer goes with --matrix")
    if hardware and not image:
        raise UsageError("--hardware goes with an image")
    if not matrix and not to:
        raise UsageError("--to is missing: for which kernel?")
    from inspector import compat as judge

    kernel_bytes, initrd_bytes = segment_sizes(kernel_size, initrd_size)
    options = judge.Options(
        root=address(root),
        kernel_size=kernel_bytes,
        initrd_size=initrd_bytes,
        page_size=page_size(page_size_),
    )
    if matrix:
        _matrix(from_, to, layer, with_, options, format)
        return
    if image:
        verdicts, rules = _image(
            image, to or [], with_ or [], options, regions, find_hardware(hardware)
        )
    else:
        verdicts, rules = _pairs(from_ or [], to or [], with_ or [], options), None
    _show(verdicts, rules, format)


def _image(
    image: str,
    to: list[str],
    layers: list[str],
    options: Options,
    regions: str | None,
    hardware: Hardware | None,
) -> tuple[list[Verdict], dict[str, Any] | None]:
    from inspector import compat as judge
    from inspector.kernel.profile_file import find

    targets = judge.unique([find(name, layers) for name in to])
    with open_memory(image, regions) as memory:
        verdicts = [
            judge.judge(memory, target, options, producer=image, hardware=hardware)
            for target in targets
        ]
        return verdicts, judge.rules(memory, options)


def _pairs(from_: list[str], to: list[str], layers: list[str], options: Options) -> list[Verdict]:
    from inspector import compat as judge
    from inspector.kernel.profile_file import find

    producers = [find(name) for name in from_]
    consumers = [find(name, layers) for name in to]
    return [judge.pair(p, c, options) for p in producers for c in consumers]


def _show(verdicts: list[Verdict], rules: dict[str, Any] | None, format: Format) -> None:
    status = 0
    for one in verdicts:
        status |= one.status
    if format is Format.JSON:
        document: dict[str, Any] = {"verdicts": [_document(v) for v in verdicts]}
        if rules is not None:
            document["rules"] = rules
        write_json(document)
        finish(status)
        return
    out = printer()
    for one in verdicts:
        for line in _lines(one, out.colour):
            out.line(line)
    if rules and rules["broken"]:
        shown = ", ".join(f"{code} x {n}" for code, n in list(rules["broken"].items())[:8])
        out.line(f"kho check: rules are broken: {shown}")
    finish(status)


def _document(one: Verdict) -> dict[str, Any]:
    from inspector import verdict as text

    return {
        "from": one.producer,
        "to": one.consumer,
        "outcome": str(one.outcome),
        "meaning": text.MEANING[one.outcome],
        "also": [str(o) for o in one.outcomes if o is not one.outcome],
        "reasons": [text.reason_document(r) for r in one.reasons],
        "notes": one.notes,
    }


def _lines(one: Verdict, colour: bool) -> list[str]:
    from inspector import verdict as text
    from inspector.text import display

    head = f"{display(one.producer)} -> {one.consumer}: {text.coloured(one.outcome, colour)}"
    lines = [f"{head} ({text.MEANING[one.outcome]})"]
    lines += text.reason_lines(one.reasons)
    lines += [f"  note: {display(note)}" for note in one.notes]
    return lines


# -- matrices -----------------------------------------------------------------------------------


def _matrix(
    from_: list[str] | None,
    to: list[str] | None,
    layer: str | None,
    layers: list[str] | None,
    options: Options,
    format: Format,
) -> None:
    from inspector import compat as judge
    from inspector.kernel.profile import released
    from inspector.kernel.profile_file import Target, find

    if layer is not None:
        if from_ or to or layers:
            raise UsageError("--layer takes every form of the layer: no --from, --to, --with")
        producers = consumers = judge.layer_targets(layer)
    else:
        everyone = [Target(kernel) for kernel in released()]
        producers = [find(name) for name in from_] if from_ else everyone
        consumers = [find(name, layers or []) for name in to] if to else everyone
    verdicts = [judge.pair(p, c, options) for p in producers for c in consumers]
    if format is Format.JSON:
        write_json({"layer": layer, "verdicts": [_document(v) for v in verdicts]})
        return
    rows = [_short(str(p), layer) for p in producers]
    columns = [_short(str(c), layer) for c in consumers]
    _table(rows, columns, verdicts)


def _short(name: str, layer: str | None) -> str:
    return name.rpartition("=")[2] if layer else name.removeprefix("linux-")


def _table(rows: list[str], columns: list[str], verdicts: list[Verdict]) -> None:
    from inspector import verdict as text

    out = printer()
    first = max(len("from / to"), *map(len, rows)) + 2
    width = max(*(len(v.outcome) for v in verdicts), *map(len, columns)) + 2
    if first + width * len(columns) > 130:
        pairs = [(row, column) for row in rows for column in columns]
        second = max(map(len, columns)) + 2
        for one, (row, column) in zip(verdicts, pairs, strict=True):
            outcome = text.coloured(one.outcome, out.colour)
            out.line(f"{row:<{first}}{column:<{second}}{outcome}")
    else:
        out.line(f"{'from / to':<{first}}" + "".join(f"{c:<{width}}" for c in columns).rstrip())
        for i, row in enumerate(rows):
            cells = verdicts[i * len(columns) : (i + 1) * len(columns)]
            line = "".join(text.coloured(v.outcome, out.colour, width) for v in cells)
            out.line(f"{row:<{first}}{line.rstrip()}")
    for note in dict.fromkeys(n for v in verdicts for n in v.notes if "no real one" in n):
        out.line(f"note: {note}")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(compat)
