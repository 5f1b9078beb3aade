"""Guest memory files (handler ``guest_memfd_luo_v1``): memory of a virtual machine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from abi.guest_memfd import (
    GUEST_MEMFD_LUO_FLAG_INIT_SHARED,
    GUEST_MEMFD_LUO_FLAG_MMAP,
    GUEST_MEMFD_LUO_FOLIO_UPTODATE,
)
from abi.registry import Generation
from abi.schema import resolve
from inspector.survey import Survey
from inspector.walk.folio_file import FolioFile, check_folios, claim_folios, sparse_orders
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import folio_columns, walk_vmalloc

KNOWN_FLAGS = GUEST_MEMFD_LUO_FLAG_MMAP | GUEST_MEMFD_LUO_FLAG_INIT_SHARED


@dataclass(slots=True, kw_only=True)
class GuestMemfd(FolioFile):
    """A guest_memfd. ``vm`` is the path of the file that ``vm_token`` names, if there is one."""

    flags: int
    vm_token: int
    vm: str | None = field(default=None)

    @property
    def uptodate(self) -> int:
        """How many folios are marked up to date."""
        marked = self.folios.flags & np.uint16(GUEST_MEMFD_LUO_FOLIO_UPTODATE) != 0
        return int(np.count_nonzero(marked & self.used))


def walk_guest_memfd(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> GuestMemfd | None:
    """The file whose struct lies at ``address``; None if the struct cannot be read.

    Findings ``KHO-GMF-*``: 001 unknown flags of the file, 002 unknown flags of folios, and
    those of :func:`inspector.walk.folio_file.check_folios`.
    """
    layout = resolve(generation.layouts["guest_memfd_luo_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vmalloc = walk_vmalloc(survey, layout.nested(values, "folios"), path)
    file = GuestMemfd(
        path=path,
        generation=generation,
        address=address,
        size=values["size"],
        nr_folios=values["nr_folios"],
        vmalloc=vmalloc,
        folios=folio_columns(survey, vmalloc, values["nr_folios"], path),
        page_size=survey.page_size,
        flags=values["flags"],
        vm_token=values["vm_token"],
    )
    file.orders = sparse_orders(file, preserved)
    claim_folios(survey, file)
    _check(survey, file)
    return file


def _check(survey: Survey, file: GuestMemfd) -> None:
    if file.flags & ~KNOWN_FLAGS:
        survey.findings.error(
            "KHO-GMF-001", f"unknown flags in {file.flags:#x}",
            path=file.path, address=file.address + 8,
        )  # fmt: skip
    odd = np.flatnonzero(file.used & (file.folios.flags & ~np.uint16(1) != 0))
    if len(odd):
        survey.findings.error(
            "KHO-GMF-002",
            f"{len(odd)} folios have unknown flags, such as {int(file.folios.flags[odd[0]]):#x}",
            path=file.path,
            address=file.address,
        )
    check_folios(survey, file)
