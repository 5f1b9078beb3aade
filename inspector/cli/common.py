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
ConsumerPageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--page-size",
        metavar="SIZE",
        help="4K, 16K or 64K: pages of the kernel that takes over (default: the image's).",
    ),
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


class Printer:
    """Lines for a person; ``colour`` if they go to a terminal that wants it."""

    def __init__(self) -> None:
        import os

        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.write = sys.stdout.write

    def line(self, text: str) -> None:
        """Write one line."""
        self.write(text + "\n")

    def notes(self, image: Image) -> None:
        """What is lost and how much is wrong, after a tree."""
        from inspector.findings import Severity
        from inspector.text import display, plural

        for lost in image.lost:
            self.line(f"lost: {display(lost)}")
        for layer, verdict in image.verdicts.items():
            if verdict.tied:
                others = ", ".join(g.id for g in verdict.tied)
                self.line(f"{layer}: {others} would fit as well")
        wrong = [f for f in image.findings if f.severity >= Severity.WARNING]
        for finding in wrong[:20]:
            self.line(
                f"{finding.severity.name.lower()}: {finding.path or '/'}: "
                f"{display(finding.message)} [{finding.code}]"
            )
        if len(wrong) > 20:
            self.line(f"... and {plural(len(wrong) - 20, 'more finding')}")


def printer() -> Printer:
    """The printer of this process."""
    return Printer()


def status_of(image: Image) -> int:
    """Exit status of a verb that only shows: 0, 1 warnings, 4 errors, 16 incomplete."""
    from inspector.findings import Severity

    status = 16 if image.incomplete else 0
    worst = max((f.severity for f in image.findings), default=Severity.INFO)
    if worst is Severity.ERROR:
        status |= 4
    elif worst is Severity.WARNING:
        status |= 1
    return status
