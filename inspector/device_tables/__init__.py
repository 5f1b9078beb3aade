"""Device tables in memory: from a table's address to what each device may do.

* :mod:`~inspector.device_tables.vtd`: root, context and PASID tables;
* :mod:`~inspector.device_tables.smmuv3`: stream tables and context descriptors;
* :mod:`~inspector.device_tables.amd`: the AMD device table;
* :mod:`~inspector.device_tables.cross`: the tables against the serialized objects, with
  ``cross_vtd`` and ``cross_smmuv3``; ``comparison`` has what both say.

Readers take a :class:`inspector.survey.Survey`, never raise for what memory holds, and give
page tables as :class:`abi.device_table.TableRoot`, which ``kho pagetable`` walks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from abi.device_table import TableRoot
    from inspector.image import Image
    from inspector.memory.base import PhysicalMemory, U64Array
    from inspector.pagetable import Budget, Walk

#: Fewer bits of input address than a page has are no width.
_NARROWEST: Final = 12


def walk_root(
    memory: PhysicalMemory,
    root: TableRoot,
    *,
    image: Image | None = None,
    path: str = "",
    budget: Budget | None = None,
) -> Walk:
    """The page table that a device table entry points to. Raises UsageError if it cannot be one.

    With an image whose map is whole, table pages that are not preserved are anomalies.
    ``budget``: shared with the walks over other tables of the image.
    """
    from inspector.image import MapState
    from inspector.pagetable import walk

    bits = root.input_bits
    if not root.format.startswith("lpae") and not _NARROWEST <= bits <= 64:
        bits = 0  # no width; only Arm tables cannot be read without
    preserved: Callable[[U64Array], npt.NDArray[np.bool_]] | None = None
    if image is not None and image.preserved is not None and image.map_state is MapState.INTACT:
        covers, size = image.preserved.covers, image.page_size

        def covered(pages: U64Array) -> npt.NDArray[np.bool_]:
            return covers(pages - pages % np.uint64(size), size)

        preserved = covered

    return walk(
        memory,
        root.format,
        root.address,
        root.levels,
        vasz=bits or None,
        preserved=preserved,
        budget=budget,
        path=path,
    )
