"""What memory should be, spelled out in dictionaries: the model that backends are held to."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from inspector.memory import MemoryFault, PageState, PhysicalMemory

CORPUS = Path(__file__).parents[2] / "corpus"

EXCLUDED, PRESENT = PageState.EXCLUDED, PageState.PRESENT


class Model:
    """Bytes by address. ``None`` is RAM that was left out."""

    def __init__(self, cells: Mapping[int, int | None]) -> None:
        self.cells = cells

    def state(self, pa: int, size: int) -> PageState:
        """The lowest state in a range."""
        lowest = PRESENT
        for at in range(pa, pa + size):
            if at not in self.cells:
                return PageState.OUTSIDE
            if self.cells[at] is None:
                lowest = EXCLUDED
        return lowest

    def first_missing(self, pa: int, size: int) -> tuple[int, PageState] | None:
        """Where a read fails."""
        for at in range(pa, pa + size):
            if self.cells.get(at) is None:
                return at, EXCLUDED if at in self.cells else PageState.OUTSIDE
        return None

    def read(self, pa: int, size: int) -> bytes:
        """The bytes of a range that is present."""
        return bytes(self.cells[at] or 0 for at in range(pa, pa + size))


def check(memory: PhysicalMemory, model: Model, probes: list[tuple[int, int]]) -> None:
    """Hold every operation of a backend against the model at some (address, size) probes."""
    for pa, size in probes:
        missing = model.first_missing(pa, size)
        if missing is None:
            assert memory.read(pa, size) == model.read(pa, size)
        else:
            with pytest.raises(MemoryFault) as caught:
                memory.read(pa, size)
            assert (caught.value.address, caught.value.state) == missing
        assert memory.state(pa, size) == model.state(pa, size)
        if size:
            zero, length = memory.zeros(pa, size)
            assert 0 < length <= size
            if zero:
                assert model.first_missing(pa, length) is None
                assert not any(model.read(pa, length))
    for size in {size for _, size in probes if size}:
        addresses = np.array([pa for pa, _ in probes], np.uint64)
        states = memory.states(addresses, size)
        assert states.tolist() == [model.state(int(pa), size) for pa in addresses.tolist()]
        for out in (None, np.full((len(addresses) + 3, size), 0xAA, np.uint8)):
            rows = memory.gather(addresses, size, out)
            assert rows.shape == (len(addresses), size)
            for pa, row in zip(addresses.tolist(), rows, strict=True):
                present = model.first_missing(pa, size) is None
                assert row.tobytes() == (model.read(pa, size) if present else bytes(size))
            if out is not None:
                assert np.shares_memory(rows, out)
                assert (out[len(addresses) :] == 0xAA).all()
        rows = memory.gather(addresses, size)
        for at_once in (1, 3, len(addresses)):
            parts = [part.copy() for part in memory.batches(addresses, size, at_once)]
            assert all(len(part) == at_once for part in parts[:-1])
            assert np.array_equal(np.concatenate(parts), rows)
    seen: dict[int, PageState] = {}
    end = 0
    for region in memory.regions:
        assert region.start >= end
        assert region.size > 0
        end = region.end
        seen.update(dict.fromkeys(range(region.start, region.end), region.state))
    assert seen == {at: EXCLUDED if value is None else PRESENT for at, value in model.cells.items()}
    left = {at for at, value in model.cells.items() if value}
    end = 0
    for pa, piece in memory.extents():
        assert pa >= end
        assert piece.readonly
        end = pa + len(piece)
        assert bytes(piece) == model.read(pa, len(piece))
        left -= set(range(pa, end))
    assert not left, "extents() left out what is not zero"
    for pa, _ in probes:
        span = memory.span(pa)
        if span is not None:
            assert span.start <= pa < span.end
            size = min(span.end - span.start, 64)
            assert bytes(span.data[:size]) == model.read(span.start, size)
            assert list(span.words[: size // 8]) == list(
                struct.unpack(f"<{size // 8}Q", span.data[: size // 8 * 8])
            )
        elif model.cells.get(pa) is not None:
            # Only at the ragged ends of a piece, where no whole word lies.
            word = pa & ~7
            page = pa & ~4095
            assert model.first_missing(word, 8) or model.first_missing(page, 4096)


def core(
    segments: list[tuple[int, bytes, int]],
    *,
    machine: int = 62,
    notes: bytes = b"",
    phoff: int | None = None,
    xnum: bool = False,
    ident: bytes = b"\x7fELF\x02\x01\x01",
    kind: int = 4,
    phentsize: int = 56,
) -> bytes:
    """An ELF core of (address, bytes, p_memsz) segments, written independently of the code."""
    count = len(segments) + bool(notes)
    table_at = 64 if phoff is None else phoff
    data_at = 4096 if phoff is None else 64
    if phoff is None:
        data_at = -(-(64 + count * 56) // 4096) * 4096
    body = bytearray(data_at)
    headers = []
    for pa, data, memsz in segments:
        headers.append(struct.pack("<IIQQQQQQ", 1, 4, len(body), 0, pa, len(data), memsz, 4096))
        body += data
    if notes:
        headers.append(struct.pack("<IIQQQQQQ", 4, 0, len(body), 0, 0, len(notes), 0, 4))
        body += notes
    table = b"".join(headers)
    if phoff is not None:
        table_at = max(phoff, len(body))
        body += bytes(table_at - len(body))
    if len(body) < table_at + len(table):
        body += bytes(table_at + len(table) - len(body))
    body[table_at : table_at + len(table)] = table
    section_at = 0
    if xnum:
        section_at = len(body)
        body += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    body[:16] = ident.ljust(16, b"\0")
    body[16:64] = struct.pack(
        "<HHIQQQIHHHHHH",
        kind,
        machine,
        1,
        0,
        table_at,
        section_at,
        0,
        64,
        phentsize,
        0xFFFF if xnum else count,
        64 if xnum else 0,
        int(xnum),
        0,
    )
    return bytes(body)


def note(owner: bytes, kind: int, content: bytes) -> bytes:
    """One ELF note."""
    name = owner + b"\0"
    pad = lambda data: data.ljust(-(-len(data) // 4) * 4, b"\0")  # noqa: E731
    return struct.pack("<III", len(name), len(content), kind) + pad(name) + pad(content)
