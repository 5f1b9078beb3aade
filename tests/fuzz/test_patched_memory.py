"""The fuzzer's memory answers as the project's other memories do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from inspector.fuzz.edit import Edit
from inspector.fuzz.memory import PAGE, PatchedMemory
from inspector.memory.base import MemoryFault, PageState
from inspector.memory.sparse import SparseMemory

RAM = [(0x10000, 64 * PAGE), (0x100000, 16 * PAGE)]


def both(seed: int) -> tuple[PatchedMemory, SparseMemory, random.Random]:
    rng = random.Random(seed)
    every = [start + i * PAGE for start, size in RAM for i in range(size // PAGE)]
    pages = {pa: rng.randbytes(PAGE) for pa in rng.sample(every, 30)}
    sparse = SparseMemory(RAM)
    for pa, data in pages.items():
        sparse.write(pa, data)
    patched = PatchedMemory(pages, ram=RAM)
    for _ in range(10):
        at = rng.choice(list(pages)) + rng.randrange(PAGE)
        data = rng.randbytes(rng.randrange(1, PAGE - at % PAGE + 1))
        patched.apply([Edit(at, data)])
        sparse.write(at, data)
    gone = rng.choice(list(pages))
    patched.apply([Edit(gone, None)])
    sparse.exclude(gone, PAGE)
    return patched, sparse, rng


@pytest.mark.parametrize("seed", range(8))
def test_reads_like_sparse_memory(seed: int) -> None:
    ours, theirs, rng = both(seed)
    assert ours.regions == theirs.regions
    flat = {start + i: piece[i : i + PAGE].tobytes() for start, piece in theirs.extents()
            for i in range(0, len(piece), PAGE)}  # fmt: skip
    assert ours.pages() == flat
    for _ in range(300):
        pa, size = rng.randrange(0x120000), rng.choice((1, 8, 80, 4096, 9000))
        assert ours.state(pa, size) == theirs.state(pa, size)
        try:
            expected = theirs.read(pa, size)
        except MemoryFault as fault:
            missing = fault.address, fault.state
            with pytest.raises(MemoryFault) as caught:
                ours.read(pa, size)
            assert (caught.value.address, caught.value.state) == missing
        else:
            assert ours.read(pa, size) == expected
            span = ours.span(pa)
            assert span is not None
            assert bytes(span.data[pa - span.start :][:size]) == expected
    for count in (0, 1, 5, 40):
        for size in (8, 64, 4096):
            column = np.array([rng.randrange(0x120000) for _ in range(count)], np.uint64)
            states = theirs.states(column, size)
            assert (ours.states(column, size) == states).all()
            whole = states == PageState.PRESENT
            assert (ours.gather(column, size) == theirs.gather(column, size))[whole].all()
            assert not ours.gather(column, size)[~whole].any()


def test_spares_appear_with_an_edit_and_go_again() -> None:
    memory = PatchedMemory({0x10000: bytes(PAGE)}, ram=RAM, spares=[0x20000])
    assert memory.state(0x20000) is PageState.EXCLUDED
    memory.apply([Edit(0x20010, b"x")])
    assert memory.read(0x20000, 32) == bytes(16) + b"x" + bytes(15)
    memory.reset()
    assert memory.state(0x20000) is PageState.EXCLUDED
    memory.apply([Edit(0x20000, b"y")])
    assert memory.read(0x20010, 1) == b"\0"


def test_far_addresses() -> None:
    memory = PatchedMemory({0x10000: bytes(PAGE)})
    for pa in ((1 << 64) - 1, (1 << 64) - 4096, 1 << 63):
        assert memory.state(pa, 8192) is PageState.OUTSIDE
        assert not memory.gather(np.array([pa] * 40, np.uint64), 4096).any()
        with pytest.raises(MemoryFault):
            memory.read(pa, 1)
