"""``kho abi``: the generations, their strings and layouts."""

from __future__ import annotations

from typing import Annotated

import typer

from inspector.cli import abi_verify
from inspector.cli.common import Format, FormatOption, printer, write_json

abi = typer.Typer(
    help="List, show, verify and compare the ABI's generations.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@abi.command("list")
def list_(
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="Only this layer.", show_default=False)
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """List the known generations of every layer, and how each is known."""
    from inspector import generations

    rows = generations.listing(layer)
    if format is Format.JSON:
        write_json({"generations": rows})
        return
    out = printer()
    for line in generations.table(rows, colour=out.colour):
        out.line(line)


@abi.command()
def show(
    generation: Annotated[
        str,
        typer.Argument(
            metavar="GENERATION", help="LAYER=ID, an id, or a struct's name.", show_default=False
        ),
    ],
    page_size: Annotated[
        str, typer.Option("--page-size", metavar="SIZE", help="4K, 16K or 64K.")
    ] = "4K",
    format: FormatOption = Format.TEXT,
) -> None:
    """Show the structs of a generation as C, with offsets and meanings."""
    from inspector import generations
    from inspector.cli.common import page_size as parse_page_size

    size = parse_page_size(page_size) or 0x1000
    if format is Format.JSON:
        write_json(generations.describe(generation, size))
        return
    out = printer()
    for line in generations.text(generation, size):
        out.line(line)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    abi_verify.register(abi)
    app.add_typer(abi, name="abi")
