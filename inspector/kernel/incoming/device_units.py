"""IOMMUs in the kernel that takes over: their tables, and the domain ids that are in use."""

from __future__ import annotations

import numpy as np

from abi import vtd
from inspector.findings import Outcome
from inspector.kernel.incoming import stream_tables
from inspector.kernel.incoming.device_state import (
    Bug,
    Devices,
    set_member,
    take,
)
from inspector.kernel.machine.hardware import UnitType
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.walk.iommu import IommuState, Unit


def restore_unit(found: Devices, state: IommuState, unit: Unit) -> None:
    """Take the tables of an IOMMU over. Raises Bug, Absent, PageFault."""
    boot = found.boot
    hardware = found.hardware.unit(unit.token)
    if hardware is None or int(hardware.type) != unit.type:
        boot.reasons.add(
            Outcome.TAKEN_OVER_WITH_WARNINGS,
            f"no IOMMU of type {unit.type} has the token {unit.token:#x}: its tables are not"
            " restored",
            path=unit.path, address=unit.address,
        )  # fmt: skip
        return
    found.dids[unit.address] = set()
    if unit.type == UnitType.INTEL and unit.root_table:
        _intel_tables(found, unit)
    elif unit.type == UnitType.INTEL and unit.view == "intel":
        raise Bug("the unit has no root table: BUG", unit.path, unit.address)
    elif unit.type == UnitType.ARM_SMMUV3 and unit.view == "smmuv3":
        wanted = hardware.registers.get("STRTAB_BASE_CFG", unit.get("strtab_base_cfg"))
        if unit.get("strtab_base_cfg") != wanted:
            del found.dids[unit.address]
            boot.reasons.add(
                Outcome.TAKEN_OVER_WITH_WARNINGS,
                f"STRTAB_BASE_CFG is {wanted:#x}, not {unit.get('strtab_base_cfg'):#x}: the stream"
                " table is not restored",
                path=unit.path, address=unit.address,
            )  # fmt: skip
            return
        stream_tables.restore(found, unit)
        found.tables[unit.token].ids = found.dids[unit.address]


def _intel_tables(found: Devices, unit: Unit) -> None:
    boot = found.boot
    root = unit.root_table
    take(found, root, unit.path, "the VT-d root table")
    kept = found.tables[unit.token] = InheritedTables(root, ids=found.dids[unit.address])
    words = np.frombuffer(boot.view.read(root, vtd.TABLE_SIZE), "<u8")
    present = np.flatnonzero(words & np.uint64(1)).tolist()
    wanted = unit.context_tables
    halves = sorted(wanted) if wanted is not None else present
    for half in halves:
        kept.contexts[half] = int(words[half]) & ~0xFFF
        take(found, kept.contexts[half], unit.path, f"context table {half}")
    set_member(found, unit.generation.units, unit.address, "restored", 1)
