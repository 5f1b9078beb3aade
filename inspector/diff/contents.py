"""What files of two images hold, compared a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.diff.changes import Change, Diff, Kind
from inspector.image import Image
from inspector.memory.base import U8Array
from inspector.walk.folio_file import FolioFile, Piece, content


def contents(
    found: Diff, path: str, one: tuple[Image, FolioFile], other: tuple[Image, FolioFile]
) -> None:
    """The first byte at which two files differ, where both images have the pages."""
    if one[1].size != other[1].size:
        return
    left, right = (_Bytes(content(image.survey, file)) for image, file in (one, other))
    at = 0
    while at < one[1].size and left.fill() and right.fill():
        n = min(left.left, right.left)
        where = left.first_difference(right, n)
        if where is not None:
            found.add(Change(Kind.CHANGED, path, f"content from byte {at + where:#x} on"))
            return
        left.skip(n)
        right.skip(n)
        at += n


class _Bytes:
    """The pieces of a file's content, of which any number of bytes can be taken."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.pieces = pieces
        self.piece: Piece | None = None
        self.at = self.left = 0

    def fill(self) -> bool:
        """Whether there are bytes left."""
        while not self.left:
            self.piece = next(self.pieces, None)
            if self.piece is None:
                return False
            self.at, self.left = 0, self.piece.size
        return True

    def skip(self, size: int) -> None:
        self.at += size
        self.left -= size

    def first_difference(self, other: _Bytes, size: int) -> int | None:
        """Where the next bytes differ; a hole is zeros, of what is missing nothing is known."""
        mine, its = self.piece, other.piece
        assert mine is not None
        assert its is not None
        if mine.missing is not None or its.missing is not None:
            return None
        a, b = self._data(size), other._data(size)
        if a is None:
            a, b = b, a
        if a is None:
            return None
        if b is None:
            differs = np.flatnonzero(a)
        elif a.tobytes() == b.tobytes():
            return None
        else:
            differs = np.flatnonzero(a != b)
        return int(differs[0]) if len(differs) else None

    def _data(self, size: int) -> U8Array | None:
        assert self.piece is not None
        data = self.piece.data
        return None if data is None else np.frombuffer(data, np.uint8, size, self.at)
