"""``kho preserved``: every preserved block."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from abi.errors import IncompleteError
from inspector.cli.common import (
    AbiOption,
    ImageArgument,
    ListFormat,
    ListFormatOption,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    open_image,
    status_of,
)


def preserved(
    image: ImageArgument,
    format: ListFormatOption = ListFormat.TEXT,
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Print merged ranges, start and size, instead.")
    ] = False,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """List the preserved blocks, one a line: physical address and order, ascending."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        if opened.preserved is None:
            raise IncompleteError(
                f"the preserved-memory map is {opened.map_state}"
                + (f": {opened.lost[0]}" if opened.lost else "")
            )
        from inspector import blocks

        writer = sys.stdout.buffer
        chunks = blocks.ranges(opened.preserved) if ranges else blocks.blocks(opened.preserved)
        for piece in blocks.encode(chunks, str(format), ranges=ranges):
            writer.write(piece)
        writer.flush()
        raise typer.Exit(status_of(opened))


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(preserved)
