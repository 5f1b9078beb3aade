"""Device tables against the serialized objects: do they tell the same story?

For each live unit its tables are read as the hardware would, and for each live device
behind it compared with its object and its domain: DID, page table, width, PASID directory,
and the bitmap of context tables. At hand-over the hardware goes on translating with these
tables, so that a difference is DMA to memory that the next kernel believes free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspector import passthrough
from inspector.device_tables.comparison import CODES, Checker
from inspector.device_tables.cross_smmuv3 import compare_smmuv3
from inspector.device_tables.cross_vtd import compare_vtd
from inspector.findings import Findings
from inspector.image import Moment
from inspector.survey import Survey

if TYPE_CHECKING:
    from inspector.image import Image

__all__ = ["CODES", "cross_check"]


def cross_check(image: Image, undecided: dict[str, str] | None = None) -> Findings:
    """Findings (of :data:`CODES`) where tables and objects disagree.

    ``undecided`` is filled with codes that cannot be decided of every unit, and why.
    """
    findings = Findings()
    undecided = {} if undecided is None else undecided
    state = passthrough.iommu_state(image)
    if state is None:
        return findings
    booted = image.moment is Moment.INCOMING
    for unit in state.units.live():
        # A survey of its own: what it reads is not part of what decoding the image claims.
        survey = Survey(image.memory, image.page_size)
        checker = Checker(survey, findings, state, booted, undecided)
        if unit.view == "intel" and unit.root_table:
            compare_vtd(checker, unit)
        elif unit.view == "smmuv3":
            compare_smmuv3(checker, unit)
    return findings
