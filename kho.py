"""The public API of kho, the inspector of the Linux live update ABI.

::

    import kho

    with kho.open("dump.elf") as image:
        for session in image.luo.sessions:
            for file in session.files:
                print(session.name, hex(file.token), file.compatible)
        data = kho.content(image, "/LUO/sessions/vm0/files/0x1")   # bytes of a memory file
        starts, orders = kho.preserved_blocks(image)               # numpy columns

:func:`open` takes a path or a drgn ``Program``. Everything raised on purpose is a
:class:`KhoError`; what an image says wrong is in ``image.findings``.

The packages ``abi`` and ``inspector`` behind this module are importable too, but only
what is exported here is stable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from abi.errors import CodecError, IncompleteError, KhoError, UnreadableError, UsageError
from abi.registry import Generation, generations, get
from inspector.findings import Finding, Outcome, Severity

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from inspector.image import Image
    from inspector.memory.base import PhysicalMemory
    from inspector.tree import Node

__all__ = [
    "CodecError",
    "Finding",
    "Generation",
    "IncompleteError",
    "KhoError",
    "Outcome",
    "Severity",
    "UnreadableError",
    "UsageError",
    "content",
    "document",
    "find",
    "generations",
    "get",
    "open",
    "open_memory",
    "preserved_blocks",
    "tree",
]


def open(
    source: str | os.PathLike[str] | Any,
    *,
    overrides: list[str] | Mapping[str, Generation] | None = None,
    root: int | None = None,
    page_size: int | None = None,
    region_map: str | None = None,
) -> Image:
    """Open and decode an image.

    ``source`` is a path (``-`` for standard input), a drgn ``Program``, or physical memory
    opened before. ``overrides`` forces generations: ``["memfd=memfd-v2"]``. ``root`` is the
    physical address of the root FDT, ``page_size`` the producer's in bytes.

    Raises :class:`UnreadableError` if it is no memory image, :class:`KhoError` if it holds
    no KHO root, :class:`UsageError` for a wrong argument.
    """
    from inspector import image

    return image.open(
        source,
        overrides=overrides or [],
        root=root,
        page_size=page_size,
        region_map=region_map,
    )


def open_memory(source: str | os.PathLike[str] | Any) -> PhysicalMemory:
    """Open a memory image without looking for KHO in it."""
    from inspector import memory

    return memory.open(source)


def find(image: Image, path: str) -> Node:
    """The object at ``path`` in the tree. Raises :class:`UsageError` naming the nearest."""
    from inspector import tree

    return tree.find(image, path)


def tree(image: Image, *, colour: bool = False) -> Iterator[str]:
    """The object tree as lines of text, as ``kho dump`` prints it."""
    from inspector import tree as trees

    return trees.render(trees.build(image), colour=colour)


def document(image: Image) -> dict[str, Any]:
    """The image as the JSON document of ``kho dump --format json``."""
    from inspector import document as documents

    return documents.document(image)


def content(
    image: Image, path: str, *, fill_missing: bool = False, max_size: int = 4 << 30
) -> bytes:
    """The bytes of the object at ``path``: of a memory file its content, holes as zeros.

    Raises :class:`IncompleteError` if pages are not in the image, unless ``fill_missing``,
    :class:`UsageError` if there are more than ``max_size`` bytes: images may say anything.
    """
    from inspector import content as contents

    node = find(image, path)
    return b"".join(contents.read(image, node, fill_missing=fill_missing, max_size=max_size))


def preserved_blocks(image: Image) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """(physical addresses, orders) of every preserved block, ascending.

    Raises :class:`IncompleteError` where the map is lost. A map of long runs is best kept
    as runs: see ``image.preserved.starts``, ``.counts`` and ``.orders``.
    """
    import numpy as np

    if image.preserved is None:
        raise IncompleteError(f"the preserved-memory map is {image.map_state}")
    parts = list(image.preserved.blocks())
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint8)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
