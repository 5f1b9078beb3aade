"""Transparent zstd: decompress to a sparse temporary file in bounded memory."""

from __future__ import annotations

from abi.errors import UnreadableError
from inspector import progress
from inspector.memory.files import ImageFile, Spool
from inspector.memory.zst_frame import Frame

_FRAME = b"\x28\xb5\x2f\xfd"
# What is decoded, and what of it is not zeros and takes room on the disk: that much in any
# case, and more in proportion to the file. Runs of zeros in blocks of their own are not counted.
_DECODED, _DECODED_RATIO = 16 << 30, 512
_WRITTEN, _WRITTEN_RATIO = 4 << 30, 64
_SUSPECT = "the content of this zstd file is out of all proportion to its size"
_WAY_OUT = "if that is right, decompress it first (zstd -d)"


def is_zstd(head: bytes) -> bool:
    """Whether a file that begins with these bytes is zstd, skippable frames included."""
    return head[:4] == _FRAME or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


def decompress(file: ImageFile) -> ImageFile:
    """The content of a zstd file, all frames of it.

    Raises UnreadableError for damage, a truncated frame, bytes behind the last frame that are
    not a frame, and content out of all proportion to the file.
    """
    import zstandard

    context = zstandard.ZstdDecompressor()
    data, at = file.data, 0
    decoded, most = 0, max(_DECODED, _DECODED_RATIO * len(data))
    with Spool(file.name) as spool, progress.phase("decompressing", len(data)) as advance:
        spool.limit(max(_WRITTEN, _WRITTEN_RATIO * len(data)), f"{_SUSPECT}; {_WAY_OUT}")
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
            obj = context.decompressobj()
            try:
                frame = Frame(data, at)
                for step in frame.steps():
                    if step.zeros:
                        spool.skip(step.zeros)
                    else:
                        content = obj.decompress(step.data)
                        decoded += len(content)
                        frame.size += len(content)
                        spool.write(content)
                    advance(step.end - at)
                    at = step.end
                    if decoded > most:
                        raise UnreadableError(f"{file.name}: {_SUSPECT}; {_WAY_OUT}")
                if not (frame.whole if frame.skipped else obj.eof):
                    raise UnreadableError(f"{file.name}: truncated zstd file")
            except zstandard.ZstdError as error:
                raise UnreadableError(
                    f"{file.name}: damaged zstd data ({_reason(error)})"
                ) from None
        if not spool.size:
            raise UnreadableError(f"{file.name}: the zstd file holds nothing")
        return spool.finish()


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
