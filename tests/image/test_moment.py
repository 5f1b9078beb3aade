"""A fault in the map of an image does not make it one of a kernel that has booted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inspector import memory
from inspector.check import check
from inspector.decode import decode
from inspector.findings import Severity
from inspector.image import MapState, Moment
from inspector.kernel import faults, scenario
from inspector.memory.sparse import SparseMemory

CORPUS = Path(__file__).parents[2] / "corpus"


@pytest.mark.parametrize(
    ("release", "fault", "state"),
    [
        ("7.3", "root-not-preserved", MapState.INTACT),
        ("6.19", "root-not-preserved", MapState.INTACT),
        ("7.3", "map-node-beyond-memory", MapState.INCOMPLETE),
        ("6.17", "map-chunk-over-capacity", MapState.INCOMPLETE),
        ("7.3", "root-map-zero", MapState.ABSENT),
        ("6.17", "root-map-zero", MapState.ABSENT),
    ],
)
def test_one_fault_is_no_reuse(release: str, fault: str, state: MapState) -> None:
    broken = scenario.load(f"linux-{release}").run()
    faults.inject(broken, fault)
    image = decode(broken.memory)
    assert (image.map_state, image.moment) == (state, Moment.HANDED_OVER)


@pytest.mark.parametrize("release", ["6.17", "6.19", "7.1", "7.3"])
def test_what_a_dump_left_out_of_the_map_is_neither_wrong_nor_reused(release: str) -> None:
    simulated = scenario.load(f"linux-{release}").run().memory
    preserved = decode(simulated).preserved
    assert preserved is not None
    pages = np.unique(preserved.nodes & ~np.uint64(0xFFF))
    for page in pages[:: max(len(pages) // 8, 1)].tolist():
        filtered = SparseMemory.over(simulated)
        filtered.exclude(page, 0x1000)
        image = decode(filtered)
        assert (image.map_state, image.moment) == (MapState.INCOMPLETE, Moment.HANDED_OVER)
        assert image.incomplete
        report = check(image)
        assert {f.code for f in report.findings if f.severity > Severity.INFO} == set()
        assert {"KHO-MEM-010", "KHO-ROOT-012"} <= report.undecided.keys()


@pytest.mark.parametrize("path", ["linux-7.3.4", "iommu-v3-small_scalable"])
def test_what_a_dump_left_out_of_the_map_is_no_page_that_waits_to_be_written(path: str) -> None:
    with memory.open(CORPUS / f"{path}-handoff.elf.zst") as opened:
        preserved = decode(opened).preserved
        assert preserved is not None
        for page in np.unique(preserved.nodes & ~np.uint64(0xFFF)).tolist():
            filtered = SparseMemory.over(opened)
            filtered.exclude(page, 0x1000)
            assert decode(filtered).moment is Moment.HANDED_OVER


def test_setup_data_that_a_dump_left_out_may_lead_to_the_root() -> None:
    with memory.open(CORPUS / "linux-6.17.8-handoff.elf.zst") as opened:
        image = decode(opened)
        for node in image.location.setup_data:
            filtered = SparseMemory.over(opened)
            filtered.exclude(node & -0x1000, 0x1000)
            left = decode(filtered)
            assert left.moment is Moment.HANDED_OVER
            assert "no hand-over record" in left.moment_reasons[-1]
