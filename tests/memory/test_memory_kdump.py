"""kdump files of every compression and framing, and damage at every structure."""

from __future__ import annotations

import itertools
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from kdump_writer import FLAGS, Kdump, flatten
from memory_model import core, note

from abi.errors import UnreadableError
from inspector import memory
from inspector.memory import compression, kdump
from inspector.memory.bitmap import PageBitmap, edge_positions, popcount
from inspector.memory.kdump import KdumpMemory
from inspector.memory.kdump_pages import KdumpPages

PAGE = 4096
RNG = random.Random(11)
PAGES = {
    pfn: bytes(PAGE) if pfn % 3 == 0 else (RNG.randbytes(64 + pfn % 200) * 64)[:PAGE]
    for pfn in RNG.sample(range(3, 600), 120)
} | {5: RNG.randbytes(PAGE), 63: b"\1" * PAGE, 64: b"\2" * PAGE, 619: b"\3" * PAGE}
RAM = frozenset(range(2, 500))
LAST = 640


def opened(tmp_path: Path, *files: bytes) -> memory.PhysicalMemory:
    paths = []
    for i, data in enumerate(files):
        paths.append(tmp_path / f"part{i}")
        paths[-1].write_bytes(data)
    return memory.open(paths if len(paths) > 1 else paths[0])


def want_state(pfn: int, pages: set[int] | dict[int, bytes], ram: frozenset[int] = RAM) -> int:
    return 2 if pfn in pages else 1 if pfn in ram else 0


