"""What every comparison of device tables with the serialized objects needs."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.findings import Findings, Severity
from inspector.survey import Survey
from inspector.walk.iommu import IommuState

#: Code -> (severity, what is wrong where it appears, what the kernel does about it).
CODES: dict[str, tuple[Severity, str, str]] = {
    "KHO-VTD-001": (
        Severity.ERROR,
        "A unit's root table cannot be read.",
        "The restore of the unit fails; every device behind it gets -EINVAL.",
    ),
    "KHO-VTD-002": (
        Severity.ERROR,
        "context_tables_bitmap has a bit whose half of the root entry is not present.",
        "The consumer restores a page at address 0: BUG.",
    ),
    "KHO-VTD-003": (
        Severity.ERROR,
        "A present half of a root entry is not in context_tables_bitmap.",
        "The context table is not restored: its page is reused while the hardware reads it.",
    ),
    "KHO-VTD-004": (
        Severity.ERROR,
        "A live device has no present context entry.",
        "The hardware blocks its DMA from the hand-over on.",
    ),
    "KHO-VTD-005": (
        Severity.ERROR,
        "The DID in the tables is not the device's attachment_id.",
        "The consumer reserves the wrong id and may give the used one to another domain.",
    ),
    "KHO-VTD-006": (
        Severity.ERROR,
        "The page table in the tables is not that of the device's domain.",
        "The hardware translates with a table that the consumer does not know.",
    ),
    "KHO-VTD-007": (
        Severity.ERROR,
        "The address width in the tables does not fit the domain's top_level.",
        "The hardware starts the walk at another level than the table has.",
    ),
    "KHO-VTD-008": (
        Severity.WARNING,
        "Page requests are enabled in a preserved context entry.",
        "The producer clears the bit at shutdown; requests would not be answered.",
    ),
    "KHO-VTD-009": (
        Severity.ERROR,
        "A context entry is present for a device that is not preserved.",
        "The producer clears it at shutdown; the device could go on with DMA.",
    ),
    "KHO-VTD-010": (
        Severity.ERROR,
        "The PASID directory in the tables is not the one of the device's object.",
        "The consumer restores another directory than the hardware uses.",
    ),
    "KHO-VTD-011": (
        Severity.WARNING,
        "Reserved bits are set in a root, context or PASID entry.",
        "The hardware reports a fault and blocks the device.",
    ),
    "KHO-SMM-001": (
        Severity.ERROR,
        "A unit's stream table cannot be found or read.",
        "The restore of the unit fails.",
    ),
    "KHO-SMM-002": (
        Severity.ERROR,
        "The stream table has no valid entry for a live device.",
        "The hardware blocks its DMA from the hand-over on.",
    ),
    "KHO-SMM-003": (
        Severity.ERROR,
        "The stage-2 table of a stream is not that of the device's domain.",
        "The hardware translates with a table that the consumer does not know.",
    ),
    "KHO-SMM-004": (
        Severity.WARNING,
        "The VMID of a stream is not the device's attachment_id.",
        "Not known; the meaning of attachment_id here is inferred.",
    ),
    "KHO-SMM-005": (
        Severity.ERROR,
        "The input size of a stream does not fit the domain's vasz.",
        "The hardware starts the walk at another level than the table has.",
    ),
    "KHO-SMM-006": (
        Severity.ERROR,
        "A level-2 stream table has no handle, or a handle no level-1 entry.",
        "Only what has a handle is restored: the table is reused while the hardware reads it.",
    ),
    "KHO-SMM-007": (
        Severity.WARNING,
        "The granule and start level of a stream do not fit the domain's top_level.",
        "The hardware would walk another number of levels; top_level here is inferred.",
    ),
    "KHO-SMM-008": (
        Severity.WARNING,
        "Reserved bits are set in a stream table entry.",
        "The hardware may refuse the entry and block the device.",
    ),
}

#: What is said of something that is not found; a dump may have left it out.
_NOT_FOUND = frozenset({"KHO-VTD-001", "KHO-VTD-004", "KHO-SMM-001", "KHO-SMM-002", "KHO-SMM-006"})


@dataclass(slots=True)
class Checker:
    """The parts that every comparison needs; ``survey`` is of one unit's tables."""

    survey: Survey
    findings: Findings
    state: IommuState
    booted: bool
    undecided: dict[str, str]

    def report(self, code: str, message: str, path: str, address: int | None) -> None:
        """A difference, unless what is not found may have been left out of the image."""
        if code in _NOT_FOUND and self.survey.left_out:
            self.undecided[code] = "tables of a unit were left out of the image"
            return
        self.findings.add(code, CODES[code][0], message, path=path, address=address)
