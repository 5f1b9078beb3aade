"""Lay a prepared image into guest memory, with a kernel to take it over.

The kernel, its initrd and what it is booted with go where kexec puts them: into scratch
memory, where nothing preserved lies. What the image says about the hand-over (struct
kho_data, the scratch array) is passed on as it is, right or wrong.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from abi.errors import UsageError
from inspector.locate import Handover, locate, ram_of
from inspector.memory.base import MemoryFault, PageState, PhysicalMemory
from lab.build import Kernel
from lab.expectation import ExpectedRegion
from lab.host import LabError, os_errors
from lab.ram import Ram

_PAGE = 0x1000
_ALIGN = 2 << 20
_MAX_RAM = 16 << 30
_CHUNK = 1 << 20
_POISON = 0x6B
#: QEMU's dumps end with the ROM below 4 GiB, which is no loss.
_ROM = 256 << 10

# boot_params (Documentation/arch/x86/zero-page.rst) and its setup header (boot.rst).
_E820_COUNT = 0x1E8
_SETUP_HEADER = 0x1F1
_SETUP_SECTORS = 0x1F1
_JUMP_LENGTH = 0x201
_LOADER_TYPE = 0x210
_CODE32_START = 0x214
_RAMDISK = 0x218
_COMMAND_LINE = 0x228
_RELOCATABLE = 0x234
_SETUP_DATA = 0x250
_PREFERRED_ADDRESS = 0x258
_INIT_SIZE = 0x260
_E820_TABLE = 0x2D0
_E820_MAX = 128
_ENTRY_64 = 0x200
_SETUP_KEXEC_KHO = 10


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the kernel was put. ``entry`` and ``boot_params`` are what the ROM needs."""

    entry: int
    boot_params: int
    command_line: str
    handover: Handover
    scratch: tuple[tuple[int, int], ...]
    area: tuple[int, int]
    notes: list[str] = field(default_factory=list)


def fill(
    memory: PhysicalMemory,
    kernel: Kernel,
    initrd: bytes,
    *,
    root: int | None = None,
    scratch: tuple[tuple[int, int], ...] | None = None,
    ram_size: int | None = None,
    command_line: str = "",
    regions: Sequence[ExpectedRegion] = (),
    poison: bool = False,
) -> tuple[Ram, Placement]:
    """Guest memory with the image and the kernel in it.

    ``scratch`` replaces the image's scratch array by (address, size) pairs, ``ram_size``
    is in bytes. ``regions`` are asked for on the command line unless the image has one of its
    own that asks. ``poison`` fills whatever the image does not hold. Raises LabError if the
    kernel finds no place, UsageError if the image says too little.
    """
    location = locate(memory, root)
    candidate = location.candidates[0] if location.candidates else None
    handover = candidate.handover if candidate else None
    if handover is None:
        # The kernel believes what boot_params lead to, be there a root or not.
        handover = next((h for h in location.handovers if h.parent is not None), None)
    if handover is None:
        if candidate is None:
            raise UsageError("the image holds no KHO root; give its address with --root")
        if scratch is None:
            raise UsageError("nothing in the image points to its root; give the --scratch areas")
        handover = Handover(candidate.how, 0, candidate.address, _PAGE, 0, 16 * len(scratch))
    array = _array(memory, handover, scratch)
    areas = tuple((int(a), int(n)) for a, n in struct.iter_unpack("<QQ", array[: len(array) & -16]))
    usable = ram_of(memory, location)
    end = max([r.end for r in usable or memory.regions], default=0)
    if usable is None:
        end = max([end, *(a + n for a, n in areas if a + n < _MAX_RAM)])
    size = _ram_size(end, ram_size)
    notes: list[str] = []
    ram = Ram(size)
    try:
        if poison:
            _poison(memory, ram)
        lost = _copy(memory, ram)
        if lost > _ROM:
            notes.append(f"{lost} bytes of the image lie beyond the guest's memory")
        table = _pc_table([(r.start, r.end) for r in usable]) if usable else _plain_table(ram)
        asked = _reserve_mem(memory, handover) or [
            f"reserve_mem={r.size}:{_PAGE}:{r.name}" for r in regions
        ]
        line = " ".join([command_line, *asked])
        placement = _place(memory, ram, kernel, initrd, handover, array, areas, table, line, notes)
    except BaseException:
        ram.close()
        raise
    return ram, placement


