"""Raw images: byte n of the file is physical address n, unless a region map says otherwise.

A region map is a text file, one region of RAM a line; ``#`` begins a comment::

    START SIZE [OFFSET]            numbers in any notation of Python, or with a suffix K M G T
    START-END : System RAM         a line of /proc/iomem, END inclusive, hexadecimal

OFFSET is where the region begins in the file; left out, it is START; ``+`` means right
behind the region of the line before. Of /proc/iomem lines, only "System RAM" counts, and
the offset is START. QEMU's memory-backend-file of a q35 machine with 4 GiB, for example::

    0           2G  0
    0x100000000 2G  +
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from abi.errors import UnreadableError, UsageError
from inspector.memory.files import ImageFile
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.text import display

_IOMEM = re.compile(r"\s*([0-9a-fA-F]+)-([0-9a-fA-F]+) : (.*)")
_SUFFIX = {"k": 10, "m": 20, "g": 30, "t": 40}
_MAX_MAP = 1 << 20


class RawMemory(MappedMemory):
    """A raw image, mapped."""

    kind = "raw"

    def __init__(self, file: ImageFile, regions: list[Segment] | None = None) -> None:
        """``regions`` as :func:`read_region_map` returns them; default: the whole file.

        Raises UnreadableError if a region reaches beyond the end of the file.
        """
        if regions is None:
            regions = [Segment(0, file.size - 1, Kind.STORED)]
        for first, last, _, offset in regions:
            if offset + (last - first) >= file.size:
                raise UnreadableError(
                    f"{file.name}: truncated: the region at {first:#x} reaches to "
                    f"{offset + last + 1 - first:#x} of the file, which ends at {file.size:#x}"
                )
        self._file = file
        super().__init__(from_segments(regions), file.data, file.data_ranges)

    def close(self) -> None:
        """Release the file. Views handed out stay valid as long as they are held."""
        self._file.close()


def read_region_map(path: str | Path) -> list[Segment]:
    """Regions of RAM out of a region map file.

    Raises UnreadableError if it cannot be read, UsageError (with the line) if it is wrong.
    """
    name = display(str(path))
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(_MAX_MAP + 1)
    except OSError as error:
        raise UnreadableError(f"{name}: {error.strerror or error}") from None
    if len(data) > _MAX_MAP:
        raise UnreadableError(f"{name}: too large for a region map")
    return parse_region_map(data.decode("utf-8", "replace"), name)


def parse_region_map(text: str, name: str = "region map") -> list[Segment]:
    """Regions of RAM out of the text of a region map, ascending."""
    regions: list[Segment] = []
    behind = 0
    for number, line in enumerate(text.splitlines(), 1):
        iomem = _IOMEM.fullmatch(line.rstrip())
        if iomem:
            if iomem[3] != "System RAM":
                continue
            first, last = int(iomem[1], 16), int(iomem[2], 16)
            offset = first
        else:
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                if not 2 <= len(words) <= 3:
                    raise ValueError
                first, size = _number(words[0]), _number(words[1])
                if size <= 0:
                    raise ValueError
                last = first + size - 1
                offset = (
                    first if len(words) == 2 else (behind if words[2] == "+" else _number(words[2]))
                )
            except ValueError:
                raise UsageError(
                    f"{name}: line {number} is neither START SIZE [OFFSET] nor of /proc/iomem"
                ) from None
        if not 0 <= first <= last < 1 << 64 or offset < 0:
            raise UsageError(f"{name}: line {number}: not a range of physical memory")
        behind = offset + last + 1 - first
        regions.append(Segment(first, last, Kind.STORED, offset))
    if not regions:
        raise UsageError(f"{name}: no region of RAM in it")
    if all(r.first == r.last == 0 for r in regions):
        raise UsageError(f"{name}: all addresses are zero; /proc/iomem hides them from non-root")
    regions.sort()
    for before, after in itertools.pairwise(regions):
        if after.first <= before.last:
            raise UsageError(f"{name}: regions overlap at {after.first:#x}")
    return regions


def _number(text: str) -> int:
    shift = _SUFFIX.get(text[-1:].lower(), 0)
    if shift and not text.lower().startswith("0x"):
        return int(text[:-1], 0) << shift
    return int(text, 0)
