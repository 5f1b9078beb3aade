"""Frames, allocator, machine: no frame twice, none lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errors import UsageError
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import GiB, Machine, MachineSpec, MiB, Ram, small_machine
from inspector.kernel.machine.allocator import PageAllocator
from inspector.kernel.machine.frames import FrameSet

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(0, 11), st.just(1)),
        st.tuples(st.just("many"), st.integers(0, 3), st.integers(0, 300)),
        st.tuples(st.just("free"), st.integers(0, 1000), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=40)
@given(
    OPERATIONS,
    st.sampled_from([(0.0, False), (0.5, False), (0.0, True), (0.3, True)]),
    st.integers(0, 3),
)
def test_allocator_hands_out_each_frame_once(
    operations: list[tuple[str, int, int]], style: tuple[float, bool], seed: int
) -> None:
    ranges = [(3, 9000), (10240, 20480)]
    allocator = PageAllocator(ranges, seed=seed, fragmentation=style[0], shuffle=style[1])
    held: list[tuple[int, int]] = []
    owned: set[int] = set()
    for kind, number, count in operations:
        if kind == "free":
            if held:
                frame, order = held.pop(number % len(held))
                allocator.free(frame, order)
                owned -= set(range(frame, frame + (1 << order)))
            continue
        before = len(allocator.allocated)
        try:
            got = (
                [allocator.alloc(number)]
                if kind == "alloc"
                else allocator.alloc_many(count, number).tolist()
            )
        except KernelErrno as error:
            assert error.name == "ENOMEM"
            assert len(allocator.allocated) == before
            continue
        assert len(got) == count
        for frame in got:
            frames = set(range(frame, frame + (1 << number)))
            assert frame % (1 << number) == 0
            assert not frames & owned
            assert all(any(a <= f < b for a, b in ranges) for f in (min(frames), max(frames)))
            owned |= frames
            held.append((frame, number))
    assert set(allocator.allocated.frames().tolist()) == owned
    for frame, order in held:
        allocator.free(frame, order)
    assert len(allocator.allocated) == 0


def test_everything_can_be_had_and_comes_back_whole() -> None:
    allocator = PageAllocator([(0, 4096)])
    frames = allocator.alloc_many(4096)
    assert sorted(frames.tolist()) == list(range(4096))
    with pytest.raises(KernelErrno, match="ENOMEM"):
        allocator.alloc()
    allocator.free_many(frames)
    assert sorted(allocator.alloc(10) for _ in range(4)) == [0, 1024, 2048, 3072]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 70000), st.integers(1, 5000))))
def test_frame_set_is_a_set(changes: list[tuple[bool, int, int]]) -> None:
    ours, theirs = FrameSet(), set[int]()
    for add, first, count in changes:
        frames = set(range(first, first + count))
        if add:
            assert ours.add_range(first, count) == len(frames & theirs)
            theirs |= frames
        else:
            assert ours.discard_range(first, count) == len(frames - theirs)
            theirs -= frames
    assert len(ours) == len(theirs)
    assert ours.frames().tolist() == sorted(theirs)
    probe = np.arange(0, 75000, 7, dtype=np.uint64)
    assert ours.contains(probe).tolist() == [int(f) in theirs for f in probe]


def test_layout_of_a_machine() -> None:
    spec = MachineSpec(
        ram=(Ram(0, 2 * GiB, 0), Ram(4 * GiB, 2 * GiB, 1)),
        scratch=(16 * MiB, 8 * MiB, 4 * MiB),
    )
    machine = Machine(spec, scratch_align=4 * MiB, reserve=[(MiB, 4096), (4 * MiB, 4 * MiB)])
    (low, low_size), (_, any_size), (_, per0), (node1, per1) = machine.scratch
    assert (low_size, any_size, per0, per1) == (16 * MiB, 8 * MiB, 4 * MiB, 4 * MiB)
    assert low + low_size <= 4 * GiB <= node1
    assert all(base % (4 * MiB) == 0 for base, _ in machine.scratch)
    assert machine.node_of(node1 >> 12) == 1
    for _ in range(100):
        frame = machine.alloc(5, node=1)
        assert machine.node_of(frame) == 1
        assert not machine.in_scratch(frame << 12, (frame + 32) << 12)
    assert machine.pages_out == 3200
    assert machine.memory.read(machine.alloc_page(), 4096) == bytes(4096)


@pytest.mark.parametrize(
    "spec",
    [
        MachineSpec(ram=()),
        MachineSpec(ram=(Ram(0, 100),)),
        MachineSpec(ram=(Ram(0, MiB), Ram(0, MiB))),
        small_machine(architecture="ppc"),
        small_machine(page_size=0x4000),
        small_machine(architecture="aarch64", page_size=0x8000),
        small_machine(fragmentation=1.0),
        small_machine(8 * MiB, scratch=(16 * MiB, 0, 0)),
    ],
)
def test_impossible_machines(spec: MachineSpec) -> None:
    with pytest.raises(UsageError):
        Machine(spec, scratch_align=2 * MiB)


def test_a_terabyte_costs_nothing() -> None:
    machine = Machine(small_machine(1 << 40), scratch_align=4 * MiB)
    frame = machine.alloc(18)  # a gigabyte
    assert frame % (1 << 18) == 0
    machine.free(frame, 18)
    assert machine.pages_out == 0
