"""What one kernel preserves the next one has, byte for byte; damage never raises."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inspector import image, memory
from inspector.findings import Outcome
from inspector.kernel import scenario
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import Result, consume
from inspector.kernel.machine import small_machine
from inspector.kernel.machine.frames import frames_of
from inspector.kernel.outgoing.kernel import Kernel
from inspector.memory.sparse import SparseMemory

CORPUS = Path(__file__).parents[2] / "corpus"
KERNELS = [
    ("linux-6.19", 0x1000), ("linux-7.1", 0x1000), ("linux-7.2", 0x1000), ("linux-7.3", 0x1000),
    ("linux-7.3", 0x4000), ("linux-7.3", 0x10000), ("linux-7.1", 0x4000),
]  # fmt: skip

operations = st.lists(
    st.one_of(
        st.tuples(st.just("session"), st.integers(0, 3)),
        st.tuples(st.just("file"), st.integers(0, 5), st.integers(0, 9), st.booleans()),
        st.tuples(
            st.just("write"), st.integers(0, 5), st.integers(0, 300_000), st.binary(max_size=64)
        ),
        st.tuples(st.just("grow"), st.integers(0, 5), st.integers(0, 400_000)),
        st.tuples(st.just("seek"), st.integers(0, 5), st.integers(0, 1 << 40)),
        st.tuples(st.just("seal"), st.integers(0, 5), st.integers(0, 63)),
        st.tuples(st.just("preserve"), st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)),
        st.tuples(st.just("close"), st.integers(0, 3)),
    ),
    max_size=30,
)


#: So that most examples preserve something.
BEFORE = [("session", 0), ("session", 1), ("file", 0, 0, False), ("file", 1, 0, True)]
AFTER = [("preserve", 0, 0, 0), ("preserve", 1, 1, 0)]


def perform(kernel: Kernel, steps: list[tuple[Any, ...]]) -> dict[tuple[str, int], tuple[Any, int]]:
    """Do what can be done; the preserved files by session and token, and their seals then.

    Seals are written when a file is preserved. One can be added afterwards: it is lost.
    """
    sessions: dict[int, Any] = {}
    files: dict[int, Any] = {}
    sealed: dict[tuple[str, int], int] = {}
    for name, who, *rest in steps:
        try:
            if name == "session":
                sessions[who] = kernel.luo.create_session(f"s{who}")
            elif name == "file":
                files.setdefault(who, kernel.memfd(f"f{who}", huge=rest[1]))
            elif name == "close" and who in sessions:
                sessions.pop(who).close()
            elif name == "preserve" and who in sessions and rest[0] in files:
                sessions[who].preserve(files[rest[0]], rest[1])
                sealed[sessions[who].name, rest[1]] = files[rest[0]].seals
            elif who in files and name == "write":
                files[who].write(rest[0], rest[1])
            elif who in files and name == "grow":
                files[who].truncate(max(files[who].size, rest[0]))
            elif who in files and name == "seek":
                files[who].seek(rest[0])
            elif who in files and name == "seal":
                files[who].add_seals(rest[0])
        except KernelErrno:
            continue
    return {
        (s.name, t): (e.file, sealed[s.name, t])
        for s in sessions.values()
        for t, e in s.files.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KERNELS), operations, st.integers(0, 1000), st.booleans())
@example(("linux-7.1", 4096), [("preserve", 0, 0, 0), ("seal", 0, 1)], 0, False)
def test_the_next_kernel_has_what_was_preserved(
    kind: tuple[str, int], steps: list[tuple[Any, ...]], seed: int, shuffle: bool
) -> None:
    name, page = kind
    architecture = "x86_64" if page == 0x1000 else "aarch64"
    size = (512 << 20) if page == 0x1000 else (4 << 30)
    kernel = Kernel(
        name,
        small_machine(
            size, architecture=architecture, page_size=page, seed=seed, shuffle=shuffle,
            fragmentation=0.3 if shuffle else 0.0,
        ),
    )  # fmt: skip
    wanted = perform(kernel, [*BEFORE, *steps, *AFTER])
    result = consume(kernel.kexec().memory, name)
    assert result.outcome is Outcome.TAKEN_OVER, result.reasons[:3]
    luo = result.consumer.luo
    assert luo is not None
    found = {(s.name.decode(), f.token): f.file for s, f in luo.files()}
    assert found.keys() == wanted.keys()
    for key, (file, seals) in wanted.items():
        got = found[key]
        assert (got.size, got.pos) == (file.size, file.pos)
        if got.seals_known:
            assert got.seals == seals
        assert got.read() == file.read(0, file.size)
    assert_every_page_accounted_for(result)


def assert_every_page_accounted_for(result: Result) -> None:
    """Nothing freed twice; what is left is in use by a file, or was never a client's to take."""
    state = result.consumer.state
    freed = [frames_of(blocks, order) for order, blocks in state.freed.blocks()]
    column = np.concatenate(freed) if freed else np.empty(0, np.uint64)
    assert len(np.unique(column)) == len(column)
    in_files = [
        frames_of(f.frames[f.orders == order], order)
        for f in result.memfds()
        for order in set(f.orders.tolist())
    ]
    used = np.concatenate(in_files) if in_files else np.empty(0, np.uint64)
    assert len(np.unique(used)) == len(used)
    waiting = sum(int((1 << orders.astype(np.int64)).sum()) for _, orders in state.marks.left())
    assert len(result.consumer.retained) == len(used) + waiting
    assert waiting <= 4 + len(result.consumer.clients.reserve_mem)


@pytest.fixture(scope="module")
def targets() -> list[tuple[Any, str, list[tuple[int, int]]]]:
    """(memory, kernel, (address, size) of the structs in it) of a few images."""
    found = []
    for name, kernel in (
        ("linux-7.3.4-handoff", "linux-7.3"),
        ("linux-6.19.11-handoff", "linux-6.19"),
        ("iommu-vw-small_legacy-handoff", "linux-7.3+iommu-vw"),
    ):
        opened = memory.open(CORPUS / f"{name}.elf.zst")
        found.append((opened, kernel, structs(opened)))
    made = scenario.load("smmuv3")
    simulated = made.run().memory
    found.append((simulated, str(made.kernel), structs(simulated)))
    return found


def structs(opened: Any) -> list[tuple[int, int]]:
    decoded = image.open(opened)
    places = [
        (address, placed.struct.size)
        for placed in decoded.survey.placed
        for address in placed.addresses[:64].tolist()
    ]
    return [*places, (decoded.root.address, 512)]


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_raises(seed: int, targets: list[Any]) -> None:
    chooser = random.Random(seed)
    opened, kernel, places = chooser.choice(targets)
    view = SparseMemory.over(opened)
    for _ in range(chooser.choice((1, 2, 8))):
        address, size = chooser.choice(places)
        at = address + chooser.randrange(min(size, 4096)) // 8 * 8
        values = (0, 1, 1 << 63, (1 << 64) - 1, chooser.choice(places)[0], chooser.getrandbits(40))
        view.write(at, chooser.choice(values).to_bytes(8, "little"))
    result = consume(view, kernel)
    assert result.outcome in Outcome
    assert result.status in (0, 1, 4, 5, 16, 17, 20, 21)
