"""``kho pagetable``: page tables of domains, or of anything else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from abi.errors import UsageError
from inspector.cli.common import (
    AbiOption,
    Format,
    FormatOption,
    ImageArgument,
    PageSizeOption,
    RegionMapOption,
    address,
    open_image,
    open_memory,
    write_json,
)

if TYPE_CHECKING:
    from inspector.passthrough.tables import Shown

#: Options that take every argument up to the next option.
_GREEDY = ("--translate", "--reverse")


class _Command(TyperCommand):
    """``--translate A B C`` means ``--translate A --translate B --translate C``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        fresh = False
        for argument in args:
            if argument.startswith("-") and argument != "-":
                option = argument if argument in _GREEDY else None
                fresh = True
                spread.append(argument)
                continue
            if option is not None and not fresh:
                spread.append(option)
            fresh = False
            spread.append(argument)
        return super().parse_args(ctx, spread)


def pagetable(
    image: ImageArgument,
    domain: Annotated[
        str | None,
        typer.Argument(
            metavar="[DOMAIN]",
            help="Index, path, or address of a domain object, or a device such as 0000:00:03.0; "
            "all live domains if left out.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="PA", help="Top page of any table, with the two below."),
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", metavar="FORMAT", help="vtdss, x86-64, lpae-s2-4k, ...")
    ] = None,
    levels: Annotated[
        int | None, typer.Option("--levels", metavar="N", help="Levels that are walked.")
    ] = None,
    vasz: Annotated[
        int | None, typer.Option("--vasz", metavar="BITS", help="Bits of the input address.")
    ] = None,
    entries: Annotated[
        bool, typer.Option("--entries", help="Print every leaf instead of merged ranges.")
    ] = False,
    translate: Annotated[
        list[str] | None,
        typer.Option("--translate", metavar="IOVA...", help="Only say where these lead."),
    ] = None,
    reverse: Annotated[
        list[str] | None,
        typer.Option("--reverse", metavar="PA...", help="Only say what leads to these."),
    ] = None,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """List what page tables map: merged ranges and statistics, leaves, or single addresses."""
    from inspector.passthrough import tables

    if root is not None:
        if domain is not None or table is None or levels is None:
            raise UsageError("--root goes with --table and --levels, and without a DOMAIN")
        from abi.device_table import TableRoot
        from inspector.pagetable import walk

        top = address(root)
        assert top is not None
        with open_memory(image, regions) as memory:
            tree = walk(memory, table, top, levels, vasz=vasz)
            one = tables.Shown("", TableRoot(table, top, levels, vasz or 0), tree)
            raise typer.Exit(_show([one], entries, translate, reverse, format, plain=True))
    if table is not None or levels is not None or vasz is not None:
        raise UsageError("--table, --levels and --vasz go with --root")
    with open_image(image, abi=abi, page=page_size, regions=regions) as opened:
        shown = tables.chosen(opened, domain)
        status = _show(shown, entries, translate, reverse, format, plain=domain is not None)
        raise typer.Exit(status)


def _show(
    shown: Iterable[Shown],
    entries: bool,
    translate: list[str] | None,
    reverse: list[str] | None,
    format: Format,
    *,
    plain: bool,
) -> int:
    if translate or reverse:
        iovas = [_number(text) for text in translate or ()]
        pas = [_number(text) for text in reverse or ()]
        return _look_up(shown, iovas, pas, format, plain)
    return _json(shown, entries) if format is Format.JSON else _text(shown, entries, plain)


def _look_up(
    shown: Iterable[Shown], iovas: list[int], pas: list[int], format: Format, plain: bool
) -> int:
    from inspector.passthrough import tables

    status = 0
    documents = []
    for one in shown:
        found = tables.look_up(one, iovas, pas)
        if format is Format.JSON:
            documents.append(tables.lookup_document(found))
        else:
            if not plain:
                sys.stdout.write(tables.head(one))
            for line in tables.lookup_lines(found):
                sys.stdout.write(line + "\n")
        status |= tables.lookup_status(found)
    if format is Format.JSON:
        write_json({"tables": documents})
    return status


def _json(shown: Iterable[Shown], entries: bool) -> int:
    from inspector.cli.common import SCHEMA_VERSION
    from inspector.passthrough import tables

    out = sys.stdout.write
    out(f'{{"schema_version": {SCHEMA_VERSION}, "tables": [\n')
    status = 0
    for i, one in enumerate(shown):
        out(",\n" if i else "")
        for piece in tables.json_pieces(one, entries=entries):
            out(piece)
        status |= tables.status(one)
    out("\n]}\n")
    return status


def _text(shown: Iterable[Shown], entries: bool, plain: bool) -> int:
    from inspector.passthrough import tables

    status = 0
    for one in shown:
        # Leaves of one table are for programs: nothing but lines of numbers.
        bare = entries and plain
        if not bare:
            sys.stdout.write(tables.head(one))
        sys.stdout.flush()
        for piece in tables.entry_lines(one) if entries else tables.range_lines(one):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        for line in tables.statistics_text(one):
            (sys.stderr if bare else sys.stdout).write(line + "\n")
        status |= tables.status(one)
    return status


def _number(text: str) -> int:
    value = address(text)
    assert value is not None
    return value


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(cls=_Command)(pagetable)
