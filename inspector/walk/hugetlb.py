"""HugeTLB: pools of huge pages (an FLB), and memory files made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.hugetlb import HUGETLB_SER_MAX_HSTATES
from abi.registry import Generation
from abi.schema import Struct, resolve
from inspector.memory.base import U64Array
from inspector.survey import Survey
from inspector.walk.folio_file import FolioFile, check_folios, claim_folios, folio_orders
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import PFN_MASK, Vmalloc, folio_columns, walk_vmalloc, word_columns

#: No machine has larger pages: 16 GiB of 4 KiB pages are of order 22.
MAX_ORDER = 22
_FREE = np.uint64(52)
_RESERVED = np.uint64(53)


@dataclass(slots=True, kw_only=True)
class HugeMemfd(FolioFile):
    """A memory file of huge pages of one ``order``; ``index`` counts huge pages."""

    pos: int
    order: int


def walk_huge_memfd(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> HugeMemfd | None:
    """The file whose struct lies at ``address``; None if the struct cannot be read.

    A file of an impossible order is read as if its pages were those that the map has.
    Findings ``KHO-HTL-*``: 001 impossible order, 002 reserved bits of folios are set, and those
    of :func:`inspector.walk.folio_file.check_folios`.
    """
    layout = resolve(generation.layouts["hugemfd_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vmalloc = walk_vmalloc(survey, layout.nested(values, "folios"), path)
    order = values["order"]
    possible = _possible(survey, order, path, address + layout.field("order").offset)
    file = HugeMemfd(
        path=path,
        generation=generation,
        address=address,
        size=values["size"],
        nr_folios=values["nr_folios"],
        vmalloc=vmalloc,
        folios=folio_columns(survey, vmalloc, values["nr_folios"], path),
        page_size=survey.page_size,
        unit=order if possible else 0,
        pos=values["pos"],
        order=order,
    )
    if possible:
        file.orders = np.full(len(file.folios.pfn), order, np.uint8)
    else:
        file.orders = folio_orders(file, preserved)
    claim_folios(survey, file)
    odd = np.flatnonzero(file.used & (file.folios.flags != 0))
    if len(odd):
        _reserved(survey, len(odd), int(file.folios.flags[odd[0]]), path, address)
    check_folios(survey, file)
    return file


def _possible(survey: Survey, order: int, path: str, address: int) -> bool:
    if order <= MAX_ORDER:
        return True
    survey.findings.error(
        "KHO-HTL-001", f"huge pages of order {order} are impossible", path=path, address=address
    )
    return False


def _reserved(survey: Survey, count: int, example: int, path: str, address: int) -> None:
    survey.findings.warning(
        "KHO-HTL-002",
        f"{count} entries of huge pages have reserved bits set, such as {example:#x}",
        path=path,
        address=address,
    )


# -- pools --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolPages:
    """The pages of a pool (first form only): frames and whether they were unused."""

    vmalloc: Vmalloc
    pfn: U64Array
    free: npt.NDArray[np.bool_]
    complete: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """The huge pages of one size. ``pages`` is None where only their number was kept."""

    path: str
    address: int
    index: int
    nr_pages: int
    order: int
    struct_size: int
    pages: PoolPages | None = None


@dataclass(slots=True)
class Hugetlb:
    """The FLB. ``nr_hstates`` is what it counts, ``pools`` what there is room for."""

    path: str
    generation: Generation
    address: int
    page_size: int
    nr_hstates: int
    pools: list[Pool] = field(default_factory=list)

    def pool(self, order: int) -> Pool | None:
        """The pool of an order."""
        return next((p for p in self.pools if p.order == order), None)


def walk_hugetlb(survey: Survey, generation: Generation, address: int, path: str) -> Hugetlb | None:
    """The FLB at ``address``; None if its struct cannot be read.

    Findings ``KHO-HTL-*``: 001 impossible order, 002 reserved bits of pages are set, 003 more
    pools than there is room for, 004 two pools of one order, 005 fewer pages listed than
    counted.
    """
    layout = resolve(generation.layouts["hugetlb_ser"], survey.page_size)
    hstate = resolve(generation.layouts["hugetlb_hstate_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    found = Hugetlb(path, generation, address, survey.page_size, values["nr_hstates"])
    count = found.nr_hstates
    if count > HUGETLB_SER_MAX_HSTATES:
        survey.findings.error(
            "KHO-HTL-003", f"{count} pools are counted, there is room for"
            f" {HUGETLB_SER_MAX_HSTATES}",
            path=path, address=address + layout.field("nr_hstates").offset,
        )  # fmt: skip
        count = HUGETLB_SER_MAX_HSTATES
    start = layout.field("hstates").offset
    orders: set[int] = set()
    for i in range(count):
        at = start + i * hstate.size
        own = f"{path}/{i}"
        pool = _pool(survey, hstate, values["hstates"], at - start, address + at, own, i)
        if pool.order in orders:
            survey.findings.error(
                "KHO-HTL-004", f"there are two pools of order {pool.order}",
                path=own, address=pool.address,
            )  # fmt: skip
        orders.add(pool.order)
        found.pools.append(pool)
    return found


def _pool(
    survey: Survey, hstate: Struct, raw: Any, offset: int, address: int, path: str, index: int
) -> Pool:
    values = hstate.unpack(raw, offset)
    order, nr_pages = values["order"], values["nr_pages"]
    possible = _possible(survey, order, path, address + hstate.field("order").offset)
    pages = None
    if "total_pages" in values:
        known = survey.wanting
        vmalloc = walk_vmalloc(survey, hstate.nested(values, "folios"), path)
        rows, complete = word_columns(survey, vmalloc, 1, nr_pages, path)
        pages = _pages(survey, rows[:, 0], vmalloc, complete, path, address)
        if not complete and vmalloc.complete and survey.wanting == known:
            survey.findings.error(
                "KHO-HTL-005",
                f"the pool counts {nr_pages} pages, its array holds {len(rows)}",
                path=path,
                address=address,
            )
        if possible:
            used = pages.pfn[pages.pfn != 0]
            page = np.uint64(survey.page_size)
            survey.claim("folio", path, used * page, survey.page_size << order)
    return Pool(path, address, index, nr_pages, order, hstate.size, pages)


def _pages(
    survey: Survey, words: U64Array, vmalloc: Vmalloc, complete: bool, path: str, address: int
) -> PoolPages:
    odd = np.flatnonzero(words >> _RESERVED)
    if len(odd):
        _reserved(survey, len(odd), int(words[odd[0]] >> _RESERVED), path, address)
    free: npt.NDArray[np.bool_] = (words >> _FREE) & np.uint64(1) != 0
    return PoolPages(vmalloc, words & PFN_MASK, free, complete)
