"""Raw images, their region maps, holes, and what is not an image at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_model import CORPUS, Model, check, core

from abi.errors import KhoError, UnreadableError, UsageError
from inspector import memory
from inspector.memory import raw


def test_a_whole_file_is_memory_from_zero(tmp_path: Path) -> None:
    data = os.urandom(3 * 4096)
    path = tmp_path / "vmcore.elf.zst"  # the name says nothing
    path.write_bytes(data)
    with memory.open(path) as image:
        assert image.kind == "raw"
        cells = dict(enumerate(data))
        check(
            image, Model(cells), [(0, 1), (4090, 100), (12280, 8), (12281, 8), (99999, 3), (7, 0)]
        )


def test_region_map(tmp_path: Path) -> None:
    path, mapping = tmp_path / "ram", tmp_path / "map"
    path.write_bytes(b"".join(bytes([i]) * 4096 for i in range(8)) + b"tail")
    mapping.write_text("# q35\n0 8K 0\n\n0x100000000 0x2000 +  # above 4G\n0x5000 4\n")
    with memory.open(path, region_map=mapping) as image:
        assert [(r.start, r.size) for r in image.regions] == [
            (0, 8192),
            (0x5000, 4),
            (1 << 32, 8192),
        ]
        assert image.read(0x1FFF, 1) == b"\1"
        assert image.read((1 << 32) + 4095, 2) == b"\2\3"
        assert image.read(0x5000, 4) == b"\5\5\5\5"
        with pytest.raises(memory.MemoryFault, match="0x2000 is outside memory"):
            image.read(0x1FFF, 2)


def test_iomem_lines() -> None:
    text = """00000000-00000fff : Reserved
00001000-0009fbff : System RAM
  00002000-00002fff : Kernel code
