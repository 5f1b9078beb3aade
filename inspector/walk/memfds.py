"""Many memory files at once, as columns.

Ten thousand small files cost more in calls than in bytes. What is plain about them (one chunk,
few pages of folio entries, all of it there and sound) is read and checked for a group of them
together; every other file is walked alone by :func:`inspector.walk.memfd.walk_memfd`, with the
same result and the same record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.memfd import MEMFD_LUO_ALL_SEALS
from abi.registry import Generation
from abi.schema import Struct, resolve
from abi.vmalloc import KHO_VMALLOC_FLAGS, kho_vmalloc_chunk
from inspector.budget import Cost
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import PHYSICAL_BITS, Claim, Placed, Survey
from inspector.walk.folio_file import folio_orders
from inspector.walk.memfd import Memfd, check, walk_memfd
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import PFN_MASK, FolioColumns, Vmalloc

#: Files that are read together, and bytes of folio entries of all of them.
_GROUP, _BYTES = 128, 8 << 20
#: Fewer files are walked one by one.
_FEW = 8
_ENTRY = 16
_SHIFT = np.uint64(52)

Flags = npt.NDArray[np.bool_]


def walk_memfds(
    survey: Survey,
    generation: Generation,
    files: Sequence[tuple[int, str]],
    preserved: PreservedMap | None,
) -> list[Memfd | None]:
    """:func:`~inspector.walk.memfd.walk_memfd` for each (address, path) of ``files``."""
    layout = resolve(generation.layouts["memfd_luo_ser"], survey.page_size)
    found: list[Memfd | None] = []
    for at in range(0, len(files), _GROUP):
        some = files[at : at + _GROUP]
        group = _Group.read(survey, layout, some) if len(some) >= _FEW else None
        plain = {} if group is None else _columns(survey, group, preserved)
        for i, (address, path) in enumerate(some):
            columns = plain.get(i)
            # A chunk that an earlier file has is a finding, which the single walk makes.
            if group is None or columns is None or not _fresh(survey, int(group.first[i])):
                found.append(walk_memfd(survey, generation, address, path, preserved))
            else:
                found.append(_memfd(survey, generation, group, columns, i, path, preserved))
    return found


def _fresh(survey: Survey, chunk: int) -> bool:
    return chunk not in survey.nodes and len(survey.nodes) < survey.max_nodes


@dataclass(slots=True, eq=False)
class _Group:
    """The structs of some files and the chunk that each points to.

    ``plain`` says of which files all of that is there and as it should be; ``blocks`` are the
    first entries of each chunk, ``(n, most + 1)``.
    """

    layout: Struct
    addresses: U64Array
    values: dict[str, npt.NDArray[Any]]
    plain: Flags
    first: U64Array
    total: npt.NDArray[np.int64]
    array_flags: npt.NDArray[Any]
    blocks: U64Array

    @staticmethod
    def read(survey: Survey, layout: Struct, files: Sequence[tuple[int, str]]) -> _Group:
        """Read structs and chunks; holes are not recorded, the single walk does."""
        page, memory = survey.page_size, survey.memory
        most = max(_BYTES // (_GROUP * page), 1)
        addresses = np.array([address for address, _ in files], np.uint64)
        plain = _pointers(addresses, 8)
        plain &= memory.states(addresses, layout.size) == PageState.PRESENT
        rows = memory.gather(addresses, layout.size)
        values = layout.columns(np.ascontiguousarray(rows).view(layout.dtype)[:, 0])
        array: dict[str, Any] = layout.nested(values, "folios")
        first = array["first"].astype(np.uint64)
        total = array["total_pages"].astype(np.int64)
        plain &= (array["flags"] & ~np.uint16(KHO_VMALLOC_FLAGS)) == 0
        plain &= (array["order"] == 0) & (total > 0) & (total <= most)
        plain &= _pointers(first, page)
        plain &= memory.states(first, page) == PageState.PRESENT
        order = np.argsort(first, kind="stable")
        twice = np.zeros(len(first), np.bool_)
        twice[order[1:]] = first[order[1:]] == first[order[:-1]]
        plain &= ~twice
        words = memory.gather(first, 8 * (most + 2)).view("<u8")
        blocks = words[:, 1:]
        # As many blocks as counted, then the zero that ends the list; and no further chunk.
        used = np.logical_and.accumulate(blocks != 0, axis=1).sum(axis=1)
        plain &= (used == total) & (words[:, 0] == 0)
        odd = blocks & np.uint64(page - 1) != 0
        plain &= ~(odd & (np.arange(most + 1) < used[:, None])).any(axis=1)
        return _Group(layout, addresses, values, plain, first, total, array["flags"], blocks)


def _pointers(addresses: U64Array, align: int) -> Flags:
    """Which addresses can be pointers."""
    sound: Flags = (addresses != 0) & (addresses & np.uint64(align - 1) == 0)
    sound &= addresses >> np.uint64(PHYSICAL_BITS) == 0
    return sound


@dataclass(slots=True, eq=False)
class _Columns:
    """The folio entries of one file; ``sound`` if there is nothing to find in them.

    ``orders`` and ``sizes`` are None where the map does not know all of them.
    """

    folios: FolioColumns
    addresses: U64Array
    orders: U8Array | None
    sizes: U64Array | None
    sound: bool


def _columns(survey: Survey, group: _Group, preserved: PreservedMap | None) -> dict[int, _Columns]:
    """The folio entries of the plain files of a group whose pages are all there."""
    page = survey.page_size
    per_page = page // _ENTRY
    count = group.values["nr_folios"].astype(np.uint64)
    room = (group.total * per_page).astype(np.uint64)
    which = np.flatnonzero(group.plain & (count > 0) & (count <= room))
    if not len(which):
        return {}
    entries = count[which].astype(np.int64)
    pages = -(-entries // per_page)
    blocks = group.blocks[which]
    wanted = blocks[np.arange(blocks.shape[1]) < pages[:, None]]
    if survey.budget.room(Cost.ENTRIES, len(wanted) * page, survey.memory) < len(wanted) * page:
        return {}  # the single walk says which are beyond the budget
    here = survey.memory.states(wanted, page) == PageState.PRESENT
    if not here.all():
        whole = np.logical_and.reduceat(here, np.cumsum(pages) - pages)
        wanted = wanted[np.repeat(whole, pages)]
        which, entries, pages = which[whole], entries[whole], pages[whole]
        if not len(which):
            return {}
    words = survey.memory.gather(wanted, page).reshape(-1).view("<u8").reshape(-1, 2)
    ends = np.cumsum(entries)
    starts = ends - entries
    rows = np.arange(int(ends[-1]))
    rows += np.repeat((np.cumsum(pages) - pages) * per_page - starts, entries)
    head, index = words[:, 0][rows], words[:, 1][rows]
    pfn, flags = head & PFN_MASK, (head >> _SHIFT).astype(np.uint16)
    addresses = pfn * np.uint64(page)
    if preserved is not None:
        orders, found = preserved.orders_at(addresses)
        known = np.logical_and.reduceat(found, starts)
    else:
        orders, known = np.zeros(len(pfn), np.uint8), np.zeros(len(which), np.bool_)
    sizes = np.uint64(page) << orders.astype(np.uint64)
    size = group.values["size"][which].astype(np.uint64)
    limit = size // np.uint64(page) + (size % np.uint64(page) != 0)
    good = (pfn != 0) & (index < np.repeat(limit, entries))
    apart = np.ones(len(pfn), np.bool_)
    apart[1:] = index[:-1] + (np.uint64(1) << orders[:-1].astype(np.uint64)) <= index[1:]
    apart[starts] = True
    sound = np.logical_and.reduceat(good & apart, starts) & known
    out = {}
    for row, i in enumerate(which.tolist()):
        part = slice(int(starts[row]), int(ends[row]))
        folios = FolioColumns(pfn[part], flags[part], index[part], None, True)
        out[i] = _Columns(
            folios,
            addresses[part],
            orders[part] if known[row] else None,
            sizes[part] if known[row] else None,
            bool(sound[row]),
        )
    return out


def _memfd(
    survey: Survey,
    generation: Generation,
    group: _Group,
    columns: _Columns,
    i: int,
    path: str,
    preserved: PreservedMap | None,
) -> Memfd:
    """One plain file, recorded as the single walk records it."""
    page, values = survey.page_size, group.values
    chunk, total = group.first[i : i + 1], int(group.total[i])
    blocks = group.blocks[i, :total]
    seals = values["seals"][i] if "seals" in values else None
    # What is called flags alone belongs to the array where the struct has none.
    flags = values["flags"][i] if "folios.flags" in values else None
    memfd = Memfd(
        path=path,
        generation=generation,
        address=int(group.addresses[i]),
        size=int(values["size"][i]),
        nr_folios=int(values["nr_folios"][i]),
        vmalloc=Vmalloc(
            int(chunk[0]), total, int(group.array_flags[i]), 0, chunk, blocks, page, True
        ),
        folios=columns.folios,
        page_size=page,
        pos=int(values["pos"][i]),
        seals=None if seals is None else int(seals),
        flags=None if flags is None else int(flags),
    )
    survey.nodes[int(chunk[0])] = path
    per_page = page // _ENTRY
    survey.budget.spend(Cost.ENTRIES, -(-memfd.nr_folios // per_page) * page)
    survey.placed.append(Placed(group.layout, group.addresses[i : i + 1], path))
    survey.placed.append(Placed(kho_vmalloc_chunk(page), chunk, path))
    survey.claim("struct", path, memfd.address, group.layout.size)
    survey.claim("vmalloc-chunk", path, chunk, page)
    survey.claim("vmalloc-data", path, blocks, page)
    if columns.orders is None or columns.sizes is None:
        memfd.orders = folio_orders(memfd, preserved)
        used = memfd.used
        survey.claim("folio", path, columns.addresses[used], memfd.sizes[used])
    else:
        memfd.orders = columns.orders
        claim = Claim("folio", path, columns.addresses, columns.sizes)
        if not columns.sound:
            used = memfd.used
            claim = Claim("folio", path, columns.addresses[used], columns.sizes[used])
        survey.claims.append(claim)
    if not columns.sound or memfd.flags or (memfd.seals or 0) & ~MEMFD_LUO_ALL_SEALS:
        check(survey, memfd)
    return memfd
