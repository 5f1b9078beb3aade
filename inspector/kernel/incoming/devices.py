"""IOMMU and PCI state in the kernel that takes over.

At boot the IOMMU core reads its FLB, the drivers take their tables over and reserve domain ids,
and each device that was handed over gets its domain back. Memory that was not preserved is a
BUG there: the hardware may be using it.
"""

from __future__ import annotations

from abi.iommu import IommuGeneration
from abi.pci import PciGeneration
from inspector.findings import Outcome
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.device_domains import attach, unmatched
from inspector.kernel.incoming.device_state import (
    FLB_OF,
    Bug,
    Devices,
    check_holes,
    flb_name,
    take,
)
from inspector.kernel.incoming.device_units import restore_unit
from inspector.kernel.incoming.luo import FlbEntry, Incoming, read_flbs
from inspector.kernel.incoming.pages import take_folio
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.kernel.machine.hardware import Hardware, format_bdf
from inspector.survey import Survey
from inspector.walk.iommu import walk_iommu
from inspector.walk.pci import walk_pci

_TEST_FLB = b"liveupdate-test-flb-"


def start(boot: Booting, luo: Incoming, hardware: Hardware | None) -> Devices:
    """What boot does with the FLBs. A BUG or panic becomes a reason.

    ``hardware`` None: the machine is what the image speaks of, as its writer meant it.
    """
    found = Devices(boot, hardware or Hardware(), hardware is not None)
    path: str = "/LUO/flbs"
    try:
        entries = read_flbs(boot, luo)
        _sort_flbs(found, entries)
        if hardware is None and entries:
            from inspector.kernel.incoming.device_files import hardware_of

            found.hardware = hardware_of(boot, entries)
        _pci(found)
        iommu = found.flbs.get(flb_name(boot, "iommu"))
        if iommu is not None and boot.kernel.has("iommu"):
            path = iommu.path
            _iommu(found, iommu)
    except Bug as bug:
        if bug.dmesg and boot.ignores("iommu-mismatch"):
            boot.reasons.add(
                Outcome.STATE_LOST, f"IOMMU state is ignored: {bug}", path=bug.path,
                address=bug.address,
            )  # fmt: skip
            return found
        shown = bug.address is not None and boot.view.present(bug.address, 32)
        boot.reasons.add(
            Outcome.BOOT_FAILS, str(bug), path=bug.path, address=bug.address,
            data=boot.view.read(bug.address or 0, 32) if shown else b"",
            dmesg=bug.dmesg or "kernel BUG at",
        )  # fmt: skip
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, lack.why or "device state is not in the image", path=path,
            address=lack.address,
        )  # fmt: skip
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"device state leads to {fault.address:#x}, outside memory",
            path=path, address=fault.address, dmesg="unable to handle page fault",
        )  # fmt: skip
    return found


def _sort_flbs(found: Devices, entries: list[FlbEntry]) -> None:
    boot = found.boot
    ours = {flb_name(boot, layer) for layer in set(FLB_OF.values())} - {b""}
    for flb in entries:
        if flb.name in ours and flb.name not in found.flbs:
            found.flbs[flb.name] = flb
        elif not flb.name:
            boot.notes.append(f"{flb.path}: an entry without a name, which nobody has made")
        elif not flb.name.startswith(_TEST_FLB) and flb.name not in ours:
            text = flb.name.decode("utf-8", "backslashreplace")
            what = (
                ": translation is turned off, DMA of its devices faults"
                if b"iommu" in flb.name
                else ""
            )
            boot.reasons.add(
                Outcome.STATE_LOST, f"nobody asks for the FLB {text!r}{what}", path=flb.path,
                address=flb.address,
            )  # fmt: skip


# -- PCI ----------------------------------------------------------------------------------------


