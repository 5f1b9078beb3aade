"""Extract an image, verified, against reading what is extracted.

Reading is what the same tool takes to decode the image, to make the document of it, to walk its
page tables, and to read every page that any of it leads to. Where content is most of an image,
an extract writes as much as it reads: it is then also compared with a plain copy of the file.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import zstandard

from benchmarks.common import Result, compare, work_directory
from inspector import image as images
from inspector.document import document
from inspector.extract import extract, reached
from inspector.kernel import scenario
from inspector.memory.elfcore import write_core
from inspector.memory.ranges import present

_TABLES = """
kernel = "linux-7.3+iommu-vw"
[machine]
ram = ["128G"]
[[machine.iommu]]
base = 0xfed90000
[[machine.device]]
bdf = "0000:00:00.0"
unit = 0xfed90000
count = 1000
[[session]]
name = "vm{i}"
count = 10
[[session.file]]
token = 1
id = "{session}/ram"
size = "80M"
fill = "head"
seals = ["seal", "shrink", "grow"]
[[session.file]]
token = 0x100
count = 98
size = "1M"
fill = "head"
[[session.file]]
type = "iommufd"
token = 2
id = "{session}/iommufd"
[[session.file.ioas]]
name = "ioas{i}"
count = 10
map = [{ file = "ram", size = "4K", iova = 0x10000000, count = 20000, stride = "8K" }]
[[session.file.hwpt]]
name = "hwpt{i}"
ioas = "ioas{i}"
count = 10
token = 100
[[session.file]]
type = "vfio-pci"
token = 0x1000
count = 100
device = 0
per_session = 100
iommufd = "iommufd"
hwpt = "hwpt{i}"
hwpts = 10
"""
_CONTENT = """
kernel = "linux-7.3"
[machine]
ram = ["4G"]
[[session]]
name = "vm"
[[session.file]]
token = 1
size = "512M"
"""
_PIECE = 1 << 20


def _read(path: Path) -> int:
    """Decode, describe, walk the tables, read every page reached; bytes read."""
    total = 0
    with images.open(path) as image:
        document(image)
        for start, size in present(image.memory, reached(image)):
            for at in range(start, start + size, _PIECE):
                total += len(image.memory.read(at, min(_PIECE, start + size - at)))
    return total


def _extracted(path: Path, suffix: str = ".elf") -> Callable[[], int]:
    out = work_directory() / f"extract{suffix}"

    def run() -> int:
        with images.open(path) as image:
            done = extract(image, out, force=True)
            return sum(size for _, size in present(image.memory, done.ranges))

    return run


def _random_content(path: Path) -> None:
    """Put bytes that cannot be compressed where the folios of a core lie."""
    with images.open(path) as image, path.open("r+b") as stream:
        for _, file in image.memfds():
            for address, size in zip(file.addresses.tolist(), file.sizes.tolist(), strict=True):
                segment = next(
                    s for s in image.memory.stored()  # type: ignore[attr-defined]
                    if s.first <= address <= s.last
                )  # fmt: skip
                stream.seek(segment.offset + address - segment.first)
                stream.write(os.urandom(size))


def _against(name: str, contestant: Callable[[], int], path: Path, limit: float | None) -> Result:
    result = compare(
        name, contestant, lambda: _read(path), limit=limit, rounds=7, cpu=False, between=_clear
    )
    return dataclasses.replace(result, baseline="reading")


def _clear() -> None:
    """Remove what was written: to take it away is not part of the next extract."""
    for path in work_directory().glob("extract.*"):
        path.unlink()
    (work_directory() / "copy").unlink(missing_ok=True)


def _copy(path: Path) -> None:
    """A plain copy, read and written by the process, on the disk when it returns."""
    with path.open("rb") as source, (work_directory() / "copy").open("wb") as target:
        shutil.copyfileobj(source, target, _PIECE)
        target.flush()
        os.fsync(target.fileno())


def run() -> list[Result]:
    """Page tables and lists; content, stored plainly and compressed."""
    gc.set_threshold(100_000, 50, 1000)  # as in a command
    tables, content = work_directory() / "tables.elf", work_directory() / "content.elf"
    write_core(tables, scenario.parse(_TABLES).run().memory)
    write_core(content, scenario.parse(_CONTENT).run().memory)
    _random_content(content)
    packed = content.with_suffix(".elf.zst")
    with content.open("rb") as source, packed.open("wb") as target:
        zstandard.ZstdCompressor(level=1).copy_stream(source, target)
    plain = _extracted(content)

    def copied() -> None:
        _copy(content)

    def plainly() -> None:
        plain()

    return [
        _against("extract, 1,000 files, 2 M mappings", _extracted(tables), tables, 1.5),
        _against("  the same, to zstd", _extracted(tables, ".elf.zst"), tables, 1.5),
        _against("extract, 512 MiB content, from zstd", _extracted(packed), packed, 1.5),
        _against("extract, 512 MiB content, to ELF", plain, content, None),
        dataclasses.replace(
            compare(
                "  the same, against a copy", plainly, copied, rounds=7, cpu=False, between=_clear
            ),
            baseline="cp",
        ),
    ]
