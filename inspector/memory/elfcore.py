"""Write ELF64 cores of physical memory: simulated images and extracts.

Every run of stored pages is a PT_LOAD with its physical address in ``p_paddr``. Pages
that are present and zero take no space: their PT_LOAD has ``p_filesz`` 0, and a note
(owner ``KHO``, type 1: pairs of u64 start and size) says that they are zero, because
``p_memsz`` beyond ``p_filesz`` alone means "left out" to everybody who reads dumps.
Program headers stand in front, where makedumpfile and others look for them; runs of zeros
are stored once the room there is used up. Only if an image consists of too many pieces do
they come behind the data.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector.background import Background
from inspector.memory import notes as elf_notes
from inspector.memory import zst
from inspector.memory.base import MemoryFault, PhysicalMemory
from inspector.memory.elf import (
    ET_CORE,
    HEADER,
    MAGIC,
    PN_XNUM,
    PROGRAM_HEADER,
    PT_LOAD,
    PT_NOTE,
)
from inspector.memory.files import cannot_spool
from inspector.memory.mapped import MappedMemory
from inspector.memory.ranges import (
    RangeList,
    Ranges,
    complement,
    intersect,
    merged,
    parts_of,
    present,
)
from inspector.memory.sparse import SparseMemory
from inspector.output import OutputError, atomic_output
from inspector.text import display

Pieces: TypeAlias = Sequence[tuple[int, "bytes | bytearray | memoryview"]]
#: Address, size, the bytes (None: zeros), and whether they are all zero.
Chunk: TypeAlias = tuple[int, int, "memoryview | None", bool]
#: Address and size of what was written, and the CRC-32 of it; None for zeros.
Digest: TypeAlias = tuple[int, int, "int | None"]

_PAGE = 4096
_CHUNK = 1 << 20
_PF_R = 4
_HOST_NAMES = ("nodename", "domainname")
#: Shorter runs of zero pages are stored: a segment and a note cost space as well.
_MIN_ZERO = 4 * _PAGE
_MAX_SPARE = 4096
#: Bytes and pieces (IOV_MAX of Linux) that are written together.
_BATCH, _MAX_PARTS = 8 << 20, 1024
#: Room for more headers than that is not made in front of the data.
_MAX_HEADERS = 1 << 17


def write_core(
    path: str | os.PathLike[str],
    source: PhysicalMemory | Pieces,
    machine: str | None = None,
    *,
    ranges: Ranges | None = None,
    zero_ranges: Ranges = (),
    excluded: Ranges | None = None,
    notes: Mapping[str, str] | None = None,
    vmcoreinfo: str | None = None,
    store_zeros: bool = False,
    compress: bool | None = None,
    force: bool = False,
    digests: list[Digest] | None = None,
    verify: Callable[[str], None] | None = None,
) -> None:
    """Write a core, atomically, in bounded memory.

    ``source`` is an image, of which everything present is written, or (address, bytes)
    pieces. ``ranges`` of (start, size) limit an image to a part. ``zero_ranges`` are
    written as present and zero whatever ``source`` holds there, and ``excluded`` as RAM
    that is left out; both must not overlap pieces. ``excluded`` is by default what else
    the image knows to be RAM. ``machine`` is ``x86_64``, ``aarch64``, ``riscv64``;
    default: the image's. ``notes`` are kept in our own note (default: the image's, but
    the names of the host), ``vmcoreinfo`` (text) in a VMCOREINFO note for other tools.
    ``store_zeros`` stores pages of zeros like all others, as holes of the file, for tools
    that do not know our note (drgn cannot read them otherwise). ``compress`` makes zstd
    of it; default: if the name ends in ``.zst``. An existing file is replaced only with
    ``force``, and none is published if ``verify`` raises: it is called with a path of the core,
    while that is synced, or compressed; and what was compressed is compared with it.
    ``digests`` is filled with what was written, in order.

    Raises UsageError for a wrong call, OutputError if the file cannot be written.
    """
    if machine is None and isinstance(source, PhysicalMemory):
        machine = source.machine
    by_name = {name: number for number, name in elf_notes.MACHINES.items()}
    if machine not in by_name:
        raise UsageError(f"cannot write a core for machine {machine}")
    zero, left = merged(zero_ranges), merged(excluded or ())
    if isinstance(source, PhysicalMemory):
        parts = intersect(present(source, ranges), complement(merged(zero + left)))
        if excluded is None:
            ram = [(region.start, region.size) for region in source.regions]
            left = intersect(merged(ram), complement(merged(parts + zero)))
        # What has to be decoded may turn out to be damaged: such pages are read one by one.
        direct = is_direct(source)
        chunks = _stored(source, parts) if direct else _picked(source, parts, left)
        expected = _room_for(source, parts) if direct and ranges is not None else 2 * len(parts)
        spare = min(sum(size for _, size in parts) >> 16, _MAX_SPARE)
        if notes is None:
            notes = {k: v for k, v in source.notes.items() if k not in _HOST_NAMES}
            if source.page_size:
                notes["PAGESIZE"] = str(source.page_size)
    else:
        pieces = sorted(source, key=lambda piece: piece[0])
        chunks, expected, spare = _chunks_of_pieces(pieces), len(pieces), 0
    if digests is not None:
        chunks = _noted(chunks, digests)
    core = _Core(by_name[machine], expected + len(zero) + len(left), spare)
    core.store_zeros = store_zeros
    chunks = itertools.chain(chunks, ((start, size, None, True) for start, size in zero))
    core.excluded = left
    tail = (notes or {}, vmcoreinfo)
    compress = str(path).endswith(".zst") if compress is None else compress
    if not compress:
        with atomic_output(path, force=force, verify=verify) as fd:
            core.write(fd, chunks, *tail)
        return
    with _spooling(path), tempfile.TemporaryFile(prefix="kho-") as spool:
        plain = spool.fileno()
        same = None if verify is None else functools.partial(zst.check, plain=plain)
        with atomic_output(path, force=force, verify=same) as fd:
            with _spooling(path):
                core.write(plain, chunks, *tail)
            with Background("compress") as thread:
                thread.call(functools.partial(zst.compress, plain), fd)
                if verify is not None:
                    verify(_path_of(plain))


def _path_of(fd: int) -> str:
    """By what name an unnamed file can be opened once more; /dev/fd is not everywhere."""
    own = f"/proc/self/fd/{fd}"
    return own if os.path.exists(own) else f"/dev/fd/{fd}"


@contextlib.contextmanager
def _spooling(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of an error that it is about the temporary file. Raises OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{display(os.fspath(path))}: {cannot_spool(error)}") from None


def is_direct(memory: PhysicalMemory) -> bool:
    """Whether the bytes of an image are at hand: extents cost nothing, and none is damaged."""
    while isinstance(memory, SparseMemory):
        memory = memory.base
    return isinstance(memory, MappedMemory)


class _Core:
    """The parts of a core as they come to be known while the data are written."""

    def __init__(self, machine: int, expected: int, spare: int) -> None:
        """``expected`` program headers find room in front of the data, and twice ``spare``."""
        self.machine = machine
        self.spare = spare
        self.store_zeros = False
        self.room = max(-(-(64 + 56 * (expected + 2 * spare + 4)) // _PAGE) * _PAGE, _PAGE)
        self.loads: list[tuple[int, int, int]] = []  # address, size, offset
        self.zero: list[tuple[int, int]] = []
        self.excluded: list[tuple[int, int]] = []

    def write(
        self,
        fd: int,
        chunks: Iterator[Chunk],
        notes: Mapping[str, str],
        vmcoreinfo: str | None,
    ) -> None:
        """Write data, notes and program headers, and at last the ELF header."""
        output = _Output(fd)
        at = self.room
        fixed = len(self.zero) + len(self.excluded)
        for address, size, data, is_zero in chunks:
            used = len(self.loads) + len(self.zero) - fixed
            if not self.store_zeros and (data is None or (is_zero and used < self.spare)):
                _extend(self.zero, address, size)
                continue
            # Offsets and addresses agree modulo the page, as mappers of cores like it.
            if not self.loads or self.loads[-1][0] + self.loads[-1][1] != address:
                at += (address - at) % _PAGE
                self.loads.append((address, size, at))
            else:
                start, length, offset = self.loads[-1]
                self.loads[-1] = (start, length + size, offset)
            if data is not None and not is_zero:
                output.put(data, at)
            at += size
        output.flush()
        note = self._notes(notes, vmcoreinfo)
        note_at = -(-at // 8) * 8
        _write_all(fd, memoryview(note), note_at)
        headers = self._headers(note_at, len(note))
        table = headers.tobytes()
        end = note_at + len(note)
        in_front = 64 + len(table) <= self.room
        headers_at = 64 if in_front else -(-end // 8) * 8
        _write_all(fd, memoryview(table), headers_at)
        if not in_front:
            end = headers_at + len(table)
        section_at = 0
        if len(headers) >= PN_XNUM:  # the count stands in section header 0 then
            section_at = -(-end // 8) * 8
            section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, len(headers), 0, 0)
            _write_all(fd, memoryview(section), section_at)
            end = section_at + len(section)
        ident = MAGIC + bytes((2, 1, 1)) + bytes(9)
        header = ident + HEADER.pack(
            ET_CORE,
            self.machine,
            1,
            0,
            headers_at,
            section_at,
            0,
            64,
            PROGRAM_HEADER.itemsize,
            min(len(headers), PN_XNUM),
            64 if section_at else 0,
            1 if section_at else 0,
            0,
        )
        os.ftruncate(fd, end)
        _write_all(fd, memoryview(header), 0)

    def _notes(self, notes: Mapping[str, str], vmcoreinfo: str | None) -> bytes:
        parts = []
        if vmcoreinfo:
            parts.append(elf_notes.build(b"VMCOREINFO", 0, vmcoreinfo.encode()))
        if notes:
            text = elf_notes.build_pairs(notes)
            parts.append(elf_notes.build(elf_notes.KHO_OWNER, elf_notes.NT_KHO_NOTES, text))
        zero = np.array(self.zero, np.uint64).reshape(-1, 2)
        if len(zero):
            parts.append(
                elf_notes.build(elf_notes.KHO_OWNER, elf_notes.NT_KHO_ZERO, zero.tobytes())
            )
        return b"".join(parts)

    def _headers(self, note_at: int, note_size: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        segments = [(address, offset, size, size) for address, size, offset in self.loads]
        segments += [(start, self.room, 0, size) for start, size in self.zero + self.excluded]
        segments.sort()
        headers = np.zeros(len(segments) + bool(note_size), PROGRAM_HEADER)
        if note_size:
            headers[0] = (PT_NOTE, 0, note_at, 0, 0, note_size, 0, 4)
        loads = headers[bool(note_size) :]
        if segments:
            address, offset, stored, size = np.array(segments, np.uint64).T
            loads["type"], loads["flags"], loads["align"] = PT_LOAD, _PF_R, _PAGE
            loads["paddr"], loads["offset"] = address, offset
            loads["filesz"], loads["memsz"] = stored, size
        return headers


class _Output:
    """Writes pieces of data; those that follow each other in the file go out together."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: list[memoryview] = []
        self._at = 0
        self._size = 0

    def put(self, data: memoryview, offset: int) -> None:
        """Write at an offset, now or at the next :meth:`flush`; ``data`` must not change."""
        full = self._size >= _BATCH or len(self._parts) == _MAX_PARTS
        if full or offset != self._at + self._size:
            self.flush()
            self._at = offset
        self._parts.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Write what is held back."""
        parts, self._parts = self._parts, []
        at, self._at = self._at, self._at + self._size
        self._size = 0
        while parts:
            done = os.pwritev(self._fd, parts, at)
            at += done
            while parts and done >= len(parts[0]):
                done -= len(parts.pop(0))
            if done:
                parts[0] = parts[0][done:]


def _chunks_of_pieces(pieces: Pieces) -> Iterator[Chunk]:
    """Pieces in ascending order, as they are."""
    end = -1
    for address, data in pieces:
        view = memoryview(data).cast("B")
        if address < end or not 0 <= address <= address + len(view) <= 1 << 64:
            raise UsageError(f"piece at {address:#x} overlaps another or leaves the machine")
        end = address + len(view)
        if len(view):
            yield address, len(view), view, False


def _stored(memory: PhysicalMemory, parts: RangeList) -> Iterator[Chunk]:
    """What an image stores in some ranges, and zeros where it has nothing."""
    for address, size, piece in parts_of(memory, parts):
        if piece is None:
            yield address, size, None, True
        else:
            yield from _split(address, piece)


def _room_for(memory: PhysicalMemory, parts: RangeList) -> int:
    """Program headers that the extents of an image in some ranges will need, at most."""
    return sum(1 for _ in itertools.islice(parts_of(memory, parts), _MAX_HEADERS))


def _noted(chunks: Iterator[Chunk], digests: list[Digest]) -> Iterator[Chunk]:
    """Chunks as they come, with what is in them written down."""
    for address, size, data, is_zero in chunks:
        digests.append((address, size, None if data is None or is_zero else zlib.crc32(data)))
        yield address, size, data, is_zero


def _picked(
    memory: PhysicalMemory, parts: list[tuple[int, int]], left: list[tuple[int, int]]
) -> Iterator[Chunk]:
    """Some ranges of an image; what cannot be read after all is added to ``left``."""
    for address, size in parts:
        for at in range(address, address + size, _CHUNK):
            length = min(_CHUNK, address + size - at)
            try:
                yield from _split(at, memoryview(memory.read(at, length)))
            except MemoryFault:
                for page in range(at, at + length, _PAGE):
                    rest = min(_PAGE, at + length - page)
                    try:
                        data = memory.read(page, rest)
                    except MemoryFault:
                        _extend(left, page, rest)
                    else:
                        yield page, rest, memoryview(data), False


def _split(address: int, data: memoryview) -> Iterator[Chunk]:
    """A piece, cut where pages are zero for long enough."""
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        at = 0
        for begin, end in _zero_runs(chunk) if not address % _PAGE else ():
            if begin > at:
                yield address + start + at, begin - at, chunk[at:begin], False
            yield address + start + begin, end - begin, chunk[begin:end], True
            at = end
        if at < len(chunk):
            yield address + start + at, len(chunk) - at, chunk[at:], False


def _zero_runs(data: memoryview) -> list[tuple[int, int]]:
    """(begin, end) of the runs of whole zero pages that are long enough to be left out."""
    pages = len(data) // _PAGE
    if pages * _PAGE < _MIN_ZERO:
        return []
    words = np.frombuffer(data[: pages * _PAGE], np.uint64).reshape(pages, -1)
    # The first and the last word are zero nearly only in pages of zeros.
    zero: npt.NDArray[np.bool_] = (words[:, 0] | words[:, -1]) == 0
    if not zero.any():
        return []
    zero[zero] = ~words[zero].any(axis=1)
    edge = np.flatnonzero(np.diff(zero, prepend=False, append=False)) * _PAGE
    runs = edge.reshape(-1, 2)
    return [(a, b) for a, b in runs.tolist() if b - a >= _MIN_ZERO]


def _extend(ranges: list[tuple[int, int]], start: int, size: int) -> None:
    if ranges and ranges[-1][0] + ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
    else:
        ranges.append((start, size))


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        done = os.pwrite(fd, data[: 1 << 24], offset)
        data, offset = data[done:], offset + done
