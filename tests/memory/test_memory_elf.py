"""ELF cores: layouts of every kind against a model, and everything that must be refused."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_model import Model, check, core, note

from abi.errors import UnreadableError
from inspector import memory
from inspector.memory import elf, notes, segments

segment = st.tuples(st.integers(0, 400), st.binary(max_size=120), st.integers(0, 200))
probes = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 64)), min_size=1, max_size=12)


def opened(tmp_path: Path, data: bytes) -> memory.PhysicalMemory:
    path = tmp_path / "image"
    path.write_bytes(data)
    return memory.open(path)


@given(st.lists(segment, min_size=1, max_size=8), probes, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    segments: list[tuple[int, bytes, int]],
    where: list[tuple[int, int]],
    behind: bool,
    xnum: bool,
) -> None:
    segments = [(pa, data, max(size, len(data))) for pa, data, size in segments]
    real = [s for s in segments if s[2]]
    cells: dict[int, int | None] = {}
    for pa, data, size in reversed(real):
        for at in range(pa + len(data), pa + size):
            cells.setdefault(at, None)
    for pa, data, _ in reversed(real):
        cells.update({pa + i: value for i, value in enumerate(data)})
    if not real or (len(real) > 1 and not any(pa for pa, _, _ in real)):
        return
    data = core(segments, phoff=64 if behind else None, xnum=xnum)
    path = tmp_path_factory.mktemp("elf") / "core"
    path.write_bytes(data)
    with memory.open(path) as image:
        assert (image.kind, image.machine) == ("elf", "x86_64")
        check(image, Model(cells), where)


def test_pages_across_many_segments(tmp_path: Path) -> None:
    rng = random.Random(5)
    pfns = sorted(rng.sample(range(1, 4000), 700))
    pages = {pfn: rng.randbytes(4096) for pfn in pfns}
    image = opened(tmp_path, core([(p << 12, pages[p], 4096) for p in rng.sample(pfns, 700)]))
    every = np.arange(4100, dtype=np.uint64) << np.uint64(12)
    rows = image.gather(every, 4096)
    states = image.states(every, 4096)
    for pfn in range(4100):
        assert rows[pfn].tobytes() == pages.get(pfn, bytes(4096))
        assert states[pfn] == (2 if pfn in pages else 0)
    for size, offset in ((8, 8), (16, 32), (64, 64), (104, 3), (1000, 24), (4096, 5)):
        addresses = every + np.uint64(offset)
        rows = image.gather(addresses, size)
        for pfn in range(4100):
            both = pages.get(pfn, b"") + (pages.get(pfn + 1, b"") if pfn in pages else b"")
            want = both[offset : offset + size]
            assert rows[pfn].tobytes() == (want if len(want) == size else bytes(size))
    image.close()


def test_batches_within_one_segment(tmp_path: Path) -> None:
    content = random.Random(6).randbytes(64 << 12)
    pages = np.random.default_rng(6).permutation(64).astype(np.uint64) << np.uint64(12)
    with opened(
        tmp_path, core([(0x9000, b"\1" * 4096, 4096), (1 << 20, content, 64 << 12)])
    ) as image:
        assert list(image.batches(pages[:0], 4096, 5)) == []
        for lead, size in ((0, 4096), (64, 64), (32, 64), (8, 24)):
            addresses = pages[:63] + np.uint64((1 << 20) + lead)
            parts = [part.copy() for part in image.batches(addresses, size, 5)]
            assert [len(part) for part in parts] == [5] * 12 + [3]
            want = [content[pa + lead : pa + lead + size] for pa in pages[:63].tolist()]
            assert [row.tobytes() for row in np.concatenate(parts)] == want


def test_a_segment_at_the_start_of_the_file(tmp_path: Path) -> None:
    data = bytearray(core([(0x9000, b"\1" * 4096, 4096), (0x3000, b"\2" * 8192, 8192)]))
    struct.pack_into("<Q", data, 64 + 8, 0)  # p_offset of the first: the ELF header itself
    with opened(tmp_path, bytes(data)) as image:
        first = image.gather(np.array([0x9000], np.uint64), 4096, np.empty((1, 4096), np.uint8))
        assert first.tobytes() == bytes(data[:4096])
        pages = np.array([0x4000, 0x9000, 0x3000], np.uint64)
        rows = image.gather(pages, 4096, np.empty((3, 4096), np.uint8))
        assert [bytes(row[:4]) for row in rows] == [b"\2" * 4, b"\x7fELF", b"\2" * 4]
        again = image.gather(np.array([0x9000], np.uint64), 4096)
        assert again.tobytes() == bytes(data[:4096])


def test_more_segments_than_e_phnum_can_count(tmp_path: Path) -> None:
    count = 70_000
    segments = [(i * 32, struct.pack("<QQ", i, ~i & (1 << 64) - 1), 16) for i in range(count)]
    with opened(tmp_path, core(segments, xnum=True)) as image:
        addresses = np.arange(count, dtype=np.uint64) * np.uint64(32)
        words = image.gather(addresses, 8).view("<u8")[:, 0]
        assert np.array_equal(words, np.arange(count, dtype=np.uint64))
        assert image.u64(69_999 * 32) == 69_999
        assert len(image.regions) == count


def test_notes(tmp_path: Path) -> None:
    info = b"OSRELEASE=7.3.4-test\nPAGESIZE=16384\nSYMBOL(x)=ff\nBAD\x1b=\x07\n=x\nnothing\n"
    data = note(b"CORE", 1, b"junk") + note(b"VMCOREINFO", 0, info)
    data += note(b"KHO", 2, b"scenario=demo\n") + b"\xff\xff\xff\xff\xff"
    with opened(tmp_path, core([(4096, bytes(16384), 16384)], notes=data, machine=183)) as image:
        assert image.notes["OSRELEASE"] == "7.3.4-test"
        assert image.notes["scenario"] == "demo"
        assert image.notes["BAD\\x1b"] == "\\x07"
        assert (image.page_size, image.machine) == (16384, "aarch64")
    with memory.open(tmp_path / "image", vmcoreinfo="PAGESIZE=4096\nOSRELEASE=mine") as image:
        assert (image.page_size, image.notes["OSRELEASE"]) == (4096, "mine")


def test_zero_pages_only_where_our_own_note_says_so(tmp_path: Path) -> None:
    zero = struct.pack("<QQQQ", 0x3000, 0x2000, (1 << 64) - 4096, 8192)
    segments = [(0x1000, b"\1" * 4096, 0x8000)]
    with opened(tmp_path, core(segments, notes=note(b"KHO", 1, zero))) as image:
        assert [(r.start, r.size, int(r.state)) for r in image.regions] == [
            (0x1000, 0x1000, 2),
            (0x2000, 0x1000, 1),
            (0x3000, 0x2000, 2),
            (0x5000, 0x4000, 1),
        ]
        assert image.read(0x3000, 0x2000) == bytes(0x2000)
        assert [pa for pa, _ in image.extents()] == [0x1000]
        span = image.span(0x4008)
        assert span is not None
        assert (span.start, span.end, span.words[0]) == (0x3000, 0x5000, 0)
    with opened(tmp_path, core(segments, notes=note(b"OTHER", 1, zero))) as image:
        assert [int(r.state) for r in image.regions] == [2, 1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (core([(0, b"x", 1)], ident=b"\x7fELF\x01\x01\x01"), "32-bit"),
        (core([(0, b"x", 1)], ident=b"\x7fELF\x02\x02\x01"), "big-endian"),
        (core([(0, b"x", 1)], ident=b"\x7fELF\x07\x01\x01"), "invalid ELF"),
        (core([(0, b"x", 1)], kind=2), "an ELF executable, not a core"),
        (core([(0, b"x", 1)], kind=77), "file of type 77"),
        (core([(0, b"x", 1)], phentsize=32), "32 bytes instead of 56"),
        (core([]), "without any memory"),
        (core([(0, b"a", 1), (0, b"b", 1)]), "without physical addresses"),
        (core([((1 << 64) - 2, b"abc", 3), (1, b"", 1)]), "wraps around"),
        (core([(0, b"x" * 100, 100)])[:40], "truncated ELF header"),
        (core([(0, b"x" * 100, 100)])[:100], "truncated ELF: 1 program headers"),
        (core([(0, b"x" * 100, 100)])[:-1], "truncated ELF: segment 0"),
        (core([(0, b"x" * 100, 100)], xnum=True)[:-60], "section header 0 is missing"),
    ],
)
def test_refused_with_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        opened(tmp_path, data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flood_of_notes_takes_no_time(tmp_path: Path) -> None:
    flood = note(b"KHO", 1, bytes(16)) * 200_000 + note(b"KHO", 2, b"late=1\n")
    start = time.process_time()
    with opened(tmp_path, core([(4096, b"x", 1)], notes=flood)) as image:
        assert image.notes == {}
    assert time.process_time() - start < 5


def test_hostile_counts_allocate_nothing(tmp_path: Path) -> None:
    data = bytearray(core([(0, b"x" * 100, 100)], xnum=True))
    struct.pack_into("<I", data, len(data) - 64 + 44, 0xFFFFFFFF)
    with pytest.raises(UnreadableError, match="4294967295 program headers"):
        opened(tmp_path, bytes(data))
    for field, value in ((8, 1 << 63), (32, (1 << 64) - 1), (40, (1 << 64) - 1)):
        data = bytearray(core([(4096, b"x" * 100, 100)]))
        struct.pack_into("<Q", data, 64 + field, value)
        try:
            with opened(tmp_path, bytes(data)) as image:
                assert image.states(np.array([4096], np.uint64), 100)[0] == 2
                assert len(image.regions) == 2
        except UnreadableError as error:
            assert "\n" not in str(error)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damage_never_escapes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(
        core([(0x1000, b"a" * 64, 128), (0x1020, b"b" * 64, 64)], notes=note(b"KHO", 1, bytes(32)))
    )
    interesting = list(range(64)) + list(range(64, 64 + 3 * 56))
    for at in data.draw(st.lists(st.sampled_from(interesting), max_size=4)):
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(good)))
    path = tmp_path_factory.mktemp("damage") / "core"
    path.write_bytes(good[:cut] if data.draw(st.booleans()) else good)
    try:
        image = memory.open(path)
    except UnreadableError:
        return
    with image:
        addresses = np.array([0, 0x1000, 0x1030, (1 << 64) - 8], np.uint64)
        states = image.states(addresses, 8)
        rows = image.gather(addresses, 8)
        for pa, state, row in zip(addresses.tolist(), states.tolist(), rows, strict=True):
            if state == 2:
                assert image.read(pa, 8) == row.tobytes()
            else:
                with pytest.raises(memory.MemoryFault):
                    image.read(pa, 8)
        assert sum(len(piece) for _, piece in image.extents()) <= len(good)


def test_notes_that_lie_over_each_other_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = np.array([[(1 << 30) + i * 8192, 4096] for i in range(100)], "<u8").tobytes()
    data = core([(0x1000, b"\1" * 4096, 4096)], notes=note(b"KHO", 1, ranges))
    table = np.frombuffer(data, elf.PROGRAM_HEADER, 2, 64)
    many = np.concatenate((table, np.repeat(table[1:], 60)))
    many["offset"][30:] += 4
    whole = bytearray(data + many.tobytes())
    struct.pack_into("<Q", whole, 32, len(data))
    struct.pack_into("<H", whole, 56, len(many))
    calls: list[int] = []
    collect = notes.collect
    monkeypatch.setattr(notes, "collect", lambda data: calls.append(len(data)) or collect(data))
    with opened(tmp_path, bytes(whole)) as image:
        assert len(image.regions) == 101
    assert len(calls) == 1
    monkeypatch.setattr(elf, "_MAX_ZERO", 99)
    with pytest.raises(UnreadableError, match="more than 99 ranges of zeros"):
        opened(tmp_path, bytes(whole))


def test_texts_of_notes_have_a_limit(tmp_path: Path) -> None:
    texts = b"".join(note(b"VMCOREINFO", 0, b"N%d=1\n" % i) for i in range(100))
    with opened(tmp_path, core([(0x1000, b"\1" * 4096, 4096)], notes=texts)) as image:
        assert next(iter(image.notes)) == "N15"
        assert len(image.notes) == 16


def test_too_many_segments_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(core([(i << 20, bytes([i + 1]) * 4096, 4096) for i in range(9)]))
    for i in range(9):
        struct.pack_into("<Q", data, 64 + 56 * i + 8, 4096)  # p_offset
    with opened(tmp_path, bytes(data)) as image:
        assert image.aliased
        assert [pa for pa, _ in image.distinct()] == [0]
        assert list(memory.find_words(image, 0x01010101)) == [0]
        assert image.read(3 << 20, 4) == b"\1" * 4
    monkeypatch.setattr(segments, "_MAX_OVERLAPPING", 8)
    with pytest.raises(
        UnreadableError, match=r"image: damaged: 9 overlapping pieces .* in the file"
    ):
        opened(tmp_path, bytes(data))
