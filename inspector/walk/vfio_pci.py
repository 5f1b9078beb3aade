"""VFIO PCI device files: one preserved device each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from abi.errors import CodecError
from abi.vfio_pci import (
    SavedCapability,
    VfioPciGeneration,
    parse_saved_capabilities,
    pci_cap_saved_data_ser,
    pci_saved_state_ser,
)
from inspector.memory.base import PageState
from inspector.survey import Survey
from inspector.walk.contiguous import may_reach
from inspector.walk.iommu import device_name
from inspector.walk.preserved import PreservedMap


@dataclass(slots=True)
class SavedState:
    """The PCI core's saved state of a device (RFC of 2025-10): header and capabilities."""

    address: int
    config_space: tuple[int, ...]
    capabilities: list[SavedCapability]
    complete: bool


@dataclass(slots=True)
class VfioDevice:
    """The state of a VFIO device file; ``domain`` is None where only the BDF is kept."""

    path: str
    generation: VfioPciGeneration
    address: int
    domain: int | None
    bdf: int
    reset_works: int | None
    iommufd_token: int | None
    values: dict[str, Any] = field(repr=False)
    saved_state: SavedState | None = None

    @property
    def name(self) -> str:
        """``0000:00:03.0``."""
        return device_name(self.domain or 0, self.bdf)


def walk_vfio_pci(
    survey: Survey,
    generation: VfioPciGeneration,
    address: int,
    path: str,
    preserved: PreservedMap | None = None,
) -> VfioDevice | None:
    """The device at ``address``; None if its struct cannot be read.

    Findings: ``KHO-VFI-001`` size of the configuration space neither 256 nor 4096,
    ``-002`` the list of saved capabilities does not end; where the dump left a page out,
    ``preserved`` tells whether it may go on there.
    """
    root = generation.root
    if not address or not survey.pointer(address, path, root.cname, align=8):
        return None
    values = survey.unpack(root, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, root.size)
    device = VfioDevice(
        path,
        generation,
        address,
        values.get("domain"),
        values["bdf"],
        values.get("reset_works"),
        values.get("token"),
        values,
    )
    if generation.saved_state:
        if values["cfg_size"] not in (256, 4096):
            survey.findings.error(
                "KHO-VFI-001",
                f"configuration space of {values['cfg_size']} bytes",
                path=path,
                address=address + 2,
            )
        device.saved_state = _saved_state(survey, values["pci_saved_state_phys"], path, preserved)
    return device


def _saved_state(
    survey: Survey, address: int, path: str, preserved: PreservedMap | None
) -> SavedState | None:
    own = f"{path}/saved_state"
    if not address or not survey.pointer(address, own, pci_saved_state_ser.cname):
        return None
    values = survey.unpack(pci_saved_state_ser, address, own)
    if values is None:
        return None
    # Records are short; the list lies in one block behind the fixed part.
    start = address + pci_saved_state_ser.size
    for pages in (1, 2, 4, 8, 16):
        end = address - address % survey.page_size + pages * survey.page_size
        state = survey.memory.state(start, end - start)
        if state is not PageState.PRESENT:
            if state is PageState.EXCLUDED and may_reach(survey, preserved, address, end):
                survey.hole(end - survey.page_size, own, state)
                survey.cannot_tell("KHO-VFI-002", "capabilities were left out of the image")
                return SavedState(address, values["config_space"], [], False)
            break
        try:
            found, size = parse_saved_capabilities(survey.memory.read(start, end - start))
        except CodecError:
            continue
        for record in found:
            survey.place(pci_cap_saved_data_ser, start + record.offset, own)
        survey.claim("struct", own, address, pci_saved_state_ser.size + size)
        return SavedState(address, values["config_space"], found, True)
    survey.findings.error(
        "KHO-VFI-002", "the list of saved capabilities does not end", path=own, address=start
    )
    return SavedState(address, values["config_space"], [], False)
