"""Flipped bits in plausible tables: the engine against a walk one entry at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference import SHAPES, leaf_entry, sizes, table_entry

from abi.pagetable import FORMATS, Format, Kind
from inspector.memory.base import PageState
from inspector.memory.sparse import SparseMemory
from inspector.pagetable import Limits, TranslationState, translate, walk

Piece = tuple[int, int, int, int]
WORD = (1 << 64) - 1
DEPTH = {name: shape[2][0] for name, shape in SHAPES.items()} | {"amdv1": 3}


class Naive:
    """Walks entry by entry with Python numbers; counts what is wrong."""

    def __init__(self, format: Format, memory: SparseMemory, ram: int) -> None:
        self.format = format
        self.memory = memory
        self.ram = ram
        self.pieces: list[Piece] = []
        self.wrong: dict[str, int] = {}

    def blame(self, code: str) -> None:
        self.wrong[code] = self.wrong.get(code, 0) + 1

    def table(self, pa: int, level: int, base: int, codes: frozenset[int]) -> None:
        format = self.format
        this = format.levels[level]
        words = np.frombuffer(self.memory.read(pa, 8 * format.entries), "<u8").tolist()
        for index, entry in enumerate(words):
            iova = base + (index << this.shift)
            kind = format.kind(level, entry)
            if kind is Kind.EMPTY:
                if entry and format.nonzero_empty:
                    self.blame("KHO-PT-010")
            elif kind is Kind.BAD:
                self.blame("KHO-PT-008")
            elif kind is Kind.BAD_SIZE:
                self.blame("KHO-PT-013")
            elif kind is Kind.TABLE:
                self.pointer(entry, level, iova, codes)
            else:
                self.leaf(entry, level, iova, codes, kind)

    def pointer(self, entry: int, level: int, iova: int, codes: frozenset[int]) -> None:
        format = self.format
        if entry & format.levels[level].table_reserved:
            self.blame("KHO-PT-001")
        below = level - 1
        if format.next_level is not None:
            below = (entry >> format.next_level & 7) - 1
            if below != level - 1:
                self.blame("KHO-PT-007")
        pa = int(format.table_pa(np.array([entry], np.uint64))[0])
        if pa + 8 * format.entries > self.ram:
            self.blame("KHO-PT-003")
            return
        here = {n for n, rule in enumerate(format.table_rules) if entry & rule.mask == rule.value}
        self.table(pa, below, iova, codes | here)

    def leaf(self, entry: int, level: int, iova: int, codes: frozenset[int], kind: Kind) -> None:
        format = self.format
        this = format.levels[level]
        column = np.array([entry], np.uint64)
        if kind is Kind.GROUP:
            size = int(format.group_sizes(level, column)[0])
            if not size:
                self.blame("KHO-PT-013")
                return
            pa = int(format.table_pa(column)[0]) & -size
            pa += iova & (size - 1)
        else:
            pa = int(format.leaf_pa(level, column)[0])
            if entry & this.misaligned:
                self.blame("KHO-PT-002")
            if entry & format.required != format.required:
                self.blame("KHO-PT-014")
            if any(entry & mask == value for mask, value in format.forbidden):
                self.blame("KHO-PT-001")
        if entry & this.reserved:
            self.blame("KHO-PT-001")
        if entry & format.dirty_modifier:
            entry = (entry | format.modifier_set) & ~format.modifier_clear
        for code in codes:
            entry &= ~format.table_rules[code].clear
        for code in codes:
            entry |= format.table_rules[code].set
        moved = {there for _, there in this.moved}
        attributes = entry & format.attributes & ~sum(moved)
        for here, there in this.moved:
            attributes |= there if entry & here else 0
        self.pieces.append((iova & WORD, pa, this.size, attributes))


def merged(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for iova, pa, size, attributes in pieces:
        if out:
            last = out[-1]
            if (last[0] + last[2], last[1] + last[2], last[3]) == (iova, pa, attributes):
                out[-1] = (last[0], last[1], last[2] + size, attributes)
                continue
        out.append((iova, pa, size, attributes))
    return out


def tables(name: str, rng: np.random.Generator, flips: float) -> tuple[SparseMemory, int, int]:
    """Tables with runs of leaves of all sizes; a share of the words has flipped bits."""
    granule, bits, _ = SHAPES[name]
    depth, count, page = DEPTH[name], 1 << bits, 8 << bits
    steps = {1 << granule + level * bits for level in range(depth)}
    plain = steps & set(sizes(name, depth))
    scale, width = count // 512, 3 if bits == 9 else 2
    layers: list[list[int]] = []
    frame = 0
    ram = 24 * page
    words = np.zeros(24 << bits, np.uint64)
    for level in range(depth):
        layer = []
        for _ in range(1 if level == depth - 1 else width):
            index = 0
            pa = 0
            while index < count:
                run = min(int(rng.integers(scale, 40 * scale)), count - index)
                what = rng.random()
                size = 1 << granule + level * bits
                where = slice(frame * count + index, frame * count + index + run)
                if what < 0.3:
                    pass
                elif size in plain and what < (1.1 if level == 0 else 0.7):
                    pa = (pa if rng.random() < 0.3 else int(rng.integers(0, 1 << 20))) & -size
                    pa += int(rng.integers(0, 64)) * size
                    rights = ("rw", "r")[int(rng.integers(0, 2))]
                    entries = [
                        leaf_entry(name, level, pa + n * size, size, rights) for n in range(run)
                    ]
                    words[where] = entries
                    pa += run * size
                elif level and what > 0.7 + 0.07 * depth:
                    child = layers[level - 1][int(rng.integers(0, width))]
                    words[where.start] = table_entry(name, level, child)
                index += run
            layer.append(frame * page)
            frame += 1
        layers.append(layer)
    touched = rng.random(len(words)) < flips
    flip = rng.random((int(touched.sum()), 64)) < 1 / 32
    masks = (flip * (np.uint64(1) << np.arange(64, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    words[touched] ^= masks
    memory = SparseMemory([(0, ram)], unwritten=PageState.PRESENT)
    memory.write(0, words)
    return memory, layers[-1][0], ram


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 40), flips=st.sampled_from([0, 0.001, 0.01, 0.2]))
@example(seed=50, flips=0.2)
def test_against_naive(name: str, seed: int, flips: float) -> None:
    format = FORMATS[name]
    rng = np.random.default_rng(seed)
    memory, root, ram = tables(name, rng, flips)
    naive = Naive(format, memory, ram)
    naive.table(root, DEPTH[name] - 1, 0, frozenset())
    unlimited = Limits(repeats=1 << 20)
    walked = walk(memory, format, root, DEPTH[name], sign_extend=False, limits=unlimited)
    got: list[Piece] = []
    for chunk in walked.ranges():
        columns = (chunk.iova, chunk.pa, chunk.size, chunk.attributes)
        got += zip(*(column.tolist() for column in columns), strict=True)
    expected = merged(sorted(naive.pieces))
    assert got == expected
    counts: dict[str, int] = dict(walked.findings.suppressed)
    for finding in walked.findings.items:
        counts[finding.code] = counts.get(finding.code, 0) + 1
    for code in ("KHO-PT-009", "KHO-PT-005"):  # not of single entries
        counts.pop(code, None)
    if format.name.startswith("lpae"):
        # A stray contiguous hint is told by the engine alone.
        counts.pop("KHO-PT-001", None)
        naive.wrong.pop("KHO-PT-001", None)
    assert counts == naive.wrong
    leaves = [row for chunk in walked.leaves() for row in chunk]
    assert sum(row[2] for row in leaves) == sum(piece[2] for piece in naive.pieces)
    assert [row[0] for row in leaves] == sorted(row[0] for row in leaves)
    points(format, memory, root, DEPTH[name], naive.pieces, rng)


def points(
    format: Format,
    memory: SparseMemory,
    root: int,
    depth: int,
    pieces: list[Piece],
    rng: np.random.Generator,
) -> None:
    """Translate some of what is mapped, and addresses all over the space."""
    space = format.input_bits(depth)
    some = [pieces[n] for n in rng.integers(0, len(pieces), 50).tolist()] if pieces else []
    iovas = [piece[0] + int(rng.integers(0, piece[2])) for piece in some]
    found = translate(memory, format, root, depth, iovas, sign_extend=False)
    assert (found.state == TranslationState.MAPPED).all()
    wanted = [piece[1] + iova - piece[0] for piece, iova in zip(some, iovas, strict=True)]
    assert found.pa.tolist() == wanted
    assert found.attributes.tolist() == [piece[3] for piece in some]
    anywhere = rng.integers(0, 1 << space, 300, np.uint64)
    starts = sorted(pieces)
    firsts = np.array([piece[0] for piece in starts], np.uint64)
    found = translate(memory, format, root, depth, anywhere, sign_extend=False)
    at = np.searchsorted(firsts, anywhere, "right").tolist()
    for iova, index, state in zip(anywhere.tolist(), at, found.state.tolist(), strict=True):
        inside = index and iova < starts[index - 1][0] + starts[index - 1][2]
        assert (state == TranslationState.MAPPED) == bool(inside)
