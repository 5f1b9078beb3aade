"""Scratch arrays that are said to be longer than they are."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from abi.boot import KHO_SCRATCH_READ
from inspector.check import check
from inspector.decode import decode
from inspector.findings import Outcome
from inspector.image import Image
from inspector.kernel import scenario
from inspector.kernel.incoming import early_scratch
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.consumer import consume
from inspector.memory.sparse import SparseMemory

#: Behind the page of the array: nothing but zeros, or words that are no areas.
BEHIND = {
    "zeros": np.zeros(1 << 17, np.uint64),
    "junk": np.arange(1, 1 + (1 << 17), dtype="<u8"),
    "areas far behind RAM": np.tile(np.array([1 << 45, 32 << 20], "<u8"), 1 << 16),
    "large areas far behind RAM": np.tile(np.array([1 << 45, 1 << 44], "<u8"), 1 << 16),
}


def said(areas: int, behind: str) -> SparseMemory:
    """An image whose hand-over record speaks of so many areas."""
    memory = scenario.load("linux-7.3").run().memory
    image = decode(memory)
    record = image.root.candidate.handover
    assert record is not None
    assert image.scratch is not None
    # Where nothing else lies: in a scratch area.
    place = image.scratch[0].address
    real = memory.read(record.scratch_address, record.scratch_size)
    memory.write(place, BEHIND[behind])
    memory.write(place, real.ljust(4096, b"\0"))
    memory.write(record.address + 16, struct.pack("<QQ", place, 16 * areas))
    return memory


def codes(image: Image) -> set[str]:
    return {finding.code for finding in check(image, rules=["KHO-SCR"]).findings}


@pytest.mark.parametrize(
    ("areas", "behind", "outcome"),
    [
        (1026, "zeros", Outcome.TAKEN_OVER),
        (4099, "zeros", Outcome.TAKEN_OVER),
        # A real 7.3.4 panicked at such an array.
        (4099, "junk", Outcome.BOOT_FAILS),
        (300, "areas far behind RAM", Outcome.TAKEN_OVER),
        # As another did: there is no room for the page structs of so much memory.
        (300, "large areas far behind RAM", Outcome.BOOT_FAILS),
        # More than x86 can map early on.
        (KHO_SCRATCH_READ + 1, "junk", Outcome.KHO_REFUSED),
    ],
)
def test_all_areas_of_the_array_count(areas: int, behind: str, outcome: Outcome) -> None:
    memory = said(areas, behind)
    image = decode(memory)
    assert image.scratch is not None
    assert len(image.scratch) == min(areas, KHO_SCRATCH_READ)
    assert ("KHO-SCR-006" in codes(image)) == (areas > 1026)
    assert consume(memory, "linux-7.3").outcome == outcome


def test_of_a_hostile_size_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_scratch, "KHO_SCRATCH_READ", 100)
    assert consume(said(101, "zeros"), "linux-7.3").outcome == Outcome.CANNOT_TELL
    assert consume(said(100, "zeros"), "linux-7.3").outcome == Outcome.TAKEN_OVER


def test_many_areas_are_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add_up = early_scratch._real

    def counted(boot: Booting) -> int:
        added.append(len(boot.scratch))
        return add_up(boot)

    monkeypatch.setattr(early_scratch, "_real", counted)
    assert consume(said(300, "areas far behind RAM"), "linux-7.3").outcome == Outcome.TAKEN_OVER
    assert added == [300]
