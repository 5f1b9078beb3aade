"""Cores that we write: read back by ourselves, streaming, whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_model import CORPUS, core

from abi.errors import UsageError
from inspector import memory
from inspector.memory import PageState
from inspector.memory.elfcore import write_core
from inspector.memory.sparse import SparseMemory
from inspector.output import OutputError, atomic_output

PAGE = 4096


def same(a: memory.PhysicalMemory, b: memory.PhysicalMemory) -> None:
    assert a.regions == b.regions
    for region in a.regions:
        if region.state is PageState.PRESENT:
            assert a.read(region.start, region.size) == b.read(region.start, region.size)


@pytest.mark.parametrize("suffix", ["elf", "elf.zst"])
@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.elf.zst")), ids=lambda path: path.name)
def test_a_capture_survives(path: Path, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"copy.{suffix}"
    with memory.open(path) as image:
        write_core(out, image)
        with memory.open(out) as copy:
            assert copy.machine == image.machine
            same(image, copy)


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from(["data", "zero", "left", "both"])),
        max_size=25,
    ),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_memory(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[int, str]], compress: bool
) -> None:
    source = SparseMemory([(0, 64 * PAGE), (80 * PAGE, 200 * PAGE)])
    for pfn, what in pages:
        if source.state(pfn * PAGE) is PageState.OUTSIDE:
            continue
        if what == "zero":
            source.mark_zero(pfn * PAGE, PAGE)
        elif what == "left":
            source.exclude(pfn * PAGE, PAGE)
        else:
            source.write(pfn * PAGE, bytes([pfn]) * (PAGE if what == "data" else 10))
    out = tmp_path_factory.mktemp("core") / "core"
    write_core(out, source, "riscv64", compress=compress, notes={"name": "value"})
    with memory.open(out) as copy:
        assert (copy.machine, copy.notes["name"]) == ("riscv64", "value")
        same(source, copy)


def test_pieces_zero_ranges_and_excluded(tmp_path: Path) -> None:
    out = tmp_path / "core"
    write_core(
        out,
        [(0x9000, b"b" * 100), (0x1000, b"a" * PAGE)],
        "aarch64",
        zero_ranges=[(1 << 40, 1 << 40)],
        excluded=[(0x2000, 0x1000)],
        vmcoreinfo="OSRELEASE=7.3.4\nPAGESIZE=65536\n",
    )
    assert out.stat().st_size < 1 << 16
    with memory.open(out) as image:
        assert [(r.start, r.size, int(r.state)) for r in image.regions] == [
            (0x1000, 0x1000, 2),
            (0x2000, 0x1000, 1),
            (0x9000, 100, 2),
            (1 << 40, 1 << 40, 2),
        ]
        assert (image.page_size, image.notes["OSRELEASE"]) == (65536, "7.3.4")
        assert image.read((3 << 39) - 4, 8) == bytes(8)


@pytest.mark.parametrize("most", [1 << 30, 5000])
def test_many_pieces_in_few_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Neighbours in the file go out together; a write may take only a part of them."""
    calls: list[int] = []
    pwritev = os.pwritev

    def write(fd: int, parts: list[memoryview], offset: int) -> int:
        calls.append(offset)
        taken, size = [], 0
        for part in parts:
            taken.append(part[: most - size])
            size += len(taken[-1])
        return pwritev(fd, taken, offset)

    monkeypatch.setattr(os, "pwritev", write)
    pieces = [(0x1000 + 0x3000 * i, bytes([i & 255 or 1]) * PAGE) for i in range(1500)]
    out = tmp_path / "core"
    write_core(out, pieces, "x86_64")
    with memory.open(out) as image:
        for address, data in pieces:
            assert image.read(address, PAGE) == data
    assert len(calls) == 2 if most > 1 << 20 else len(calls) >= 1500 * PAGE // most


