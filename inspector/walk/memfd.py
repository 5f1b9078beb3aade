"""Preserved memory files (handlers ``memfd-v1``, ``memfd-v2`` and relatives)."""

from __future__ import annotations

from dataclasses import dataclass

from abi.memfd import MEMFD_LUO_ALL_SEALS
from abi.registry import Generation
from abi.schema import resolve
from inspector.survey import Survey
from inspector.walk.folio_file import FolioFile, check_folios, claim_folios, folio_orders
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import folio_columns, walk_vmalloc


@dataclass(slots=True, kw_only=True)
class Memfd(FolioFile):
    """A memory file. ``seals`` is None where the format carries none (memfd-v1)."""

    pos: int
    seals: int | None
    flags: int | None


def walk_memfd(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> Memfd | None:
    """The memory file whose struct lies at ``address``; None if the struct cannot be read.

    Findings ``KHO-MFD-*``: 003 unknown seals, 004 non-zero flags, and those of
    :func:`inspector.walk.folio_file.check_folios`.
    """
    layout = resolve(generation.layouts["memfd_luo_ser"], survey.page_size)
    if not survey.pointer(address, path, "memfd_luo_ser", align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vmalloc = walk_vmalloc(survey, layout.nested(values, "folios"), path)
    columns = folio_columns(survey, vmalloc, values["nr_folios"], path)
    memfd = Memfd(
        path=path,
        generation=generation,
        address=address,
        size=values["size"],
        nr_folios=values["nr_folios"],
        vmalloc=vmalloc,
        folios=columns,
        page_size=survey.page_size,
        pos=values["pos"],
        seals=values.get("seals"),
        flags=values.get("flags") if "folios.flags" in values else None,
    )
    memfd.orders = folio_orders(memfd, preserved)
    claim_folios(survey, memfd)
    check(survey, memfd)
    return memfd


def check(survey: Survey, memfd: Memfd) -> None:
    """What is wrong with a memory file, as findings (see :func:`walk_memfd`)."""
    if memfd.seals is not None and memfd.seals & ~MEMFD_LUO_ALL_SEALS:
        survey.findings.error(
            "KHO-MFD-003", f"unknown seals in {memfd.seals:#x}: EOPNOTSUPP on retrieve",
            path=memfd.path, address=memfd.address + 16,
        )  # fmt: skip
    if memfd.flags:
        survey.findings.error(
            "KHO-MFD-004", f"flags {memfd.flags:#x} are not zero",
            path=memfd.path, address=memfd.address + 20,
        )  # fmt: skip
    check_folios(survey, memfd)
