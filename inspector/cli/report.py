"""``kho report``: one HTML page about an image."""

from __future__ import annotations

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


def report(
    image: ImageArgument,
    out: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="The page.", show_default=False),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Write one self-contained HTML page: outcome, findings, pictures, objects."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import report as reports

        reports.write(opened, out, source=image, force=force)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(report)
