"""Memory files that are walked together are walked as each would be alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import kho
from inspector import image as images
from inspector.image import Image
from inspector.kernel import scenario
from inspector.memory.base import PhysicalMemory
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey
from inspector.walk import memfds
from inspector.walk.memfd import Memfd

CORPUS = Path(__file__).parents[2] / "corpus"
IMAGES = sorted(
    p for p in CORPUS.glob("linux-*.elf.zst") if "amdv1" not in p.name and "smmu" not in p.name
)


def columns(memfd: Memfd) -> list[Any]:
    folios, vmalloc = memfd.folios, memfd.vmalloc
    return [
        (memfd.path, memfd.generation.id, memfd.address, memfd.size, memfd.nr_folios, memfd.pos),
        (memfd.seals, memfd.flags, memfd.sized, folios.complete, folios.position is None),
        (vmalloc.first, vmalloc.total_pages, vmalloc.flags, vmalloc.order, vmalloc.complete),
        *(c.tolist() for c in (vmalloc.chunks, vmalloc.blocks)),
        *(c.tolist() for c in (folios.pfn, folios.flags, folios.index, memfd.orders)),
    ]


def record(survey: Survey) -> list[Any]:
    return [
        [(f.code, f.message, f.path, f.address) for f in survey.findings.items],
        [(p.struct.name, p.addresses.tolist(), p.path) for p in survey.placed],
        [(c.kind, c.owner, c.starts.tolist(), c.sizes.tolist()) for c in survey.claims],
        survey.holes,
        survey.nodes,
    ]


def walked(
    image: Image, memory: PhysicalMemory, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, ...]:
    """Every memory file walked again, one by one or together."""
    survey = Survey(memory, image.page_size, max_nodes=image.survey.max_nodes)
    assert image.luo is not None
    files = [(f.data, f.path, f.state) for _, f in image.luo.files() if isinstance(f.state, Memfd)]
    monkeypatch.setattr(memfds, "_FEW", 1 << 30 if alone else 1)
    generation = files[0][2].generation
    found = memfds.walk_memfds(survey, generation, [f[:2] for f in files], image.preserved)
    return [None if m is None else columns(m) for m in found], record(survey)


def compare(image: Image, memory: PhysicalMemory, monkeypatch: pytest.MonkeyPatch) -> Any:
    alone = walked(image, memory, True, monkeypatch)
    assert walked(image, memory, False, monkeypatch) == alone
    return alone


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_captures(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kho.open(path) as image:
        if next(image.memfds(), None) is None:
            pytest.skip("no memory files")
        compare(image, image.memory, monkeypatch)


MANY = """
kernel = "linux-7.3"
[machine]
ram = ["256M"]
[[session]]
name = "s"
[[session.file]]
token = 1
count = 40
size = "20K"
[[session.file]]
token = 100
count = 30
size = "2M"
fill = "head"
"""


@pytest.fixture(scope="module")
def many() -> Iterator[Image]:
    made = scenario.parse(MANY).run()
    with images.open(made.memory) as image:
        yield image


def test_simulated_files(many: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = compare(many, many.memory, monkeypatch)
    assert len(found) == 70


@pytest.mark.parametrize("seed", range(60))
def test_broken_files(many: Image, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of structs, chunks and folio entries changed, pages left out: the same findings."""
    random = Random(seed)
    memory = SparseMemory.over(many.memory)
    places = [
        int(start) + 8 * random.randrange(min(int(size), 160) // 8)
        for claim in many.survey.claims
        if claim.kind in ("struct", "vmalloc-chunk", "vmalloc-data") and "/files/" in claim.owner
        for start, size in zip(claim.starts, claim.sizes, strict=True)
    ]
    values = [0, 1, 7, 1 << 12, 1 << 52, (1 << 64) - 1, 3 << 52 | 0x1234, *random.sample(places, 3)]
    for place in random.sample(places, 12):
        held = memory.u64(place)
        new = random.choice([*values, held + 4096, held ^ 1 << random.randrange(64)])
        memory.write(place, (new & (1 << 64) - 1).to_bytes(8, "little"))
    for place in random.sample(places, 2):
        memory.exclude(place & -4096, 4096)
    found, kept = compare(many, memory, monkeypatch)
    assert kept[0], "nothing was found in an image that was broken"
    assert len(found) == 70


def test_most_files_of_a_capture_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared walk is taken at all: else it would be compared with itself."""
    alone: list[str] = []
    walk = memfds.walk_memfd

    def counted(survey: Survey, generation: Any, address: int, path: str, preserved: Any) -> Any:
        alone.append(path)
        return walk(survey, generation, address, path, preserved)

    monkeypatch.setattr(memfds, "walk_memfd", counted)
    with kho.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as image:
        total = sum(1 for _ in image.memfds())
        assert total > 8
        assert len(alone) < total / 2
