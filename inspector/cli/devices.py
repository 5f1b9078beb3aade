"""``kho devices``: which device can DMA where."""

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


def devices(
    image: ImageArgument,
    format: FormatOption = Format.TEXT,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Show which device can DMA where: unit, domain, page table, HWPT, memory files."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector.passthrough import reach, reach_view

        found = reach.devices(opened)
        if format is Format.JSON:
            write_json(reach_view.document(opened, found))
        else:
            out = printer()
            for line in reach_view.lines(opened, found, colour=out.colour):
                out.line(line)
        status = status_of(opened)
        for one in found:
            status |= one.status
        raise typer.Exit(status)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(devices)
