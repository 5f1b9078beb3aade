"""The blocks of a zstd frame (RFC 8878), cut into steps that hold little at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: Blocks decompressed in one step: each stands for 128 KiB of output at most, however few
#: bytes it has, so that no step holds more than 2 MiB: memory that the next step uses again.
_BLOCKS = 16
_MAX_BLOCK = 1 << 17
#: A block of one byte, repeated; the length in its header is that of the output.
_RLE = 1
#: Zeros are decoded like all else up to that much, so that the checksum can be verified.
_FEW_ZEROS = 4 << 30
#: Shorter runs of zeros, beyond a window, are not worth it.
_MIN_RUN = 1 << 20


class Step(NamedTuple):
    """What comes next: bytes to decompress, or so many zeros that need not be."""

    end: int
    data: bytes | memoryview = b""
    zeros: int = 0


class Frame:
    """The frame that begins at an offset of ``data``.

    ``size`` is for the caller to count the content in; ``skipped`` what of it was zeros that
    need not be decompressed. The decompressor does not see the end of such a frame, as it would
    miss them: :attr:`whole` tells whether all was there.
    """

    def __init__(self, data: memoryview, at: int) -> None:
        """Raises ZstdError for a damaged header."""
        import zstandard

        self._data = data
        self._start = self._at = at
        self._checksum, self._window, self._content = 0, 0, -1
        self._zeros = 0
        self._ended = False
        self.skipped = self.size = 0
        head = bytes(data[at : at + 18])  # the longest header
        try:
            found = zstandard.get_frame_parameters(head)
            self._at += zstandard.frame_header_size(head)
        except zstandard.ZstdError:
            if at + len(head) < len(data):
                raise
            self._at = len(data)  # cut off in the header
            return
        self._checksum = 4 if found.has_checksum else 0
        self._window = found.window_size
        if found.content_size != zstandard.CONTENTSIZE_UNKNOWN:
            self._content = found.content_size

    @property
    def whole(self) -> bool:
        """Whether a frame with skipped zeros is complete."""
        return self._ended and self._content in (-1, self.size + self.skipped)

    def steps(self) -> Iterator[Step]:
        """A few blocks each; the last step ends with the frame, or with the data.

        What is wrong with a block the decompressor says.
        """
        data, at, begin = self._data, self._at, self._start
        if at >= len(data):
            yield Step(at, data[begin:])
            return
        last, blocks = False, 0
        while not last and at < len(data):
            header = int.from_bytes(data[at : at + 3], "little")
            last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
            if kind == _RLE and not last and bytes(data[at + 3 : at + 4]) == b"\0":
                run = self._run(at, length)
                if run:
                    if at > begin:
                        yield Step(at, data[begin:at])
                    begin, blocks = at + 4 * run, 0
                    at = begin
                    self.skipped += run * length
                    yield Step(at, zeros=run * length)
                    continue
            head, blocks = at, blocks + 1
            at += 3 + (1 if kind == _RLE else length)
            if last and self.skipped:
                # It counts what it has seen: it must not take this for the last block.
                self._ended = at + self._checksum <= len(data)
                piece = bytearray(data[begin:at])
                piece[head - begin] &= 0xFE
                yield Step(min(at + self._checksum, len(data)), bytes(piece))
            elif last or at >= len(data) or blocks == _BLOCKS:
                at = min(at + (self._checksum if last else 0), len(data))
                yield Step(at, data[begin:at])
                begin, blocks = at, 0

    def _run(self, at: int, length: int) -> int:
        """How many of the same blocks of zeros from here on need not be decompressed.

        What follows may copy from the window before it, so that one of zeros must remain.
        """
        self._zeros += length
        if self._zeros < _FEW_ZEROS or not 0 < length <= min(self._window, _MAX_BLOCK):
            return 0
        keep = -(-self._window // length)
        least = keep + _MIN_RUN // length + 1
        data, one = self._data, bytes(self._data[at : at + 4])
        if data[at : at + 4 * least] != one * least:
            return 0
        end, many = at + 4 * least, one * (1 << 14)
        while data[end : end + len(many)] == many:
            end += len(many)
        while data[end : end + 4] == one:
            end += 4
        return (end - at) // 4 - keep
