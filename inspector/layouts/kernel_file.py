"""Files that hold a kernel or a module, opened down to their ELF sections.

Takes an ELF (vmlinux, ``.ko``, ``.o``), a bzImage, or either compressed as a whole with gzip,
xz, zstd or bzip2. Sections are read where they lie. What is decompressed goes to an unnamed
temporary file and is limited, in size and in how much larger it may be than what it is made of.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import os
import re
import struct
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from abi.errors import UnreadableError
from inspector.memory.files import ImageFile, Spool
from inspector.text import size_text

#: Most bytes that anything is decompressed to, and that are read from a pipe: a vmlinux with all
#: its debug information has about one GiB.
MAX_SIZE = 2 << 30
#: Debug information becomes five to ten times as large; this times, and some more, is no kernel.
_MAX_RATIO, _SPARE = 64, 64 << 20
#: Most bytes of a section that is read as a whole (BTF, names of debug information), of a blob
#: of BTF, and of a record of layouts.
MAX_SECTION = 256 << 20
_MAX_RECORD = 16 << 20
#: Sections of one file: objects with a section for each function have some ten thousand.
_MAX_SECTIONS = 1 << 18

_SHT_NOBITS, _SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 8, 1, 2, 4, 0x800
_SHN_XINDEX = 0xFFFF

Buffer = bytes | mmap.mmap


class _Reader(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


def _open_zstd(stream: IO[bytes]) -> _Reader:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(stream)


def _open_lzma(stream: IO[bytes]) -> _Reader:
    return lzma.LZMAFile(stream, format=lzma.FORMAT_ALONE)


#: Magic -> a reader of what is behind it.
_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], _Reader]] = {
    b"\x1f\x8b\x08": lambda s: gzip.GzipFile(fileobj=s),
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0": _open_lzma,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"BZh": bz2.BZ2File,
}
_NEEDS = {b"\x02\x21\x4c\x18": "LZ4", b"\x89LZO": "LZO"}


@dataclass(frozen=True, slots=True)
class Section:
    """One ELF section."""

    name: str
    type: int
    flags: int
    offset: int
    size: int

    @property
    def loaded(self) -> bool:
        """Data that is part of the running kernel; small kernels mark some of it executable."""
        code = self.flags & _SHF_EXECINSTR and not self.flags & _SHF_WRITE
        return bool(self.flags & _SHF_ALLOC) and not code

    @property
    def stored(self) -> bool:
        """Has bytes in the file."""
        return self.type != _SHT_NOBITS and self.size > 0


class KernelFile:
    """The sections of one ELF image.

    ``path`` is where others can open the ELF as it is; what was unpacked has a path as long as
    this object lives.
    """

    def __init__(
        self,
        data: Buffer,
        source: str,
        path: Path | None = None,
        fd: int | None = None,
    ) -> None:
        """Takes over ``fd``, a descriptor of the ELF if it has no path of its own."""
        self.data = data
        self.source = source
        self.path = path
        if fd is not None:
            self.path = Path(f"/proc/self/fd/{fd}")
            weakref.finalize(self, os.close, fd)
        self.sections = tuple(_sections(data, source))

    def section(self, name: str) -> bytes | None:
        """The bytes of the first section of a name, decompressed; None if there is none.

        :raises UnreadableError: it does not decompress, or has more than ``MAX_SECTION`` bytes.
        """
        for section in self.sections:
            if section.name == name and section.stored:
                if section.size > MAX_SECTION:
                    raise self._too_much(name, section.size)
                raw = self.data[section.offset : section.offset + section.size]
                if section.flags & _SHF_COMPRESSED:
                    return self._inflate(name, raw)
                return raw
        return None

    def has(self, name: str) -> bool:
        """Whether a section of this name has bytes."""
        return any(s.name == name and s.stored for s in self.sections)

    def _too_much(self, name: str, size: int) -> UnreadableError:
        return UnreadableError(
            f"{self.source}: section {name} of {size_text(size)}; at most"
            f" {size_text(MAX_SECTION)} are read"
        )

    def _inflate(self, name: str, raw: bytes) -> bytes:
        order = "<" if self.data[5] == 1 else ">"
        head = struct.Struct(order + ("I4xQQ" if self.data[4] == 2 else "3I"))
        if len(raw) < head.size:
            raise UnreadableError(f"{self.source}: compressed section cut short")
        kind, size, _ = head.unpack_from(raw)
        if kind not in (1, 2):
            raise UnreadableError(f"{self.source}: section compression {kind} is not known")
        if size > MAX_SECTION:
            raise self._too_much(name, size)
        raw = raw[head.size :]
        try:
            if kind == 1:
                data = zlib.decompressobj().decompress(raw, size + 1)
            else:
                import zstandard

                with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                    data = stream.read(size + 1)
        except Exception as error:  # each library has its own
            text = " ".join(str(error).split())
            raise UnreadableError(f"{self.source}: section does not decompress: {text}") from None
        if len(data) != size:
            raise UnreadableError(
                f"{self.source}: section {name} does not decompress to the {size} bytes it claims"
            )
        return data

    def version_strings(self, names: set[str]) -> frozenset[str]:
        """What looks like a version string (``kho-v4``), and those of ``names`` that are there.

        Only whole NUL-terminated strings of loaded data count.
        """
        found: set[str] = set()
        before = rb"(?:\A|(?<=[^ -~]))"
        plain = [
            (name, re.compile(before + re.escape(name.encode()) + rb"\0"), name.encode() + b"\0")
            for name in names
            if not _VERSIONED.search(name)
        ]
        for data in self._loaded(skip=".BTF"):
            found |= _version_strings(data)
            found |= {n for n, whole, text in plain if text in data and whole.search(data)}
        return frozenset(found)

    def release(self) -> str:
        """The release from the kernel's banner or a module's vermagic; empty if there is none."""
        pattern = re.compile(rb"(?:Linux version |\0vermagic=)([0-9][!-~]{0,63}) ")
        for data in self._loaded():
            if match := pattern.search(data):
                return match[1].decode()
        return ""

    def _loaded(self, skip: str = "") -> Iterator[bytes]:
        """Data of the loaded sections, each range once.

        Sections of a real file do not overlap, so together they are no larger than the file; what
        is beyond that is not looked at.
        """
        seen: set[tuple[int, int]] = set()
        room = min(len(self.data), MAX_SIZE)
        for section in self.sections:
            place = (section.offset, section.size)
            if not section.loaded or not section.stored or section.name == skip or place in seen:
                continue
            seen.add(place)
            if section.size > min(room, MAX_SECTION):
                continue
            room -= section.size
            yield self.data[section.offset : section.offset + section.size]


_VERSIONED = re.compile(r"-v[0-9]")
_TEXT = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_;-")
_MAX_STRING = 48


def _version_strings(data: bytes) -> set[str]:
    """Strings like ``kho-v4``, between NULs or behind binary data of a struct."""
    found = set()
    for match in re.finditer(rb"-v[0-9]", data):
        start, end = match.span()
        floor, ceiling = max(start - _MAX_STRING, 0), min(end + _MAX_STRING, len(data) - 1)
        while start > floor and data[start - 1] in _TEXT:
            start -= 1
        while end < ceiling and data[end] in _TEXT:
            end += 1
        before = data[start - 1] if start else 0
        alone = not 0x20 <= before < 0x7F and data[end] == 0
        if alone and start < match.start() and end - start < _MAX_STRING:
            found.add(data[start:end].decode())
    return found


def open_kernel(path: str) -> KernelFile | bytes:
    """Open a file; what is no ELF after unpacking comes back as bytes. ``-``: standard input.

    :raises UnreadableError: compressed in a way that cannot be undone here, damaged, or too big.
    :raises OSError: the file cannot be read.
    """
    if path == "-":
        source = "standard input"
        spooled = _spooled(cast("_Reader", sys.stdin.buffer), source, MAX_SIZE)
        return _unpack(spooled or b"", source, None)
    with open(path, "rb") as file:
        try:
            data: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # empty, or a file of sysfs
            data = file.read(MAX_SIZE)
    return _unpack(data, path, Path(path))


def _unpack(found: Buffer | ImageFile, source: str, path: Path | None) -> KernelFile | bytes:
    for _ in range(4):
        data = _mapping(found) if isinstance(found, ImageFile) else found
        if data[:4] == b"\x7fELF":
            fd = found.duplicate() if isinstance(found, ImageFile) else None
            return KernelFile(data, source, path, fd)
        if data[0x202:0x206] == b"HdrS":
            data, path = _bzimage_payload(data, source), None
            if data.startswith(b"\x7fELF"):
                return KernelFile(data, source)
        reader = next((r for m, r in _COMPRESSIONS.items() if data[: len(m)] == m), None)
        if reader is None:
            break
        found, path = _decompress(data, reader, source), None
    return _blob(_mapping(found) if isinstance(found, ImageFile) else found, source)


def _blob(data: Buffer, source: str) -> bytes:
    """What is no ELF: BTF and records as a whole, of anything else the beginning."""
    if not data:
        raise UnreadableError(f"{source}: empty")
    if data[:2] in (b"\x9f\xeb", b"\xeb\x9f"):
        what, limit = "BTF", MAX_SECTION
    elif data[:1] == b"{":
        what, limit = "a record of layouts", _MAX_RECORD
    else:
        return data[:64]
    if len(data) > limit:
        raise UnreadableError(f"{source}: {size_text(len(data))} are too much for {what}")
    return data[:]


def _mapping(file: ImageFile) -> mmap.mmap:
    mapping = file.data.obj
    assert isinstance(mapping, mmap.mmap)
    return mapping


def _bzimage_payload(data: Buffer, source: str) -> bytes:
    """The vmlinux inside a bzImage (boot protocol 2.08 and later)."""
    if len(data) < 0x250:
        raise UnreadableError(f"{source}: bzImage cut short")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x208:
        raise UnreadableError(f"{source}: boot protocol {version:#x} does not tell the payload")
    start = ((data[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[start + offset : start + offset + length]
    for magic, name in _NEEDS.items():
        if payload.startswith(magic):
            raise UnreadableError(f"{source}: a payload compressed with {name} cannot be read")
    if payload.startswith((b"\x7fELF", *_COMPRESSIONS)):
        return payload
    raise UnreadableError(f"{source}: bzImage without a known payload")


def _decompress(data: Buffer, reader: Callable[[IO[bytes]], _Reader], source: str) -> ImageFile:
    limit = min(MAX_SIZE, _SPARE + _MAX_RATIO * len(data))
    # A mapping reads like a file already; a BytesIO of it would be a copy.
    stream = io.BytesIO(data) if isinstance(data, bytes) else cast("IO[bytes]", data)
    try:
        spooled = _spooled(reader(stream), source, limit)
    except UnreadableError:
        raise
    except Exception as error:  # each library has its own
        text = " ".join(str(error).split())
        raise UnreadableError(f"{source}: does not decompress: {text}") from None
    if spooled is None:
        raise UnreadableError(f"{source}: empty")
    return spooled


def _spooled(stream: _Reader, source: str, limit: int) -> ImageFile | None:
    """All of a stream in a temporary file, None if it is empty.

    An error behind the first part is the payload's trailer.
    """
    with Spool(source) as spool:
        while True:
            try:
                chunk = stream.read1(1 << 20)
            except Exception:
                # A bzImage payload ends with the size of what it holds: no part of the stream.
                if not spool.size:
                    raise
                break
            if not chunk:
                break
            spool.write(chunk)
            if spool.size > limit:
                raise UnreadableError(
                    f"{source}: has more than {size_text(limit)}: too much for a kernel"
                )
        return spool.finish() if spool.size else None


def _sections(data: Buffer, source: str) -> Iterator[Section]:
    if len(data) < 52 or data[4] not in (1, 2) or data[5] not in (1, 2):
        raise UnreadableError(f"{source}: ELF header cut short or damaged")
    order = "<" if data[5] == 1 else ">"
    wide = data[4] == 2
    if wide and len(data) < 64:
        raise UnreadableError(f"{source}: ELF header cut short or damaged")
    head = struct.unpack_from(order + ("Q" if wide else "I"), data, 40 if wide else 32)
    start = head[0]
    entry, count, names = struct.unpack_from(order + "3H", data, 58 if wide else 46)
    layout = struct.Struct(order + ("IIQQQQIIQQ" if wide else "10I"))
    if not start:
        return
    if entry != layout.size or start + layout.size > len(data):
        raise UnreadableError(f"{source}: section table out of bounds")
    first = layout.unpack_from(data, start)
    if count == 0:  # more than fit: the count is in the first entry
        count = first[5]
    if names == _SHN_XINDEX:
        names = first[6]
    if count > _MAX_SECTIONS:
        raise UnreadableError(f"{source}: {count:,} sections; at most {_MAX_SECTIONS:,} are read")
    if start + count * layout.size > len(data) or names >= max(count, 1):
        raise UnreadableError(f"{source}: section table out of bounds")
    at, size = layout.unpack_from(data, start + names * layout.size)[4:6]
    text = data[at : at + min(size, 1 << 24)]
    for i in range(count):
        row = layout.unpack_from(data, start + i * layout.size)
        name, kind, flags, _, offset, length = row[:6]
        if kind not in (0, _SHT_NOBITS) and offset + length > len(data):
            continue  # a truncated file: what is missing is missing
        label = text[name : name + 64].split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        yield Section(label, kind, flags, offset, length)