def _pci(found: Devices) -> None:
    boot = found.boot
    generation = boot.kernel.get("pci")
    flb = found.flbs.get(flb_name(boot, "pci"))
    if flb is None or not isinstance(generation, PciGeneration):
        return
    survey = boot.survey(per_code=8)
    state = walk_pci(survey, generation, flb.data, flb.path)
    check_holes(found, survey, flb.path)
    error = ""
    if state is None:
        error = "its root cannot be read"
    else:
        wanted = generation.constants.get("PCI_LUO_FLB_VERSION")
        if wanted is not None and state.version != wanted:
            error = f"version {state.version}, not {wanted}"
        for item in survey.findings.items:
            if item.code in ("KHO-PCI-003", "KHO-LST-001", "KHO-LST-005", "KHO-LST-007"):
                error = error or item.message
    if error:
        found.pci_error = f"the PCI state is refused: {error}"
        boot.reasons.add(
            Outcome.STATE_LOST, f"{found.pci_error}; its devices are set up as new ones",
            path=flb.path, address=flb.data, errno="EINVAL",
        )  # fmt: skip
        return
    assert state is not None
    pages = {flb.data & -boot.view.page_size} | {
        at & -boot.view.page_size for at in state.addresses.tolist()
    }
    orders = {page: take_folio(boot, page >> boot.view.page_shift) for page in sorted(pages)}
    for page, order in orders.items():
        if order >= 0:
            found.held.setdefault("pci", []).append((page, order))
    keys = state.keys
    found.pci = {segment << 16 | bdf for segment, bdf in keys}
    for segment, bdf in keys:
        if found.device(segment, bdf) is None:
            boot.reasons.add(
                Outcome.STATE_LOST,
                f"no device {format_bdf(segment, bdf)} in this machine",
                path=flb.path, address=flb.data,
            )  # fmt: skip


# -- IOMMU core ---------------------------------------------------------------------------------


def _iommu(found: Devices, flb: FlbEntry) -> None:
    boot = found.boot
    generation = boot.kernel["iommu"]
    assert isinstance(generation, IommuGeneration)
    if generation.flb is None:
        boot.notes.append(f"{generation.id}: no layout of this posting is known")
        return
    values = generation.flb.unpack(boot.view.read(flb.data, generation.flb.size))
    version = values.get("version")
    if version is not None and version != generation.version:
        raise Bug(
            f"IOMMU state of version {version}, this kernel knows {generation.version}: panic",
            flb.path, flb.data, "Kernel panic",
        )  # fmt: skip
    for kind in generation.arrays:
        if not values[kind.root]:
            field_at = flb.data + generation.flb.field(kind.root).offset
            raise Bug(f"{kind.root} is 0: panic", flb.path, field_at, "Kernel panic")
    take(found, flb.data, flb.path, "the root of the IOMMU state")
    found.held["iommu"] = [(flb.data, 0)]
    survey = boot.survey(per_code=8)
    state = walk_iommu(survey, generation, flb.data, flb.path)
    assert state is not None
    for objects in (state.units, state.domains, state.devices):
        what = f"a page of the array of {objects.kind.name}"
        for page in objects.array.pages.tolist():
            take(found, page, objects.path, what)
            found.held["iommu"].append((page, 0))
    _broken_arrays(found, survey)
    found.iommu = state
    for unit in state.units.live():
        if unit.live:
            restore_unit(found, state, unit)
    attach(found, state)
    unmatched(found, state)


def _broken_arrays(found: Devices, survey: Survey) -> None:
    for item in survey.findings.items:
        if item.code.startswith(("KHO-LST-001", "KHO-LST-002")):
            raise Bug(f"{item.message}: the walk does not end, or a page is restored twice",
                      item.path, item.address)  # fmt: skip
        if item.code.startswith("KHO-MEM-004"):
            raise Bug(item.message, item.path, item.address)
        if item.code == "KHO-LST-005":
            found.boot.reasons.add(
                Outcome.CANNOT_TELL, f"{item.message}: what lies behind the page is read",
                path=item.path, address=item.address,
            )  # fmt: skip
    check_holes(found, survey, "/LUO/flbs")
