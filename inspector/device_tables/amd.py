"""The AMD IOMMU's device table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from abi import amd_iommu
from abi.amd_iommu import DTE_SIZE, DeviceTableEntry
from inspector.survey import Survey

_PAGE = 0x1000
#: The device table base register: address 51:12, size in 4 KiB units - 1 in 8:0.
_BASE_MASK = (1 << 52) - 0x1000


class DeviceTable:
    """A device table; entries are found by device id (bus << 8 | devfn)."""

    def __init__(self, survey: Survey, address: int, size: int, *, path: str = "") -> None:
        """The table at ``address`` of ``size`` bytes, at most 2 MiB."""
        self.survey = survey
        self.address = address
        self.size = min(size, 2 << 20)
        self.path = path

    @classmethod
    def of_register(cls, survey: Survey, register: int, *, path: str = "") -> DeviceTable:
        """The table that a device table base register describes."""
        return cls(survey, register & _BASE_MASK, ((register & 0x1FF) + 1) * _PAGE, path=path)

    def entry(self, devid: int) -> tuple[int, DeviceTableEntry] | None:
        """(address, entry) of a device; None if it lies outside the table or the image."""
        if not 0 <= devid < self.size // DTE_SIZE:
            return None
        address = self.address + devid * DTE_SIZE
        raw = self.survey.read(address, DTE_SIZE, self.path)
        return None if raw is None else (address, amd_iommu.parse_dte(raw))

    def entries(self) -> Iterator[tuple[int, int, DeviceTableEntry]]:
        """(device id, address, entry) of every entry that translates."""
        for at in range(0, self.size, _PAGE):
            raw = self.survey.read(self.address + at, min(_PAGE, self.size - at), self.path)
            if raw is None:
                continue
            self.survey.claim("device-table", self.path, self.address + at, len(raw))
            words = np.frombuffer(raw, "<u8").reshape(-1, 4)
            mode = words[:, 0] >> np.uint64(9) & np.uint64(7)
            used = (words[:, 0] & np.uint64(3) == 3) & (mode != 0)
            for i in np.flatnonzero(used).tolist():
                devid = at // DTE_SIZE + i
                yield (
                    devid,
                    self.address + at + i * DTE_SIZE,
                    amd_iommu.parse_dte(raw, i * DTE_SIZE),
                )
