"""The bytes of a dump file, plain or in makedumpfile's flattened framing.

Flattened (``makedumpfile -F``, QEMU's dump over a pipe): a block of 4096 bytes with a
signature, then records of big-endian (offset, size) and ``size`` bytes each, in the order
in which they were written; a record with offset -1 ends the file. A later record
overwrites an earlier one. The records are not copied: a table says where each byte is.
"""

from __future__ import annotations

import os
import struct
import tempfile
from array import array
from collections.abc import Iterator

import numpy as np

from abi.errors import UnreadableError
from inspector.memory.files import ImageFile, cannot_spool
from inspector.memory.segments import Kind, build

FLAT_MAGIC = b"makedumpfile\0\0\0\0"
_HEADER_SIZE = 4096
#: A bitmap of 8 TiB in pages of 4 KiB: what is larger must be in the file.
_MAX_PADDED = 1 << 28
# Writers of this format fill a buffer before they write a record: many tiny ones are an
# attack on memory, of which each record costs some.
_FEW_RECORDS, _TINY_RECORD = 1 << 20, 256
_RECORD = struct.Struct(">qq")


class PlainFile:
    """A dump file as it is. ``size`` is its length."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
        self.name = file.name
        self.size = file.size

    def view(self, offset: int, size: int, what: str) -> memoryview:
        """Bytes of the file; raises UnreadableError (truncated) if they are not all there."""
        if not 0 <= offset <= offset + size <= self.size:
            raise truncated(self.name, what, offset + size, self.size)
        return self.file.data[offset : offset + size]

    def padded(self, offset: int, size: int, what: str) -> memoryview:
        """As :meth:`view`, with zeros for what was never written (holes)."""
        return self.view(offset, size, what)

    def data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that are not holes."""
        return self.file.data_ranges(offset, end)

    def covers(self, offset: int, end: int) -> bool:
        """Whether all bytes of a range are in the file."""
        return end <= self.size

    def begins_with(self, magic: bytes) -> bool:
        """Whether the first bytes are these."""
        return self.size >= len(magic) and self.view(0, len(magic), "the header") == magic

    def rearranged(self) -> ImageFile:
        """The file itself."""
        return self.file


class FlattenedFile(PlainFile):
    """A flattened file, seen as the file that it describes."""

    def __init__(self, file: ImageFile) -> None:
        """Read all record headers. Raises UnreadableError for what is damaged."""
        super().__init__(file)
        data, name = file.data, file.name
        if len(data) < _HEADER_SIZE:
            raise truncated(name, "the flattened header", _HEADER_SIZE, len(data))
        kind, version = _RECORD.unpack_from(data, 16)
        if (kind, version) != (1, 1):
            raise UnreadableError(f"{name}: unknown flattened format {kind}, version {version}")
        first, last, where = array("Q"), array("Q"), array("q")
        at = _HEADER_SIZE
        while True:
            if at + 16 > len(data):
                raise truncated(name, "a flattened record", at + 16, len(data))
            offset, size = _RECORD.unpack_from(data, at)
            at += 16
            if offset == -1:
                break
            if offset < 0 or size <= 0 or offset + size >= 1 << 63:
                raise UnreadableError(f"{name}: damaged flattened record at {at - 16:#x}")
            if at + size > len(data):
                raise truncated(name, "a flattened record", at + size, len(data))
            if len(first) > _FEW_RECORDS and at < len(first) * _TINY_RECORD:
                raise UnreadableError(f"{name}: damaged: millions of tiny flattened records")
            first.append(offset)
            last.append(offset + size - 1)
            where.append(at)
            at += size
        count = len(first)
        try:
            self.table = build(
                np.frombuffer(first, np.uint64),
                np.frombuffer(last, np.uint64),
                np.full(count, Kind.STORED, np.uint8),
                np.frombuffer(where, np.int64),
                -np.arange(count),
            )
        except UnreadableError as error:
            raise UnreadableError(f"{name}: {error}") from None
        self.size = max(last, default=-1) + 1

    def view(self, offset: int, size: int, what: str) -> memoryview:
        """Bytes of the described file, copied if they lie in several records."""
        parts = []
        at, end = offset, offset + size
        while at < end:
            index = self.table.find(at)
            if index < 0:
                raise truncated(self.name, what, end, self.size)
            piece = self.table[index]
            begin = piece.offset + at - piece.first
            length = min(piece.last + 1, end) - at
            parts.append(self.file.data[begin : begin + length])
            at += length
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def padded(self, offset: int, size: int, what: str) -> memoryview:
        """As :meth:`view`, with zeros for what no record covers.

        makedumpfile writes no records for blocks of a bitmap that are all zero.
        """
        if size > _MAX_PADDED or self.covers(offset, offset + size):
            return self.view(offset, size, what)
        if offset + size > self.size:
            raise truncated(self.name, what, offset + size, self.size)
        out = bytearray(size)
        for first, last, _, place in self.table.overlapping(offset, offset + size):
            out[first - offset : last + 1 - offset] = self.file.data[
                place : place + last + 1 - first
            ]
        return memoryview(out).toreadonly()

    def data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that some record covers."""
        for piece in self.table.overlapping(offset, end):
            yield piece.first, piece.last + 1

    def covers(self, offset: int, end: int) -> bool:
        """Whether records cover all of a range."""
        return offset == end or self.table.first_missing(offset, end - offset) is None

    def rearranged(self) -> ImageFile:
        """The described file, written to an unnamed temporary file (with holes)."""
        try:
            with tempfile.TemporaryFile(prefix="kho-") as stream:
                fd = stream.fileno()
                os.truncate(fd, self.size)
                for first, last, _, offset in self.table.overlapping(0, self.size):
                    at, end = offset, offset + last + 1 - first
                    while at < end:
                        chunk = self.file.data[at : min(at + (1 << 20), end)]
                        at += os.pwrite(fd, chunk, first + at - offset)
                return ImageFile(os.dup(fd), self.name)
        except OSError as error:
            raise UnreadableError(f"{self.name}: {cannot_spool(error)}") from None


def dump_file(file: ImageFile) -> PlainFile:
    """The file, or the one that it describes if it is flattened."""
    return FlattenedFile(file) if file.data[:16] == FLAT_MAGIC else PlainFile(file)


def truncated(name: str, what: str, end: int, size: int) -> UnreadableError:
    """The one message for a dump file that ends too early."""
    return UnreadableError(f"{name}: truncated: {what} reaches to {end:#x} of {size:#x} bytes")
