"""Transparent zstd: to and from files, in bounded memory.

What is decompressed becomes a sparse temporary file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from abi.errors import UnreadableError
from inspector import progress
from inspector.background import Background
from inspector.memory.files import ImageFile, Spool, open_file
from inspector.memory.zst_frame import Frame
from inspector.output import OutputError

_FRAME = b"\x28\xb5\x2f\xfd"
# What is decoded, and what of it is not zeros and takes room on the disk: that much in any
# case, and more in proportion to the file. Runs of zeros in blocks of their own are not counted.
_DECODED, _DECODED_RATIO = 16 << 30, 512
_WRITTEN, _WRITTEN_RATIO = 4 << 30, 64
_SUSPECT = "the content of this zstd file is out of all proportion to its size"
#: Page tables and lists shrink to the same size at any level; where there is more than that,
#: it is content, which may not shrink at all: a high level takes twenty times as long then.
_LEVEL, _LEVEL_OF_MUCH, _MUCH = 3, 1, 1 << 30
#: Each thread that compresses holds some MiB.
_MAX_THREADS = 4
#: Read at a time, to be compressed: after each, a thread may have to wait for its turn.
_PIECE = 8 << 20
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
    size = len(file.data)
    with (
        Spool(file.name) as spool,
        Background("spool") as writer,
        progress.phase("decompressing", size) as advance,
    ):
        spool.limit(_most(size), f"{_SUSPECT}; {_WAY_OUT}")
        at = 0
        for end, content in _content(file):
            if isinstance(content, int):
                writer.call(spool.skip, content)
            else:
                writer.call(spool.write, content)
            advance(end - at)
            at = end
        writer.wait()
        if not spool.size:
            raise UnreadableError(f"{file.name}: the zstd file holds nothing")
        return spool.finish()


def _most(size: int) -> int:
    """How much a zstd file of some size may unpack to that is not zeros."""
    return max(_WRITTEN, _WRITTEN_RATIO * size)


def _content(file: ImageFile) -> Iterator[tuple[int, bytes | int]]:
    """Pieces of the content, a number for so many zeros, and the end of each in the file.

    Raises UnreadableError.
    """
    import zstandard

    context = zstandard.ZstdDecompressor()
    data, at = file.data, 0
    decoded, most = 0, max(_DECODED, _DECODED_RATIO * len(data))
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
                at = step.end
                if step.zeros:
                    yield at, step.zeros
                    continue
                content = obj.decompress(step.data)
                decoded += len(content)
                frame.size += len(content)
                if decoded > most:
                    raise UnreadableError(f"{file.name}: {_SUSPECT}; {_WAY_OUT}")
                yield at, content
            if not (frame.whole if frame.skipped else obj.eof):
                raise UnreadableError(f"{file.name}: truncated zstd file")
        except zstandard.ZstdError as error:
            raise UnreadableError(f"{file.name}: damaged zstd data ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]


def compress(source: int, target: int) -> None:
    """Compress the whole file ``source`` into ``target``, both open; the frame tells its size.

    Raises OSError.
    """
    import zstandard

    size = os.fstat(source).st_size
    level = _LEVEL if size < _MUCH else _LEVEL_OF_MUCH
    # With one thread or more, the result is the same however many they are.
    threads = min(max(os.cpu_count() or 1, 2) - 1, _MAX_THREADS)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, threads=threads)
    with (
        open(target, "wb", closefd=False) as writer,
        compressor.stream_writer(writer, size=size, closefd=False) as frame,
    ):
        for at in range(0, size, _PIECE):
            frame.write(os.pread(source, min(_PIECE, size - at), at))


def check(path: str, plain: int) -> None:
    """Read what :func:`compress` has made of the open file ``plain``.

    Raises OutputError unless that is what comes out of it, and if it shrank so much that
    :func:`decompress` would suspect it.
    """

    def compare(piece: tuple[int, bytes]) -> None:
        at, content = piece
        other = os.pread(plain, len(content), at)
        if not np.array_equal(np.frombuffer(content, np.uint8), np.frombuffer(other, np.uint8)):
            raise wrong

    wrong = OutputError("what was compressed is not what was written")
    size, at = os.fstat(plain).st_size, 0
    file = open_file(path)
    try:
        with Background("compare") as thread, progress.phase("verifying", size) as advance:
            for _, content in _content(file):
                for some in _in_pieces(content):
                    thread.call(compare, (at, some))
                    at += len(some)
                    advance(len(some))
        if size > _most(file.size):
            raise OutputError(f"{_SUSPECT}: write it without compression")
    except UnreadableError:
        raise wrong from None
    finally:
        file.close()
    if at != size:
        raise wrong


def _in_pieces(content: bytes | int) -> Iterator[bytes]:
    """What was decompressed, or zeros that need not be."""
    if isinstance(content, bytes):
        yield content
        return
    zeros = bytes(min(content, _PIECE))
    for start in range(0, content, _PIECE):
        yield zeros[: content - start]
