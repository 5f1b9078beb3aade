"""zstd around any container: transparent, sparse, and strict about damage."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import zstandard
from memory_model import CORPUS, core

from abi.errors import UnreadableError
from inspector import memory
from inspector.memory import files, zst, zst_frame
from inspector.memory.files import Spool, open_file
from inspector.output import OutputError

CORE = core([(0x1000, os.urandom(3000) + bytes(1096), 4096), (0x9000, b"z" * 4096, 8192)])


def packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def opened(tmp_path: Path, data: bytes) -> memory.PhysicalMemory:
    path = tmp_path / "image"
    path.write_bytes(data)
    return memory.open(path)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_and_skippable_frames(tmp_path: Path, frames: int) -> None:
    step = -(-len(CORE) // frames)
    data = b"\x53\x2a\x4d\x18\3\0\0\0abc"
    for at in range(0, len(CORE), step):
        data += packed(CORE[at : at + step]) + b"\x50\x2a\x4d\x18\0\0\0\0"
    with opened(tmp_path, data) as image:
        assert image.kind == "elf"
        assert image.read(0x9000, 4) == b"zzzz"
        assert image.read(0x1000, 3000) == CORE[4096:7096]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = packed(CORE)
    for size in [*range(4, len(data), 97), len(data) - 1]:
        with pytest.raises(UnreadableError, match="truncated zstd file"):
            opened(tmp_path, data[:size])


def test_garbage_and_damage(tmp_path: Path) -> None:
    data = packed(CORE)
    with pytest.raises(UnreadableError, match="5 bytes of garbage behind the zstd data"):
        opened(tmp_path, data + b"trash")
    broken = bytearray(data)
    broken[len(data) // 2] ^= 0xFF
    with pytest.raises(UnreadableError, match="damaged zstd data"):
        opened(tmp_path, bytes(broken))
    with pytest.raises(UnreadableError, match="holds nothing"):
        opened(tmp_path, packed(b""))
    with pytest.raises(UnreadableError, match="truncated zstd file"):
        opened(tmp_path, b"\x50\x2a\x4d\x18\xff\xff\xff\xff")
    with pytest.raises(UnreadableError, match="not a memory dump"):
        opened(tmp_path, packed(b"hello"))


def test_a_compressed_sparse_image_stays_sparse(tmp_path: Path) -> None:
    """512 MiB of nothing with one root in it: neither disk nor memory for the zeros."""
    path = tmp_path / "big.zst"
    with path.open("wb") as stream, zstandard.ZstdCompressor(level=1).stream_writer(stream) as out:
        zeros = bytes(1 << 20)
        for i in range(512):
            out.write(zeros if i != 300 else b"\xd0\x0d\xfe\xed" + zeros[4:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = zst.decompress(open_file(str(path)))
    assert file.size == 512 << 20
    assert os.fstat(file._fd).st_blocks * 512 < 1 << 20
    file.close()
    with memory.open(path) as image:
        assert list(memory.find_words(image, 0xEDFE0DD0)) == [300 << 20]
        assert image.read(400 << 20, 4096) == bytes(4096)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_the_corpus_is_what_its_manifest_says() -> None:
    manifest = json.loads((CORPUS / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("kho-corpus", 1)
    listed = {entry["file"] for entry in manifest["images"]}
    assert {path.name for path in CORPUS.glob("*.zst")} <= listed
    for entry in manifest["images"] + manifest["tables"]:
        data = (CORPUS / entry["file"]).read_bytes()
        assert len(data) == entry["size"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["file"]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.elf.zst")), ids=lambda path: path.name)
def test_every_capture_opens(path: Path) -> None:
    manifest = json.loads((CORPUS / "manifest.json").read_text())
    entry = next(e for e in manifest["images"] if e["file"] == path.name)
    file = zst.decompress(open_file(str(path)))
    assert file.size == entry["elf_size"]
    assert hashlib.sha256(file.data).hexdigest() == entry["elf_sha256"]
    file.close()
    with memory.open(path) as image:
        assert (image.kind, image.machine) == ("elf", entry["machine"])
        for region in image.regions:
            assert region.state is memory.PageState.PRESENT
            assert len(image.read(region.start, region.size)) == region.size
        roots = [
            pa
            for pa in memory.find_words(image, 0xEDFE0DD0, entry["page_size"])
            if b"kho-v" in image.read(pa, 4096)
        ]
        assert bool(roots) == entry["kho_root"]


def test_no_damage_escapes(tmp_path: Path) -> None:
    """Headers of frames and blocks say what follows: wherever they lie, it is noticed."""
    data = packed(CORE)
    random = Random(3)
    for at in [*range(24), *random.sample(range(len(data)), min(100, len(data)))]:
        broken = bytearray(data)
        broken[at] ^= 1 << random.randrange(8)
        try:
            with opened(tmp_path, bytes(broken)) as image:
                assert image.kind in ("elf", "raw")
        except UnreadableError:
            pass


def test_blocks_without_a_checksum(tmp_path: Path) -> None:
    """Raw, repeated and compressed blocks, more of them than one step takes."""
    random = Random(4)
    content = CORE + b"".join(
        random.choice([bytes(1 << 17), random.randbytes(1 << 17), b"ab" * (1 << 16)])
        for _ in range(200)
    )
    core = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(content)
    for data in (core, core + packed(b"more")):
        with opened(tmp_path, data) as image:
            assert image.read(0x9000, 4) == b"zzzz"
    file = zst.decompress(open_file(str(tmp_path / "image")))
    assert bytes(file.data) == content + b"more"


# Zeros that need not be decompressed, and content that is not unpacked


def spooled(tmp_path: Path, data: bytes) -> bytes:
    path = tmp_path / "packed"
    path.write_bytes(data)
    source = open_file(str(path))
    file = zst.decompress(source)
    try:
        return bytes(file.data)
    finally:
        file.close()
        source.close()


def with_zeros(random: Random) -> bytes:
    """Content with long runs of zeros, and copies from before them."""
    text = random.randbytes(1 << 15)
    parts = [
        random.choice([text, random.randbytes(100_000), bytes(random.randrange(16 << 20)), b"a"])
        for _ in range(12)
    ]
    return b"".join([text, *parts, bytes(8 << 20), text, bytes(12 << 20)])


@pytest.mark.parametrize("window", [10, 17, 20])
@pytest.mark.parametrize("sized", [True, False])
def test_skipped_zeros_are_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, sized: bool
) -> None:
    monkeypatch.setattr(zst_frame, "_FEW_ZEROS", 0)
    skipped: list[int] = []
    skip = Spool.skip
    monkeypatch.setattr(Spool, "skip", lambda s, size: skipped.append(size) or skip(s, size))
    random = Random(window)
    for level in (1, 9):
        content = with_zeros(random)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=window, write_checksum=True, write_content_size=sized
        )
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(
            size=len(content) if sized else -1
        )
        data = compressor.compress(content) + compressor.flush()
        assert spooled(tmp_path, data + packed(CORE)) == content + CORE
        for size in (len(data) - 1, len(data) - 4, len(data) - 5, len(data) - 9):
            with pytest.raises(UnreadableError, match="truncated"):
                spooled(tmp_path, data[:size])
    assert sum(skipped) > 20 << 20


def repeated(byte: int, blocks: int, content_size: int | None = None) -> bytes:
    """A frame of blocks of 128 KiB of one byte, in 4 bytes each."""
    head = b"\x28\xb5\x2f\xfd"
    if content_size is None:
        head += b"\x00\x38"
    else:
        head += b"\xc0\x38" + content_size.to_bytes(8, "little")
    block = (1 << 17) << 3 | 2
    one = block.to_bytes(3, "little") + bytes([byte])
    return head + one * (blocks - 1) + (block | 1).to_bytes(3, "little") + bytes([byte])


def test_a_terabyte_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its zeros are neither decompressed nor written, and it is as large as it says."""
    decoded: list[int] = []
    write = Spool.write
    monkeypatch.setattr(Spool, "write", lambda s, data: decoded.append(len(data)) or write(s, data))
    monkeypatch.setattr(zst_frame, "_FEW_ZEROS", 1 << 24)
    path = tmp_path / "zeros"
    for size in (None, 1 << 40):
        path.write_bytes(repeated(0, 1 << 23, size))
        decoded.clear()
        file = zst.decompress(open_file(str(path)))
        assert file.size == 1 << 40
        assert os.fstat(file._fd).st_blocks == 0
        assert sum(decoded) < 1 << 25
        file.close()
    path.write_bytes(repeated(0, 1 << 23, (1 << 40) - 1))
    with pytest.raises(UnreadableError, match="truncated"):
        zst.decompress(open_file(str(path)))