def test_zero_runs_are_left_out_where_long(tmp_path: Path) -> None:
    """Four pages of zeros and more are no data; three are, and so is a page with one byte."""
    source = SparseMemory([(0, 4 << 20)])
    zero = bytes(PAGE)
    data = b"a" * PAGE + 3 * zero + b"b" * PAGE + 4 * zero + zero[:2000] + b"c" + zero[2001:]
    source.write(0, data + zero * 300 + b"d" * PAGE)
    out = tmp_path / "core"
    write_core(out, source, "x86_64")
    with memory.open(out) as copy:
        same(source, copy)
        stored = [(at, len(piece) // PAGE) for at, piece in copy.extents()]
    assert stored == [(0, 5), (9 * PAGE, 1), (310 * PAGE, 1)]


def test_zeros_stored_for_other_tools(tmp_path: Path) -> None:
    source = SparseMemory([(0, 1 << 30)])
    source.write(0x5000, b"x" * PAGE + bytes(8 * PAGE) + b"y")
    source.mark_zero(1 << 29, 1 << 28)
    out = tmp_path / "core"
    write_core(out, source, "x86_64", zero_ranges=[(0x100000, 1 << 20)], store_zeros=True)
    assert out.stat().st_blocks * 512 < 1 << 20
    with memory.open(out) as image:
        assert image.regions[1].start == 0x5000
        assert image.read(0x5000, 10 * PAGE) == source.read(0x5000, 10 * PAGE)
        assert image.read(0x100000, 1 << 20) == bytes(1 << 20)
        assert image.read((1 << 29) + (1 << 28) - 8, 8) == bytes(8)
    drgn = pytest.importorskip("drgn", reason="drgn is not installed")
    program = drgn.Program(
        vmcoreinfo="OSRELEASE=7\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
    )
    program.set_core_dump(out)
    assert program.read(0x6000, 8, True) == bytes(8)
    assert program.read(1 << 29, 8, True) == bytes(8)


def test_a_part_of_an_image(tmp_path: Path) -> None:
    source = SparseMemory([(0, 100 * PAGE)])
    source.write(0, os.urandom(50 * PAGE))
    source.notes = {"nodename": "secret-host", "OSRELEASE": "7.3.4"}
    out = tmp_path / "core"
    wanted = [(3 * PAGE, PAGE), (10 * PAGE, 2 * PAGE), (11 * PAGE, 2 * PAGE), (49 * PAGE, 9 * PAGE)]
    write_core(out, source, "x86_64", ranges=wanted, zero_ranges=[(10 * PAGE, PAGE)])
    with memory.open(out) as image:
        assert image.notes == {"OSRELEASE": "7.3.4", "PAGESIZE": "4096"}
        states = image.states(np.arange(101, dtype=np.uint64) * np.uint64(PAGE), PAGE)
        present = {3, 10, 11, 12, 49}
        want = [2 if pfn in present else 1 for pfn in range(100)] + [0]
        assert states.tolist() == want
        assert image.read(10 * PAGE, PAGE) == bytes(PAGE)
        assert image.read(49 * PAGE, PAGE) == source.read(49 * PAGE, PAGE)


def test_more_segments_than_expected_and_than_e_phnum_counts(tmp_path: Path) -> None:
    source = SparseMemory([(0, 1 << 30)])
    page = np.zeros((8, PAGE), np.uint8)
    page[0] = 1
    source.write(0, np.tile(page.reshape(-1), 300))
    out = tmp_path / "core"
    write_core(out, source, "x86_64")
    with memory.open(out) as image:
        same(source, image)
    pieces = [(i * 32, b"%016d" % i) for i in range(66_000)]
    write_core(out, pieces, "x86_64", force=True)
    with memory.open(out) as image:
        assert len(image.regions) == 66_000
        assert image.read(65_999 * 32, 16) == b"%016d" % 65_999


def test_memory_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as stream:
        for i in range(256):
            stream.write(bytes([i]) * (1 << 20))
        stream.truncate(4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with memory.open(path) as image:
        write_core(tmp_path / "core.zst", image, "x86_64")
    # What was mapped counts as resident too: the input, but not a copy of it.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10
    with memory.open(tmp_path / "core.zst") as image:
        assert image.read(255 << 20, 2) == b"\xff\xff"
        assert [(r.start, r.size) for r in image.regions] == [(0, 4 << 30)]


def test_wrong_calls(tmp_path: Path) -> None:
    out = tmp_path / "core"
    for source, machine in (([], None), ([], "vax"), ([(0, b"aa"), (1, b"b")], "x86_64")):
        with pytest.raises(UsageError):
            write_core(out, source, machine)
    with pytest.raises(UsageError):
        write_core(out, [((1 << 64) - 1, b"ab")], "x86_64")
    with pytest.raises(UsageError):
        write_core(out, [], "x86_64", zero_ranges=[(-1, 5)])
    assert list(tmp_path.iterdir()) == []


def test_damaged_kdump_pages_are_left_out(tmp_path: Path) -> None:
    from kdump_writer import Kdump

    pages = {i: os.urandom(2048) * 2 for i in range(1, 40)}
    good = Kdump(pages, range(50)).build()
    at = good.rindex(__import__("zlib").compress(pages[7], 1))
    path = tmp_path / "kdump"
    path.write_bytes(good[: at + 50] + b"\xff" * 50 + good[at + 100 :])
    with memory.open(path) as image:
        write_core(tmp_path / "core", image)
    with memory.open(tmp_path / "core") as copy:
        states = copy.states(np.arange(51, dtype=np.uint64) * np.uint64(PAGE), PAGE).tolist()
        assert states == [1] + [2] * 6 + [1] + [2] * 32 + [1] * 10 + [0]


# Output files


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"), atomic_output(out):
        raise AssertionError("not reached")
    with atomic_output(out, force=True) as fd:
        os.write(fd, b"new")
        assert out.read_text() == "mine", "not before the end"
    assert out.read_text() == "new"
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~current_umask()
    with pytest.raises(UsageError, match="is a directory"), atomic_output(tmp_path, force=True):
        raise AssertionError("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """A rename over /dev/null would leave a file there."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with (
            pytest.raises(UsageError, match="device or pipe"),
            atomic_output(tmp_path / name, force=True),
        ):
            raise AssertionError("not reached")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link").is_symlink()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with atomic_output(out) as fd:
            os.write(fd, b"new")
            out.write_text("theirs")

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert out.read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
def test_nothing_is_left_behind(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    kind = OutputError if isinstance(error, OSError) else error

    def write() -> None:
        with atomic_output(tmp_path / "out") as fd:
            os.write(fd, b"half")
            raise error

    with pytest.raises(kind):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_synced_takes_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may say so late; meanwhile the file has been read back and found right."""

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def verify(path: str) -> None:
        seen.append(Path(path).read_bytes())

    seen: list[bytes] = []
    monkeypatch.setattr(os, "fsync", fails)
    with (
        pytest.raises(OutputError, match="cannot be written: Input/output error"),
        atomic_output(tmp_path / "out", verify=verify) as fd,
    ):
        os.write(fd, b"whole")
    assert seen == [b"whole"]
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real file system of 1 MiB, where we may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True
    )
    if done.returncode:
        pytest.skip("may not mount a file system here")
    try:
        content = [(0, os.urandom(4 << 20))]
        for name in ("core", "core.zst"):
            with pytest.raises(OutputError, match=r"^\S*: cannot be written: No space left.*$"):
                write_core(mount / name, content, "x86_64")
            assert list(mount.iterdir()) == []
        monkeypatch.setattr(tempfile, "tempdir", str(mount))
        with pytest.raises(
            OutputError, match=r"^\S*core.zst: cannot spool to .*/small: No space.*$"
        ):
            write_core(tmp_path / "core.zst", content, "x86_64")
        assert list(tmp_path.iterdir()) == [mount]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        write_core(tmp_path / "a" / "b", [], "x86_64")
    (tmp_path / "foreign").write_bytes(core([(0, bytes(4096), 4096)]))
