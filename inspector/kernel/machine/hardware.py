"""The IOMMUs and PCI devices of a simulated machine: what firmware and the bus tell a kernel.

Both kernels of a pair see the same hardware; none of it is in the image.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from abi.errors import UsageError

#: Driver that a device must be bound to before it can be preserved or retrieved.
VFIO_PCI = "vfio-pci"


class UnitType(enum.IntEnum):
    """``type`` of a hardware object of the IOMMU layer."""

    INTEL = 1
    ARM_SMMUV3 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One IOMMU. ``base`` is the physical address of its registers and names it.

    ``scalable`` is the mode a VT-d unit runs in; ``domain_ids`` how many DIDs (or VMIDs) it
    has, of which those from ``first_domain_id`` on are free; ``levels`` of its second-stage
    tables; ``input_bits`` of a stage-2 table of an SMMU; ``page_sizes`` the leaves it can
    express above the granule (None: all of the format). ``stream_bits`` is the size of an
    SMMU's stream ids. ``registers`` are what the consumer finds in them at boot:
    ``STRTAB_BASE_CFG`` of an SMMU, say.
    """

    base: int
    type: UnitType = UnitType.INTEL
    segment: int = 0
    scalable: bool = False
    domain_ids: int = 1 << 16
    first_domain_id: int = 2
    levels: int = 4
    input_bits: int = 48
    page_sizes: tuple[int, ...] | None = None
    stream_bits: int = 16
    registers: Mapping[str, int] = field(default_factory=dict)

    @property
    def token(self) -> int:
        """What the hardware object of an image calls it."""
        return self.base


# Not frozen, which takes three times as long to make, and there may be a hundred thousand.
@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class PciDevice:
    """One PCI function. ``bdf`` is (bus << 8) | devfn, ``unit`` the base of its IOMMU.

    ``bridges`` are the BDFs of the bridges above it, nearest first. ``quirk`` says that its
    isolation rests on a quirk, ``group`` how many devices share its IOMMU group.
    """

    bdf: int
    segment: int = 0
    unit: int = 0
    driver: str = VFIO_PCI
    max_pasid: int = 0
    reset_works: bool = False
    virtual_function: bool = False
    quirk: bool = False
    display: bool = False
    group: int = 1
    bridges: tuple[int, ...] = ()
    cfg_size: int = 4096
    #: (segment << 16) | bdf.
    key: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.key = self.segment << 16 | self.bdf

    @property
    def bus(self) -> int:
        """Bus number."""
        return self.bdf >> 8

    @property
    def devfn(self) -> int:
        """Device (bits 7:3) and function (2:0)."""
        return self.bdf & 0xFF

    def __str__(self) -> str:
        return format_bdf(self.segment, self.bdf)


@dataclass(frozen=True)
class Hardware:
    """All units and devices of a machine."""

    units: tuple[Unit, ...] = ()
    devices: tuple[PciDevice, ...] = ()

    @cached_property
    def _units(self) -> Mapping[int, Unit]:
        return MappingProxyType({u.base: u for u in self.units})

    @cached_property
    def _devices(self) -> Mapping[int, PciDevice]:
        return MappingProxyType({d.key: d for d in self.devices})

    def unit(self, base: int) -> Unit | None:
        """The unit with this register base."""
        return self._units.get(base)

    def device(self, segment: int, bdf: int) -> PciDevice | None:
        """The device at this place."""
        return self._devices.get(segment << 16 | bdf)

    def behind(self, base: int) -> Iterable[PciDevice]:
        """The devices behind a unit."""
        return (d for d in self.devices if d.unit == base)

    def check(self) -> None:
        """Raises UsageError for places or units that occur twice or do not exist."""
        if len(self._units) != len(self.units):
            raise UsageError("two IOMMU units have one register base")
        if len(self._devices) != len(self.devices):
            raise UsageError("two PCI devices have one place")
        for device in self.devices:
            if device.unit and device.unit not in self._units:
                raise UsageError(f"device {device}: no IOMMU unit at {device.unit:#x}")


def parse_bdf(text: str) -> tuple[int, int]:
    """``0000:00:03.0`` or ``00:03.0`` to (segment, bdf). Raises UsageError."""
    head, _, function = text.rpartition(".")
    parts = head.split(":")
    try:
        numbers = [int(part, 16) for part in (*parts, function)]
    except ValueError:
        numbers = []
    if len(parts) == 2:
        numbers.insert(0, 0)
    if len(numbers) != 4:
        raise UsageError(f"{text!r} is no PCI address like 0000:00:03.0")
    segment, bus, slot, fn = numbers
    if not (0 <= segment < 1 << 32 and 0 <= bus < 256 and 0 <= slot < 32 and 0 <= fn < 8):
        raise UsageError(f"{text!r} is no PCI address like 0000:00:03.0")
    return segment, bus << 8 | slot << 3 | fn


def format_bdf(segment: int, bdf: int) -> str:
    """``0000:00:03.0``."""
    return f"{segment:04x}:{bdf >> 8:02x}:{bdf >> 3 & 31:02x}.{bdf & 7}"
