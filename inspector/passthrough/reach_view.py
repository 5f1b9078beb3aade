"""The answer to "which device can DMA where", for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inspector import passthrough
from inspector.device_tables.smmuv3 import Stream
from inspector.device_tables.vtd import Attachment
from inspector.passthrough.reach import DeviceReach, Reach
from inspector.text import display, name_text, plural, size_text

if TYPE_CHECKING:
    from inspector.image import Image

_TYPES = {"intel": "Intel VT-d", "smmuv3": "Arm SMMUv3"}


def document(image: Image, found: list[DeviceReach]) -> dict[str, Any]:
    """The answer as JSON: ``devices``, one entry each."""
    state = passthrough.iommu_state(image)
    return {
        "generation": state.generation.id if state is not None else None,
        "devices": [_entry(one) for one in found],
    }


def _entry(one: DeviceReach) -> dict[str, Any]:
    picture = one.picture
    device, unit, domain = picture.device, picture.unit, picture.domain
    return {
        "name": picture.name,
        "path": device.path if device is not None else None,
        "files": [
            {"session": name_text(s.name), "token": hex(f.token), "path": f.path}
            for s, f, _ in picture.vfio
        ],
        "pci": picture.pci and {"path": picture.pci.path, "refcount": picture.pci.refcount},
        "unit": unit
        and {
            "path": unit.path,
            "type": unit.view or None,
            "register_base": hex(unit.token),
            "root_table": hex(unit.root_table) if unit.root_table else None,
        },
        "attachment_id": device.attachment_id if device is not None else None,
        "domain": domain
        and {
            "path": domain.path,
            "top_table": hex(domain.top_table_phys),
            "levels": domain.levels,
        },
        "hardware": _hardware(one.hardware),
        "disagreements": list(one.disagreements),
        "hwpts": [
            {
                "session": name_text(use.session.name),
                "iommufd": hex(use.file.token),
                "token": hex(use.hwpt.token),
                "reclaimed": use.hwpt.reclaimed,
            }
            for use in picture.hwpts
        ],
        "reach": one.reach and _reach(one.reach),
    }


def _hardware(found: Attachment | Stream | None) -> dict[str, Any] | None:
    if found is None:
        return None
    roots = [
        {"format": r.format, "address": hex(r.address), "levels": r.levels} for r in found.roots
    ]
    if isinstance(found, Stream):
        return {"entry": hex(found.address), "present": found.entry.valid, "tables": roots}
    return {
        "entry": hex(found.address),
        "pasid_entry": hex(found.pasid_address) if found.pasid_address else None,
        "present": found.present,
        "did": found.did,
        "tables": roots,
    }


def _reach(reach: Reach) -> dict[str, Any]:
    return {
        "format": reach.root.format,
        "ranges": reach.ranges,
        "bytes": reach.mapped,
        "tables": reach.tables,
        "complete": reach.complete,
        "memory_files": [{"path": p, "bytes": n} for p, n in reach.memory_files.items()],
        "elsewhere": reach.elsewhere,
        "anomalies": reach.anomalies,
    }


def lines(image: Image, found: list[DeviceReach], *, colour: bool = False) -> Iterator[str]:
    """The answer as text: a paragraph for each device."""
    if not found:
        yield "no device is handed over"
        return
    for i, one in enumerate(found):
        if i:
            yield ""
        name = f"\x1b[1m{one.picture.name}\x1b[0m" if colour else one.picture.name
        yield name
        for label, text in _facts(image, one):
            head = f"\x1b[2m{label:<9}\x1b[0m" if colour else f"{label:<9}"
            yield f"  {head} {display(text)}"


def _facts(image: Image, one: DeviceReach) -> Iterator[tuple[str, str]]:
    picture = one.picture
    for session, file, _ in picture.vfio:
        yield "file", f"session {display(session.name)}, token {file.token:#x}"
    if not picture.vfio:
        yield "file", "none: no VFIO file names it"
    unit, domain, device = picture.unit, picture.domain, picture.device
    if device is None:
        yield "unit", "none: it is not in the IOMMU state"
        return
    if unit is not None:
        table = f", root table {unit.root_table:#x}" if unit.root_table else ""
        kind = _TYPES.get(unit.view, f"type {unit.type}")
        yield "unit", f"{unit.index} at {unit.token:#x}, {kind}{table}"
    if domain is not None:
        restored = ", restored by the next kernel" if domain.restored_domain else ""
        yield (
            "domain",
            f"{domain.index}, attachment id {device.attachment_id}, page table"
            f" {domain.top_table_phys:#x}, {plural(domain.levels, 'level')}{restored}",
        )
    yield "hardware", _hardware_text(one)
    for text in one.disagreements:
        yield "WRONG", text
    for use in picture.hwpts:
        claimed = ", reclaimed" if use.hwpt.reclaimed else ""
        yield (
            "hwpt",
            f"{use.hwpt.token:#x} of iommufd {use.file.token:#x}, session"
            f" {display(use.session.name)}{claimed}",
        )
    if domain is not None and not picture.hwpts:
        yield "hwpt", "none: no iommufd file names its domain"
    if one.reach is not None:
        yield from _reach_facts(one.reach)


def _hardware_text(one: DeviceReach) -> str:
    found = one.hardware
    if found is None:
        return "no entry in the tables"
    if isinstance(found, Stream):
        text = f"stream table entry {found.address:#x}"
        present = found.entry.valid
    else:
        text = f"context entry {found.address:#x}"
        present = found.present
        if found.pasid_address:
            text += f", PASID entry {found.pasid_address:#x}"
        if present:
            text += f", DID {found.did}"
    if not present:
        return text + ", not present: its DMA is blocked"
    for root in found.roots:
        text += f", {root.format} table {root.address:#x}"
    return text + ("" if one.disagreements else ", as its object says")


def _reach_facts(reach: Reach) -> Iterator[tuple[str, str]]:
    if not reach.tables and reach.anomalies:
        yield "reaches", f"unknown: {reach.anomalies[0]}"
        return
    known = "" if reach.complete else ", not all could be read"
    yield "reaches", f"{size_text(reach.mapped)} in {plural(reach.ranges, 'range')}{known}"
    for path, size in reach.memory_files.items():
        yield "", f"{size_text(size)} to {path}"
    if reach.elsewhere:
        yield "", f"{size_text(reach.elsewhere)} to memory of no preserved file"
    for anomaly in reach.anomalies:
        yield "WRONG", anomaly
