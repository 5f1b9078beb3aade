"""Passed-through devices as JSON and in the object tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from inspector import passthrough
from inspector.views import Details
from inspector.walk.iommu import Device, Domain, IommuObject, IommuState, Objects, Unit
from inspector.walk.iommufd import Iommufd
from inspector.walk.pci import PciState
from inspector.walk.vfio_pci import VfioDevice

if TYPE_CHECKING:
    from inspector.image import Image
    from inspector.tree import Node

#: Members that are numbers to count with; all others are addresses, tokens or bits.
_COUNTS = {
    "idx", "ref_count", "top_level", "vasz", "sign_extend", "attach_count", "type", "max_pasid",
    "attachment_id", "did", "pci_domain_nr", "pci_domain", "restored", "deleted", "incoming",
    "num_l2_tables", "num_l2_cdtables",
}  # fmt: skip


# -- JSON -----------------------------------------------------------------------------------------


def _value(name: str, value: Any) -> Any:
    if name == "context_tables_bitmap":
        return hex(sum(word << 64 * i for i, word in enumerate(value)))
    if isinstance(value, tuple):
        return bytes(value).hex()
    return value if name in _COUNTS else hex(value)


def iommu_object(one: IommuObject) -> dict[str, Any]:
    """A unit, domain or device: the kernel's names, nested structs and unions flattened."""
    entry: dict[str, Any] = {"address": hex(one.address), "path": one.path}
    if isinstance(one, Device):
        entry["name"] = one.name
    entry |= {name: _value(name, value) for name, value in one.values.items()}
    # Where the header has bits of these names, booleans say the same.
    return entry | {"deleted": one.deleted, "incoming": one.incoming}


def iommu(image: Image) -> dict[str, Any] | None:
    """The IOMMU state, None without one."""
    state = passthrough.iommu_state(image)
    if state is None:
        return None
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "path": state.path,
        "version": state.version,
        "complete": state.complete,
        "units": [iommu_object(o) for o in state.units],
        "domains": [iommu_object(o) for o in state.domains],
        "devices": [iommu_object(o) for o in state.devices],
    }


def pci(image: Image) -> dict[str, Any] | None:
    """The PCI state, None without one; unused slots are listed and marked free."""
    state = passthrough.pci_state(image)
    if state is None:
        return None
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "path": state.path,
        "version": state.version,
        "nr_devices": state.nr_devices,
        "max_nr_devices": state.maximum,
        "complete": state.complete,
        "devices": [
            {
                "address": hex(d.address),
                "path": d.path,
                "name": d.name,
                "domain": d.domain,
                "bdf": d.bdf,
                "refcount": d.refcount,
                "free": d.free,
            }
            for d in state.slots
        ],
    }


def iommufd(state: Iommufd) -> dict[str, Any]:
    """The state of an iommufd file."""
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "nr_hwpts": state.nr_hwpts,
        "complete": state.complete,
        "hwpts": [
            {
                "address": hex(h.address),
                "token": hex(h.token),
                "domain_data": hex(h.domain_data),
                "reclaimed": h.reclaimed,
            }
            for h in state.hwpts
        ],
    }


def vfio_pci(device: VfioDevice) -> dict[str, Any]:
    """The state of a VFIO file; null for what its generation does not keep."""
    entry: dict[str, Any] = {
        "generation": device.generation.id,
        "address": hex(device.address),
        "name": device.name,
        "domain": device.domain,
        "bdf": device.bdf,
        "reset_works": device.reset_works,
        "iommufd_token": None if device.iommufd_token is None else hex(device.iommufd_token),
    }
    if device.generation.saved_state:
        saved = device.saved_state
        entry["cfg_size"] = device.values["cfg_size"]
        entry["rbar"] = [hex(bar) for bar in device.values["rbar"]]
        entry["pci_config_map"] = bytes(device.values["pci_config_map"]).hex()
        entry["vconfig"] = bytes(device.values["vconfig"]).hex()
        entry["pci_saved_state"] = saved and {
            "address": hex(saved.address),
            "complete": saved.complete,
            "config_space": [hex(word) for word in saved.config_space],
            "capabilities": [
                {"cap_nr": c.cap_nr, "cap_extended": c.cap_extended, "data": c.data.hex()}
                for c in saved.capabilities
            ],
        }
    return entry


def file_state(state: Any) -> dict[str, Any]:
    """The keys of a file's entry that its state fills."""
    if isinstance(state, Iommufd):
        return {"iommufd": iommufd(state)}
    if isinstance(state, VfioDevice):
        return {"vfio_pci": vfio_pci(state)}
    return {}