def hold(image: memory.PhysicalMemory, pages: dict[int, bytes], ram: frozenset[int] = RAM) -> None:
    """Everything the contract says, for an image with these pages."""
    size = image.page_size
    assert size is not None
    every = np.arange(LAST, dtype=np.uint64) * np.uint64(size)
    want = [want_state(pfn, pages, ram) for pfn in range(LAST)]
    assert image.states(every, size).tolist() == want
    rows = image.gather(every, size)
    assert all(rows[p].tobytes() == pages.get(p, bytes(size)) for p in range(LAST))
    words = image.gather(every + np.uint64(16), 8)
    for pfn in range(LAST):
        pa = pfn * size
        assert words[pfn].tobytes() == pages.get(pfn, bytes(size))[16:24]
        if pfn in pages:
            assert image.read(pa, size) == pages[pfn]
        else:
            with pytest.raises(memory.MemoryFault) as caught:
                image.read(pa + 5, 3)
            assert (caught.value.address, caught.value.state) == (pa + 5, want[pfn])
    states = [0] * LAST
    before = None
    for region in image.regions:
        assert before is None or region.start >= before.end
        assert before is None or region.start > before.end or region.state != before.state
        before = region
        for pfn in range(region.start // size, region.end // size):
            states[pfn] = region.state
    assert states == want
    found = {}
    end = 0
    for pa, piece in image.extents():
        assert pa >= end
        end = pa + len(piece)
        for i in range(0, len(piece), size):
            found[(pa + i) // size] = bytes(piece[i : i + size])
    assert found == {pfn: page for pfn, page in pages.items() if any(page)}


@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
@pytest.mark.parametrize("name", FLAGS)
def test_every_compression(tmp_path: Path, name: str, flat: bool) -> None:
    if name == "lzo":
        pytest.importorskip("lzallright", reason="writing lzo needs lzallright")
    if name == "snappy":
        pytest.importorskip("cramjam", reason="writing snappy needs cramjam")
    data = Kdump(PAGES, RAM, compression=name).build()
    with opened(tmp_path, flatten(data) if flat else data) as image:
        assert (image.kind, image.machine, image.page_size) == ("kdump", "x86_64", PAGE)
        assert image.notes["OSRELEASE"] == "7.3.4"
        hold(image, PAGES)
        assert not image.damaged  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", range(8))
def test_every_header_version(tmp_path: Path, version: int) -> None:
    notes = note(b"VMCOREINFO", 0, b"PAGESIZE=4096\nFROM=note\n") if version >= 4 else b""
    with opened(tmp_path, Kdump(PAGES, RAM, version=version, notes=notes).build()) as image:
        hold(image, PAGES)
        assert ("PAGESIZE" in image.notes) == (version >= 3)
        assert ("FROM" in image.notes) == (version >= 4)


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_larger_pages(tmp_path: Path, page_size: int) -> None:
    pages = {pfn: PAGES[pfn] * (page_size // PAGE) for pfn in list(PAGES)[:40]}
    dump = Kdump(pages, RAM, page_size=page_size, machine="aarch64", compression="zstd")
    with opened(tmp_path, flatten(dump.build(), record=1 << 16)) as image:
        assert image.machine == "aarch64"
        hold(image, pages)


def test_inside_zstd_and_without_a_bitmap_of_ram(tmp_path: Path) -> None:
    data = Kdump(PAGES, RAM, one_bitmap=True).build()
    with opened(tmp_path, zstandard.ZstdCompressor().compress(data)) as image:
        hold(image, PAGES, frozenset())


def test_split(tmp_path: Path) -> None:
    bounds = [(300, 620), (0, 64), (64, 300)]
    parts = [Kdump(PAGES, RAM, split=bound).build() for bound in bounds]
    with opened(tmp_path, *parts) as image:
        hold(image, PAGES)
    with opened(tmp_path, parts[0], flatten(parts[2])) as image:
        hold(image, {pfn: page for pfn, page in PAGES.items() if pfn >= 64}, RAM | set(PAGES))
    with opened(tmp_path, parts[1]) as image:
        hold(image, {pfn: page for pfn, page in PAGES.items() if pfn < 64}, RAM | set(PAGES))
    with pytest.raises(UnreadableError, match="holds the same pages as"):
        opened(tmp_path, parts[0], parts[0])
    other = Kdump(PAGES, RAM, split=(0, 64), release="6.19.11").build()
    with pytest.raises(UnreadableError, match="not a part of the same dump"):
        opened(tmp_path, other, parts[2])


def test_a_dump_that_ran_out_of_space(tmp_path: Path) -> None:
    """Flag DUMP_DH_COMPRESSED_INCOMPLETE: descriptors of 0 from some page on."""
    data = bytearray(Kdump(PAGES, RAM, status=1 | 8).build())
    order = sorted(PAGES)
    table = len(Kdump({}, {*RAM, *PAGES}).build())
    for i in range(60, len(order)):
        data[table + 24 * i : table + 24 * (i + 1)] = bytes(24)
    with opened(tmp_path, bytes(data[:-1000])) as image:
        kept = {pfn: PAGES[pfn] for pfn in order[:60]}
        hold(image, kept, RAM | set(PAGES))


def test_damaged_pages_become_excluded(tmp_path: Path) -> None:
    pages = {pfn: RNG.randbytes(2048) * 2 for pfn in range(1, 30)}
    data = bytearray(Kdump(pages, range(40)).build())
    place = data.index(zlib.compress(pages[9], 1))
    data[place + 100 : place + 120] = b"\xff" * 20
    table = len(Kdump({}, range(40)).build())
    struct.pack_into("<QI", data, table + 24 * 19, 1 << 60, 50)  # page 20: outside the file
    struct.pack_into("<I", data, table + 24 * 20 + 8, 0xFFFFFFFF)  # page 21: absurd size
    struct.pack_into("<II", data, table + 24 * 21 + 8, 100, 0)  # page 22: plain, too short
    struct.pack_into("<I", data, table + 24 * 22 + 12, 0x40)  # page 23: unknown flag: plain
    bad = {9, 20, 21, 22, 23}
    with opened(tmp_path, bytes(data)) as image:
        assert isinstance(image, KdumpMemory)
        rows = image.gather(np.arange(41, dtype=np.uint64) << np.uint64(12), PAGE)
        assert set(image.damaged) == bad
        for pfn in range(41):
            good = pfn in pages and pfn not in bad
            assert rows[pfn].tobytes() == (pages[pfn] if good else bytes(PAGE))
            assert image.state(pfn << 12) == (2 if good else 1 if pfn < 40 else 0)
        with pytest.raises(memory.MemoryFault, match="0x9008 is left out"):
            image.read(0x9008, 4)
        assert {pa >> 12 for pa, _ in image.extents()} & bad == set()
        assert sum(r.size for r in image.regions if r.state == 2) == (29 - 5) * PAGE


def test_sizes_that_lie(tmp_path: Path) -> None:
    """Whatever a page claims to become, no more than a page is taken."""
    bomb = zlib.compress(bytes(64 << 20), 9)[:2000]
    decode = compression.decoder(compression.ZLIB)
    with pytest.raises(compression.PageError):
        decode(bomb, PAGE)
    zstd = compression.decoder(compression.ZSTD)
    for wrong in (
        zstandard.ZstdCompressor().compress(bytes(1 << 30)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26)),
        zstandard.ZstdCompressor().compress(bytes(100)),
        b"",
        b"\x28\xb5\x2f\xfd",
    ):
        with pytest.raises(compression.PageError):
            zstd(wrong, PAGE)
    for flag in (compression.LZO, compression.SNAPPY):
        try:
            decode = compression.decoder(flag)
        except compression.MissingCodecError:
            continue
        for wrong in (b"", b"\xff" * 100, b"\xff\xff\xff\xff\x0f" + bytes(50), os.urandom(500)):
            with pytest.raises(compression.PageError):
                decode(wrong, PAGE)
    with pytest.raises(compression.PageError, match="unknown compression"):
        compression.decoder(0x10)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"block_size": 0}, "block size 0"),
        ({"block_size": 1}, "block size 1"),
        ({"block_size": 2048}, "block size 2048"),
        ({"block_size": 12345}, "block size 12345"),
        ({"block_size": 4096 + 8192}, "block size 12288"),
        ({"block_size": 1 << 19}, "block size 524288"),
        ({"block_size": 1 << 30}, "block size"),
        ({"block_size": -1 << 31}, "block size -2147483648"),
        ({"sub_hdr_size": -1}, "damaged kdump header"),
        ({"sub_hdr_size": 0x7FFFFFFF}, "truncated: a page bitmap"),
        ({"bitmap_blocks": 0xFFFFFFFF}, "truncated"),
        ({"bitmap_blocks": 0}, "bitmaps of 0 bytes"),
    ],
)
def test_hostile_headers(tmp_path: Path, overrides: dict[str, int], reason: str) -> None:
    for version in (5, 6):
        data = Kdump(PAGES, RAM, version=version, overrides=overrides).build()
        with pytest.raises(UnreadableError, match=reason) as caught:
            opened(tmp_path, data)
        assert "\n" not in str(caught.value)


