"""What is wrong with an extract is noticed before it takes its name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import kho
from inspector import extract as extracts
from inspector import image as images
from inspector import memory as memories
from inspector.device_tables.claims import claim_tables
from inspector.extract import ExtractError, extract
from inspector.image import Image
from inspector.kernel import faults, scenario
from inspector.memory import ranges, zst
from inspector.memory.base import PageState
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory
from inspector.output import OutputError

CORPUS = Path(__file__).parents[2] / "corpus"
SOURCES = ("iommu-vw-small_legacy-handoff.elf.zst", "linux-7.3.4-handoff.elf.zst")


def spoil(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], None], out: Path, image: Image
) -> None:
    """Make an extract that is damaged between the writing and the verification."""

    def writer(path: object, source: object, machine: str, **options: object) -> None:
        verify = options["verify"]
        assert callable(verify)

        def after_damage(name: str) -> None:
            damage(name)
            verify(name)

        options["verify"] = after_damage
        write_core(path, source, machine, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(extracts, "write_core", writer)
    with pytest.raises((ExtractError, kho.KhoError)):
        extract(image, out)
    assert list(out.parent.iterdir()) == []


def kinds(image: Image) -> dict[str, int]:
    """An address of each kind of page that the image claims; the last byte of the last one."""
    claim_tables(image)
    found = {}
    for claim in image.survey.claims:
        for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True):
            if size and ranges.present(image.memory, [(start, size)]) == [(start, size)]:
                found[claim.kind] = start + size - 1
    return found


def offset_of(path: str, address: int) -> int:
    """Where in the file a byte of memory lies; -1 where it is not stored."""
    with memories.open(path) as memory:
        for segment in memory.stored():  # type: ignore[attr-defined]
            if segment.first <= address <= segment.last:
                return int(segment.offset + address - segment.first) if segment.kind == 2 else -1
    return -1


@pytest.mark.parametrize("suffix", ["elf", "elf.zst"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_changed_byte_of_any_kind_of_page(
    source: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kho.open(CORPUS / source) as image:
        spoiled = 0
        for kind, address in kinds(image).items():

            def damage(path: str, kind: str = kind, address: int = address) -> None:
                nonlocal spoiled
                at = offset_of(path, address)
                if at < 0:
                    raise ExtractError(f"{kind}: zeros are not stored")
                with open(path, "r+b") as stream:
                    stream.seek(at)
                    byte = stream.read(1)[0]
                    stream.seek(at)
                    stream.write(bytes((byte ^ 0x10,)))
                spoiled += 1

            spoil(monkeypatch, damage, tmp_path / f"out.{suffix}", image)
            monkeypatch.undo()
        assert spoiled > 8


def test_damage_of_what_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core is right, but not what was made of it."""
    compress = zst.compress

    def damaged(source: int, target: int) -> None:
        compress(source, target)
        size = os.fstat(target).st_size
        os.pwrite(target, bytes((os.pread(target, 1, size // 2)[0] ^ 1,)), size // 2)

    with kho.open(CORPUS / SOURCES[1]) as image:
        monkeypatch.setattr(zst, "compress", damaged)
        with pytest.raises(OutputError, match="what was compressed is not what was written"):
            extract(image, tmp_path / "out.elf.zst")
        assert list(tmp_path.iterdir()) == []

        def full(source: int, target: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(zst, "compress", full)
        with pytest.raises(OutputError, match="No space left"):
            extract(image, tmp_path / "out.elf.zst")
        assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kho.open(CORPUS / SOURCES[1]) as image:
        address = next(f for _, f in image.memfds() if f.nr_folios).addresses[0]

        def damage(path: str) -> None:
            memory = SparseMemory.over(memories.open(path))
            memory.exclude(int(address), 4096)
            write_core(path, memory, force=True)

        spoil(monkeypatch, damage, tmp_path / "out.elf", image)


def test_a_page_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was to be left out is in it, be it zeros."""
    with kho.open(CORPUS / SOURCES[1]) as image:

        def damage(path: str) -> None:
            memory = SparseMemory.over(memories.open(path))
            left = next(r for r in memory.regions if r.state is PageState.EXCLUDED)
            memory.mark_zero(left.start, 4096)
            write_core(path, memory, force=True)

        spoil(monkeypatch, damage, tmp_path / "out.elf", image)


def test_a_note_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kho.open(CORPUS / SOURCES[1]) as image:

        def damage(path: str) -> None:
            memory = memories.open(path)
            write_core(path, memory, notes={**memory.notes, "PAGESIZE": "16384"}, force=True)

        spoil(monkeypatch, damage, tmp_path / "out.elf", image)


@pytest.mark.parametrize("kind", ["file-block", "vmalloc-chunk", "vmalloc-data", "session-block"])
def test_a_page_that_the_claims_forget(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte is right but one structure was not kept: the dump of it differs."""
    with kho.open(CORPUS / SOURCES[1]) as image:
        claims = image.survey.claims
        lost = next(c for c in claims if c.kind == kind and len(c.starts))
        image.survey.claims = [c for c in claims if c is not lost]
        spoil(monkeypatch, lambda path: None, tmp_path / "out.elf", image)


def test_damage_of_an_extract_that_was_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the image is not read twice, digests of what was read tell."""
    with kho.open(CORPUS / SOURCES[1]) as image:
        monkeypatch.setattr(extracts, "is_direct", lambda _: False)
        extract(image, tmp_path / "good.elf")
        os.unlink(tmp_path / "good.elf")
        _, file = next((p, f) for p, f in image.memfds() if f.nr_folios)
        address = int(file.addresses[0])

        def damage(path: str) -> None:
            at = offset_of(path, address)
            assert at > 0
            with open(path, "r+b") as stream:
                stream.seek(at)
                byte = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes((byte ^ 0x01,)))

        spoil(monkeypatch, damage, tmp_path / "out.elf", image)


def test_differences_are_found() -> None:
    one = SparseMemory([(0, 1 << 20)])
    one.write(0x3000, bytes(range(256)) * 32)
    one.mark_zero(0x8000, 0x4000)
    other = SparseMemory.over(one)
    everything = [(0, 1 << 20)]
    assert ranges.first_difference(one, other, everything) is None
    other.write(0x9000, bytes(4096))  # zeros that are stored are zeros
    assert ranges.first_difference(one, other, everything) is None
    other.write(0x4ABC, b"\xff\xfe")
    assert ranges.first_difference(one, other, everything) == 0x4AB8
    assert ranges.first_difference(one, other, [(0, 0x4000)]) is None
    other.write(0xB008, b"\1")
    assert ranges.first_difference(one, other, [(0x8000, 0x4000)]) == 0xB008
    other.exclude(0x3000, 4096)
    assert ranges.first_difference(one, other, everything) == 0x3000


@pytest.mark.parametrize("options", [{}, {"content": False}, {"redact": True}])
@pytest.mark.parametrize(
    "fault",
    ["handover-fdt-size-zero", "handover-scratch-size-zero", "handover-scratch-partial-entry",
     "root-total-size"],
)  # fmt: skip
def test_broken_images_can_be_extracted(
    fault: str, options: dict[str, bool], tmp_path: Path
) -> None:
    """They are what bug reports are about: what leads to a broken record is kept."""
    made = scenario.load("linux-6.17").run()
    faults.inject(made, fault)
    with images.open(made.memory) as image:
        extract(image, tmp_path / "out.elf", **options)  # type: ignore[arg-type]
        ram = image.ram
    with kho.open(tmp_path / "out.elf") as again:
        assert again.ram == ram, "the map of RAM is lost"
