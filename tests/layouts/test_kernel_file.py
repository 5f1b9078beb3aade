"""Kernel files: ELF of every kind, bzImage, compressed, damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import mmap
import struct
import sys
import zlib
from pathlib import Path

import pytest
import zstandard
from elf_maker import ALLOC, COMPRESSED, EXEC, WRITE, elf
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errors import KhoError, UnreadableError
from inspector.layouts import kernel_file
from inspector.layouts.kernel_file import KernelFile, open_kernel
from inspector.layouts.measure import measure
from inspector.layouts.present import verify_text
from inspector.layouts.verify import verify

SAMPLE = (Path(__file__).parent.parent / "data" / "btf" / "sample.btf").read_bytes()
RODATA = (
    b"\0kho-v9\0say 'luo-v5'\0x/memfd-v2\0\xff\xff\xffmemfd-v3\0Linux version 7.9.1 (me) #1\0"
    b"pci\0a-v1b\0-v1\0\0iommu-liveupdate\0luo-v5;block-v1\0"
)
PARTS = {
    ".rodata": (ALLOC, RODATA),
    ".text": (ALLOC | EXEC, b"\0vfio-pci-v1\0"),
    ".data": (ALLOC | WRITE | EXEC, b"pci-v2\0"),
    ".debug_str": (0, b"\0iommufd-v1\0"),
    ".BTF": (ALLOC, SAMPLE),
}


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + b"\0\0trailer"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
def test_sections_strings_release(order: str, wide: bool) -> None:
    file = KernelFile(elf(PARTS, order=order, wide=wide), "x")
    assert [s.name for s in file.sections] == ["", *PARTS, ".shstrtab"]
    assert file.section(".BTF") == SAMPLE
    assert file.section(".none") is None
    assert file.has(".debug_str")
    assert file.release() == "7.9.1"
    strings = file.version_strings({"pci", "iommu-liveupdate", "gone"})
    assert strings == {
        "kho-v9", "memfd-v3", "a-v1b", "pci-v2", "pci", "iommu-liveupdate", "luo-v5;block-v1",
    }  # fmt: skip


def test_compressed_sections() -> None:
    packed = zlib.compress(SAMPLE)
    chdr = struct.pack("<IIQQ", 1, 0, len(SAMPLE), 1)
    zchdr = struct.pack("<IIQQ", 2, 0, len(SAMPLE), 1)
    zstd = zstandard.ZstdCompressor().compress(SAMPLE)
    parts = {
        "a": (COMPRESSED, chdr + packed),
        "b": (COMPRESSED, zchdr + zstd),
        "c": (COMPRESSED, struct.pack("<IIQQ", 9, 0, 0, 1)),
        "d": (COMPRESSED, b"abc"),
        "e": (COMPRESSED, chdr + b"junk"),
    }
    file = KernelFile(elf(parts), "x")
    assert file.section("a") == file.section("b") == SAMPLE
    for name in "cde":
        with pytest.raises(UnreadableError):
            file.section(name)


def test_a_section_is_as_large_as_it_claims_and_not_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_file, "MAX_SECTION", 4096)
    zeros = zlib.compress(bytes(1 << 20))
    zstd = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    parts = {
        "honest": (COMPRESSED, struct.pack("<IIQQ", 1, 0, 1 << 20, 1) + zeros),
        "modest": (COMPRESSED, struct.pack("<IIQQ", 1, 0, 4096, 1) + zeros),
        "small": (COMPRESSED, struct.pack("<IIQQ", 2, 0, 4096, 1) + zstd),
        "short": (COMPRESSED, struct.pack("<IIQQ", 1, 0, 100, 1) + zlib.compress(b"x")),
        "plain": (0, bytes(5000)),
    }
    file = KernelFile(elf(parts), "x")
    says = {
        "honest": "1 MiB; at most 4 KiB",
        "modest": "does not decompress to the 4096",
        "small": "does not decompress to the 4096",
        "short": "does not decompress to the 100",
        "plain": "at most 4 KiB",
    }
    for name, words in says.items():
        with pytest.raises(UnreadableError, match=words):
            file.section(name)


@pytest.mark.parametrize("pack", [zstandard.ZstdCompressor().compress, gzip.compress, bz2.compress])
def test_what_becomes_far_too_large_is_no_kernel(
    pack: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_file, "_SPARE", 1 << 20)
    path = tmp_path / "kernel"
    path.write_bytes(pack(bytes(16 << 20)))  # type: ignore[operator]
    with pytest.raises(UnreadableError, match=r"more than .* MiB: too much for a kernel"):
        open_kernel(str(path))


def test_a_large_kernel_is_unpacked_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(
        zstandard.ZstdCompressor().compress(elf({**PARTS, ".big": (0, bytes(9 << 20))}))
    )
    file = open_kernel(str(path))
    assert isinstance(file, KernelFile)
    assert isinstance(file.data, mmap.mmap)
    assert file.path is not None
    assert file.path.read_bytes() == file.data[:]


def test_blobs_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_file, "MAX_SECTION", len(SAMPLE) - 1)
    monkeypatch.setattr(kernel_file, "_MAX_RECORD", 4)
    for data in (SAMPLE, b'{"a": 1}'):
        path = tmp_path / "blob"
        path.write_bytes(data)
        with pytest.raises(UnreadableError, match="too much"):
            measure(str(path))
    path.write_bytes(b"x" * 4096)
    assert open_kernel(str(path)) == b"x" * 64


def test_sections_that_overlap_are_searched_once() -> None:
    whole = bytearray(elf({".data": (ALLOC, RODATA), **{f"d{i}": (ALLOC, b"") for i in range(50)}}))
    start, count = struct.unpack_from("<Q", whole, 40)[0], 52
    _, size = place = struct.unpack_from("<QQ", whole, start + 64 + 24)
    for i in range(2, count):
        # The same range as often, then ranges that begin a byte later each.
        later = max(i - count // 2, 0)
        struct.pack_into("<QQ", whole, start + 64 * i + 24, place[0] + later, size - later)
    file = KernelFile(bytes(whole), "x")
    read = [len(data) for data in file._loaded()]
    assert read[0] == size
    assert len(read) > 2
    assert sum(read) <= len(whole)
    assert file.release() == "7.9.1"


def test_too_many_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_file, "_MAX_SECTIONS", 4)
    with pytest.raises(UnreadableError, match="7 sections; at most 4"):
        KernelFile(elf(PARTS), "x")


@pytest.mark.parametrize(
    "pack",
    [
        bytes,
        gzip.compress,
        lzma.compress,
        lambda b: lzma.compress(b, format=lzma.FORMAT_ALONE),
        bz2.compress,
        zstandard.ZstdCompressor().compress,
        bzimage,
        lambda b: bzimage(gzip.compress(b, mtime=0)),
        lambda b: bzimage(zstandard.ZstdCompressor().compress(b)),
        lambda b: bzimage(lzma.compress(b) + struct.pack("<I", len(b))),
        lambda b: gzip.compress(bzimage(gzip.compress(b, mtime=0))),
    ],
)
def test_containers(pack: object, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(pack(elf(PARTS)))  # type: ignore[operator]
    file = open_kernel(str(path))
    assert isinstance(file, KernelFile)
    assert file.section(".BTF") == SAMPLE
    assert measure(str(path)).origin == "btf"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello", "neither a kernel"),
        (b"\x7fELF", "damaged"),
        (elf(PARTS)[:200], "out of bounds"),
        (elf({".rodata": (ALLOC, b"x")}), "neither BTF nor DWARF"),
        (elf({".BTF": (ALLOC, b"x")}), "cut short"),
        (bzimage(b"\x02\x21\x4c\x18junk"), "LZ4"),
        (bzimage(b"junk"), "without a known payload"),
        (bzimage(b"x")[:0x220], "cut short"),
        (gzip.compress(b"hello", mtime=0), "neither a kernel"),
        (gzip.compress(elf(PARTS), mtime=0)[:-20][:40], "does not decompress|damaged|bounds"),
        (b"BZh9junkjunk", "does not decompress"),
        (b'{"format": 1}', "not a record"),
        (b"{", "JSON"),
        (b'{"format": "kho-measured-kernel", "format_version": 1}', "not a record"),
    ],
)
def test_bad_files(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=says) as caught:
        measure(str(path))
    assert "\n" not in str(caught.value)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:
        buffer = io.BytesIO(elf(PARTS))

    monkeypatch.setattr(sys, "stdin", Standard())
    assert measure("-").release == "7.9.1"


def test_split_btf_needs_its_base(tmp_path: Path) -> None:
    from test_btf import Maker

    from inspector.layouts.btf import Btf

    base = Btf(SAMPLE)
    split = Maker(first=base.end_id, strings=base.string_end)
    split.struct("luo_ser", 8, [("x", 1, 0)])
    module, vmlinux = tmp_path / "m.ko", tmp_path / "vmlinux"
    module.write_bytes(elf({".BTF": (0, split.blob()), ".modinfo": (ALLOC, b"\0vermagic=7.3 x\0")}))
    vmlinux.write_bytes(elf(PARTS))
    with pytest.raises(UnreadableError, match="--base"):
        measure(str(module))
    measured = measure(str(module), base=str(vmlinux))
    assert measured.release == "7.3"
    assert [s.size for s in measured.structs["luo_ser"]] == [8]
    plain = tmp_path / "plain"
    plain.write_bytes(elf({".text": (ALLOC, b"x")}))
    with pytest.raises(UnreadableError, match="no BTF in it"):
        measure(str(module), base=str(plain))
    distilled = tmp_path / "d.ko"
    distilled.write_bytes(elf({".BTF": (0, split.blob()), ".BTF.base": (0, SAMPLE)}))
    assert "luo_ser" in measure(str(distilled)).structs


WHOLE = elf(PARTS)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
)
def test_damaged_elf(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    for candidate in (bytes(data), bytes(data[:length])):
        try:
            file = KernelFile(candidate, "x")
            file.section(".BTF")
            file.version_strings({"pci"})
            file.release()
        except KhoError:
            pass


def test_records_that_are_no_records_of_a_kernel(tmp_path: Path) -> None:
    member = {"name": "a", "offset": 0, "size": 8, "type": "u64", "kind": "int"}
    many = {"name": "memfd_luo_ser", "size": 8, "fields": [member] * 70_000}
    record = {
        "format": "kho-measured-kernel", "format_version": 1, "source": "x", "origin": "btf",
        "release": "\x1b]0;x\x07", "byteorder": "little", "strings": ["memfd-v2"],
        "constants": {}, "structs": [many],
    }  # fmt: skip
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UnreadableError, match="65,536 members"):
        measure(str(path))
    record["structs"] = [{**many, "fields": [{**member, "size": 1e999}]}]
    path.write_text(json.dumps(record))
    with pytest.raises(UnreadableError, match="infinity"):
        measure(str(path))
    record["structs"] = [{**many, "size": size, "fields": []} for size in range(2000)]
    path.write_text(json.dumps(record))
    measured = measure(str(path))
    assert len(measured.structs["memfd_luo_ser"]) == 2000
    lines = "".join(verify_text(verify(measured), "x"))
    assert "\x1b" not in lines
