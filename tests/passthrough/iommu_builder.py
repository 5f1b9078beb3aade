"""Images of IOMMU state, made without the code under test: one struct after the other.

Only the declarations are shared with the decoder; which pages are linked, where objects
lie and what points to what is decided here, and remembered for the comparison.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from abi.iommu import ArrayKind, Counting, Header, IommuGeneration
from abi.iommufd import IommufdGeneration
from abi.schema import Struct
from inspector.memory.sparse import SparseMemory

#: Pages of the machine.
PAGES = 2048
#: Pages behind them, in one piece.
RESERVE = 64


@dataclass
class Built:
    """An image and what is in it: (address, members by kernel name) of every object."""

    memory: SparseMemory
    page_size: int
    root: int = 0
    units: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    domains: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    devices: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    pages: dict[str, list[int]] = field(default_factory=dict)
    iommufds: list[int] = field(default_factory=list)


class Builder:
    """Puts IOMMU state of one generation into fresh memory."""

    def __init__(self, seed: int, page_size: int = 4096) -> None:
        self.random = random.Random(seed)
        self._reserve = PAGES
        self.memory = SparseMemory([(0, (PAGES + RESERVE) * page_size)], page_size=page_size)
        self.page_size = page_size
        self._free = list(range(16, PAGES))
        self.random.shuffle(self._free)

    def page(self, content: bytes = b"", count: int = 1) -> int:
        """The address of a fresh zeroed page (or of the first of several) with a content."""
        if count == 1:
            pfn = self._free.pop()
        else:
            free = set(self._free)
            runs = (p for p in self._free if all(p + i in free for i in range(count)))
            pfn = next(runs, self._reserve)
            if pfn == self._reserve:  # so many single pages are in use that no run is left
                self._reserve += count
            else:
                self._free = [p for p in self._free if not pfn <= p < pfn + count]
        size = count * self.page_size
        self.memory.write(pfn * self.page_size, content.ljust(size, b"\0"))
        return pfn * self.page_size

    def header(self, generation: IommuGeneration, index: int, users: int, flags: int) -> Any:
        """The object header, under its name."""
        if generation.header is Header.INDEX_BITS:
            return {"obj": {"idx": index, "ref_count": users, "state": flags}}
        if generation.header is Header.BITS:
            return {"hdr": {"ref_count": users, "state": flags}}
        return {"hdr": {"ref_count": users, "flags": flags}}

    def build(
        self, generation: IommuGeneration, units: int, domains: int, devices: int, deleted: float
    ) -> Built:
        """State with so many objects; devices are spread over the domains and units."""
        built = Built(self.memory, self.page_size)
        where = {}
        for kind, count in zip(generation.arrays, (units, domains, devices), strict=True):
            where[kind.name] = self._places(built, kind, count)
        self._units(generation, built, where["units"], devices)
        self._domains(generation, built, where["domains"], deleted)
        self._devices(generation, built, where["devices"], deleted)
        for kind in generation.arrays:
            self._write(generation, built, kind, getattr(built, kind.name))
        built.root = self._root(generation, built)
        return built

    def _places(self, built: Built, kind: ArrayKind, count: int) -> list[int]:
        capacity = (self.page_size - 16) // kind.objects.size
        pages = [self.page() for _ in range(max(-(-count // capacity), 1))]
        built.pages[kind.name] = pages
        return [pages[i // capacity] + 16 + i % capacity * kind.objects.size for i in range(count)]

    def _units(
        self, generation: IommuGeneration, built: Built, places: list[int], devices: int
    ) -> None:
        for i, address in enumerate(places):
            kind = self.random.choice([1, 2] if "smmuv3" in generation.unit_views else [1])
            token = 0xFED00000 + 0x1000 * i
            values: dict[str, Any] = {"token": token, "type": kind}
            if "intel" in generation.unit_views and kind == 1:
                values["intel"] = {"phys_addr": token, "root_table": self.page()}
                if generation.header is Header.FLAGS:
                    bitmap = [self.random.getrandbits(64) for _ in range(8)]
                    values["intel"]["context_tables_bitmap"] = bitmap
            elif kind == 2:
                values["smmuv3"] = {"phys_addr": token, "l1_strtab_lu_state": self.page()}
                values["smmuv3"]["strtab_base_cfg"] = 0x10210
            users = len(range(i, devices, len(places)))
            built.units.append(
                (address, values | self.header(generation, i, users, 0 if users else 1))
            )

    def _domains(
        self, generation: IommuGeneration, built: Built, places: list[int], deleted: float
    ) -> None:
        for i, address in enumerate(places):
            gone = int(i > 1 and self.random.random() < deleted)
            values: dict[str, Any] = {
                generation.native("top_table_phys"): self.page(),
                "top_level": self.random.choice([2, 3, 4]),
            }
            if generation.counting is Counting.PER_PAGE:
                values["vasz"] = self.random.choice([39, 48, 57])
                values["sign_extend"] = self.random.randrange(2)
            elif any(f.name == "attach_count" for f in generation.arrays[1].objects.fields):
                values["attach_count"] = self.random.randrange(1, 4)
            built.domains.append((address, values | self.header(generation, i, 1, gone)))

    def _devices(
        self, generation: IommuGeneration, built: Built, places: list[int], deleted: float
    ) -> None:
        names = {f.name for f in generation.arrays[2].objects.fields}
        for i, address in enumerate(places):
            gone = int(i > 1 and self.random.random() < deleted)
            unit_address, unit = built.units[i % len(built.units)]
            values: dict[str, Any] = {
                "devid": 8 * (i + 3),
                generation.native("pci_domain_nr"): i >> 13,
                "domain_iommu_ser": {
                    generation.native("attachment_id"): 2 + i % len(built.domains),
                    "domain_phys": built.domains[i % len(built.domains)][0],
                    "iommu_phys": unit_address,
                },
            }
            if "type" in names:
                values["type"] = unit["type"]
            if "token" in names:
                values["token"] = self.random.getrandbits(48)
            if "dma_owner_token" in names:
                values["dma_owner_token"] = self.random.getrandbits(64)
            if "intel" in generation.device_views and unit["type"] == 1:
                scalable = self.random.randrange(2)
                values["intel"] = {
                    "pasid_table": self.page() if scalable else 0,
                    "max_pasid": 0x8000 * scalable,
                }
            elif "smmuv3" in generation.device_views:
                values["smmuv3"] = {"l1_cdtab_lu_state": self.page()}
            built.devices.append((address, values | self.header(generation, i, 1, gone)))

    def _write(
        self,
        generation: IommuGeneration,
        built: Built,
        kind: ArrayKind,
        objects: list[tuple[int, dict[str, Any]]],
    ) -> None:
        pages = built.pages[kind.name]
        capacity = (self.page_size - 16) // kind.objects.size
        for i, page in enumerate(pages):
            following = pages[i + 1] if i + 1 < len(pages) else 0
            used = min(capacity, len(objects) - i * capacity)
            if generation.counting is Counting.GLOBAL:
                used = 0
            self.memory.write(page, following.to_bytes(8, "little") + used.to_bytes(8, "little"))
        for address, values in objects:
            self.memory.write(address, kind.objects.build(values))

    def _root(self, generation: IommuGeneration, built: Built) -> int:
        values: dict[str, int] = {}
        for kind in generation.arrays:
            values[kind.root] = built.pages[kind.name][0]
            if kind.total:
                values[kind.total] = len(getattr(built, kind.name))
        if generation.version is not None:
            values["version"] = generation.version
        assert generation.flb is not None
        return self.page(generation.flb.build(values))

    def iommufd(
        self, generation: IommufdGeneration, built: Built, tokens: list[int], first: int = 0
    ) -> int:
        """An iommufd file whose HWPTs name the domains from ``first`` on."""
        assert isinstance(generation.entry, Struct)
        raw = generation.root.build({"nr_hwpts": len(tokens)})
        for i, token in enumerate(tokens):
            address = built.domains[(first + i) % len(built.domains)][0]
            raw += generation.entry.build({"token": token, "domain_data": address})
        address = self.page(raw, -(-len(raw) // self.page_size))
        built.iommufds.append(address)
        return address


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Members of a build dict with nested structs and unions dissolved."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= flat(value)
        elif name != "state":
            out[name] = tuple(value) if isinstance(value, list) else value
    return out
