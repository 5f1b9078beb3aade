"""The page tables of domains: where each of them is, and walks over many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abi.device_table import TableRoot
from inspector import passthrough
from inspector.device_tables import walk_root
from inspector.device_tables.cross_smmuv3 import stream_tables_of
from inspector.device_tables.cross_vtd import root_table_of
from inspector.device_tables.smmuv3 import Stream
from inspector.device_tables.vtd import Attachment, RootTable
from inspector.pagetable import Budget
from inspector.survey import Survey
from inspector.walk.iommu import Device, Domain, Unit

if TYPE_CHECKING:
    from inspector.image import Image
    from inspector.pagetable import Walk

_GRANULES = {0x1000: "4k", 0x4000: "16k", 0x10000: "64k"}


class HardwareTables:
    """What the device tables say of devices, read once a unit."""

    def __init__(self, image: Image) -> None:
        """``image`` has been decoded."""
        self._image = image
        self._units: dict[int, RootTable | Any] = {}

    def of(self, device: Device, unit: Unit) -> Attachment | Stream | None:
        """The context entry or stream of a device; None if the tables have none."""
        if unit.address not in self._units:
            self._units[unit.address] = self._tables(unit)
        tables = self._units[unit.address]
        if isinstance(tables, RootTable):
            return tables.attachment(device.devid) if device.devid < 1 << 16 else None
        return None if tables is None else tables.stream(device.devid)

    def _tables(self, unit: Unit) -> Any:
        survey = Survey(self._image.memory, self._image.page_size)
        state = passthrough.iommu_state(self._image)
        assert state is not None
        if unit.view == "intel" and unit.root_table:
            return root_table_of(survey, state, unit)
        return stream_tables_of(survey, unit) if unit.view == "smmuv3" else None


class DomainTables:
    """The page tables of an image's domains. All walks over them share one budget."""

    def __init__(self, image: Image) -> None:
        """``image`` has been decoded."""
        self.hardware = HardwareTables(image)
        self._image = image
        self._state = passthrough.iommu_state(image)
        self._budget = Budget()

    def root(self, domain: Domain) -> TableRoot:
        """Where a domain's table is. Its format is not named; units and address space tell it."""
        state = self._state
        units = state.units_of(domain) if state is not None else []
        if not units and state is not None:
            units = list(state.units.live()) or list(state.units)
        bits = domain.vasz or 0
        if any(unit.view == "smmuv3" for unit in units):
            # What the tables do not tell is as Linux prefers it: the granule of its pages.
            granule = _GRANULES[self._image.page_size]
            walked = self._hardware_format(domain) or f"lpae-s2-{granule}"
        elif domain.sign_extend is not None:
            walked = "x86-64" if domain.sign_extend else "vtdss"
        else:
            walked = self._hardware_format(domain) or "vtdss"
        return TableRoot(walked, domain.top_table_phys, domain.levels, bits)

    def walk(self, root: TableRoot, path: str = "", *, preserved: bool = False) -> Walk:
        """A walk over a table. Raises UsageError if there cannot be one.

        ``preserved``: whether tables in pages that the map does not preserve are anomalies.
        """
        image = self._image
        whole = image if preserved else None
        return walk_root(image.memory, root, image=whole, path=path, budget=self._budget)

    def _hardware_format(self, domain: Domain) -> str | None:
        """The format as which the hardware walks a table for a device; None if unknown."""
        state = self._state
        for index in state.users_of(domain)[:1].tolist() if state is not None else ():
            assert state is not None
            device = state.devices[index]
            unit = state.units.at(device.iommu_phys)
            found = self.hardware.of(device, unit) if unit is not None else None
            for root in found.roots if found is not None else ():
                if root.address == domain.top_table_phys:
                    return root.format
        return None
