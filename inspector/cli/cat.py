"""``kho cat``: the bytes of an object."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inspector.cli.common import (
    AbiOption,
    ImageArgument,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    open_image,
)


def cat(
    image: ImageArgument,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="An object; a file's content is /LUO/sessions/NAME/files/TOKEN.",
            show_default=False,
        ),
    ],
    fill_missing: Annotated[
        bool, typer.Option("--fill-missing", help="Write zeros for pages the image lacks.")
    ] = False,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Write a file's content, a blob, a region or a struct's raw bytes to standard output.

    Holes of a file are written as zeros. In PATH a '/', '%' or control character of a name
    is written as %NN; tokens may be in any integer notation.
    """
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import content, tree

        node = tree.find(opened, path)
        writer = sys.stdout.buffer
        for piece in content.read(opened, node, fill_missing=fill_missing):
            writer.write(piece)
        writer.flush()


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(cat)
