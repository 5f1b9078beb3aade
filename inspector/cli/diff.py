"""``kho diff``: what differs between two images."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from abi.errors import UsageError
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

if TYPE_CHECKING:
    from inspector.image import Image


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="An image.", show_default=False)],
    after: Annotated[
        str | None,
        typer.Argument(metavar="[B]", help="Another, or a later one.", show_default=False),
    ] = None,
    consumed_by: Annotated[
        str | None,
        typer.Option(
            "--consumed-by",
            metavar="KERNEL",
            help="Instead of B: A as this simulated kernel leaves it, all files retrieved.",
        ),
    ] = None,
    ignore_addresses: Annotated[
        bool, typer.Option("--ignore-addresses", help="Leave out what only lies elsewhere.")
    ] = False,
    content: Annotated[
        bool, typer.Option("--content", help="Compare what memory files hold, too.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="List at most so many changes.")
    ] = 10000,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    page_size: PageSizeOption = None,
) -> None:
    """Show the structural difference between two images; exit status 1 if there is one.

    Objects are matched by name, token or device id. Give the outgoing and the incoming
    image of one update to see what the consumer wrote, or one image and a kernel.
    """
    if (after is None) == (consumed_by is None):
        raise UsageError("give a second image or --consumed-by KERNEL, and not both")
    with ExitStack() as opened:
        one = opened.enter_context(open_image(before, abi=abi, page=page_size))
        if after is not None:
            other = opened.enter_context(open_image(after, abi=abi, page=page_size))
        else:
            other = opened.enter_context(_consumed(one, str(consumed_by), abi))
        from inspector import diff as diffs
        from inspector.diff import present

        found = diffs.diff(
            one, other, addresses=not ignore_addresses, contents=content, limit=limit
        )
        if format is Format.JSON:
            write_json(present.document(found))
        else:
            out = printer()
            for line in present.lines(found, colour=out.colour):
                out.line(line)
        finish(0 if found.empty else 1)


def _consumed(image: Image, kernel: str, abi: list[str] | None) -> Image:
    """The image as a kernel leaves it; what became of it goes to standard error."""
    from abi import registry
    from inspector import compat
    from inspector.kernel.profile_file import find

    overrides = registry.parse_overrides(abi or [])
    left, verdict = compat.consumed(image, find(kernel), overrides)
    typer.echo(f"kho: {verdict.consumer}: {verdict.outcome}", err=True)
    return left


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(diff)
