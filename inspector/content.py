"""The bytes of an object: a file's content, a blob, a region, a struct."""

from __future__ import annotations

from collections.abc import Iterator

from abi.errors import IncompleteError, UsageError
from inspector.image import Image
from inspector.memory.base import PageState
from inspector.text import plural, size_text
from inspector.tree import Node
from inspector.walk.folio_file import FolioFile, Piece, content
from inspector.walk.luo import File

_PIECE = 1 << 20
#: A file may claim any size; a hole at its end is not written out beyond this.
MAX_HOLE = 1 << 46


def read(image: Image, node: Node, *, fill_missing: bool = False) -> Iterator[bytes]:
    """The bytes of ``node`` in pieces; holes of a file are zeros.

    Raises IncompleteError, before anything is handed out, if frames are not in the image
    (unless ``fill_missing``), UsageError if the object has no bytes of its own.
    """
    if isinstance(node.object, File) and isinstance(node.object.state, FolioFile):
        yield from _file(image, node.object.state, fill_missing)
        return
    if isinstance(node.object, File) and node.object.state is None:
        raise IncompleteError(
            f"{node.object.path}: the state of this {node.object.compatible!r} file could not"
            " be decoded"
        )
    if node.address is None or node.size is None:
        names = [child.name for child, _ in zip(node.children(), range(8), strict=False)]
        hint = f"; it has parts: {', '.join(names)}" if names else ""
        raise UsageError(f"{node.name or '/'} has no bytes of its own{hint}")
    yield from _range(image, node.address, node.size, fill_missing)


def _file(image: Image, file: FolioFile, fill_missing: bool) -> Iterator[bytes]:
    if file.size > MAX_HOLE:
        raise IncompleteError(f"{file.path} claims {size_text(file.size)}: not written out")
    if not fill_missing:
        if not file.folios.complete:
            raise IncompleteError(
                f"{file.path}: {len(file.folios.pfn)} of {file.nr_folios} folio entries can"
                " be read; --fill-missing writes zeros for the rest"
            )
        if not file.sized:
            raise IncompleteError(
                f"{file.path}: the preserved-memory map that says how large folios are is lost;"
                " --fill-missing takes them for single pages"
            )
        missing = [p.missing for p in content_map(image, file) if p.missing is not None]
        if missing:
            raise _missing(file.path, missing)
    for piece in content(image.survey, file):
        if piece.data is not None:
            yield bytes(piece.data)
        else:
            yield from _zeros(piece.size)


def content_map(image: Image, file: FolioFile) -> Iterator[Piece]:
    """Where the content lies and what of it is missing, without reading it."""
    import numpy as np

    page = file.page_size
    used = file.used
    starts, sizes, offsets = file.addresses[used], file.sizes[used], file.offsets[used]
    inside = offsets < np.uint64(file.size)
    starts, sizes, offsets = starts[inside], sizes[inside], offsets[inside]
    sizes = np.minimum(sizes, np.uint64(file.size) - offsets)
    states = image.memory.states(starts, page) if len(starts) else np.empty(0, np.uint8)
    for i in np.flatnonzero((states != PageState.PRESENT) | (sizes > page)):
        start, size = int(starts[i]), int(sizes[i])
        for at in range(0, size, page):
            n = min(page, size - at)
            if image.memory.state(start + at, n) is not PageState.PRESENT:
                yield Piece(int(offsets[i]) + at, n, None, start + at)


def _range(image: Image, start: int, size: int, fill_missing: bool) -> Iterator[bytes]:
    page = image.page_size
    memory = image.memory
    if not fill_missing:
        missing = []
        for at in range(0, size, page):
            if memory.state(start + at, min(page, size - at)) is not PageState.PRESENT:
                missing.append(start + at)
                if len(missing) > 4096:
                    break
        if missing:
            raise _missing(f"{start:#x}", missing)
    for at in range(0, size, _PIECE):
        n = min(_PIECE, size - at)
        if memory.state(start + at, n) is PageState.PRESENT:
            yield memory.read(start + at, n)
            continue
        for inner in range(at, at + n, page):
            k = min(page, size - inner)
            present = memory.state(start + inner, k) is PageState.PRESENT
            yield memory.read(start + inner, k) if present else bytes(k)


def _missing(what: str, frames: list[int]) -> IncompleteError:
    shown = ", ".join(f"{pa:#x}" for pa in frames[:8]) + (", ..." if len(frames) > 8 else "")
    return IncompleteError(
        f"{what}: {plural(len(frames), 'page')} not in the image: {shown}"
        "; --fill-missing writes zeros for them"
    )


def _zeros(size: int) -> Iterator[bytes]:
    block = bytes(min(size, _PIECE))
    while size > 0:
        yield block[: min(size, _PIECE)]
        size -= _PIECE