def _array(
    memory: PhysicalMemory, handover: Handover, given: tuple[tuple[int, int], ...] | None
) -> bytes:
    if given is not None:
        return b"".join(struct.pack("<QQ", *area) for area in given)
    if not handover.scratch_size:
        return b""
    try:
        return memory.read(handover.scratch_address, min(handover.scratch_size, _PAGE))
    except MemoryFault as fault:
        if fault.state is PageState.OUTSIDE and handover.parent is not None:
            return b""  # the kernel is told that address all the same
        raise UsageError(
            f"the scratch array is not in the image ({fault}); give --scratch"
        ) from None


def _ram_size(end: int, given: int | None) -> int:
    if given is not None:
        size = given
    else:
        low = end if end <= 4 << 30 else end - (1 << 30)
        size = max(-(-low // _ALIGN) * _ALIGN, 64 << 20)
    if size > _MAX_RAM:
        raise LabError(f"the image is of a machine with {size >> 30} GiB; the lab stops at 16")
    return size


def _copy(memory: PhysicalMemory, ram: Ram) -> int:
    """Write the image into guest memory; how many bytes had no place."""
    lost = 0
    for start, view in memory.extents():
        for at in range(0, len(view), _CHUNK):
            piece = view[at : at + _CHUNK]
            if not np.frombuffer(piece, np.uint8).any():
                continue
            if not ram.write(start + at, piece):
                for page in range(0, len(piece), _PAGE):
                    if not ram.write(start + at + page, piece[page : page + _PAGE]):
                        lost += len(piece[page : page + _PAGE])
    return lost


def _poison(memory: PhysicalMemory, ram: Ram) -> None:
    """Fill what the image does not hold. A zero page that it holds stays zero."""
    piece = bytes([_POISON]) * _CHUNK
    at = 0
    present = [(r.start, r.end) for r in memory.regions if r.state is PageState.PRESENT]
    for start, end in [*present, (ram.low, ram.low)]:
        while at < min(start, ram.low):
            n = min(_CHUNK, start - at, ram.low - at)
            ram.write(at, piece[:n])
            at += n
        at = max(at, end)


def _plain_table(ram: Ram) -> list[tuple[int, int]]:
    """The e820 RAM entries of a machine of this size."""
    table = [(0, 0x9FC00), (0x100000, ram.low - 0x100000)]
    if ram.size > ram.low:
        table.append((4 << 30, ram.size - ram.low))
    return table


def _pc_table(usable: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """e820 RAM entries without the hole that every PC has below 1 MiB.

    Up to 6.19 a table of a single entry is taken for none at all.
    """
    table = []
    for start, end in usable:
        for low, high in ((start, min(end, 0x9FC00)), (max(start, 0x100000), end)):
            if low < high:
                table.append((low, high - low))
    return table


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


def _place(
    memory: PhysicalMemory,
    ram: Ram,
    kernel: Kernel,
    initrd: bytes,
    handover: Handover,
    array: bytes,
    areas: tuple[tuple[int, int], ...],
    table: list[tuple[int, int]],
    command_line: str,
    notes: list[str],
) -> Placement:
    with os_errors("read the kernel"):
        image = kernel.bzimage.read_bytes()
    setup = ((image[_SETUP_SECTORS] or 4) + 1) * 512
    (init_size,) = struct.unpack_from("<I", image, _INIT_SIZE)
    (preferred,) = struct.unpack_from("<Q", image, _PREFERRED_ADDRESS)
    line = command_line.encode() + b"\0"
    sizes = [_PAGE, _up(len(line), _PAGE), _PAGE, _up(max(len(array), 1), _PAGE), len(initrd)]
    need = _up(init_size, _PAGE) + sum(sizes)
    area = _choose(memory, ram, areas, need, preferred, notes)
    base = max(_up(area[0], _ALIGN), preferred if area[0] <= preferred else 0)
    at = base + _up(init_size, _PAGE)
    spots = []
    for size in sizes:
        spots.append(at)
        at += size
    params_at, line_at, data_at, array_at, initrd_at = spots

    params = bytearray(_PAGE)
    header_end = 0x202 + image[_JUMP_LENGTH]
    params[_SETUP_HEADER:header_end] = image[_SETUP_HEADER:header_end]
    params[_LOADER_TYPE] = 0xFF
    struct.pack_into("<I", params, _CODE32_START, base)
    struct.pack_into("<II", params, _RAMDISK, initrd_at, len(initrd))
    struct.pack_into("<I", params, _COMMAND_LINE, line_at)
    struct.pack_into("<Q", params, _SETUP_DATA, data_at)
    table = table[:_E820_MAX]
    params[_E820_COUNT] = len(table)
    for i, (start, size) in enumerate(table):
        struct.pack_into("<QQI", params, _E820_TABLE + 20 * i, start, size, 1)
    data = struct.pack("<QII", 0, _SETUP_KEXEC_KHO, 32)
    data += struct.pack(
        "<QQQQ",
        handover.fdt_address,
        handover.fdt_size,
        array_at if array else handover.scratch_address,
        handover.scratch_size,
    )
    pieces = [(base, image[setup:]), (params_at, bytes(params)), (line_at, line)]
    pieces += [(data_at, data), (array_at, array), (initrd_at, initrd)]
    for address, piece in pieces:
        if not ram.write(address, piece):
            raise LabError(f"the kernel does not fit into the guest's memory at {address:#x}")
    return Placement(base + _ENTRY_64, params_at, line[:-1].decode(), handover, areas, area, notes)


def _choose(
    memory: PhysicalMemory,
    ram: Ram,
    areas: tuple[tuple[int, int], ...],
    need: int,
    preferred: int,
    notes: list[str],
) -> tuple[int, int]:
    """The largest scratch area that takes the kernel; else the largest gap in the image."""

    def room(area: tuple[int, int]) -> int:
        start, size = area
        base = max(_up(start, _ALIGN), preferred if start <= preferred else 0)
        return min(start + size, ram.low) - base

    fits = [a for a in areas if room(a) >= need and a[0] >= _CHUNK]
    high = [a for a in fits if room(a) >= need and a[0] + a[1] > preferred]
    if fits:
        return max(high or fits, key=lambda a: a[1])
    gaps = []
    at = 0x1000000
    for start, view in memory.extents():
        if start > at:
            gaps.append((at, start - at))
        at = max(at, start + len(view))
    gaps.append((at, ram.low - at))
    fits = [g for g in gaps if room(g) >= need]
    if not fits:
        raise LabError(f"no scratch area and no gap of the image takes the kernel ({need} bytes)")
    best = max(fits, key=lambda g: g[1])
    notes.append(f"no scratch area takes the kernel; it lies in a gap of the image, {best[0]:#x}")
    return best


def _reserve_mem(memory: PhysicalMemory, handover: Handover) -> list[str]:
    """The reserve_mem parameters of the command line in the image, if it has one."""
    if handover.parent is None:
        return []
    try:
        pointer = int.from_bytes(memory.read(handover.parent + _COMMAND_LINE, 4), "little")
        text = memory.read(pointer, 2048).split(b"\0")[0]
    except MemoryFault:
        return []
    return re.findall(r"reserve_mem=[0-9A-Za-z:_-]+", text.decode("ascii", "replace"))
