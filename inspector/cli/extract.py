"""``kho extract``: only the pages that matter."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from abi.errors import UsageError
from inspector.cli.common import (
    AbiOption,
    ImageArgument,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    open_image,
)
from inspector.text import parse_size, size_text


def extract(
    image: ImageArgument,
    out: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="An ELF core; '.zst' compresses it.",
            show_default=False,
        ),
    ],
    no_content: Annotated[
        bool, typer.Option("--no-content", help="Leave out what files and regions hold.")
    ] = False,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Also replace names and tokens; implies --no-content."),
    ] = False,
    max_file: Annotated[
        str | None,
        typer.Option("--max-file", metavar="SIZE", help="Leave out content of larger files."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Cut an image down to the pages that KHO state consists of.

    The result says the same to 'kho dump', is verified to do so, and opens in drgn, crash
    and readelf.
    """  # fmt: skip
    limit = None
    if max_file is not None and (limit := parse_size(max_file)) is None:
        raise UsageError(f"{max_file!r} is no size; try 64K or 1M")
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import extract as extracts

        done = extracts.extract(
            opened, out, content=not no_content, redact=redact, max_file=limit, force=force
        )
        left = f", {size_text(done.left_out)} of content left out" if done.left_out else ""
        size = size_text(os.path.getsize(out))
        typer.echo(f"{out}: {size}, {len(done.ranges)} ranges of memory{left}", err=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(extract)
