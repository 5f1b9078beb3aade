"""The ``[machine]`` table of a scenario."""

from __future__ import annotations

import re
from typing import Any

from abi.errors import UsageError
from inspector.kernel.machine import ARCHITECTURES, GiB, MachineSpec, MiB, Ram
from inspector.kernel.machine.hardware import Hardware, PciDevice, Unit, UnitType, parse_bdf
from inspector.kernel.toml_file import ScenarioError, Table, parse_size

_UNIT_TYPES = {"intel": UnitType.INTEL, "smmuv3": UnitType.ARM_SMMUV3}
_RAM = re.compile(r"(?:(?P<start>\w+)\s*\+\s*)?(?P<size>\w+)(?:\s*@\s*node(?P<node>\d+))?\Z")


def read(table: Table, seed: int) -> MachineSpec:
    """A machine out of its table. Raises ScenarioError."""
    architecture = table.choice("architecture", ARCHITECTURES, "x86_64")
    page_size = table.size("page_size", 4096)
    start = GiB if architecture == "aarch64" else 0
    ram = _ram(table, start)
    scratch = table.sizes("scratch")
    if scratch and len(scratch) != 3:
        raise table.error("scratch", "has three sizes: low, global, per node")
    spec = MachineSpec(
        ram=ram,
        architecture=architecture,
        page_size=page_size,
        scratch=(scratch[0], scratch[1], scratch[2]) if scratch else None,
        firmware=((start, MiB),),
        seed=seed,
        fragmentation=table.number("fragmentation", 0.0),
        shuffle=table.flag("shuffle"),
        hardware=hardware(table),
        huge_pages=tuple(_huge_pages(each, page_size) for each in table.tables("hugetlb")),
    )
    table.done()
    try:
        spec.check()
    except UsageError as error:
        if isinstance(error, ScenarioError):
            raise
        raise table.error(None, str(error)) from None
    return spec


def _huge_pages(table: Table, page_size: int) -> tuple[int, int]:
    """(order, pages) of a pool."""
    size, pages = table.size("size"), table.integer("pages", bits=32)
    order = (size // page_size).bit_length() - 1
    if order < 1 or size != page_size << order:
        raise table.error("size", f"is no power of two above a page of {page_size}")
    table.done()
    return order, pages


def _ram(table: Table, start: int) -> tuple[Ram, ...]:
    """``["2G", "4G + 2G @ node1"]``: a start, if given, a size, a node, if given."""
    areas: list[Ram] = []
    for text in table.strings("ram") or ["512M"]:
        match = _RAM.match(text)
        try:
            if match is None:
                raise ValueError(text)
            size = parse_size(match["size"])
            at = parse_size(match["start"]) if match["start"] else start
        except ValueError:
            example = '"2G" or "4G+2G@node1"'
            raise table.error("ram", f"{text!r} is no memory like {example}") from None
        areas.append(Ram(at, size, int(match["node"] or 0)))
        start = at + size
    return tuple(areas)


def hardware(table: Table) -> Hardware:
    """The IOMMUs and devices of a machine's table. Raises ScenarioError."""
    units = []
    for each in table.tables("iommu"):
        units.append(_unit(each))
        each.done()
    devices: list[PciDevice] = []
    for each in table.tables("device"):
        devices += _devices(each, units)
        each.done()
    return Hardware(tuple(units), tuple(devices))


def _unit(table: Table) -> Unit:
    registers = table.table("registers")
    names = list(registers.raw_keys())
    values: dict[str, Any] = {
        "base": table.integer("base"),
        "type": _UNIT_TYPES[table.choice("type", _UNIT_TYPES, "intel")],
        "segment": table.integer("segment", 0, bits=32),
        "scalable": table.flag("scalable"),
        "domain_ids": table.integer("domain_ids", 1 << 16, bits=17),
        "first_domain_id": table.integer("first_domain_id", 2, bits=16),
        "levels": table.integer("levels", 4, bits=3),
        "input_bits": table.integer("input_bits", 48, bits=7),
        "stream_bits": table.integer("stream_bits", 16, bits=6),
        "registers": {name: registers.integer(name) for name in names},
    }
    if table.has("page_sizes"):
        values["page_sizes"] = tuple(table.sizes("page_sizes"))
    return Unit(**values)


def _devices(table: Table, units: list[Unit]) -> list[PciDevice]:
    """One device, or ``count`` at consecutive places (functions, slots, buses, segments)."""
    try:
        segment, bdf = parse_bdf(table.text("bdf"))
        bridges = tuple(parse_bdf(b)[1] for b in table.strings("bridges"))
    except UsageError as error:
        if isinstance(error, ScenarioError):
            raise
        raise table.error("bdf", str(error)) from None
    unit = table.integer("unit", units[0].base if units else 0)
    if unit and all(u.base != unit for u in units):
        raise table.error("unit", f"no IOMMU has its registers at {unit:#x}")
    count = table.integer("count", 1, bits=24)
    common: dict[str, Any] = {
        "unit": unit,
        "driver": table.text("driver", "vfio-pci"),
        "max_pasid": table.integer("max_pasid", 0, bits=21),
        "reset_works": table.flag("reset_works"),
        "virtual_function": table.flag("virtual_function"),
        "quirk": table.flag("quirk"),
        "display": table.flag("display"),
        "group": table.integer("group", 1, bits=16),
        "bridges": bridges,
        "cfg_size": table.integer("cfg_size", 4096, bits=13),
    }
    first = segment << 16 | bdf
    return [
        PciDevice(segment=key >> 16, bdf=key & 0xFFFF, **common)
        for key in range(first, first + count)
    ]
