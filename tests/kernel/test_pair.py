"""Producer and consumer of one generation: what was meant is what is restored, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from user_space import UserSpace

from inspector.findings import Outcome
from inspector.kernel import faults
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import Consumer, boot
from inspector.kernel.incoming.memory_file import RestoredMemfd
from inspector.kernel.machine import GiB, MachineSpec, small_machine
from inspector.kernel.machine.frames import FrameSet
from inspector.kernel.outgoing.clients import ReserveMem
from inspector.kernel.outgoing.kernel import Kernel, KhoTestSpec
from inspector.kernel.outgoing.memfd import SEAL_GROW, SEAL_SHRINK, Memfd, MemfdHandler

MiB = 1 << 20
PROFILES = ("linux-6.19", "linux-7.0", "linux-7.1", "linux-7.2", "linux-7.3")
DEVELOPMENT = (
    "linux-7.2+luo=luo-v3",
    "linux-7.2+luo=luo-v4",
    "linux-7.3+luo=luo-features+memfd=memfd-features",
)


def machine(page_size: int, seed: int) -> MachineSpec:
    if page_size == 4096:
        return small_machine(GiB, seed=seed, shuffle=True, fragmentation=0.2)
    size = 2 * GiB if page_size == 0x4000 else 4 * GiB
    return small_machine(size, architecture="aarch64", page_size=page_size, seed=seed)


NUMBERS = st.integers(0, 99)
NAMES = st.sampled_from("abc")


class Pair(UserSpace):
    """User space on a machine that is updated again and again, and a model of its files."""

    @initialize(
        name=st.sampled_from(PROFILES + DEVELOPMENT),
        page_size=st.sampled_from([4096, 4096, 0x4000, 0x10000]),
        seed=st.integers(0, 3),
    )
    def start(self, name: str, page_size: int, seed: int) -> None:
        self.name = name
        self.spec = machine(page_size, seed)
        self.kernel = Kernel(
            name,
            self.spec,
            reserve_mem=[ReserveMem("trace", 5 * page_size, page_size)],
            kho_test=KhoTestSpec(pages=20, max_order=2),
            test_flbs=True,
        )
        region = self.kernel.reserve_mem[0]
        self.kernel.machine.memory.write(region.start, b"kept over every update")
        self.content: dict[Memfd, bytearray] = {}
        self.updates = 0

    # Files and sessions are picked by number out of those there are, so that most rules do
    # something; names and tokens are few, so that they collide.

    def pick(self, number: int) -> Memfd:
        """A file of this kernel, made if there is none."""
        if not self.content:
            self.content[self.kernel.memfd()] = bytearray()
        return list(self.content)[number % len(self.content)]

    @rule(huge=st.booleans(), size=st.integers(0, 3 * MiB))
    def open(self, huge: bool, size: int) -> None:
        file = self.kernel.memfd(huge=huge and self.spec.page_size == 4096)
        file.truncate(size)
        self.content[file] = bytearray(size)

    @rule(
        number=NUMBERS,
        offset=st.integers(0, 3 * MiB),
        data=st.binary(min_size=1, max_size=5000),
    )
    def write(self, number: int, offset: int, data: bytes) -> None:
        file = self.pick(number)
        model = self.content[file]
        if self.attempt(lambda: file.write(offset, data), "EPERM"):
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data

    @rule(number=NUMBERS, size=st.integers(0, 3 * MiB))
    def truncate(self, number: int, size: int) -> None:
        file = self.pick(number)
        model = self.content[file]
        if self.attempt(lambda: file.truncate(size), "EPERM"):
            del model[size:]
            model.extend(bytes(size - len(model)))

    @rule(number=NUMBERS, pos=st.integers(0, 1 << 40))
    def seek(self, number: int, pos: int) -> None:
        self.pick(number).seek(pos)

    @rule(number=NUMBERS, seals=st.sampled_from([SEAL_SHRINK, SEAL_GROW, 1, 8]))
    def seal(self, number: int, seals: int) -> None:
        file = self.pick(number)
        self.attempt(lambda: file.add_seals(seals), "EPERM")

    @rule(number=NUMBERS, name=NAMES, token=st.sampled_from([0, 1, 1 << 63]))
    def preserve(self, number: int, name: str, token: int) -> None:
        file, session = self.pick(number), self.session(name)
        self.attempt(lambda: session.preserve(file, token), "EEXIST", "EBUSY")

    @rule(name=NAMES, token=st.integers(0, 1 << 64).filter(lambda t: t < 1 << 64))
    def preserve_new(self, name: str, token: int) -> None:
        file = self.kernel.memfd()
        self.content[file] = bytearray()
        self.write(len(self.content) - 1, token % MiB, token.to_bytes(8, "little"))
        self.attempt(lambda: self.session(name).preserve(file, token), "EEXIST")

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        self.session(name).close()

    @rule()
    def failed_operations(self) -> None:
        """What the kernel refuses leaves nothing behind."""
        session = self.session("a")
        held = self.kernel.machine.pages_out - len(self.kernel.kho.map.nodes)
        assert not self.attempt(lambda: session.preserve(object(), 77), "ENOENT")
        bad = self.kernel.memfd()
        bad.size = 1 << 60
        assert not self.attempt(lambda: session.preserve(bad, 78), "EFBIG")
        assert not self.attempt(lambda: self.kernel.luo.create_session("a"), "EEXIST")
        assert not self.attempt(lambda: self.kernel.luo.create_session(""), "EINVAL")
        assert self.kernel.machine.pages_out - len(self.kernel.kho.map.nodes) == held

    @rule()
    def update(self) -> None:
        """Kexec into the same release, take everything over, go on."""
        if self.updates < 4:
            self.jump()

    def jump(self) -> None:
        """One update."""
        self.updates += 1
        meant = {
            (s.name, token): entry.file
            for s in self.kernel.luo.sessions
            for token, entry in s.files.items()
        }
        # Freezing takes the position anew, but seals are those of the moment of preserving.
        seals = {key: self.preserved_seals(file) for key, file in meant.items()}
        keeps_seals = self.kernel.profile["memfd"].id != "memfd-v1"
        before = self.kernel
        image = before.kexec()
        consumer = boot(image.memory, self.name, reserve_mem=before.reserve_mem)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        assert consumer.liveupdate_num == self.updates
        restored = self.user_space(consumer)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        assert set(restored) == set(meant)
        for key, file in restored.items():
            old = meant[key]
            assert file.read() == bytes(self.content[old])
            assert (file.size, file.pos) == (old.size, old.pos)
            assert file.seals == (seals[key] if keeps_seals else 0)
        self.check_frames(consumer, list(restored.values()), before)

        kernel = Kernel.after(consumer, before.machine.spec, test_flbs=True)
        assert kernel.luo.number == self.updates + 1
        region = kernel.reserve_mem[0]
        assert region.start == before.reserve_mem[0].start
        assert kernel.machine.memory.read(region.start, 22) == b"kept over every update"
        content = {kernel.adopt(one): self.content[meant[key]] for key, one in restored.items()}
        self.kernel, self.content = kernel, content

    def preserved_seals(self, file: Memfd) -> int:
        entry = self.kernel.luo.preserved[id(file)]
        assert isinstance(entry.handler, MemfdHandler)
        return entry.handler.states[id(file)].seals

    def user_space(self, consumer: Consumer) -> dict[tuple[str, int], RestoredMemfd]:
        found = {}
        for entry in list(consumer.open().sessions) if consumer.luo is not None else []:
            session = consumer.retrieve_session(entry.name)
            for token in session.tokens:
                found[session.name, token] = session.retrieve(token)
            session.finish()
        return found

    def check_frames(self, consumer: Consumer, files: list[RestoredMemfd], before: Kernel) -> None:
        """What is still held was handed over, and holds every file; nothing is there twice."""
        handed = FrameSet()
        for order, frames in before.kho.map.blocks():
            for frame in frames.tolist():
                assert not handed.add_range(frame, 1 << order)
        held = consumer.retained
        assert handed.contains(held.frames()).all()
        owned = FrameSet()
        for file in files:
            for frame, order in zip(file.frames.tolist(), file.orders.tolist(), strict=True):
                assert not owned.add_range(frame, 1 << order)
        assert held.contains(owned.frames()).all()
        # Beside files: the root, blobs, the region, the self test; no list, struct or array.
        rest = len(held) - len(owned)
        assert rest <= 5 + len(before.kho.blobs) * 2 + 40 + 16 + 2

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        self.jump()
        # Closing everything gives back every page of every file, adopted ones included.
        for session in list(self.kernel.luo.sessions):
            session.close()
        pages = sum(len(e.frames) << e.order for file in self.content for e in file.extents)
        before = self.kernel.machine.pages_out
        for file in self.content:
            file.close()
        assert self.kernel.machine.pages_out == before - pages


Pair.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestPair = Pair.TestCase


@pytest.mark.parametrize("release", ["6.17", "6.18"])
def test_without_an_orchestrator(release: str) -> None:
    """Only regions and the self test travel, over three updates."""
    kernel = Kernel(
        f"linux-{release}",
        small_machine(),
        reserve_mem=[ReserveMem("a", 3 * MiB), ReserveMem("b", 4096)],
        kho_test=KhoTestSpec(),
    )
    starts = [r.start for r in kernel.reserve_mem]
    for start in starts:
        kernel.machine.memory.write(start, start.to_bytes(8, "little"))
    for _ in range(3):
        kernel.finalize()
        image = kernel.kexec()
        consumer = boot(image.memory, kernel.profile, reserve_mem=kernel.reserve_mem)
        assert consumer.outcome is Outcome.TAKEN_OVER
        kernel = Kernel.after(consumer, kernel.machine.spec, kho_test=KhoTestSpec())
        assert [r.start for r in kernel.reserve_mem] == starts
        for start in starts:
            assert kernel.machine.memory.u64(start) == start


def test_a_kernel_that_did_not_come_up_hands_nothing_over() -> None:
    kernel = Kernel("linux-7.3", small_machine(), kho_test=KhoTestSpec())
    image = kernel.kexec()
    faults.inject(image, "map-garbage")
    consumer = boot(image.memory, "linux-7.3")
    assert consumer.outcome is Outcome.BOOT_FAILS
    with pytest.raises(Exception, match="did not come up"):
        Kernel.after(consumer, kernel.machine.spec)


def free_pages(kernel: Kernel) -> int:
    """Pages that can still be had."""
    low, high = 0, 1 << 20
    while low < high:
        count = (low + high + 1) // 2
        try:
            kernel.machine.free_many(kernel.machine.alloc_many(count, zero=False))
            low = count
        except KernelErrno:
            high = count - 1
    return low


def test_frames_in_use_are_not_handed_out_again() -> None:
    kernel = Kernel("linux-7.3", small_machine(64 * MiB, scratch=(8 * MiB, 0, 8 * MiB)))
    file = kernel.memfd()
    file.write(0, b"x" * MiB)
    kernel.luo.create_session("a").preserve(file, 1)
    consumer = boot(kernel.kexec().memory, "linux-7.3", kernel_size=0, initrd_size=0)
    session = consumer.retrieve_session("a")
    restored = session.retrieve(1)
    session.finish()
    after = Kernel.after(consumer, kernel.machine.spec)
    frames = set(restored.frames.tolist())
    taken = after.machine.alloc_many(free_pages(after), zero=False).tolist()
    with pytest.raises(KernelErrno, match="ENOMEM"):
        after.machine.alloc()
    assert len(set(taken)) == len(taken)
    assert not frames & set(taken)
    assert np.array(sorted(frames)).size == 256
