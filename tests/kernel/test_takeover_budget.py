"""What a simulated kernel may cost: where it gives up, nothing is said of success."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inspector import compat
from inspector import memory as containers
from inspector.budget import Cost, stored_bytes
from inspector.findings import Outcome
from inspector.kernel import scenario
from inspector.kernel.incoming import revive
from inspector.kernel.incoming.consumer import Result, consume
from inspector.kernel.incoming.restore import Freed, Lost
from inspector.kernel.profile_file import find
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory

SCENARIO = """
kernel = "linux-7.3"
[machine]
ram = ["256M"]
[kho_test]
pages = 16
max_order = 2
[[session]]
name = "vm"
[[session.file]]
token = 1
count = 10
size = "64K"
"""
#: An entry of 16 bytes for each page of a file.
ENTRIES = 16 * 16


@pytest.fixture(scope="module")
def memory() -> SparseMemory:
    return scenario.parse(SCENARIO).run().memory


def limit(monkeypatch: pytest.MonkeyPatch, cost: Cost, least: int) -> None:
    """What is stored allows nothing beyond ``least``."""
    monkeypatch.setattr(cost, "least", least)
    monkeypatch.setattr(cost, "unit", 1 << 60)


def gave_up(result: Result) -> list[str]:
    assert result.outcome is Outcome.CANNOT_TELL
    assert result.status & 16
    return [r.message for r in result.reasons if r.outcome is Outcome.CANNOT_TELL]


def test_a_sound_image_is_taken_over(memory: SparseMemory) -> None:
    result = consume(memory, "linux-7.3")
    assert result.outcome is Outcome.TAKEN_OVER
    assert len(list(result.memfds())) == 10


def test_files_beyond_the_budget(memory: SparseMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Cost.FILES, 8)
    result = consume(memory, "linux-7.3")
    (reason,) = gave_up(result)
    assert reason.startswith("more sessions and files than an image of this size can have")
    assert not list(result.files())
    verdict = compat.judge(memory, find("linux-7.3", []))
    assert verdict.outcome is Outcome.CANNOT_TELL


def test_entries_beyond_the_budget(memory: SparseMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Cost.ENTRIES, 3 * ENTRIES + 16 * 8 + 100)
    result = consume(memory, "linux-7.3")
    reasons = gave_up(result)
    files = [file for file in result.files() if file.error is not None]
    assert 0 < len(files) == len(reasons) < 10
    assert all(reason.startswith("more array entries than") for reason in reasons)


def test_content_of_the_self_test_beyond_the_budget(
    memory: SparseMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revive, "_MOST_CONTENT", 0)
    monkeypatch.setattr(revive, "stored_bytes", lambda memory: 0)
    (reason,) = gave_up(consume(memory, "linux-7.3"))
    assert "not summed up" in reason


def test_blocks_of_any_size_are_lost_without_their_frames() -> None:
    freed, lost = Freed(), Lost()
    assert not lost.contains(np.array([0], np.uint64)).any()
    freed.add_one(1 << 36, 34)
    freed.add(np.array([8, 4, 4], np.uint64), 2)
    lost.see(freed)
    probes = {3: False, 4: True, 11: True, 12: False, 1 << 36: True, (1 << 36) + (1 << 34): False}
    assert lost.contains(np.array(list(probes), np.uint64)).tolist() == list(probes.values())
    low, high = freed.ranges()
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == [
        (4, 12), (1 << 36, (1 << 36) + (1 << 34))
    ]  # fmt: skip


def test_an_overlay_stores_no_more_than_was_written(memory: SparseMemory, tmp_path: Path) -> None:
    """A note can make any memory present and zero: it holds nothing, in an overlay neither."""
    write_core(tmp_path / "image.elf", memory, "x86_64", zero_ranges=[(1 << 40, 1 << 44)])
    with containers.open(tmp_path / "image.elf") as image:
        over = SparseMemory.over(image)
        assert stored_bytes(over) == stored_bytes(image) < 1 << 28
        over.write(1 << 40, b"x")
        assert stored_bytes(over) == stored_bytes(image) + 0x1000
