"""``kho dump``: the object tree, or one object of it."""

from __future__ import annotations

from typing import Annotated

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


def dump(
    image: ImageArgument,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="An object, such as /LUO/sessions/vm0.")
    ] = "/",
    format: FormatOption = Format.TEXT,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=0, help="Levels of the tree to show.")
    ] = 64,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Show what one kernel hands to the next, as a tree."""
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import document, tree

        node = tree.find(opened, path)
        if format is Format.JSON:
            whole = not path.strip("/")
            write_json(document.document(opened) if whole else document.part(opened, node, path))
        else:
            out = printer()
            for line in tree.render(node, colour=out.colour, depth=depth):
                out.line(line)
            if not path.strip("/"):
                out.notes(opened)
        raise typer.Exit(status_of(opened))


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(dump)
