"""ELF64 cores: QEMU dump-guest-memory, /proc/vmcore, and this project's own extracts.

A PT_LOAD gives ``p_filesz`` bytes of physical memory at ``p_paddr``; what ``p_memsz`` adds
is RAM that was left out, except where our own note (owner KHO) says that it is present
and zero. Program headers are found wherever ``e_phoff`` says; with PN_XNUM the count
stands in ``sh_info`` of section header 0. Where segments overlap, the one listed first
wins, and stored bytes win over the rest.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.errors import UnreadableError
from inspector.memory import notes
from inspector.memory.base import U64Array
from inspector.memory.files import ImageFile
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, SegmentTable, build

MAGIC = b"\x7fELF"
PN_XNUM = 0xFFFF
PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
EM_386, EM_X86_64 = 3, 62
_TYPES = {1: "relocatable object", 2: "executable", 3: "shared object"}
_MAX_NOTES = 1 << 26
#: Ranges of zeros in our notes. Our writer makes one of each hole of its source.
_MAX_ZERO = 1 << 22

#: Elf64_Ehdr behind e_ident.
HEADER = struct.Struct("<HHIQQQIHHHHHH")
PROGRAM_HEADER = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)

Headers = npt.NDArray[Any]


class ElfMemory(MappedMemory):
    """An ELF64 core of physical memory."""

    kind = "elf"

    def __init__(self, file: ImageFile) -> None:
        """Read the headers. Raises UnreadableError for what is not a core, or truncated."""
        self._file = file
        machine, headers = _program_headers(file)
        pairs, zero = _notes(file, headers)
        super().__init__(_table(file, headers, zero), file.data, file.data_ranges)
        try:
            self.aliased  # noqa: B018  # too many pieces to search show now, not in the middle
        except UnreadableError as error:
            raise UnreadableError(f"{file.name}: {error} in the file") from None
        self.notes = pairs
        self.page_size = notes.page_size_of(pairs)
        self.kernel_roots = notes.kernel_root_of(pairs)
        self.kernel_scratch = notes.scratch_areas_of(pairs)
        # QEMU writes EM_386 for a PC that is stopped outside long mode, in ELF64 all the same.
        machine = EM_X86_64 if machine == EM_386 else machine
        self.machine = notes.MACHINES.get(machine, f"machine-{machine}")

    def close(self) -> None:
        """Release the file. Views handed out stay valid as long as they are held."""
        self._file.close()


def _notes(file: ImageFile, headers: Headers) -> tuple[dict[str, str], U64Array]:
    """Pairs and ranges of zeros out of the PT_NOTE segments, each place read once."""
    pairs: dict[str, str] = {}
    zero = [np.zeros((0, 2), np.uint64)]
    read: list[tuple[int, int]] = []
    count = 0
    for header in headers[headers["type"] == PT_NOTE][:64]:
        offset, size = int(header["offset"]), int(header["filesz"])
        if any(offset < end and start < offset + size for start, end in read):
            continue  # no tool lays notes over each other
        read.append((offset, offset + size))
        found, ranges = notes.collect(file.data[offset : offset + min(size, _MAX_NOTES)])
        pairs = found | pairs
        zero.append(ranges)
        count += len(ranges)
        if count > _MAX_ZERO:
            raise UnreadableError(
                f"{file.name}: damaged ELF: notes list more than {_MAX_ZERO} ranges of zeros"
            )
    return pairs, np.concatenate(zero)


def _program_headers(file: ImageFile) -> tuple[int, Headers]:
    """e_machine and the program headers, none of which points outside the file."""
    data, name = file.data, file.name
    if len(data) < 64:
        raise UnreadableError(f"{name}: truncated ELF header")
    if data[4] != 2:
        kind = "32-bit" if data[4] == 1 else "invalid"
        raise UnreadableError(f"{name}: {kind} ELF; KHO exists on 64-bit machines only")
    if data[5] != 1:
        kind = "big-endian" if data[5] == 2 else "invalid"
        raise UnreadableError(f"{name}: {kind} ELF; KHO exists on little-endian machines only")
    header = HEADER.unpack_from(data, 16)
    kind, machine, phoff, shoff, phentsize, phnum = (header[i] for i in (0, 1, 4, 5, 8, 9))
    if kind != ET_CORE:
        what = _TYPES.get(kind, f"file of type {kind}")
        raise UnreadableError(f"{name}: an ELF {what}, not a core dump")
    if phnum == PN_XNUM:
        if shoff > len(data) - 64:
            raise UnreadableError(f"{name}: truncated ELF: section header 0 is missing")
        phnum = struct.unpack_from("<I", data, shoff + 44)[0]
    if phnum and phentsize != PROGRAM_HEADER.itemsize:
        raise UnreadableError(f"{name}: ELF program headers of {phentsize} bytes instead of 56")
    if phoff + phnum * PROGRAM_HEADER.itemsize > len(data):
        raise UnreadableError(
            f"{name}: truncated ELF: {phnum} program headers at {phoff:#x}, "
            f"but the file ends at {len(data):#x}"
        )
    headers = (
        np.frombuffer(data, PROGRAM_HEADER, phnum, phoff) if phnum else np.zeros(0, PROGRAM_HEADER)
    )
    used = np.isin(headers["type"], (PT_LOAD, PT_NOTE)) & (headers["filesz"] > 0)
    size = np.uint64(len(data))
    room = size - np.minimum(headers["filesz"], size)
    beyond = used & ((headers["filesz"] > size) | (headers["offset"] > room))
    if beyond.any():
        index = int(np.argmax(beyond))
        end = int(headers["offset"][index]) + int(headers["filesz"][index])
        raise UnreadableError(
            f"{name}: truncated ELF: segment {index} reaches to {end:#x}, "
            f"but the file ends at {len(data):#x}"
        )
    return machine, headers


def _table(file: ImageFile, headers: Headers, zero: U64Array) -> SegmentTable:
    """Pieces out of the PT_LOAD segments and the ranges of our own note."""
    load = headers[(headers["type"] == PT_LOAD) & (headers["memsz"] | headers["filesz"] > 0)]
    # /proc/kcore marks segments without a physical address so.
    load = load[load["paddr"] != np.uint64((1 << 64) - 1)]
    if not len(load):
        raise UnreadableError(f"{file.name}: an ELF core without any memory in it")
    if len(load) > 1 and not load["paddr"].any():
        raise UnreadableError(
            f"{file.name}: an ELF core without physical addresses (of a process?)"
        )
    one = np.uint64(1)
    size = np.maximum(load["memsz"], load["filesz"])
    if bool(np.any(load["paddr"] + (size - one) < load["paddr"])):
        raise UnreadableError(f"{file.name}: damaged ELF: a segment wraps around 2^64")
    stored = load[load["filesz"] > 0]
    left = load[size > load["filesz"]]
    left_first = left["paddr"] + left["filesz"]
    left_last = left["paddr"] + (np.maximum(left["memsz"], left["filesz"]) - one)
    zero = zero[(zero[:, 1] > 0) & (zero[:, 0] + (zero[:, 1] - one) >= zero[:, 0])]
    first = np.concatenate((stored["paddr"], zero[:, 0], left_first))
    last = np.concatenate(
        (
            stored["paddr"] + (stored["filesz"] - one),
            zero[:, 0] + (zero[:, 1] - one),
            left_last,
        )
    )
    counts = (len(stored), len(zero), len(left))
    kind = np.repeat(np.array([Kind.STORED, Kind.ZERO, Kind.EXCLUDED], np.uint8), counts)
    offset = np.zeros(sum(counts), np.int64)
    offset[: len(stored)] = stored["offset"]
    try:
        return build(first, last, kind, offset)
    except UnreadableError as error:
        raise UnreadableError(f"{file.name}: {error}") from None
