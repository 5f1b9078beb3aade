"""The IOMMU drivers of a machine, and the domains they make."""

from __future__ import annotations

from collections.abc import Mapping

from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.hardware import Hardware, Unit, UnitType
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.iopt import PageTable
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.smmuv3 import Smmuv3Unit
from inspector.kernel.outgoing.vtd import VtdUnit


class IommuDrivers:
    """The IOMMU drivers of a machine: one object per unit, made when it is first used.

    ``inherited`` are tables that the kernel took over, by the base of their unit.
    """

    def __init__(
        self,
        machine: Machine,
        kho: Kho,
        *,
        listed: bool = True,
        inherited: Mapping[int, InheritedTables] | None = None,
    ) -> None:
        self.machine = machine
        self.kho = kho
        self._listed = listed
        self._inherited = inherited or {}
        self.hardware: Hardware = machine.spec.hardware
        self.units: dict[int, VtdUnit | Smmuv3Unit] = {}

    def of(self, base: int) -> VtdUnit | Smmuv3Unit:
        """The driver of a unit. Raises ENODEV."""
        driver = self.units.get(base)
        if driver is None:
            unit = self.hardware.unit(base)
            if unit is None:
                raise KernelErrno("ENODEV", f"no IOMMU at {base:#x}")
            tables = self._inherited.get(base)
            if unit.type is UnitType.INTEL:
                driver = VtdUnit(self.machine, self.kho, unit, self.hardware, tables)
            else:
                driver = Smmuv3Unit(
                    self.machine, self.kho, unit, listed=self._listed, inherited=tables
                )
                for device in self.hardware.devices:
                    if device.unit == base:
                        driver.probe(device)
            self.units[base] = driver
        return driver

    def settle(self) -> None:
        """All devices have left the domains of the kernel before."""
        for driver in self.units.values():
            driver.settle()

    def new_domain(self, unit: Unit, *, first_stage: bool = False) -> Domain:
        """An empty domain for devices behind a unit. Raises EOPNOTSUPP, ENOMEM."""
        if unit.type is UnitType.ARM_SMMUV3:
            return Domain(stage_2(self.machine, unit))
        if first_stage:
            if not unit.scalable:
                raise KernelErrno("EOPNOTSUPP", "first stage needs scalable mode")
            return Domain(
                PageTable(self.machine, "x86-64", 4, 48, unit.page_sizes), sign_extend=True
            )
        bits = {3: 39, 4: 48, 5: 57}[unit.levels]
        return Domain(PageTable(self.machine, "vtdss", unit.levels, bits, unit.page_sizes))


def stage_2(machine: Machine, unit: Unit) -> PageTable:
    """A stage-2 table: start level by input size, concatenated where Linux must."""
    granule = machine.page_shift
    per_level = granule - 3
    levels = -(-(unit.input_bits - granule) // per_level)
    top_bits = unit.input_bits - granule - (levels - 1) * per_level
    mandatory = {(12, 4): (40, 42), (14, 4): (48,), (14, 3): (40,)}.get((granule, levels), ())
    if top_bits <= 4 and unit.input_bits in mandatory:
        levels -= 1
    name = {12: "4k", 14: "16k", 16: "64k"}[granule]
    return PageTable(machine, f"lpae-s2-{name}", levels, unit.input_bits, unit.page_sizes)
