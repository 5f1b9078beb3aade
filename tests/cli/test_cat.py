"""Content of objects that say they are enormous: counted by runs, and not written unasked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

import kho
from abi.errors import IncompleteError, UsageError
from inspector import content
from inspector.cli import cat
from inspector.image import Image
from inspector.kernel import scenario
from inspector.memory.base import PageState
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory
from inspector.walk.folio_file import content as pieces
from tests.cli.conftest import Run

PAGE = 4096
FILE = "/LUO/sessions/s/files/1"
TEXT = """\
kernel = "linux-7.3"
[machine]
ram = ["64M"]
[[session]]
name = "s"
[[session.file]]
token = 1
size = "16K"
pattern = 1
[[reserve_mem]]
name = "a"
size = "64K"
pattern = 2
"""


@pytest.fixture
def image() -> Iterator[Image]:
    with kho.open(scenario.parse(TEXT, "text").run().memory) as opened:
        yield opened


def stretch(image: Image, size: int, order: int) -> None:
    """Make the file's first folio one of this order, and the file as large as said."""
    _, file = next(iter(image.folio_files()))
    file.size = size
    file.orders = file.orders.copy()
    file.orders[0] = order


def test_missing_pages_of_a_huge_folio_are_counted_not_listed(image: Image) -> None:
    stretch(image, 1 << 45, 33)
    _, file = next(iter(image.folio_files()))
    start, end = int(file.addresses[0]), image.memory.regions[-1].end
    missing = [pa for pa in range(start, end, PAGE) if image.memory.state(pa, PAGE) != 2]
    count = (1 << 33) - (end - start) // PAGE + len(missing)
    with pytest.raises(IncompleteError) as raised:
        list(content.read(image, image.find(FILE), max_size=1 << 60))
    assert f"{count:,} pages not in the image: {missing[0]:#x}, " in str(raised.value)
    assert len(str(raised.value)) < 400


def test_content_of_a_huge_folio_is_in_few_pieces(image: Image) -> None:
    stretch(image, 1 << 45, 33)
    _, file = next(iter(image.folio_files()))
    found = list(pieces(image.survey, file))
    assert len(found) < 100
    assert found[-1].missing is not None
    assert sum(piece.size for piece in found) == 1 << 45


def test_nothing_enormous_is_written_unasked(image: Image) -> None:
    stretch(image, 1 << 45, 33)
    node = image.find(FILE)
    for fill in (False, True):
        with pytest.raises(UsageError, match=r"32 TiB; more than 1 GiB .*--max-size"):
            next(content.read(image, node, fill_missing=fill))
    with pytest.raises(UsageError, match="more than 4 GiB"):
        kho.content(image, FILE, fill_missing=True)
    asked = content.read(image, node, fill_missing=True, max_size=1 << 45)
    assert len(next(asked)) > 0


def test_ram_that_an_image_claims_does_not_lift_the_limit() -> None:
    memory = SparseMemory(ram=[(0, 1 << 50)])
    assert content.default_limit(memory) == content.LARGE
    assert content.default_limit(SparseMemory(ram=[(0, 8 << 30)])) == 8 << 30
    assert content.default_limit(SparseMemory(ram=[(0, 64 << 20)])) == content.SMALL


@pytest.mark.parametrize("seed", range(8))
def test_gaps_are_what_a_look_at_every_page_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    memory = SparseMemory(ram=[(16 * PAGE, 64 * PAGE)], unwritten=PageState.PRESENT)
    for page in random.integers(16, 80, 30).tolist():
        memory.exclude(page * PAGE, PAGE)
    gaps = content._Gaps.of(memory)
    starts = random.integers(0, 90, 40).astype(np.uint64)
    sizes = random.integers(1, 30, 40).astype(np.uint64)
    page = np.uint64(PAGE)
    counted = gaps.within(starts * page, sizes * page).tolist()
    for start, size, count in zip(starts.tolist(), sizes.tolist(), counted, strict=True):
        missing = [
            pa for pa in range(start * PAGE, (start + size) * PAGE, PAGE) if memory.state(pa) != 2
        ]
        assert count == PAGE * len(missing)
        assert gaps.pages(start * PAGE, size * PAGE, PAGE, 5) == missing[:5]


def test_ranges_at_the_end_of_the_address_space() -> None:
    gaps = content._Gaps.of(SparseMemory(ram=[(0, PAGE)], unwritten=PageState.PRESENT))
    last = np.array([(1 << 64) - PAGE], np.uint64)
    assert gaps.within(last, np.array([1 << 63], np.uint64)).tolist() == [PAGE - 1]
    assert gaps.pages(int(last[0]), PAGE, PAGE, 8) == [int(last[0])]


def test_zeros_stay_a_hole_where_output_is_a_file(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch(image, 3 << 20, 0)
    wanted = b"".join(content.read(image, image.find(FILE)))
    assert len(wanted) == 3 << 20
    assert wanted.strip(b"\0")
    for begin, mode in (b"", "wb"), (b"before", "ab"):
        path = tmp_path / mode
        path.write_bytes(begin)
        with TextIOWrapper(path.open(mode)) as out:
            monkeypatch.setattr(sys, "stdout", out)
            cat._write(content.read(image, image.find(FILE)))
            monkeypatch.undo()
        assert path.read_bytes() == begin + wanted
    assert (tmp_path / "wb").stat().st_blocks * 512 < 2 << 20


def test_the_option_limits_what_is_written(image: Image, kho: Run, tmp_path: Path) -> None:
    path = tmp_path / "image.elf"
    write_core(path, image.memory, "x86_64")
    assert len(kho("cat", path, "/reserve_mem/a").out) == 64 << 10
    assert len(kho("cat", path, "/reserve_mem/a", "--max-size", "64K").out) == 64 << 10
    for size in "63K", "x":
        refused = kho("cat", path, "/reserve_mem/a", "--max-size", size)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, b"", 1)