def test_content_out_of_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zst, "_WRITTEN", 1 << 24)
    written: list[int] = []
    write = Spool._write
    monkeypatch.setattr(
        Spool, "_write", lambda s, data, at: written.append(len(data)) or write(s, data, at)
    )
    with pytest.raises(UnreadableError, match=r"out of all proportion.*\(zstd -d\)") as caught:
        spooled(tmp_path, repeated(1, 1 << 14))
    assert "\n" not in str(caught.value)
    assert sum(written) < 1 << 25
    # The same from a file that is large enough, and from zeros.
    noise = packed(Random(1).randbytes(1 << 19))
    assert len(spooled(tmp_path, noise + repeated(1, 200))) == (1 << 19) + 200 * (1 << 17)
    assert len(spooled(tmp_path, repeated(0, 1 << 10))) == 1 << 27
    monkeypatch.setattr(zst, "_DECODED", 1 << 24)
    with pytest.raises(UnreadableError, match="out of all proportion"):
        spooled(tmp_path, repeated(0, 1 << 10))


def test_room_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Random(1).randbytes(8 << 20)
    left = [10 << 20]

    def fstatvfs(fd: int) -> SimpleNamespace:
        used = os.fstat(fd).st_blocks * 512
        return SimpleNamespace(f_bavail=left[0] - used, f_frsize=1, f_blocks=left[0])

    monkeypatch.setattr(files.os, "fstatvfs", fstatvfs)
    assert spooled(tmp_path, packed(content)) == content
    left[0] = 8 << 20
    with pytest.raises(UnreadableError, match=r"only \d.* left there; TMPDIR names another place"):
        spooled(tmp_path, packed(content))
    left[0] = 0  # a file system that does not tell
    assert spooled(tmp_path, packed(content)) == content


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 20_000_000])
def test_what_was_compressed_is_compared(tmp_path: Path, size: int) -> None:
    plain, packed_to = tmp_path / "plain", tmp_path / "packed"
    content = bytearray(Random(size).randbytes(size // 2) + bytes(size - size // 2))
    plain.write_bytes(content)
    with plain.open("r+b") as source:
        with packed_to.open("wb") as target:
            zst.compress(source.fileno(), target.fileno())
        good = packed_to.read_bytes()
        assert zstandard.get_frame_parameters(good).content_size == size
        assert zstandard.ZstdDecompressor().decompress(good) == content
        zst.check(str(packed_to), source.fileno())
        for damaged in (good[:-1], good[: len(good) // 2], good[:-1] + bytes((good[-1] ^ 1,))):
            packed_to.write_bytes(damaged)
            with pytest.raises(OutputError, match="not what was written"):
                zst.check(str(packed_to), source.fileno())
        packed_to.write_bytes(good)
        source.truncate(size + 4)
        with pytest.raises(OutputError, match="not what was written"):
            zst.check(str(packed_to), source.fileno())
        if size:
            source.truncate(size)
            source.seek(size - 1)
            source.write(bytes((content[-1] ^ 1,)))
            source.flush()
            with pytest.raises(OutputError, match="not what was written"):
                zst.check(str(packed_to), source.fileno())


def test_what_would_not_be_opened_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zst, "_WRITTEN", 1 << 20)
    (tmp_path / "plain").write_bytes(b"a" * (2 << 20))
    with (tmp_path / "plain").open("rb") as plain, (tmp_path / "packed").open("wb") as target:
        zst.compress(plain.fileno(), target.fileno())
        with pytest.raises(OutputError, match="out of all proportion"):
            zst.check(target.name, plain.fileno())


def test_as_many_threads_as_there_are_make_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(Random(1).randbytes(1 << 20) * 30)
    made = set()
    for cpus in (1, 2, 3, 64, None):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        with plain.open("rb") as source, (tmp_path / "packed").open("wb") as target:
            zst.compress(source.fileno(), target.fileno())
        made.add((tmp_path / "packed").read_bytes())
    assert len(made) == 1


def test_pieces_of_any_size_are_spooled(tmp_path: Path) -> None:
    """Blocks of zeros become holes wherever the pieces are cut."""
    random = Random(2)
    content = with_zeros(random)
    for limit in (1 << 8, 1 << 16, 1 << 17, 1 << 22):
        at = 0
        with Spool("test") as spool:
            while at < len(content):
                size = random.randrange(limit) if limit > 1 << 10 else limit
                spool.write(content[at : at + size])
                at += size
                assert spool.size == min(at, len(content))
            file = spool.finish()
            assert bytes(file.data) == content
            file.close()