100000000-13fffffff : System RAM
"""
    assert raw.parse_region_map(text) == [
        (0x1000, 0x9FBFF, 2, 0x1000),
        (0x100000000, 0x13FFFFFFF, 2, 0x100000000),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no region"),
        ("hello\n", "line 1"),
        ("0 0x1000\n0 zero\n", "line 2"),
        ("0 -5\n", "line 1"),
        ("-4096 4096\n", "line 1"),
        ("0 0\n", "line 1"),
        ("0 1 2 3\n", "line 1"),
        ("0 4096 -1\n", "line 1"),
        ("0xffffffffffffffff 2\n", "line 1"),
        ("0 4096\n0x800 4096\n", "overlap at 0x800"),
        ("00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n", "hides them"),
    ],
)
def test_wrong_region_maps(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        raw.parse_region_map(text)


@given(st.text(alphabet="0123456789abcxkKMG+-: \n#\x00é", max_size=60))
def test_any_region_map_text(text: str) -> None:
    try:
        regions = raw.parse_region_map(text)
    except UsageError:
        return
    assert all(0 <= r.first <= r.last < 1 << 64 and r.offset >= 0 for r in regions)


def test_a_region_beyond_the_file(tmp_path: Path) -> None:
    path, mapping = tmp_path / "ram", tmp_path / "map"
    path.write_bytes(bytes(4096))
    mapping.write_text("0 8192\n")
    with pytest.raises(UnreadableError, match="truncated: the region at 0x0"):
        memory.open(path, region_map=mapping)
    with pytest.raises(UnreadableError, match="No such file"):
        memory.open(path, region_map=tmp_path / "none")


def test_holes_are_skipped_but_present(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 33)
        for at in (5 << 20, 7 << 30):
            stream.seek(at)
            stream.write(b"\xd0\x0d\xfe\xed" + bytes(60))
    if path.stat().st_blocks * 512 > 1 << 24:
        pytest.skip("this file system has no sparse files")
    with memory.open(path) as image:
        assert image.read(1 << 30, 8) == bytes(8)
        assert image.state((1 << 33) - 4096, 4096) == memory.PageState.PRESENT
        stored = sum(len(piece) for _, piece in image.extents())
        assert stored < 1 << 22
        assert list(memory.find_words(image, 0xEDFE0DD0)) == [5 << 20, 7 << 30]
    # Once closed, the holes are no longer known, but the bytes are.
    assert image.read(5 << 20, 2) == b"\xd0\x0d"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"# just some text\n", "not a memory dump"),
        (bytes(5000), "not a memory dump: no known header, and 5000 bytes"),
        (b"\x1f\x8b" + bytes(4094), "gzip"),
        (b"\xfd7zXZ\0" + bytes(4090), "xz"),
        (b"BZh9" + bytes(4092), "bzip2"),
        (b"PK\x03\x04" + bytes(4092), "zip"),
        (b"EMiL" + bytes(4092), "LiME"),
        (b"QEVM" + bytes(4092), "QEMU migration"),
        (b"\xd0\x0d\xfe\xed" + bytes(4092), "flattened device tree"),
    ],
)
def test_not_a_dump(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as caught:
        memory.open(path)
    assert caught.value.exit_status == 8
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        memory.open(tmp_path / "none")
    with pytest.raises(UnreadableError, match="is a directory"):
        memory.open(tmp_path)
    with pytest.raises(UnreadableError, match="device or terminal"):
        memory.open("/dev/null")
    with pytest.raises(UnreadableError, match="null"):
        memory.open("a\0b")
    with pytest.raises(UsageError, match="no image"):
        memory.open([])
    with pytest.raises(UnreadableError, match="cannot open a int as an image"):
        memory.open(5)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(bytes(4096))
    path.chmod(0)
    with pytest.raises(UnreadableError, match="Permission denied"):
        memory.open(path)


@given(
    st.sampled_from(
        [
            b"",
            b"\x7fELF\x02\x01\x01",
            b"KDUMP   \6\0\0\0",
            b"DISKDUMP",
            b"\x28\xb5\x2f\xfd",
            b"makedumpfile\0\0\0\0" + bytes(7) + b"\1" + bytes(7) + b"\1",
            b"\x5a\x2a\x4d\x18",
        ]
    ),
    st.binary(max_size=600),
    st.sampled_from([0, 4096, 8192]),
)
@settings(max_examples=200)
def test_any_bytes_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, magic: bytes, data: bytes, size: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes((magic + data).ljust(size, b"\0"))
    try:
        image = memory.open(path)
    except UnreadableError as error:
        assert str(error).isprintable()
        return
    with image:
        for region in image.regions[:10]:
            assert image.state(region.start, 1) == region.state
        assert sum(len(piece) for _, piece in image.extents()) <= 1 << 24


def test_names_cannot_reach_the_terminal(tmp_path: Path) -> None:
    for name in (b"esc\x1b[2J", b"new\nline", b"\xff\xfe", "\u202eevil".encode()):
        path = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(path)).write_bytes(b"short")
        with pytest.raises(UnreadableError) as caught:
            memory.open(os.fsdecode(path))
        assert str(caught.value).isprintable()
        str(caught.value).encode("utf-8")
    with pytest.raises(UnreadableError, match="No such file"):
        memory.open(tmp_path / "none\x1b")


def test_the_same_part_of_many_pages(tmp_path: Path) -> None:
    """Every way to gather out of one piece, each against slices."""
    data = os.urandom(64 * 4096)
    path = tmp_path / "raw"
    path.write_bytes(data)
    rng = np.random.default_rng(3)
    with memory.open(path) as image:
        for size in (1, 8, 16, 24, 64, 100, 512, 4096, 5000, 8192):
            for step in (1, 8, size, 512, 4096):
                count = (len(data) - size) // step
                if count <= 0:
                    continue
                for lead in {0, 3 % step, step - 1}:
                    chosen = rng.integers(0, count, 40) * step + lead
                    chosen = chosen[chosen + size <= len(data)].astype(np.uint64)
                    if not len(chosen):
                        continue
                    want = b"".join(data[a : a + size] for a in chosen.tolist())
                    assert image.gather(chosen, size).tobytes() == want
                    out = np.empty((40, size), np.uint8)
                    assert image.gather(chosen, size, out).tobytes() == want
        assert image.gather(np.zeros(0, np.uint64), 8).shape == (0, 8)
        assert image.gather(np.array([5], np.uint64), 0).shape == (1, 0)


def test_only_a_kdump_is_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(core([(0, bytes(4096), 4096)]))
    with pytest.raises(UnreadableError, match="only a kdump"):
        memory.open([tmp_path / "a", tmp_path / "b"])
    with memory.open([str(tmp_path / "a")]) as image:
        assert image.kind == "elf"


_READ_STDIN = """
import sys
from inspector import memory
try:
    with memory.open("-") as image:
        print(image.kind, len(image.regions), image.read(image.regions[0].start, 4).hex())
except Exception as error:
    print(type(error).__name__, error)
"""


def run_with_stdin(**stdin: object) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _READ_STDIN],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
        **stdin,  # type: ignore[call-overload]
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_standard_input(tmp_path: Path) -> None:
    compressed = CORPUS / "vtd-legacy.elf.zst"
    with compressed.open("rb") as stream:  # a file: mapped in place
        assert run_with_stdin(stdin=stream).startswith("elf 8 ")
    with subprocess.Popen(["cat", compressed], stdout=subprocess.PIPE) as cat:  # a pipe: spooled
        assert run_with_stdin(stdin=cat.stdout).startswith("elf 8 ")
    raw_file = tmp_path / "raw"
    raw_file.write_bytes(b"abcd" + bytes(1 << 20) + b"x" * 4092)
    with subprocess.Popen(["cat", raw_file], stdout=subprocess.PIPE) as cat:
        assert run_with_stdin(stdin=cat.stdout) == "raw 1 61626364"
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as nothing:
        out = run_with_stdin(stdin=nothing.stdout)
        assert out == "UnreadableError standard input: the file is empty"
    assert "device or terminal" in run_with_stdin(stdin=subprocess.DEVNULL)


def test_a_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = b"\x7f" * 8192
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    with memory.open(path) as image:
        assert image.read(0, 8192) == data
    writer.join()


def test_a_full_spool_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(b"y" * (1 << 20))

    monkeypatch.setattr("inspector.memory.files.os.pwrite", full)
    writer = threading.Thread(target=feed)
    writer.start()
    with pytest.raises(KhoError, match=r"cannot spool to .*No space left.*TMPDIR"):
        memory.open(path)
    writer.join()
