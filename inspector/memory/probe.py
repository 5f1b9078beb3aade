"""Tell what an input is by its content, never by its name, and open it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from abi.errors import UnreadableError, UsageError
from inspector.memory import elf, notes, raw, zst
from inspector.memory.base import PhysicalMemory
from inspector.memory.files import ImageFile, open_file
from inspector.memory.flattened import FLAT_MAGIC, dump_file

if TYPE_CHECKING:
    import drgn

Source: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | drgn.Program"

_LIVE = ("live", "/proc/kcore", "/dev/crash")

_DUMP_FILES = (b"KDUMP   ", b"DISKDUMP", FLAT_MAGIC)

#: Containers that are told apart only to say clearly that they are not read.
_FOREIGN = (
    (b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (b"BZh", "compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ\0", "compressed with xz; decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; decompress it first"),
    (b"PK\x03\x04", "a zip archive"),
    (b"EMiL", "a LiME dump; make a raw image of it"),
    (b"QEVM", "a QEMU migration stream or snapshot, not a memory dump"),
    (b"QFI\xfb", "a qcow2 disk image, not a memory dump"),
    (b"PAGEDUMP", "a Windows crash dump"),
    (b"PAGEDU64", "a Windows crash dump"),
    (b"!<arch>\n", "an archive"),
    (b"\xd0\x0d\xfe\xed", "a flattened device tree, not a memory dump"),
)


def open(
    source: Source,
    *,
    region_map: str | os.PathLike[str] | None = None,
    vmcoreinfo: str | None = None,
) -> PhysicalMemory:
    """Open an image of physical memory.

    ``source`` is a path; ``"-"`` for standard input; ``"live"`` or ``/proc/kcore`` for the
    running host; a sequence of paths for a split kdump; or a ``drgn.Program``. The
    container is found by probing the content: ELF core, kdump, either of them or a raw
    image inside zstd, and raw as the last resort.

    ``region_map`` names a file that says where RAM lies in a raw image (see
    :mod:`inspector.memory.raw`). ``vmcoreinfo`` is text of ``key=value`` lines that
    overrides what the container says.

    Raises UnreadableError with one clear line for what cannot be opened, UsageError for a
    wrong combination of arguments.
    """
    memory = _open(source, region_map, vmcoreinfo)
    if vmcoreinfo:
        memory.notes = memory.notes | notes.parse_pairs(vmcoreinfo.encode())
        memory.page_size = notes.page_size_of(memory.notes) or memory.page_size
    return memory


def _open(
    source: Source, region_map: str | os.PathLike[str] | None, vmcoreinfo: str | None
) -> PhysicalMemory:
    if isinstance(source, (str, os.PathLike)):
        paths = [os.fsdecode(source)]
    elif isinstance(source, Sequence):
        paths = [os.fsdecode(path) for path in source]
        if not paths:
            raise UsageError("no image given")
    elif not type(source).__module__.startswith(("drgn", "_drgn")):
        raise UnreadableError(f"cannot open a {type(source).__name__} as an image")
    else:
        from inspector.memory.program import ProgramMemory

        return ProgramMemory(source, region_map=region_map)
    if len(paths) == 1 and paths[0] in _LIVE:
        from inspector.memory.live import open_live

        return open_live(vmcoreinfo=vmcoreinfo)
    files: list[ImageFile] = []
    try:
        for path in paths:
            files.append(_plain(open_file(path)))  # noqa: PERF401
        return _probe(files, region_map)
    except BaseException:
        for file in files:
            file.close()
        raise


def _plain(file: ImageFile) -> ImageFile:
    """The file itself, or what is inside if it is compressed with zstd."""
    if not zst.is_zstd(bytes(file.data[:8])):
        return file
    try:
        return zst.decompress(file)
    finally:
        file.close()


def _probe(files: list[ImageFile], region_map: str | os.PathLike[str] | None) -> PhysicalMemory:
    first = files[0]
    head = bytes(first.data[:16])
    if head.startswith(_DUMP_FILES) and region_map is None:
        dumps = [dump_file(file) for file in files]
        if len(files) == 1 and dumps[0].begins_with(elf.MAGIC):  # makedumpfile -E -F
            try:
                return elf.ElfMemory(dumps[0].rearranged())
            finally:
                first.close()
        from inspector.memory.kdump import KdumpMemory

        return KdumpMemory(dumps)
    if len(files) > 1:
        raise UnreadableError(f"{first.name}: only a kdump file is split into several")
    if head[:4] == elf.MAGIC and region_map is None:
        return elf.ElfMemory(first)
    if region_map is not None:
        return raw.RawMemory(first, raw.read_region_map(Path(region_map)))
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise UnreadableError(f"{first.name}: {what}")
    if first.size % 4096:
        raise UnreadableError(
            f"{first.name}: not a memory dump: no known header, and {first.size} bytes are not "
            "a whole number of pages (a raw image needs that, or a region map)"
        )
    return raw.RawMemory(first)
