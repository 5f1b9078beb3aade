"""``kho cpr``: QEMU's CPR state, alone or beside an image."""

from __future__ import annotations

from typing import Annotated

import typer

from inspector.cli.common import (
    AbiOption,
    Format,
    FormatOption,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    finish,
    open_image,
    printer,
    status_of,
    write_json,
)


def cpr(
    stream: Annotated[
        str,
        typer.Argument(
            metavar="STREAM",
            help="What QEMU wrote in mode cpr-transfer or cpr-exec; '-' reads standard input.",
            show_default=False,
        ),
    ],
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="Line it up with what this image holds."),
    ] = None,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Show QEMU's CPR state: descriptors, VFIO devices, and their tokens in an image."""
    from inspector import cpr as library
    from inspector import cpr_view

    state = library.load(stream)
    alignment, status = None, 0
    if image is not None:
        with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
            alignment = library.align(state, opened)
            status = status_of(opened) | bool(alignment.differences)
    if format is Format.JSON:
        write_json(cpr_view.document(state, alignment))
    else:
        out = printer()
        for line in cpr_view.lines(state, alignment):
            out.line(line)
    finish(status)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(cpr)
