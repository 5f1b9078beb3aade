"""``kho info``: what is this image?"""

from __future__ import annotations

import typer

from inspector.cli.common import (
    AbiOption,
    Format,
    FormatOption,
    ImageArgument,
    PageSizeOption,
    RegionMapOption,
    RootOption,
    open_image,
    printer,
    status_of,
    write_json,
)


def info(
    image: ImageArgument,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Say what an image is: container, machine, moment, generations, sizes."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import summary

        facts = summary.summarise(opened)
        if format is Format.JSON:
            write_json(facts)
        else:
            out = printer()
            for line in summary.lines(facts, colour=out.colour):
                out.line(line)
        raise typer.Exit(status_of(opened))


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(info)
