"""Transparent zstd: decompress to a sparse temporary file in bounded memory."""

from __future__ import annotations

from abi.errors import UnreadableError
from inspector import progress
from inspector.memory.files import ImageFile, Spool

_FRAME = b"\x28\xb5\x2f\xfd"
# Four bytes of a frame may stand for 128 KiB of output: with input pieces of 1 KiB one
# step never holds more than 32 MiB.
_PIECE = 1024


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
                while not frame.eof:
                    if at >= len(data):
                        raise UnreadableError(f"{file.name}: truncated zstd file")
                    piece = bytes(data[at : at + _PIECE])
                    at += len(piece)
                    spool.write(frame.decompress(piece))
                    advance(len(piece))
            except zstandard.ZstdError as error:
                raise UnreadableError(
                    f"{file.name}: damaged zstd data ({_reason(error)})"
                ) from None
            at -= len(frame.unused_data)
        if not spool.size:
            raise UnreadableError(f"{file.name}: the zstd file holds nothing")
        return spool.finish()


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