def test_hostile_frame_counts(tmp_path: Path) -> None:
    data = bytearray(Kdump(PAGES, RAM).build())
    for frames in ((1 << 64) - 1, 1 << 62, 1 << 41):
        struct.pack_into("<Q", data, PAGE + 96, frames)
        with pytest.raises(UnreadableError, match="damaged kdump header"):
            opened(tmp_path, bytes(data))
    # A bitmap of 16 GiB, in a file that has the size but not the bytes.
    path = tmp_path / "sparse"
    good = Kdump({1: PAGES[63]}, [0]).build()
    data = bytearray(good[: 2 * PAGE])
    blocks = 2 * ((16 << 30) // PAGE)
    struct.pack_into("<I", data, 436, blocks)
    struct.pack_into("<Q", data, PAGE + 96, (16 << 30) * 8)
    with path.open("wb") as stream:
        stream.write(data)
        stream.truncate((2 + blocks) * PAGE + 100)
    with memory.open(path) as image:
        assert image.regions == ()
        assert image.state(0x1000) == 0
        assert list(image.extents()) == []


@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
def test_truncated_anywhere(tmp_path: Path, flat: bool) -> None:
    data = Kdump({pfn: PAGES[pfn] for pfn in sorted(PAGES)[:20]}, range(70)).build()
    if flat:
        data = flatten(data, record=700)
    for size in [*range(16, len(data), 509), len(data) - 1]:
        with pytest.raises(UnreadableError, match="truncated") as caught:
            opened(tmp_path, data[:size])
        assert "\n" not in str(caught.value)


def test_flattened_framing(tmp_path: Path) -> None:
    good = flatten(Kdump(PAGES, RAM).build())
    with pytest.raises(UnreadableError, match="truncated: a flattened record"):
        opened(tmp_path, good[:-16])
    for patch, reason in (
        ((16, struct.pack(">qq", 2, 1)), "unknown flattened format 2"),
        ((4096, struct.pack(">qq", -2, 1)), "damaged flattened record"),
        ((4096, struct.pack(">qq", 0, 0)), "damaged flattened record"),
        ((4096, struct.pack(">qq", 0, -1)), "damaged flattened record"),
        ((4096, struct.pack(">qq", (1 << 63) - 1, 5)), "damaged flattened record"),
        ((4096, struct.pack(">qq", 0, 1 << 62)), "truncated|damaged"),
    ):
        data = bytearray(good)
        data[patch[0] : patch[0] + 16] = patch[1]
        with pytest.raises(UnreadableError, match=reason):
            opened(tmp_path, bytes(data))
    with pytest.raises(UnreadableError, match="not of a kdump"):
        opened(tmp_path, flatten(b"x" * 5000, rewrite=False))
    with pytest.raises(UnreadableError, match="truncated: the header"):
        opened(tmp_path, flatten(b"", rewrite=False))


def test_a_flattened_core(tmp_path: Path) -> None:
    """makedumpfile -E -F: an ELF core in the same framing."""
    data = core([(0x1000, PAGES[5], PAGE), (0x9000, PAGES[63], 2 * PAGE)], xnum=True)
    pieces = [(at, data[at : at + 1000]) for at in range(0, len(data), 1000)]
    framed = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    for at, piece in [(0, data[:40] + b"\xee" * 40), *pieces]:
        framed += struct.pack(">qq", at, len(piece)) + piece
    with opened(tmp_path, framed + struct.pack(">qq", -1, -1)) as image:
        assert image.kind == "elf"
        assert image.read(0x1000, PAGE) == PAGES[5]
        assert [int(r.state) for r in image.regions] == [2, 2, 1]
    with pytest.raises(UnreadableError, match="truncated: a flattened record"):
        opened(tmp_path, framed)


def test_other_machines_are_refused(tmp_path: Path) -> None:
    head = bytearray(Kdump(PAGES, RAM).build())
    head[408:470] = bytes(62)
    struct.pack_into("<i", head, 416, PAGE)
    with pytest.raises(UnreadableError, match="32-bit"):
        opened(tmp_path, bytes(head))
    head[408:470] = bytes(62)
    struct.pack_into(">i", head, 428, PAGE)
    with pytest.raises(UnreadableError, match="big-endian"):
        opened(tmp_path, bytes(head))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_never_escapes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pages = {pfn: PAGES[pfn] for pfn in sorted(PAGES)[:6]}
    good = bytearray(
        Kdump(pages, range(80), compression=data.draw(st.sampled_from(["zlib", "zstd"]))).build()
    )
    table = len(Kdump({}, range(80)).build())
    places = st.one_of(
        st.integers(0, 480),
        st.integers(PAGE, PAGE + 110),
        st.integers(2 * PAGE, 2 * PAGE + 12),
        st.integers(3 * PAGE, 3 * PAGE + 12),
        st.integers(table, len(good) - 1),
    )
    for at in data.draw(st.lists(places, max_size=5)):
        good[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "kdump"
    path.write_bytes(flatten(bytes(good)) if data.draw(st.booleans()) else bytes(good))
    try:
        image = memory.open(path)
    except UnreadableError as error:
        assert "\n" not in str(error)
        return
    with image:
        pfns = np.array([0, 1, 3, 5, 63, 79, 80, 1 << 40, (1 << 52) - 1], np.uint64)
        addresses = pfns << np.uint64(12)
        rows = image.gather(addresses, PAGE)
        for pa, row in zip(addresses.tolist(), rows, strict=True):
            if image.state(pa, PAGE) == 2:
                assert image.read(pa, PAGE) == row.tobytes()
            else:
                with pytest.raises(memory.MemoryFault):
                    image.read(pa, PAGE)
        total = 0
        for _, piece in image.extents():
            total += len(piece)
        assert total <= 64 << 20


def test_ranges_across_pages(tmp_path: Path) -> None:
    with opened(tmp_path, Kdump(PAGES, RAM).build()) as image:
        for size in (2, 5000, 3 * PAGE, 40 * PAGE, 5000 * PAGE):
            addresses = np.arange(0, 640 * PAGE, 37 * PAGE + 1000, dtype=np.uint64)
            states = image.states(addresses, size).tolist()
            for pa, state in zip(addresses.tolist(), states, strict=True):
                frames = range(pa // PAGE, min((pa + size - 1) // PAGE + 1, 641))
                assert state == min(want_state(pfn, PAGES) for pfn in frames)
        assert image.read(64 * PAGE - 3, 6) == b"\1\1\1\2\2\2"
        assert image.gather(np.array([64 * PAGE - 3], np.uint64), 6).tobytes() == b"\1\1\1\2\2\2"
        top = np.array([(1 << 64) - 1, (1 << 64) - PAGE], np.uint64)
        assert image.states(top, 2).tolist() == [0, 0]
        with pytest.raises(memory.MemoryFault):
            image.read((1 << 64) - 1, 1)
        with pytest.raises(memory.MemoryFault):
            image.read(-1, 1)
        assert image.read(5, 0) == b""


def test_scanning_decodes_heads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {pfn: os.urandom(2048) * 2 for pfn in range(1, 400)}
    pages[77] = b"\xd0\x0d\xfe\xed" + os.urandom(2046) * 2
    with opened(tmp_path, Kdump(pages, range(500)).build()) as image:
        calls = []
        monkeypatch.setattr(KdumpPages, "_decode", lambda *args: calls.append(args))
        assert list(memory.find_words(image, 0xEDFE0DD0)) == [77 << 12]
        told: list[int] = []
        assert list(memory.find_words(image, 0xEDFE0DD0, progress=told.append)) == [77 << 12]
        assert sum(told) == 399 * PAGE
        assert calls == []


def test_a_missing_codec_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lzallright")

    def missing(flag: int) -> compression.Decoder:
        raise compression.MissingCodecError(compression.NAMES[flag])

    def no_drgn() -> None:
        raise UnreadableError("no drgn")

    data = Kdump(PAGES, RAM, compression="lzo").build()
    monkeypatch.setattr(compression, "decoder", missing)
    monkeypatch.setattr("inspector.memory.program.import_drgn", no_drgn)
    with pytest.raises(UnreadableError, match=r"compressed with lzo.*pip install") as caught:
        opened(tmp_path, data)
    assert "\n" not in str(caught.value)


# Bitmaps


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_bitmap_against_bits(data: bytes, less: int) -> None:
    bits = len(data) * 8 - less
    flags = [data[i // 8] >> i % 8 & 1 for i in range(bits)]
    words = np.frombuffer(data.ljust(-(-len(data) // 8) * 8, b"\xff"), "<u8")
    bitmap = PageBitmap(words, bits, lambda first, end: iter([(first, end)]))
    pfns = np.arange(bits + 70, dtype=np.uint64)
    assert bitmap.test(pfns).tolist() == [bool(f) for f in flags] + [False] * 70
    counts = np.concatenate(([0], np.cumsum(flags), [sum(flags)] * 69))
    assert bitmap.rank(pfns).tolist() == counts.tolist()
    found = [int(pfn) for chunk in bitmap.set_bits() for pfn in chunk]
    assert found == [i for i, f in enumerate(flags) if f]
    assert bitmap.runs() == sum(b > a for a, b in itertools.pairwise([False, *map(bool, flags)]))
    edges = edge_positions(bitmap.words(0, len(words)), 0).tolist()
    padded = [0, *flags, *([0] * (len(words) * 64 - bits))]
    assert edges == [i for i in range(len(padded) - 1) if padded[i] != padded[i + 1]]


def test_runs_across_chunks_and_holes() -> None:
    words = np.full(40, (1 << 64) - 1, np.uint64)
    for pieces, runs in (
        ([(0, 320)], 1),
        ([(0, 128), (128, 320)], 1),
        ([(0, 128), (256, 320)], 2),
    ):
        bitmap = PageBitmap(words, 2560, lambda first, end, pieces=pieces: iter(pieces))  # type: ignore[misc]
        assert bitmap.runs() == runs


def test_runs_of_pages_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Kdump({pfn: bytes(PAGE) for pfn in range(1, 200, 2)}, range(300))
    with opened(tmp_path, odd.build()) as image:
        assert len(image.regions) == 201
        assert image.regions.present.bytes == 100 * PAGE
    monkeypatch.setattr(kdump, "_MAX_RUNS", 99)
    with pytest.raises(UnreadableError, match="100 runs of dumped pages, more than 99"):
        opened(tmp_path, odd.build())
    monkeypatch.setattr(kdump, "_MAX_RAM_RUNS", 50)
    few = Kdump({1: bytes(PAGE)}, range(1, 400, 4))
    with pytest.raises(UnreadableError, match="100 runs of RAM, more than 50"):
        opened(tmp_path, few.build())
    # With one bitmap for both, RAM has as many runs as what was dumped.
    monkeypatch.setattr(kdump, "_MAX_RUNS", 100)
    odd.one_bitmap = True
    with opened(tmp_path, odd.build()) as image:
        assert len(image.regions) == 100


def test_popcount_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.array([0, 1, (1 << 64) - 1, 0x5555555555555555], np.uint64)
    assert popcount(words).tolist() == [0, 1, 64, 32]
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert popcount(words).tolist() == [0, 1, 64, 32]


def test_what_descriptors_share_is_searched_once(tmp_path: Path) -> None:
    magic = b"\xd0\x0d\xfe\xed".ljust(PAGE, b"\7")
    pages = {pfn: bytes(PAGE) if pfn % 2 else PAGES[5] for pfn in range(2, 40)} | {50: magic}
    data = bytearray(Kdump(pages, RAM, compression="none").build())
    with opened(tmp_path, bytes(data)) as image:
        assert isinstance(image, KdumpMemory)
        part = image._parts[0]
        at = part.descriptors_at
        found = part.descriptors(0, part.count).copy()
        # Zeros are stored once, as all writers do.
        assert sum(len(pfns) for _, pfns, _ in image._once()) == len(pages) - 18
        assert not image.aliased, "zeros are not worth a search"
        hold(image, pages)
        assert list(memory.find_words(image, 0xEDFE0DD0)) == [50 * PAGE]
        assert [pa for pa, _ in image.distinct()] == [pa for pa, _ in image.extents()]
    found["offset"][:38] = found["offset"][38]  # as nobody does
    data[at : at + found.nbytes] = found.tobytes()
    with opened(tmp_path, bytes(data)) as image:
        assert list(memory.find_words(image, 0xEDFE0DD0)) == [2 * PAGE]
        assert image.aliased
        assert sum(len(piece) for _, piece in image.distinct()) == PAGE
        assert image.read(20 * PAGE, 4) == image.read(50 * PAGE, 4) == magic[:4]


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("stride", [4096, 1 << 17])
def test_strides_and_sizes_of_pages(tmp_path: Path, page_size: int, stride: int) -> None:
    """A search of heads finds what a search of everything does."""
    rng = random.Random(page_size + stride)
    pages = {}
    for pfn in rng.sample(range(3, 90), 40):
        page = bytearray(rng.randbytes(page_size))
        for at in range(0, page_size, 4096):
            page[at + 8 : at + 12] = b"\xd0\x0d\xfe\xed"
        pages[pfn] = bytes(page)
    with opened(tmp_path, Kdump(pages, range(90), page_size=page_size).build()) as image:
        found = list(memory.find_words(image, 0xEDFE0DD0, stride, offset=8))
        image.scan_heads = 0
        assert found == list(memory.find_words(image, 0xEDFE0DD0, stride, offset=8))
        assert found
