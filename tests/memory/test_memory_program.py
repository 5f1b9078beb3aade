"""Images through drgn: its readers are a second opinion on ours, and serve what we lack."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from kdump_writer import FLAGS, Kdump, flatten
from memory_model import CORPUS, Model, check, core

from abi.errors import KhoError, UnreadableError
from abi.fdt import MAGIC_BYTES
from inspector import memory
from inspector.decode import decode
from inspector.memory import compression, live, program, zst
from inspector.memory.elf import HEADER, PROGRAM_HEADER, PT_LOAD
from inspector.memory.files import open_file
from inspector.memory.sparse import SparseMemory

try:
    import drgn
except ImportError:
    drgn = None

PAGE = 4096
INFO = (
    "OSRELEASE=7.3.4\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff81615000\n"
    "NUMBER(pgtable_l5_enabled)=0\nNUMBER(phys_base)=0\n"
)


def test_absent_drgn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "drgn", None)
    program = type("Program", (), {"__module__": "_drgn"})
    for source in ("live", "/proc/kcore", program()):
        with pytest.raises(UnreadableError, match=r"pip install 'kho-inspector\[drgn\]'"):
            memory.open(source)  # type: ignore[arg-type]


@pytest.mark.drgn
@pytest.mark.skipif(drgn is None, reason="drgn is not installed")
class TestWithDrgn:
    """Needs the drgn extra."""

    def program(self, path: Path) -> object:
        made = drgn.Program(vmcoreinfo=INFO)
        made.set_core_dump(path)
        return made

    @pytest.mark.parametrize("name", ["linux-7.3.4-handoff", "iommu-vw-small_legacy-handoff"])
    def test_a_capture_reads_the_same(self, name: str, tmp_path: Path) -> None:
        file = zst.decompress(open_file(str(CORPUS / f"{name}.elf.zst")))
        path = tmp_path / "core"
        path.write_bytes(file.data)
        file.close()
        with memory.open(path) as ours, memory.open(self.program(path)) as image:  # type: ignore[arg-type]
            assert (image.kind, image.machine, image.page_size) == ("program", "x86_64", PAGE)
            assert image.notes["OSRELEASE"] == "7.3.4"
            assert image.regions == ours.regions
            for region in ours.regions:
                ours_bytes = ours.read(region.start, region.size)
                assert image.read(region.start, region.size) == ours_bytes
            magic = 0xEDFE0DD0
            found = list(memory.find_words(image, magic))
            assert found == list(memory.find_words(ours, magic)) != []

    def test_the_contract_on_a_core(self, tmp_path: Path) -> None:
        data = os.urandom(3 * PAGE)
        path = tmp_path / "core"
        path.write_bytes(core([(PAGE, data[:PAGE], 2 * PAGE), (8 * PAGE, data[PAGE:], 2 * PAGE)]))
        cells: dict[int, int | None] = dict.fromkeys(range(2 * PAGE, 3 * PAGE))
        cells.update({PAGE + i: value for i, value in enumerate(data[:PAGE])})
        cells.update({8 * PAGE + i: value for i, value in enumerate(data[PAGE:])})
        probes = [(PAGE, 8), (2 * PAGE - 4, 8), (9 * PAGE - 3, 6), (0, 1), (10 * PAGE - 1, 2)]
        with memory.open(self.program(path)) as image:  # type: ignore[arg-type]
            check(image, Model(cells), probes)

    def test_without_regions_reads_work(self, tmp_path: Path) -> None:
        """A program with memory of its own: nothing says what there is."""
        blob = bytes(range(256)) * 32

        def read(address: int, count: int, offset: int, physical: bool) -> bytes:
            return blob[offset : offset + count]

        made = drgn.Program(drgn.Platform(drgn.Architecture.AARCH64))
        made.add_memory_segment(0x4000, len(blob), read, True)
        with memory.open(made) as image:
            assert image.machine == "aarch64"
            assert image.read(0x4001, 5000) == blob[1:5001]
            assert image.regions == ()
            assert list(image.extents()) == []
            addresses = np.array([0x4000, 0x5FFF, 0x6000, 0x3FFF], np.uint64)
            assert image.states(addresses, 1).tolist() == [2, 2, 0, 0]
            assert image.states(addresses, 2).tolist() == [2, 0, 0, 0]
            assert image.gather(addresses, 1)[:, 0].tolist() == [0, 255, 0, 0]
            with pytest.raises(memory.MemoryFault) as caught:
                image.read(0x5FF0, 100)
            assert caught.value.state == memory.PageState.OUTSIDE
        mapping = tmp_path / "map"
        mapping.write_text("0x4000 8K\n0x10000 4K\n")
        with memory.open(made, region_map=mapping) as image:
            assert [(r.start, r.size) for r in image.regions] == [(0x4000, 8192), (0x10000, 4096)]
            # The map promises more than there is: that is skipped, not made up.
            assert [pa for pa, _ in image.extents()] == [0x4000]
            with pytest.raises(memory.MemoryFault):
                image.read(0x10000, 4)

    @pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
    @pytest.mark.parametrize("name", FLAGS)
    def test_libkdumpfile_agrees(self, name: str, flat: bool, tmp_path: Path) -> None:
        for codec, module in (("lzo", "lzallright"), ("snappy", "cramjam")):
            if name == codec:
                pytest.importorskip(module, reason=f"writing {name} needs {module}")
        pages = {pfn: os.urandom(512) * 8 for pfn in range(1, 60)}
        data = Kdump(pages, range(100), compression=name).build()
        path = tmp_path / "kdump"
        path.write_bytes(flatten(data) if flat else data)
        theirs = self.program(path)
        with memory.open(path) as ours:
            for pfn in pages:
                read = theirs.read(pfn * PAGE, PAGE, True)  # type: ignore[attr-defined]
                assert read == ours.read(pfn * PAGE, PAGE) == pages[pfn]
        with pytest.raises(drgn.FaultError):
            theirs.read(80 * PAGE, 8, True)  # type: ignore[attr-defined]

    def test_drgn_serves_the_codec_that_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("lzallright", reason="writing lzo needs lzallright")
        pages = {pfn: os.urandom(512) * 8 for pfn in range(1, 60)}
        path = tmp_path / "kdump"
        path.write_bytes(Kdump(pages, range(100), compression="lzo").build())

        def missing(flag: int) -> compression.Decoder:
            raise compression.MissingCodecError(compression.NAMES[flag])

        monkeypatch.setattr(compression, "decoder", missing)
        with memory.open(path) as image:
            for pfn in pages:
                assert image.read(pfn * PAGE, PAGE) == pages[pfn]
            assert image.state(80 * PAGE) == memory.PageState.EXCLUDED
        half = Kdump(pages, range(100), compression="lzo", split=(0, 30)).build()
        other = Kdump(pages, range(100), compression="lzo", split=(30, 100)).build()
        (tmp_path / "a").write_bytes(half)
        (tmp_path / "b").write_bytes(other)
        with pytest.raises(UnreadableError, match="compressed with lzo"):
            memory.open([tmp_path / "a", tmp_path / "b"])

    def test_this_host(self) -> None:
        try:
            image = memory.open("live")
        except UnreadableError as error:
            pytest.skip(f"not readable here: {error}")
        with image:
            assert image.kind == "live"
            first = image.regions[0].start
            assert image.state(first, PAGE) == memory.PageState.PRESENT
            row = image.gather(np.array([first], np.uint64), PAGE)[0]
            assert len(row.tobytes()) == len(image.read(first, PAGE)) == PAGE


def test_regions_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iomem = tmp_path / "iomem"
    monkeypatch.setattr(program, "IOMEM", iomem)
    assert program.ram_of_this_host() is None
    iomem.write_text("00000000-00000000 : System RAM\n")
    assert program.ram_of_this_host() is None, "the kernel hides addresses from most users"
    iomem.write_text("00001000-0009ffff : System RAM\n000a0000-000fffff : Reserved\n")
    regions = program.ram_of_this_host()
    assert regions is not None
    assert [(r.first, r.last) for r in regions] == [(0x1000, 0x9FFFF)]


def test_scratch_areas_that_debugfs_lists(tmp_path: Path) -> None:
    assert live.scratch_areas(tmp_path / "none") == ()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scratch_phys").write_text("0x1000\n0x40000000\n")
    assert live.scratch_areas(tmp_path) == ()
    (tmp_path / "out" / "scratch_len").write_text("0x2000\n")
    assert live.scratch_areas(tmp_path) == (), "one is missing"
    (tmp_path / "out" / "scratch_len").write_text("0x2000\n0x1000000\n")
    assert live.scratch_areas(tmp_path) == ((0x1000, 0x2000), (0x40000000, 0x1000000))
    (tmp_path / "out" / "scratch_len").write_text("much\n")
    assert live.scratch_areas(tmp_path) == ()


def test_a_handover_that_is_not_finalized(tmp_path: Path) -> None:
    """Up to 6.18 the tree is made when somebody says so."""
    assert live.not_finalized(tmp_path) == ""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finalize").write_text("1\n")
    assert live.not_finalized(tmp_path) == ""
    (tmp_path / "out" / "finalize").write_text("0\n")
    assert str(tmp_path / "out" / "finalize") in live.not_finalized(tmp_path)
    memory = SparseMemory([(0, 1 << 20)])
    memory.why_no_root = live.not_finalized(tmp_path)
    with pytest.raises(KhoError, match=r"^no KHO root: the handover is not finalized"):
        decode(memory)


class Kernel:
    """As much of a drgn program as names the roots."""

    def __init__(self, records: dict[int, bytes]) -> None:
        self._records = records

    def read(self, address: int, size: int) -> bytes:
        return self._records[address][:size]


class Host(live.LiveMemory):
    """Memory of a host that is not this one."""

    def __init__(self, memory: SparseMemory, **notes: str) -> None:
        self._ram = memory
        self.notes = notes
        self.page_size = None

    def read(self, pa: int, size: int) -> bytes:
        return self._ram.read(pa, size)


@pytest.mark.parametrize("hidden", [False, True])
def test_the_kernel_names_its_roots(
    hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By virtual or physical address, wherever in its records; not what is no tree."""
    ram = SparseMemory([(0, 1 << 20)])
    for at in (0x3000, 0x5000, 0x7008):
        ram.write(at, MAGIC_BYTES)
    direct, kho_in, kho_out = 0xFFFF888000000000, 0xFFFFFFFF81000100, 0xFFFFFFFF81000200
    words = {
        kho_in: [0, 0x5000, 0x7008, direct + 0x6000, 1 << 63],
        kho_out: [direct + 0x3000, 0xFFFF888FFF000000, 7],
    }
    records = {
        at: np.array(row + [0] * (32 - len(row)), "<u8").tobytes() for at, row in words.items()
    }
    (tmp_path / "kallsyms").write_text(
        f"{0xFFFFFFFF81000000:016x} T _text\n"
        f"{0 if hidden else kho_in:016x} b kho_in\n"
        f"{0 if hidden else kho_out:016x} d kho_out\n"
        f"{0xFFFFFFFFC1000200:016x} d kho_out\t[module]\n"
    )
    segments = np.zeros(2, PROGRAM_HEADER)
    segments["type"] = PT_LOAD
    segments["vaddr"] = direct, kho_in & ~0xFFF
    segments["memsz"] = 1 << 20
    segments["paddr"] = 0, (1 << 64) - 1
    header = HEADER.pack(4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    (tmp_path / "kcore").write_bytes(b"\x7fELF".ljust(16, b"\0") + header + segments.tobytes())
    monkeypatch.setattr(live, "KALLSYMS", tmp_path / "kallsyms")
    monkeypatch.setattr(live, "KCORE", tmp_path / "kcore")
    monkeypatch.setattr(live, "DEBUGFS", tmp_path / "none")
    host = Host(ram)
    host.name_roots(Kernel(records))  # type: ignore[arg-type]
    assert host.kernel_roots == ({} if hidden else {0x5000: "in", 0x3000: "out"})


@pytest.mark.parametrize("machine", ["x86_64", "arm64", "unknown"])
def test_the_kernel_names_a_root_by_its_struct_page(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 6.16 to 6.18 do with the tree that they hand over."""
    vmemmap, kho_out, base = 0xFFFFD40000000000, 0xFFFFFFFF81000200, 0xFFFFFFFF81000300
    first = 0x40000000 if machine == "arm64" else 0
    ram = SparseMemory([(first, 1 << 20)])
    for at in (0x3000, 0x5000):
        ram.write(first + at, MAGIC_BYTES)
    # No tree, not a multiple of the size, before the first, beyond all memory.
    odd = [vmemmap + 4 * 64, vmemmap + 5 * 64 + 8, vmemmap - 3 * 64, vmemmap + (1 << 41)]
    row = [0, *odd, vmemmap + 3 * 64, (1 << 64) - 64]
    records = {
        kho_out: np.array(row + [0] * (32 - len(row)), "<u8").tobytes(),
        base: vmemmap.to_bytes(8, "little"),
    }
    known = f"{base:016x} D vmemmap_base\n" if machine == "x86_64" else ""
    (tmp_path / "kallsyms").write_text(f"{kho_out:016x} d kho_out\n{known}")
    monkeypatch.setattr(live, "KALLSYMS", tmp_path / "kallsyms")
    monkeypatch.setattr(live, "KCORE", tmp_path / "none")
    monkeypatch.setattr(live, "DEBUGFS", tmp_path / "none")
    told = {"NUMBER(VMEMMAP_START)": f"{vmemmap:#x}", "NUMBER(PHYS_OFFSET)": f"{first:#x}"}
    host = Host(ram, **(told if machine == "arm64" else {}))
    host.name_roots(Kernel(records))  # type: ignore[arg-type]
    assert host.kernel_roots == ({} if machine == "unknown" else {first + 0x3000: "out"})
