"""Files that the real makedumpfile wrote, against the core that they were made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

from inspector import memory

DATA = Path(__file__).parents[1] / "data" / "kdump"
PAGE = 4096
EVERY = np.arange((256 << 20) // PAGE + 10, dtype=np.uint64) * np.uint64(PAGE)


@pytest.fixture(scope="module")
def source() -> Iterator[memory.PhysicalMemory]:
    with memory.open(DATA / "source.elf.zst") as image:
        yield image


def hold(image: memory.PhysicalMemory, source: memory.PhysicalMemory, pages: int) -> None:
    """What is present is what the source has; nothing is present that it has not."""
    states, theirs = image.states(EVERY, PAGE), source.states(EVERY, PAGE)
    present = EVERY[states == memory.PageState.PRESENT]
    assert len(present) == pages
    assert (states[theirs == memory.PageState.OUTSIDE] == memory.PageState.OUTSIDE).all()
    rows = source.gather(present, PAGE)
    assert np.array_equal(image.gather(present, PAGE), rows)
    for pa, row in zip(present.tolist(), rows, strict=True):
        assert image.read(pa, PAGE) == row.tobytes()
    found = b"".join(bytes(piece) for _, piece in image.extents())
    assert found == b"".join(row.tobytes() for row in rows if row.any())
    assert image.notes["OSRELEASE"] == "6.1.0-50-cloud-amd64"
    assert (image.machine, image.page_size) == ("x86_64", PAGE)


@pytest.mark.parametrize("name", ["zlib", "lzo", "flattened"])
def test_kdump(name: str, source: memory.PhysicalMemory, tmp_path: Path) -> None:
    if name == "lzo":
        pytest.importorskip("lzallright", reason="reading lzo needs lzallright")
    with memory.open(DATA / f"{name}.zst") as image:
        assert image.kind == "kdump"
        hold(image, source, 80)
    plain = tmp_path / name
    plain.write_bytes(zstandard.ZstdDecompressor().decompress((DATA / f"{name}.zst").read_bytes()))
    with memory.open(plain) as image:
        hold(image, source, 80)


def test_elf_leaves_zero_pages_out(source: memory.PhysicalMemory) -> None:
    with memory.open(DATA / "elf.zst") as image:
        assert image.kind == "elf"
        hold(image, source, 72)
        there = EVERY[source.states(EVERY, PAGE) == memory.PageState.PRESENT]
        zero = there[~source.gather(there, PAGE).any(axis=1)]
        assert len(zero) == 8
        assert (image.states(zero, PAGE) == memory.PageState.EXCLUDED).all()


def test_split(source: memory.PhysicalMemory) -> None:
    parts = [DATA / f"split-{i}.zst" for i in (2, 3, 1)]
    with memory.open(parts) as image:
        hold(image, source, 80)
    with memory.open(parts[:2]) as image:
        hold(image, source, 54)
        left = image.states(EVERY, PAGE) == memory.PageState.EXCLUDED
        assert int(left.sum()) == 26
