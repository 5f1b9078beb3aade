"""The running host: /proc/kcore through drgn, and what its kernel tells of KHO.

Its memory is not searched for a root where the kernel names it: ``kho_in`` and ``kho_out`` hold
the address, whatever their layout, or up to 6.18 that of the page's struct page. Scratch areas are
listed by debugfs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abi.errors import UnreadableError
from abi.fdt import MAGIC_BYTES
from inspector.memory import notes
from inspector.memory.base import MemoryFault
from inspector.memory.elf import HEADER, PROGRAM_HEADER, PT_LOAD
from inspector.memory.program import ProgramMemory, import_drgn, ram_of_this_host

if TYPE_CHECKING:
    import drgn

DEBUGFS = Path("/sys/kernel/debug/kho")
KALLSYMS = Path("/proc/kallsyms")
KCORE = Path("/proc/kcore")
#: The kernel's records of the two sides, and bytes at their start that hold the address.
_RECORDS = {"kho_in": "in", "kho_out": "out"}
_RECORD_SIZE = 256
_VMEMMAP = "vmemmap_base"
#: No machine has more.
_PHYSICAL_BITS = 52
_PAGE = 4096
#: The physical address of segments that are not a part of RAM.
_NOWHERE = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class StructPages:
    """The kernel's array of struct page: from virtual address ``base`` on, ``size`` bytes each.

    The first is that of the page at physical address ``first``.
    """

    base: int
    size: int
    first: int
    page_size: int

    def address(self, pointer: int) -> int:
        """The physical address of the page that a pointer stands for; 0 if it is none."""
        index, odd = divmod(pointer - self.base, self.size)
        address = self.first + index * self.page_size
        return 0 if odd or index < 0 or address >> _PHYSICAL_BITS else address


class LiveMemory(ProgramMemory):
    """Physical memory of the running host."""

    kind = "live"
    kernel_roots: dict[int, str]

    def name_roots(self, program: drgn.Program) -> None:
        """Learn where the kernel itself says that root FDTs and scratch areas are."""
        self.kernel_roots = {}
        symbols = dict(_symbols(KALLSYMS))
        mapped = list(_direct_map(KCORE))
        pages = self._struct_pages(program, symbols.get(_VMEMMAP))
        for symbol, side in _RECORDS.items():
            for word in _words(program, symbols.get(symbol), _RECORD_SIZE):
                inside = (pa + word - start for start, end, pa in mapped if start <= word < end)
                for pa in (next(inside, word), pages.address(word) if pages else 0):
                    if self._is_tree(pa):
                        self.kernel_roots[pa] = side
        self.kernel_scratch = scratch_areas(DEBUGFS)
        self.why_no_root = not_finalized(DEBUGFS)

    def _struct_pages(self, program: drgn.Program, symbol: int | None) -> StructPages | None:
        """Where the kernel keeps its struct pages, if that can be told."""
        first = 0
        base = next(iter(_words(program, symbol, 8)), 0)
        try:
            size = int(self.notes.get("SIZE(page)", "64"))
            if not base:  # arm64 says it in its note
                base = int(self.notes["NUMBER(VMEMMAP_START)"], 16)
                first = int(self.notes["NUMBER(PHYS_OFFSET)"], 16)
        except (KeyError, ValueError):
            return None
        return StructPages(base, size, first, self.page_size or _PAGE) if size > 0 else None

    def _is_tree(self, pa: int) -> bool:
        try:
            return pa > 0 and pa % _PAGE == 0 and self.read(pa, 4) == MAGIC_BYTES
        except MemoryFault:
            return False


def open_live(*, vmcoreinfo: str | None = None) -> LiveMemory:
    """Physical memory of this host. Needs drgn and, as a rule, root.

    ``vmcoreinfo`` is given to drgn in place of the kernel's own. Raises UnreadableError.
    """
    drgn = import_drgn()
    program = drgn.Program(vmcoreinfo=vmcoreinfo) if vmcoreinfo else drgn.Program()
    try:
        program.set_kernel()
    except PermissionError:
        raise UnreadableError("/proc/kcore: permission denied; run as root") from None
    except Exception as error:  # drgn has no common base of its errors
        reason = notes.printable(str(error).encode())
        raise UnreadableError(f"/proc/kcore: drgn cannot read it ({reason})") from None
    regions = ram_of_this_host()
    if regions is None:
        raise UnreadableError("/proc/iomem: shows no addresses of RAM; run as root")
    memory = LiveMemory(program, regions=regions)
    memory.name_roots(program)
    return memory


def _words(program: drgn.Program, address: int | None, size: int) -> tuple[int, ...]:
    """The words at a virtual address; none if they cannot be read."""
    if address is None:
        return ()
    try:
        return struct.unpack(f"<{size // 8}Q", program.read(address, size))
    except Exception:  # drgn has no common base of its errors
        return ()


def _symbols(path: Path) -> Iterator[tuple[str, int]]:
    """(name, virtual address) of what is looked for; nothing where addresses are hidden."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                words = line.split()
                name = words[2].decode("ascii", "replace") if len(words) == 3 else ""
                if (name in _RECORDS or name == _VMEMMAP) and int(words[0], 16):
                    yield name, int(words[0], 16)
    except (OSError, ValueError):
        return


def _direct_map(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first virtual address, end, physical address) of what the kernel maps of its RAM."""
    try:
        with path.open("rb") as stream:
            header = HEADER.unpack(stream.read(16 + HEADER.size)[16:])
            stream.seek(header[4])
            raw = stream.read(header[9] * PROGRAM_HEADER.itemsize)
        segments = np.frombuffer(raw, PROGRAM_HEADER)
    except (OSError, ValueError, struct.error):
        return
    for segment in segments:
        if segment["type"] == PT_LOAD and segment["paddr"] != _NOWHERE:
            start, size, pa = (int(segment[name]) for name in ("vaddr", "memsz", "paddr"))
            yield start, start + size, pa


def scratch_areas(root: Path) -> tuple[tuple[int, int], ...]:
    """(address, size) of the scratch areas, as debugfs lists them; none if it does not."""
    columns = []
    for name in ("scratch_phys", "scratch_len"):
        try:
            text = (root / "out" / name).read_text("ascii", "replace")
            columns.append([int(word, 0) for word in text.split()])
        except (OSError, ValueError):
            return ()
    starts, sizes = columns
    return tuple(zip(starts, sizes, strict=True)) if len(starts) == len(sizes) else ()


def not_finalized(root: Path) -> str:
    """What to say of a kernel up to 6.18 that has made no tree yet; nothing of others."""
    path = root / "out" / "finalize"
    try:
        finalized = path.read_text("ascii", "replace").strip() != "0"
    except OSError:
        return ""
    return "" if finalized else f"the handover is not finalized (writing 1 to {path} does that)"
