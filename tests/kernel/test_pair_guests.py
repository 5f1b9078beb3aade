"""Random lives of virtual machines, guest memory, huge pages and mounts over several updates."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from meaning import found_by, meant_by
from page_accounts import check_pages
from user_space import UserSpace

from inspector import check
from inspector import image as decoded_image
from inspector.findings import Outcome, Severity
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import Consumer, Result, boot
from inspector.kernel.machine import GiB, small_machine
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.kvm import AttributeRange, GuestMemfd, KvmVcpu, KvmVm
from inspector.kernel.outgoing.tmpfs import TmpfsMount

PROFILES = (
    "linux-7.1+guest-memfd+hugetlb+tmpfs",
    "linux-7.2+kvm-caretaker+tmpfs",
    "linux-7.3+kvm-caretaker+hugetlb",
    "linux-7.3+guest-memfd+kvm=kvm-vm-v1-minimal+hugetlb+tmpfs+memfd=memfd-v2-early",
    "linux-7.3+kvm-caretaker+hugetlb+tmpfs+luo=luo-features+memfd=memfd-features",
)
#: Huge pages of the pool: two files of random sizes can empty it.
POOL_ORDER, POOL = 3, 24
NUMBERS = st.integers(0, 99)
NAMES = st.sampled_from("ab")


class GuestPair(UserSpace):
    """User space with machines, their memory and more, updated again and again."""

    @initialize(
        name=st.sampled_from(PROFILES),
        page=st.sampled_from([0x1000, 0x1000, 0x4000, 0x10000]),
        seed=st.integers(0, 3),
    )
    def start(self, name: str, page: int, seed: int) -> None:
        self.name, self.page, self.updates = name, page, 0
        spec = small_machine(
            {0x1000: GiB // 2, 0x4000: 2 * GiB, 0x10000: 4 * GiB}[page],
            architecture="x86_64" if page == 0x1000 else "aarch64",
            page_size=page,
            huge_pages=((POOL_ORDER, POOL),),
            shuffle=True,
            seed=seed,
        )
        self.files: list[Any] = []
        self.kernel = Kernel(name, spec)
        self.base = self.blocks()

    def pick(self, number: int, kind: type) -> Any:
        found = [f for f in self.files if type(f) is kind]
        return found[number % len(found)] if found else None

    def vm(self, number: int) -> KvmVm:
        found = self.pick(number, KvmVm)
        if found is None or number % 5 == 4:
            found = self.kernel.kvm_vm(number % 3)
            self.files.append(found)
        assert isinstance(found, KvmVm)
        return found

    # -- what user space does -------------------------------------------------------------------

    @rule(number=NUMBERS, gfn=st.integers(0, 1 << 40), frames=st.integers(1, 600))
    def attributes(self, number: int, gfn: int, frames: int) -> None:
        vm = self.vm(number)
        if id(vm) not in self.kernel.luo.preserved:
            end = max((each.gfn + each.frames for each in vm.attributes), default=0)
            own = AttributeRange(end + gfn, frames, 8 + number % 2)
            vm.attributes = (*vm.attributes, own)

    @rule(number=NUMBERS, order=st.integers(0, 4))
    def folio(self, number: int, order: int) -> None:
        vm = self.vm(number)
        if id(vm) not in self.kernel.luo.preserved:
            frame = self.kernel.machine.alloc(order, f"folio {number}".encode())
            vm.folios = (*vm.folios, (frame, order))

    @rule(
        number=NUMBERS,
        state=st.binary(min_size=1, max_size=9000),
        control=st.none() | st.integers(0, 3),
        runs=st.none() | st.integers(0, 1 << 60),
    )
    def vcpu(self, number: int, state: bytes, control: int | None, runs: int | None) -> None:
        vm = self.vm(number)
        if number in vm.vcpus:
            with pytest.raises(KernelErrno, match="EEXIST"):
                self.kernel.kvm_vcpu(vm, number, state)
            return
        made = self.kernel.kvm_vcpu(vm, number, state)
        if control is not None:
            made.control = {"state": control}
            made.telemetry = None if runs is None else {"total_runs": runs}
        self.files.append(made)

    @rule(number=NUMBERS, flags=st.integers(0, 3), huge=st.booleans())
    def guest_memory(self, number: int, flags: int, huge: bool) -> None:
        made = self.kernel.guest_memfd(self.vm(number), flags)
        made.huge_order = 4 if huge else 0
        made.truncate((number + 1) * self.page)
        self.files.append(made)

    @rule(number=NUMBERS, page=st.integers(0, 99), data=st.binary(min_size=1, max_size=200))
    def write(self, number: int, page: int, data: bytes) -> None:
        """New pages of a preserved file are refused, those there are can be written."""
        file = self.pick(number, GuestMemfd if number % 2 else HugeMemfd)
        if file is not None and page * self.page + len(data) <= file.size:
            self.attempt(lambda: file.write(page * self.page, data), "EPERM", "ENOMEM")

    @rule(number=NUMBERS, stale=st.integers(0, 3))
    def not_up_to_date(self, number: int, stale: int) -> None:
        file = self.pick(number, GuestMemfd)
        if file is not None and id(file) not in self.kernel.luo.preserved:
            file.stale = min(stale, sum(len(e.frames) for e in file.extents))

    @rule(pages=st.integers(0, 10), pos=st.integers(0, 1 << 40))
    def huge_pages(self, pages: int, pos: int) -> None:
        made = self.kernel.huge_memfd(POOL_ORDER)
        made.truncate(pages * self.page << POOL_ORDER)
        made.seek(pos)
        self.files.append(made)

    @rule(blocks=st.integers(0, 1 << 40), mode=st.integers(0, 0o7777), flags=st.integers(0, 3))
    def mount(self, blocks: int, mode: int, flags: int) -> None:
        self.files.append(TmpfsMount(blocks, mode, flags))

    @rule(number=NUMBERS, name=NAMES, token=st.integers(0, 20))
    def preserve(self, number: int, name: str, token: int) -> None:
        if not self.files:
            return
        file, session = self.files[number % len(self.files)], self.session(name)
        before = self.kernel.huge_pools[POOL_ORDER].used
        errors = ["EEXIST", "EBUSY"]
        if isinstance(file, (KvmVcpu, GuestMemfd)) and session.find(file.vm) is None:
            errors.append("EINVAL")  # its machine is not preserved here
        if isinstance(file, HugeMemfd):
            errors.append("ENOMEM")  # the pool is empty
        if self.kernel.luo.handler(file) is None:
            errors.append("ENOENT")
        if not self.attempt(lambda: session.preserve(file, token), *errors):
            assert self.kernel.huge_pools[POOL_ORDER].used >= before

    @rule(number=NUMBERS, name=NAMES, token=st.integers(0, 17))
    def machine_and_all(self, number: int, name: str, token: int) -> None:
        """A machine and everything of it, as a monitor does."""
        vm, session = self.vm(number), self.session(name)
        own = [f for f in self.files if getattr(f, "vm", None) is vm]
        for i, file in enumerate([vm, *own][:3]):
            refused = ("EEXIST", "EBUSY", "EINVAL", "ENOENT")
            self.attempt(lambda file=file, i=i: session.preserve(file, token + i), *refused)

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        self.session(name).close()

    @rule(seed=st.integers(0, 1 << 16))
    def update(self, seed: int) -> None:
        if self.updates < 3:
            self.jump(random.Random(seed))

    # -- the reboot path --------------------------------------------------------------------------

    def jump(self, chooser: random.Random) -> None:
        """Kexec into the same release; what user space does not want is thrown away."""
        self.updates += 1
        before, meant = self.kernel, meant_by(self.kernel)
        memory = before.kexec().memory
        layers = ("kvm", "memfd")
        forms = {layer: before.profile[layer] for layer in layers}
        with decoded_image.open(memory, overrides=forms) as found:
            report = check.check(found, at_least=Severity.WARNING)
            assert not report.findings, report.findings[:3]
        consumer = boot(memory, before.profile)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        wanted = self.user_space(consumer, chooser)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        assert consumer.luo is not None
        for session in consumer.luo.sessions:
            session.files = [f for f in session.files if f.file is not None]
        assert found_by(Result(consumer)) == {key: meant[key] for key in wanted}
        check_pages(before, consumer)
        self.kernel = Kernel.after(consumer, before.machine.spec)
        self.base = self.blocks()
        taken = self.kernel.take_over()
        self.files = [file for files in taken.values() for file in files.values()]
        for session_name, files in taken.items():
            opened = self.kernel.luo.create_session(session_name)
            for token, file in files.items():
                opened.preserve(file, token)
        assert meant_by(self.kernel) == {key: meant[key] for key in wanted}

    def user_space(self, consumer: Consumer, chooser: random.Random) -> list[tuple[str, int]]:
        """Retrieve in any order all files, or what belongs to some machines; then finish."""
        wanted = []
        for entry in list(consumer.open().sessions):
            session = consumer.retrieve_session(entry.name)
            tokens = session.tokens
            chooser.shuffle(tokens)
            if chooser.random() < 0.3:
                kinds = {b"kvm_vm_luo_v1"} | {f.compatible for f in entry.files[:2]}
                tokens = [t for t in tokens if entry.find(t).compatible in kinds]  # type: ignore[union-attr]
            for token in tokens:
                assert session.retrieve(token) is session.retrieve(token)
                wanted.append((session.name, token))
            with pytest.raises(KernelErrno, match="ENOENT"):
                session.retrieve(0xDEAD)
            session.finish()
            with pytest.raises(KernelErrno, match="EINVAL"):
                session.finish()
        return wanted

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        for number in range(4):
            self.guest_memory(number, 1, number == 3)
            self.write(number, 0, b"last words")
            self.machine_and_all(number, "b", 3 * number)
        self.huge_pages(2, 7)
        self.preserve(len(self.files) - 1, "b", 15)
        self.jump(random.Random(1))
        # Closing everything gives back every page of every file, adopted ones included.
        for session in list(self.kernel.luo.sessions):
            session.close()
        assert self.blocks() == self.base
        machine, gone = self.kernel.machine, 0
        before = machine.pages_out
        for file in self.files:
            if isinstance(file, (GuestMemfd, HugeMemfd)):
                gone += sum(len(e.frames) << e.order for e in file.extents)
                file.close()
        assert machine.pages_out == before - gone
        assert self.kernel.huge_pools[POOL_ORDER].used == 0


GuestPair.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, phases=[Phase.generate]
)
TestGuestPair = GuestPair.TestCase
