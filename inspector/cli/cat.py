"""``kho cat``: the bytes of an object."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from typing import Annotated, BinaryIO

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
from inspector.output import OutputError
from inspector.text import parse_size, size_text


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
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="Refuse larger objects; by default what is larger than the image's RAM, and"
            " than 1 GiB, or larger than 64 GiB.",
        ),
    ] = None,
    abi: AbiOption = None,
    root: RootOption = None,
    page_size: PageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Write a file's content, a blob, a region or a struct's raw bytes to standard output.

    Holes of a file are written as zeros; where standard output is a file they stay holes. In
    PATH a '/', '%' or control character of a name is written as %NN; tokens may be in any
    integer notation.
    """
    limit = None
    if max_size is not None and (limit := parse_size(max_size)) is None:
        raise UsageError(f"{max_size!r} is no size; try 64K or 1M")
    with open_image(image, abi=abi, root=root, page=page_size, regions=regions) as opened:
        from inspector import content, tree

        node = tree.find(opened, path)
        _write(content.read(opened, node, fill_missing=fill_missing, max_size=limit))


def _write(pieces: Iterable[bytes]) -> None:
    from inspector.content import ZEROS

    writer = sys.stdout.buffer
    writer.flush()
    holes = 0  # bytes left out at the end of a file that may stay sparse
    sparse = _at_end_of_file(writer)
    for piece in pieces:
        if sparse and (piece is ZEROS or piece == ZEROS):
            holes += len(piece)
            continue
        if holes:
            writer.flush()
            _skip(writer.fileno(), holes)
            holes = 0
        writer.write(piece)
    writer.flush()
    if holes:
        _skip(writer.fileno(), holes)


def _skip(fd: int, size: int) -> None:
    """Make the file longer by a hole."""
    try:
        os.ftruncate(fd, os.lseek(fd, size, os.SEEK_CUR))
    except OSError as error:
        raise OutputError(
            f"standard output: {size_text(size)} of zeros: {error.strerror or error}"
        ) from None


def _at_end_of_file(stream: BinaryIO) -> bool:
    """Whether a stream writes at the end of a regular file, where what is skipped is zero."""
    import fcntl

    try:
        fd = stream.fileno()
        info = os.fstat(fd)
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        if not stat.S_ISREG(info.st_mode) or appends:
            return False
        return os.lseek(fd, 0, os.SEEK_CUR) == info.st_size
    except OSError:  # not a file of the system
        return False


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(cat)