def flb_state(state: Any) -> dict[str, Any]:
    """Nothing: the state of IOMMU and PCI has keys of its own at the top of the document."""
    return {}


# -- the tree -------------------------------------------------------------------------------------


def _group(name: str, count: str, children: Callable[[], Iterator[Node]]) -> Node:
    from inspector.tree import Node

    return Node(name, "", [("count", count)], children=children)


def details(state: Any) -> Details:
    """What the tree shows of a file's or an FLB's state."""
    for kind, describe in _DETAILS:
        if isinstance(state, kind):
            return describe(state)
    return [], lambda: iter(())


def _iommu_details(state: IommuState) -> Details:
    facts = [("generation", state.generation.id)]
    if state.version is not None:
        facts.append(("version", str(state.version)))

    def children() -> Iterator[Node]:
        yield _objects_node(state, state.units)
        yield _objects_node(state, state.domains)
        yield _objects_node(state, state.devices)

    return facts, children


def _objects_node(state: IommuState, objects: Objects[Any]) -> Node:
    dead = int(objects.deleted.sum())
    text = f"{len(objects):,}" + (f", {dead:,} deleted" if dead else "")
    size = objects.array.struct.size
    return _group(
        objects.kind.name, text, lambda: (_iommu_node(one, state, size) for one in objects)
    )


def _iommu_node(one: IommuObject, state: IommuState, size: int) -> Node:
    from inspector.tree import Node

    facts: list[tuple[str, str]] = []
    title = ""
    if isinstance(one, Unit):
        facts += [("registers", f"{one.token:#x}"), ("type", one.view or str(one.type))]
        if one.root_table:
            facts.append(("root table", f"{one.root_table:#x}"))
    elif isinstance(one, Domain):
        facts += [("top table", f"{one.top_table_phys:#x}"), ("levels", str(one.levels))]
        if one.vasz is not None:
            facts.append(("bits", str(one.vasz)))
    elif isinstance(one, Device):
        title = one.name
        domain, unit = state.domains.at(one.domain_phys), state.units.at(one.iommu_phys)
        facts += [
            ("attachment", str(one.attachment_id)),
            ("domain", str(domain.index) if domain else f"{one.domain_phys:#x}?"),
            ("unit", str(unit.index) if unit else f"{one.iommu_phys:#x}?"),
        ]
    facts.append(("users", str(one.ref_count)))
    marks = [m for m, on in (("deleted", one.deleted), ("incoming", one.incoming)) if on]
    if marks:
        facts.append(("marked", ", ".join(marks)))
    return Node(str(one.index), title, facts, one.address, size, one)


def _iommufd_details(state: Iommufd) -> Details:
    from inspector.tree import Node

    def nodes() -> Iterator[Node]:
        entry = state.generation.entry
        if entry is None:  # nothing is known of its HWPTs
            return
        for h in state.hwpts:
            facts = [("token", f"{h.token:#x}"), ("domain_data", f"{h.domain_data:#x}")]
            if h.reclaimed:
                facts.append(("reclaimed", str(h.reclaimed)))
            yield Node(str(h.index), "", facts, h.address, entry.size, h)

    facts = [("generation", state.generation.id), ("hwpts", f"{state.nr_hwpts:,}")]
    return facts, lambda: iter((_group("hwpts", f"{state.nr_hwpts:,}", nodes),))


def _vfio_details(device: VfioDevice) -> Details:
    facts = [("device", device.name)]
    if device.reset_works is not None:
        facts.append(("reset works", str(device.reset_works)))
    if device.iommufd_token is not None:
        facts.append(("iommufd", f"{device.iommufd_token:#x}"))
    if device.saved_state is not None:
        facts.append(("saved capabilities", str(len(device.saved_state.capabilities))))
    return facts, lambda: iter(())


def _pci_details(state: PciState) -> Details:
    from inspector.tree import Node

    def nodes() -> Iterator[Node]:
        for i, d in enumerate(state.slots):
            facts = [] if d.refcount is None else [("users", str(d.refcount))]
            if d.free:
                facts.append(("slot", "free"))
            yield Node(
                str(i), "" if d.free else d.name, facts, d.address, state.generation.device.size, d
            )

    facts = [("generation", state.generation.id), ("devices", str(len(state.keys)))]
    if state.version is not None:
        facts.append(("version", str(state.version)))
    text = f"{len(state.keys)} of {len(state.records)} slots"
    return facts, lambda: iter((_group("devices", text, nodes),))


_DETAILS: tuple[tuple[type, Callable[[Any], Details]], ...] = (
    (IommuState, _iommu_details),
    (Iommufd, _iommufd_details),
    (PciState, _pci_details),
    (VfioDevice, _vfio_details),
)
