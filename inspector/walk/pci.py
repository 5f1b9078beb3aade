"""The PCI devices that take part in a live update."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.pci import FLB_VERSIONS, ArrayForm, PciGeneration
from inspector.memory.base import U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.chain import block_entries
from inspector.walk.contiguous import counted_rows
from inspector.walk.iommu import device_name

#: Slots that are looked at: every function of four PCI segments.
MAX_SLOTS = 1 << 18


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One slot. ``refcount`` is None where not kept; ``free`` if no device is in it."""

    path: str
    address: int
    domain: int
    bdf: int
    refcount: int | None
    free: bool
    values: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """``0000:00:03.0``."""
        return device_name(self.domain, self.bdf)


@dataclass
class PciState:
    """The FLB: ``nr_devices`` as counted, ``maximum`` as stated.

    ``records`` has a row for each slot that was found, ``addresses`` where they lie.
    """

    path: str
    generation: PciGeneration
    address: int
    version: int | None
    nr_devices: int
    maximum: int | None
    records: npt.NDArray[Any]
    addresses: U64Array
    complete: bool

    @cached_property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Members of all slots by the kernel's names."""
        return self.generation.device.columns(self.records)

    @cached_property
    def used(self) -> npt.NDArray[np.bool_]:
        """Which slots hold a device."""
        refcount = self.columns.get("refcount")
        if refcount is not None and refcount.any():
            taken: npt.NDArray[np.bool_] = refcount != 0
            return taken
        # Some revisions keep nothing in refcount: then the count alone tells, and what it counts
        # beyond the devices is empty (a host bridge, 0000:00:00.0, is never handed over).
        shape = len(self.records), self.records.dtype.itemsize
        raw = np.frombuffer(self.records.tobytes(), np.uint8).reshape(shape)
        filled: npt.NDArray[np.bool_] = (raw != 0).sum(axis=1) != 0
        return filled & (np.arange(len(self.records)) < self.nr_devices)

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """(segment, bus << 8 | devfn) of the slots in use, in order."""
        columns = self.columns
        if "path" in columns:
            where = columns["path"][self.used]
            return list(zip((where >> 16).tolist(), (where & 0xFFFF).tolist(), strict=True))
        domains, bdfs = columns["domain"][self.used], columns["bdf"][self.used]
        return list(zip(domains.tolist(), bdfs.tolist(), strict=True))

    @cached_property
    def slots(self) -> list[PciDevice]:
        """All slots as objects."""
        return [self.slot(i) for i in range(len(self.records))]

    def slot(self, index: int) -> PciDevice:
        """One slot."""
        values = self.generation.device.unpack(self.records[index].tobytes())
        where = values.get("path", 0)
        return PciDevice(
            f"{self.path}/devices/{index}",
            int(self.addresses[index]),
            values.get("domain", where >> 16),
            values.get("bdf", where & 0xFFFF),
            values.get("refcount"),
            not self.used[index],
            values,
        )

    @property
    def devices(self) -> list[PciDevice]:
        """The slots that are in use."""
        return [d for d in self.slots if not d.free]


def walk_pci(
    survey: Survey, generation: PciGeneration, address: int, path: str, *, certain: bool = True
) -> PciState | None:
    """The PCI state at ``address``; None if its root cannot be read.

    ``certain`` says that the dump left out nothing that would tell whether it has this layout.

    Findings: ``KHO-PCI-001`` unknown version, ``-002`` more devices counted than slots,
    ``-003`` a device twice, ``-004`` slots in use differ from the count, ``-005`` absurdly
    many slots.
    """
    root = generation.root
    if not address or not survey.pointer(address, path, root.cname, align=8):
        return None
    values = survey.unpack(root, address, path)
    if values is None:
        return None
    count = values[generation.count]
    maximum = values[generation.maximum] if generation.maximum else None
    version = values.get("version")
    if version is not None and version not in FLB_VERSIONS:
        survey.findings.error(
            "KHO-PCI-001", f"PCI state has unknown version {version}", path=path, address=address
        )
    rows, addresses, complete = _slots(survey, generation, address, values, path)
    records = np.ascontiguousarray(rows).reshape(-1).view(generation.device.dtype)
    state = PciState(
        path, generation, address, version, count, maximum, records, addresses, complete
    )
    _check(survey, state, certain)
    return state


def _slots(
    survey: Survey, generation: PciGeneration, address: int, values: dict[str, Any], path: str
) -> tuple[U8Array, U64Array, bool]:
    root, entry = generation.root, generation.device
    if generation.form is ArrayForm.BLOCKS:
        survey.claim("struct", path, address, root.size)
        own = f"{path}/devices"
        if not values["devices"]:
            return np.empty((0, entry.size), np.uint8), np.empty(0, np.uint64), True
        entries = block_entries(survey, values["devices"], entry, own, "PCI device block")
        survey.claim("block", own, entries.pages, survey.page_size)
        room = _room(survey, len(entries.data), path, address)
        whole = entries.complete and room == len(entries.data)
        return entries.data[:room], entries.addresses[:room], whole
    slots = values[generation.maximum or generation.count]
    room = _room(survey, slots, path, address)
    rows, addresses = counted_rows(survey, address + root.size, room, entry, path)
    survey.claim("struct", path, address, root.size + len(rows) * entry.size)
    return rows, addresses, len(rows) == slots


def _room(survey: Survey, slots: int, path: str, address: int) -> int:
    """How many of the slots are looked at."""
    if slots > MAX_SLOTS:
        survey.findings.error(
            "KHO-PCI-005",
            f"{slots} slots: only {MAX_SLOTS} are decoded",
            path=path,
            address=address,
        )
    return min(slots, MAX_SLOTS)


def _check(survey: Survey, state: PciState, certain: bool) -> None:
    findings = survey.findings
    if state.maximum is not None and state.nr_devices > state.maximum:
        findings.error(
            "KHO-PCI-002",
            f"{state.nr_devices} devices counted, there are {state.maximum} slots",
            path=state.path,
            address=state.address,
        )
    again = len(state.keys) - len(set(state.keys))
    if again:
        seen: set[tuple[int, int]] = set()
        for index, key in zip(np.flatnonzero(state.used).tolist(), state.keys, strict=True):
            if key in seen:
                if not findings.room("KHO-PCI-003"):
                    break
                again -= 1
                findings.error(
                    "KHO-PCI-003",
                    f"{device_name(*key)} twice",
                    path=f"{state.path}/devices/{index}",
                    address=int(state.addresses[index]),
                )
            seen.add(key)
        findings.suppress("KHO-PCI-003", again)
    in_use = len(state.keys)
    if state.complete and in_use != state.nr_devices and not certain:
        survey.cannot_tell("KHO-PCI-004", "what tells which slots are in use was left out")
    elif state.complete and in_use != state.nr_devices:
        report = findings.warning if state.maximum is not None else findings.error
        report(
            "KHO-PCI-004",
            f"{state.nr_devices} devices counted, {in_use} slots are in use",
            path=state.path,
            address=state.address,
        )
