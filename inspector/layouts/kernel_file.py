"""Files that hold a kernel or a module, opened down to their ELF sections.

Takes an ELF (vmlinux, ``.ko``, ``.o``), a bzImage, or either compressed as a whole with gzip,
xz, zstd or bzip2. Sections are read where they lie; what has to be decompressed is limited.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from abi.errors import UnreadableError

#: Most bytes that anything is decompressed to, and that are read from a pipe.
MAX_SIZE = 2 << 30

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

    ``path`` is set if the ELF lies in a file as it is, so that others can open it too.
    """

    def __init__(self, data: Buffer, source: str, path: Path | None = None) -> None:
        self.data = data
        self.source = source
        self.path = path
        self.sections = _sections(data, source)

    def section(self, name: str) -> bytes | None:
        """The bytes of the first section of a name, decompressed; None if there is none."""
        for section in self.sections:
            if section.name == name and section.stored:
                raw = self.data[section.offset : section.offset + section.size]
                if section.flags & _SHF_COMPRESSED:
                    return self._inflate(raw)
                return raw
        return None

    def has(self, name: str) -> bool:
        """Whether a section of this name has bytes."""
        return any(s.name == name and s.stored for s in self.sections)

    def _inflate(self, raw: bytes) -> bytes:
        order = "<" if self.data[5] == 1 else ">"
        wide = self.data[4] == 2
        head = 24 if wide else 12
        if len(raw) < head:
            raise UnreadableError(f"{self.source}: compressed section cut short")
        (kind,) = struct.unpack_from(order + "I", raw)
        try:
            if kind == 1:
                return zlib.decompressobj().decompress(raw[head:], MAX_SIZE)
            if kind == 2:
                return _read_limited(_open_zstd(io.BytesIO(raw[head:])), self.source)
        except (zlib.error, OSError) as error:
            raise UnreadableError(f"{self.source}: section does not decompress: {error}") from None
        raise UnreadableError(f"{self.source}: section compression {kind} is not known")

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
        for section in self.sections:
            if section.loaded and section.stored and section.name != ".BTF":
                data = self.data[section.offset : section.offset + section.size]
                found |= _version_strings(data)
                found |= {n for n, whole, text in plain if text in data and whole.search(data)}
        return frozenset(found)

    def release(self) -> str:
        """The release from the kernel's banner or a module's vermagic; empty if there is none."""
        pattern = re.compile(rb"(?:Linux version |\0vermagic=)([0-9][!-~]{0,63}) ")
        for section in self.sections:
            if section.loaded and section.stored:
                data = self.data[section.offset : section.offset + section.size]
                if match := pattern.search(data):
                    return match[1].decode()
        return ""


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
        return _unpack(sys.stdin.buffer.read(MAX_SIZE), "standard input", None)
    with open(path, "rb") as file:
        try:
            data: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # empty, or a file of sysfs
            data = file.read(MAX_SIZE)
    return _unpack(data, path, Path(path))


def _unpack(data: Buffer, source: str, path: Path | None) -> KernelFile | bytes:
    for _ in range(4):
        if data[:4] == b"\x7fELF":
            return KernelFile(data, source, path)
        inner = _bzimage_payload(data, source) if data[0x202:0x206] == b"HdrS" else None
        if inner is None:
            reader = next((r for m, r in _COMPRESSIONS.items() if data[: len(m)] == m), None)
            if reader is None:
                break
            inner = _decompress(io.BytesIO(data), reader, source)
        data, path = inner, None
    if not data:
        raise UnreadableError(f"{source}: empty")
    return bytes(data)


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
    for magic, reader in _COMPRESSIONS.items():
        if payload.startswith(magic):
            return _decompress(io.BytesIO(payload), reader, source)
    for magic, name in _NEEDS.items():
        if payload.startswith(magic):
            raise UnreadableError(f"{source}: a payload compressed with {name} cannot be read")
    if payload.startswith(b"\x7fELF"):
        return payload
    raise UnreadableError(f"{source}: bzImage without a known payload")


def _decompress(stream: IO[bytes], reader: Callable[[IO[bytes]], _Reader], source: str) -> bytes:
    try:
        return _read_limited(reader(stream), source)
    except UnreadableError:
        raise
    except Exception as error:  # each library has its own
        text = " ".join(str(error).split())
        raise UnreadableError(f"{source}: does not decompress: {text}") from None


def _read_limited(stream: _Reader, source: str) -> bytes:
    """All of a stream; an error behind the first ELF-sized part is the payload's trailer."""
    chunks: list[bytes] = []
    total = 0
    while True:
        try:
            chunk = stream.read1(1 << 20)
        except Exception:
            # A bzImage payload ends with the size of what it holds: no part of the stream.
            if not chunks:
                raise
            break
        if not chunk:
            break
        chunks.append(chunk)
        total += len(chunk)
        if total > MAX_SIZE:
            raise UnreadableError(f"{source}: decompresses to more than {MAX_SIZE} bytes")
    return b"".join(chunks)


def _sections(data: Buffer, source: str) -> tuple[Section, ...]:
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
        return ()
    if entry != layout.size or start + layout.size > len(data):
        raise UnreadableError(f"{source}: section table out of bounds")
    first = layout.unpack_from(data, start)
    if count == 0:  # more than fit: the count is in the first entry
        count = first[5]
    if names == _SHN_XINDEX:
        names = first[6]
    if count > 1 << 20 or start + count * layout.size > len(data) or names >= max(count, 1):
        raise UnreadableError(f"{source}: section table out of bounds")
    rows = [layout.unpack_from(data, start + i * layout.size) for i in range(count)]
    at, size = rows[names][4:6]
    text = data[at : at + min(size, 1 << 24)]
    out = []
    for name, kind, flags, _, offset, length, *_rest in rows:
        if kind not in (0, _SHT_NOBITS) and offset + length > len(data):
            continue  # a truncated file: what is missing is missing
        label = text[name : name + 64].split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        out.append(Section(label, kind, flags, offset, length))
    return tuple(out)
