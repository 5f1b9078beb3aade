"""The folios of a file and the array that lists them: what every file of folios preserves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.kho import Kho, VmallocArea, VmallocDescriptor

if TYPE_CHECKING:
    from inspector.kernel.outgoing.memfd import Extent


def entries(extents: Sequence[Extent], flags: int = 0, *, unit: int = 0) -> npt.NDArray[np.uint64]:
    """Folio entries {pfn:52, flags:12, index}; an index counts 2^unit pages."""
    parts = []
    for extent in extents:
        part = np.empty((len(extent.frames), 2), np.uint64)
        part[:, 0] = extent.frames | np.uint64(flags << 52)
        at = np.uint64(extent.index) + (
            np.arange(len(extent.frames), dtype=np.uint64) << np.uint64(extent.order)
        )
        part[:, 1] = at >> np.uint64(unit)
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def preserve(
    kho: Kho, extents: Sequence[Extent], array: npt.NDArray[np.generic]
) -> tuple[VmallocArea | None, VmallocDescriptor]:
    """Preserve folios and the array that lists them; without entries there is no area.

    Raises what preserving raises, with nothing preserved.
    """
    done: list[Extent] = []
    try:
        for extent in extents:
            kho.preserve_folios(extent.frames, extent.order)
            done.append(extent)
        return preserve_array(kho, array)
    except KernelErrno:
        _unpreserve(kho, done)
        raise


def preserve_array(
    kho: Kho, array: npt.NDArray[np.generic]
) -> tuple[VmallocArea | None, VmallocDescriptor]:
    """Preserve an array in a vmalloc area; none for an empty one. Raises as preserving does."""
    if not array.nbytes:
        return None, VmallocDescriptor()
    area = kho.vmalloc(array.nbytes)
    try:
        kho.vmalloc_write(area, array)
        return area, kho.preserve_vmalloc(area)
    except KernelErrno:
        kho.vfree(area)
        raise


def unpreserve(
    kho: Kho, extents: Sequence[Extent], area: VmallocArea | None, descriptor: VmallocDescriptor
) -> None:
    """The opposite of :func:`preserve`; the folios stay the file's."""
    if area is not None:
        kho.unpreserve_vmalloc(area, descriptor)
        kho.vfree(area)
    _unpreserve(kho, extents)


def _unpreserve(kho: Kho, extents: Sequence[Extent]) -> None:
    for extent in reversed(extents):
        kho.unpreserve_folios(extent.frames, extent.order)
