"""Search physical memory: page-stride compares in numpy, at the speed of C."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from abi.errors import UsageError
from inspector.memory.base import PhysicalMemory

#: Called with the number of bytes that a scan has gone over since the last call.
Progress = Callable[[int], None]

_CHUNK = 64 << 20
#: After so many bytes, the pages of a mapped image are given back.
_RELEASE = 768 << 20
#: Up to so many words of a piece are compared one by one.
_FEW = 16
#: Pages whose beginnings are looked at together.
_HEADS = 1 << 10


def find_words(
    memory: PhysicalMemory,
    magic: int,
    stride: int = 4096,
    *,
    width: int = 4,
    offset: int = 0,
    progress: Progress | None = None,
) -> Iterator[int]:
    """Physical addresses, ascending, of a little-endian word.

    Looks at every address that is ``offset`` modulo ``stride`` (a power of two, at least
    ``width``). ``width`` is 1, 2, 4 or 8 bytes. Only what is stored is scanned: memory
    known to be zero is skipped, hence ``magic`` must not be 0. Bytes of the container that
    several addresses show are looked at once, at the lowest (``memory.aliased``).
    """
    if stride < width or stride & (stride - 1) or width not in (1, 2, 4, 8):
        raise UsageError(f"cannot scan for words of {width} bytes in steps of {stride}")
    if not 0 < magic < 1 << 8 * width or not 0 <= offset < stride:
        raise UsageError(f"cannot scan for {magic:#x} at offset {offset:#x} of {stride:#x}")
    dtype = np.dtype(f"<u{width}")
    wanted, raw = dtype.type(magic), magic.to_bytes(width, "little")
    if stride >= 4096 and offset + width <= memory.scan_heads:
        yield from _find_in_heads(memory, wanted, dtype, stride, offset, progress)
        return
    since = 0
    for start, piece in memory.distinct():
        for at in range(0, len(piece), _CHUNK):
            base = start + at
            chunk = piece[at : at + _CHUNK + width - 1]
            lead = (offset - base) % stride
            count = (len(chunk) - lead - width) // stride + 1
            if count <= _FEW:
                places = range(lead, lead + count * stride, stride)
                yield from (base + p for p in places if chunk[p : p + width] == raw)
            else:
                words = np.ndarray((count,), dtype, chunk, lead, (stride,))
                hits = (words == wanted).nonzero()[0]
                for hit in hits.tolist():
                    yield base + lead + hit * stride
            if progress is not None:
                progress(min(len(piece) - at, _CHUNK))
            since += len(chunk)
            if since >= _RELEASE:
                memory.release()
                since = 0


def _find_in_heads(
    memory: PhysicalMemory,
    wanted: np.generic,
    dtype: np.dtype[np.unsignedinteger],
    stride: int,
    offset: int,
    progress: Progress | None,
) -> Iterator[int]:
    """As find_words, by gathering the words alone."""
    size = memory.page_size or 4096
    # With larger pages there are several places in each, or none in some.
    inside = np.arange(0, size, min(stride, size), dtype=np.uint64)
    for pages in memory.heads():
        for at in range(0, len(pages), _HEADS):
            some = pages[at : at + _HEADS]
            places = (some[:, None] + inside).ravel()
            places = places[places & np.uint64(stride - 1) == 0] + np.uint64(offset)
            words = memory.gather(places, dtype.itemsize).view(dtype)[:, 0]
            yield from places[words == wanted].tolist()
            if progress is not None:
                progress(len(some) * size)


def find_bytes(
    memory: PhysicalMemory,
    pattern: bytes,
    align: int = 1,
    *,
    progress: Progress | None = None,
) -> Iterator[int]:
    """Physical addresses, ascending, of a byte string that starts at a multiple of ``align``.

    Finds what spans two pieces of memory that touch. The pattern must not be all zeros,
    as memory known to be zero is skipped.
    """
    if not pattern.strip(b"\0") or align < 1 or align & (align - 1):
        raise UsageError("cannot scan for an empty pattern, zeros or such an alignment")
    keep = len(pattern) - 1
    tail, tail_end = b"", -1
    for start, piece in memory.distinct():
        if tail and tail_end == start:
            joint = tail + bytes(piece[:keep])
            yield from _matches(memoryview(joint), start - len(tail), pattern, align)
        for at in range(0, len(piece), _CHUNK):
            chunk = piece[at : at + _CHUNK + keep]
            yield from _matches(chunk, start + at, pattern, align)
            if progress is not None:
                progress(min(len(piece) - at, _CHUNK))
        begin = max(len(piece) - keep, 0)
        left = bytes(piece[begin:]) if keep else b""
        tail = (tail + left)[-keep:] if keep and tail_end == start else left
        tail_end = start + len(piece)


def _matches(data: memoryview, base: int, pattern: bytes, align: int) -> Iterator[int]:
    """Matches that lie wholly inside ``data``, the first byte of which is at ``base``."""
    if len(data) < len(pattern):
        return
    width = next((w for w in (8, 4, 2) if align % w == 0 and w <= len(pattern)), 1)
    # Compare the first word of the pattern that is not zero: zeros are everywhere.
    words_at = range(0, len(pattern) - width + 1, width)
    at = next((i for i in words_at if any(pattern[i : i + width])), -1)
    if width == 1 or at < 0:
        for match in re.finditer(b"(?=" + re.escape(pattern) + b")", data):
            if (base + match.start()) % align == 0:
                yield base + match.start()
        return
    dtype = np.dtype(f"<u{width}")
    wanted = dtype.type(int.from_bytes(pattern[at : at + width], "little"))
    lead = (-base) % align
    count = (len(data) - lead - len(pattern)) // align + 1
    if count <= 0:
        return
    words = np.ndarray((count,), dtype, data, lead + at, (align,))
    for hit in (words == wanted).nonzero()[0].tolist():
        place = lead + hit * align
        if data[place : place + len(pattern)] == pattern:
            yield base + place
