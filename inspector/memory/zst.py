"""Transparent zstd: decompress to a sparse temporary file in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

from abi.errors import UnreadableError
from inspector import progress
from inspector.memory.files import ImageFile, Spool

_FRAME = b"\x28\xb5\x2f\xfd"
#: Blocks decompressed in one step: each stands for 128 KiB of output at most, however few
#: bytes it has, so that no step holds more than 8 MiB.
_BLOCKS = 64
#: A block of one byte, repeated; the length in its header is that of the output.
_RLE = 1


def is_zstd(head: bytes) -> bool:
    """Whether a file that begins with these bytes is zstd, skippable frames included."""
    return head[:4] == _FRAME or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


def decompress(file: ImageFile) -> ImageFile:
    """The content of a zstd file, all frames of it.

    Raises UnreadableError for damage, a truncated frame, and bytes behind the last frame
    that are not a frame.
    """
    import zstandard

    context = zstandard.ZstdDecompressor()
    data, at = file.data, 0
    with Spool(file.name) as spool, progress.phase("decompressing", len(data)) as advance:
        while at < len(data):
            head = bytes(data[at : at + 8])
            if _is_skippable(head):
                at += 8 + int.from_bytes(head[4:8], "little")
                if len(head) < 8 or at > len(data):
                    raise UnreadableError(f"{file.name}: truncated zstd file")
                continue
            if head[:4] != _FRAME:
                raise UnreadableError(
                    f"{file.name}: {len(data) - at} bytes of garbage behind the zstd data"
                )
            frame = context.decompressobj()
            try:
                for end in _steps(data, at):
                    spool.write(frame.decompress(data[at:end]))
                    advance(end - at)
                    at = end
                if not frame.eof:
                    raise UnreadableError(f"{file.name}: truncated zstd file")
            except zstandard.ZstdError as error:
                raise UnreadableError(
                    f"{file.name}: damaged zstd data ({_reason(error)})"
                ) from None
        if not spool.size:
            raise UnreadableError(f"{file.name}: the zstd file holds nothing")
        return spool.finish()


def _steps(data: memoryview, at: int) -> Iterator[int]:
    """Where to cut the frame at ``at``: a few blocks each, the last step ends with the frame.

    Raises ZstdError for a damaged header; what is wrong with a block the decompressor says.
    """
    import zstandard

    head = bytes(data[at : at + 18])  # the longest header
    try:
        checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
        at += zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        if at + len(head) < len(data):
            raise
        yield len(data)  # cut off in the header
        return
    last = False
    while not last and at < len(data):
        for _ in range(_BLOCKS):
            header = int.from_bytes(data[at : at + 3], "little")
            last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
            at += 3 + (1 if kind == _RLE else length)
            if last or at >= len(data):
                break
        at = min(at + (checksum if last else 0), len(data))
        yield at


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
