"""What the verbs share: arguments, opening an image, writing results."""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abi.errors import UsageError
from inspector.text import parse_integer

if TYPE_CHECKING:
    from inspector.image import Image
    from inspector.memory.base import PhysicalMemory

#: Version of every JSON document; raised when a key changes its meaning.
SCHEMA_VERSION = 1


class Format(enum.StrEnum):
    """Output for people or for programs."""

    TEXT = "text"
    JSON = "json"


class ListFormat(enum.StrEnum):
    """Formats of long lists."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="A memory image: raw, ELF core, kdump, each also as .zst; '-' reads standard "
        "input, '/proc/kcore' the running machine.",
        show_default=False,
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="Output format.")]
ListFormatOption = Annotated[ListFormat, typer.Option("--format", "-f", help="Output format.")]
AbiOption = Annotated[
    list[str] | None,
    typer.Option(
        "--abi",
        metavar="LAYER=ID",
        help="Decode a layer as this generation instead of detecting it (see 'kho abi list').",
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="PA", help="Physical address of the root FDT."),
]
PageSizeOption = Annotated[
    str | None,
    typer.Option("--page-size", metavar="SIZE", help="4K, 16K or 64K instead of detecting it."),
]
RegionMapOption = Annotated[
    str | None,
    typer.Option("--regions", metavar="FILE", help="Where the parts of a raw image lie in memory."),
]

_SIZES = {"4k": 0x1000, "16k": 0x4000, "64k": 0x10000}


def address(text: str | None, what: str = "an address") -> int | None:
    """A physical address in any notation. Raises UsageError."""
    if text is None:
        return None
    value = parse_integer(text)
    if value is None or not 0 <= value < 1 << 64:
        raise UsageError(f"{text!r} is not {what}")
    return value


def page_size(text: str | None) -> int | None:
    """``4K``, ``16K``, ``64K`` or bytes. Raises UsageError."""
    if text is None:
        return None
    size = _SIZES.get(text.lower().removesuffix("ib"), parse_integer(text))
    if size not in _SIZES.values():
        raise UsageError(f"page size {text!r} is not 4K, 16K or 64K")
    return size


def open_memory(path: str, regions: str | None = None) -> PhysicalMemory:
    """Open a memory image."""
    from inspector import memory

    return memory.open(path, region_map=regions)


def open_image(
    path: str,
    *,
    abi: list[str] | None = None,
    root: str | None = None,
    page: str | None = None,
    regions: str | None = None,
) -> Image:
    """Open and decode an image with the options that most verbs have."""
    from inspector import image

    return image.open(
        path,
        overrides=abi or [],
        root=address(root),
        page_size=page_size(page),
        region_map=regions,
    )


def write_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output, with ``schema_version`` first."""
    import json

    json.dump({"schema_version": SCHEMA_VERSION, **document}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def finish(status: int) -> None:
    """Leave with an exit status."""
    if status:
        raise typer.Exit(status)
