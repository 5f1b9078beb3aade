"""Files of images whose preserved blocks overlap, as real kernels restored them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from inspector import image as images
from inspector.findings import Outcome
from inspector.kernel import scenario
from inspector.kernel.faults.base import Target
from inspector.kernel.incoming.consumer import boot, consume
from inspector.kernel.incoming.pages import take_folio, take_folios
from inspector.walk.folio_file import FolioFile

PAGE = 4096
SCENARIO = """
kernel = "linux-{release}"
seed = 11
[machine]
ram = ["512M"]
[[session]]
name = "a"
[[session.file]]
token = 1
size = "256K"
[[session.file]]
token = 2
size = "4M"
huge = true
"""


def files(image: Any) -> dict[str, FolioFile]:
    with images.open(image.memory) as decoded:
        return {path.rsplit("/", 1)[1]: file for path, file in decoded.folio_files()}


def content(image: Any, token: str) -> bytes:
    file = files(image)[token]
    parts = sorted(zip(file.offsets.tolist(), file.addresses.tolist(), file.sizes, strict=True))
    return b"".join(image.memory.read(pa, int(size)) for _, pa, size in parts)


def overlapped(release: str, order: int) -> tuple[Any, int, int]:
    """An image where a block of 2^order pages begins at a folio of one page of file 0x1.

    Also that folio's frame and its index.
    """
    image = scenario.parse(SCENARIO.format(release=release)).run()
    file = files(image)["0x1"]
    held = set(file.folios.pfn.tolist())
    for frame, index in zip(file.folios.pfn.tolist(), file.index.tolist(), strict=True):
        block = range(frame, frame + (1 << order))
        if index and index % len(block) == 0 and frame % len(block) == 0 and held >= set(block):
            Target(image).set_block(frame, order)
            return image, frame, index
    raise AssertionError("no such folio")


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("release", ["7.1", "7.3"])
def test_a_tree_of_blocks_gives_the_smallest(release: str, order: int) -> None:
    """Measured: 7.1.13 and 7.3.4 take such images over."""
    image, frame, _ = overlapped(release, order)
    file = files(image)["0x1"]
    assert not file.orders.any()
    result = consume(image.memory, f"linux-{release}")
    assert result.outcome is Outcome.TAKEN_OVER, result.reasons
    found = next(f for f in result.memfds() if f.token == 1)
    assert found.orders[found.frames == frame].tolist() == [0]


@pytest.mark.parametrize("order", [1, 3])
def test_a_list_of_bitmaps_gives_the_largest(order: int) -> None:
    """Measured: 6.19.11 makes the larger folio, whose tail is no folio any more.

    The rest of the file is lost, and the process that retrieves it is told of success.
    """
    image, frame, index = overlapped("6.19", order)
    file = files(image)["0x1"]
    assert file.orders[file.folios.pfn == frame].tolist() == [order]
    result = consume(image.memory, "linux-6.19")
    assert result.outcome is Outcome.CORRUPTION
    (reason,) = result.reasons
    assert (reason.address, reason.dmesg) == ((frame + 1) * PAGE, "Unable to restore folio")
    found = next(f for f in result.memfds() if f.token == 1)
    whole = content(scenario.parse(SCENARIO.format(release="6.19")).run(), "0x1")
    kept = (index + (1 << order)) * PAGE
    assert found.sha256() == hashlib.sha256(whole[:kept].ljust(len(whole), b"\0")).hexdigest()


@pytest.mark.parametrize(
    ("release", "lost", "outcome"),
    [
        ("6.19", 0, Outcome.FILE_ERROR),
        ("6.19", 9, Outcome.CORRUPTION),
        ("7.1", 9, Outcome.FILE_ERROR),
        ("7.3", 0, Outcome.FILE_ERROR),
    ],
)
def test_a_folio_that_is_not_preserved(release: str, lost: int, outcome: Outcome) -> None:
    """6.19 returns the error of the first folio only: its variable is 0 after a success."""
    image = scenario.parse(SCENARIO.format(release=release)).run()
    Target(image).set_block(int(files(image)["0x1"].folios.pfn[lost]), 0, on=False)
    result = consume(image.memory, f"linux-{release}")
    assert result.outcome is outcome
    assert {r.errno for r in result.reasons} == {"EIO" if outcome is Outcome.FILE_ERROR else ""}


@pytest.mark.parametrize(("release", "left"), [("6.19", -1), ("7.1", -1), ("7.2", -1), ("7.3", 0)])
def test_the_tails_of_a_folio(release: str, left: int) -> None:
    """Up to 7.2 what begins inside a folio cannot be restored after it."""
    image = scenario.parse(SCENARIO.format(release=release)).run()
    head = next(int(f) for f, o in zip(*_folios(image, "0x2"), strict=True) if o == 9)
    inside = head + 37
    Target(image).set_block(inside, 0)
    for many in (False, True):
        state = boot(image.memory, f"linux-{release}").state
        assert state.marks.peek(inside) == 0
        if many:
            frames = np.array([head, inside], np.uint64)
            assert take_folios(state, frames).tolist() == [9, left]
        else:
            assert take_folio(state, head) == 9
            assert take_folio(state, inside) == left
    state = boot(image.memory, f"linux-{release}").state
    frames = np.array([head, inside], np.uint64)
    assert take_folios(state, frames, whole=False).tolist() == [9, 0]


def _folios(image: Any, token: str) -> tuple[list[int], list[int]]:
    file = files(image)[token]
    return file.folios.pfn.tolist(), file.orders.tolist()
