"""``kho diff``: what differs between two images."""

from __future__ import annotations

from typing import Annotated

import typer

from inspector.cli.common import (
    AbiOption,
    Format,
    FormatOption,
    PageSizeOption,
    finish,
    open_image,
    printer,
    write_json,
)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="An image.", show_default=False)],
    after: Annotated[
        str, typer.Argument(metavar="B", help="Another, or a later one.", show_default=False)
    ],
    ignore_addresses: Annotated[
        bool, typer.Option("--ignore-addresses", help="Leave out what only lies elsewhere.")
    ] = False,
    content: Annotated[
        bool, typer.Option("--content", help="Compare what memory files hold, too.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="List at most so many changes.")
    ] = 10000,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    page_size: PageSizeOption = None,
) -> None:
    """Show the structural difference between two images; exit status 1 if there is one.

    Objects are matched by name, token or device id. Give the outgoing and the incoming
    image of one update to see what the consumer wrote.
    """
    with (
        open_image(before, abi=abi, page=page_size) as one,
        open_image(after, abi=abi, page=page_size) as other,
    ):
        from inspector import diff as diffs

        found = diffs.diff(
            one, other, addresses=not ignore_addresses, contents=content, limit=limit
        )
        if format is Format.JSON:
            write_json(diffs.as_json(found))
        else:
            out = printer()
            for line in diffs.lines(found, colour=out.colour):
                out.line(line)
        finish(0 if found.empty else 1)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(diff)
