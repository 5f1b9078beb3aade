"""iommufd files: the preserved HWPTs of a virtual machine and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.iommufd import IommufdGeneration
from inspector.memory.base import U64Array
from inspector.survey import Survey
from inspector.walk.contiguous import counted_rows, may_reach
from inspector.walk.preserved import PreservedMap


@dataclass(frozen=True, slots=True)
class Hwpt:
    """One preserved hardware page table.

    ``domain_data`` is the address of its domain object; ``reclaimed`` is 1 once user space
    of the next kernel has claimed it.
    """

    path: str
    address: int
    index: int
    token: int
    domain_data: int
    reclaimed: int


@dataclass(slots=True)
class Iommufd:
    """The state of an iommufd file. ``nr_hwpts`` is what it counts, ``records`` what is here."""

    path: str
    generation: IommufdGeneration
    address: int
    nr_hwpts: int
    records: npt.NDArray[Any]
    addresses: U64Array

    @property
    def complete(self) -> bool:
        """Whether every HWPT is here."""
        return len(self.records) == self.nr_hwpts

    @property
    def domain_data(self) -> U64Array:
        """Addresses of the domain objects that the HWPTs name."""
        if self.generation.entry is None:
            return self.addresses
        return self.records["domain_data"].astype(np.uint64)

    @property
    def hwpts(self) -> list[Hwpt]:
        """The HWPTs in order."""
        return [self.hwpt(i) for i in range(len(self.records))]

    def hwpt(self, index: int) -> Hwpt:
        """One of them."""
        record = self.records[index]
        return Hwpt(
            f"{self.path}/hwpts/{index}",
            int(self.addresses[index]),
            index,
            int(record["token"]),
            int(record["domain_data"]),
            int(record["reclaimed"]),
        )


def walk_iommufd(
    survey: Survey,
    generation: IommufdGeneration,
    address: int,
    path: str,
    preserved: PreservedMap | None = None,
) -> Iommufd | None:
    """The iommufd state at ``address``; None if its header cannot be read.

    Findings: ``KHO-IFD-001`` fewer entries than counted could be read, ``-002`` a token
    twice, ``-003`` ``reclaimed`` is neither 0 nor 1. Of entries in pages that the dump left out
    ``preserved`` tells whether they are some.
    """
    root = generation.root
    if not address or not survey.pointer(address, path, root.cname, align=8):
        return None
    values = survey.unpack(root, address, path)
    if values is None:
        return None
    entry = generation.entry
    if entry is None:
        survey.claim("struct", path, address, root.size)
        return Iommufd(path, generation, address, 0, np.empty(0, np.uint8), np.empty(0, np.uint64))
    count, known, given_up = values["nr_hwpts"], survey.left_out, survey.given_up
    rows, addresses = counted_rows(survey, address + root.size, count, entry, path)
    records = rows.reshape(-1).view(entry.dtype)
    state = Iommufd(path, generation, address, count, records, addresses)
    survey.claim("struct", path, address, root.size + len(records) * entry.size)
    end = address + root.size + count * entry.size
    if survey.left_out > known and may_reach(survey, preserved, address, end):
        survey.cannot_tell("KHO-IFD-001", "pages of an iommufd were left out of the image")
    elif survey.given_up > given_up:
        survey.cannot_tell("KHO-IFD-001", "not all HWPTs are read")
    elif not state.complete:
        survey.findings.error(
            "KHO-IFD-001",
            f"iommufd counts {count} HWPTs, {len(records)} can be read",
            path=path,
            address=address,
        )
    else:  # what a wrong count takes for HWPTs says nothing
        _check(survey, state)
    return state


def _check(survey: Survey, state: Iommufd) -> None:
    tokens, first = np.unique(state.records["token"], return_index=True)
    if len(tokens) < len(state.records):
        again = np.setdiff1d(np.arange(len(state.records)), first)
        for i in again[:16].tolist():
            hwpt = state.hwpt(i)
            survey.findings.error(
                "KHO-IFD-002",
                f"HWPT token {hwpt.token:#x} twice",
                path=hwpt.path,
                address=hwpt.address,
            )
    for i in np.flatnonzero(state.records["reclaimed"] > 1)[:16].tolist():
        hwpt = state.hwpt(i)
        survey.findings.warning(
            "KHO-IFD-003",
            f"reclaimed is {hwpt.reclaimed}",
            path=hwpt.path,
            address=hwpt.address,
        )
