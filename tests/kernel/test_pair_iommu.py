"""Random lives of iommufds and devices over several updates: what was mapped is what is found.

User space maps, marks, attaches, preserves, unpreserves, fails at all of it; the kernel freezes,
gives up, jumps; the next one retrieves in any order, is refused what comes too early, replaces,
finishes, and is the producer of the next update with what it took over.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from meaning import found_by, meant_by
from page_accounts import check_pages
from user_space import UserSpace

from abi.pagetable import READ_WRITE, Permission
from inspector import check
from inspector import image as decoded_image
from inspector.findings import Outcome, Severity
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import Consumer, Result, Session, boot
from inspector.kernel.incoming.device_files import RestoredIommufd, RestoredVfio
from inspector.kernel.machine import GiB, small_machine
from inspector.kernel.machine.hardware import Hardware, PciDevice, Unit, UnitType
from inspector.kernel.outgoing.ioas import Hwpt, Ioas
from inspector.kernel.outgoing.iommufd import Iommufd, IommufdHandler
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.luo import Session as OutgoingSession
from inspector.kernel.outgoing.memfd import DMA_SEALS, Memfd
from inspector.kernel.outgoing.vfio import VfioDevice
from inspector.memory.sparse import SparseMemory

BASE = 0xFED90000
#: Pages of the memory file, and devices of the machine.
PAGES, DEVICES = 256, 5
NUMBERS = st.integers(0, 99)
NAMES = st.sampled_from("ab")
PROFILES = (
    # Memory files of 7.0 lose the seals that an iommufd wants: only one update is possible there.
    "linux-7.0+iommu-rfc-v2+memfd=memfd-v2",
    "linux-7.0+iommu-v1+memfd=memfd-v2",
    "linux-7.1+iommu-v1+iommu=iommu-v1-2026-02-partial",
    "linux-7.1+iommu-v2",
    "linux-7.1+iommu-v3+iommu=iommu-v3-2026-06-base",
    "linux-7.1+iommu-v3",
    "linux-7.2+iommu-smmuv3",
    "linux-7.3+iommu-vw",
    "linux-7.3+iommu-vw+iommu=iommu-v4-version-field-base",
    "linux-7.1+iommu-v3+vfio-backport",
)
#: Those whose driver for Arm is there.
ARM = ("linux-7.2+iommu-smmuv3", "linux-7.3+iommu-vw")


class IommuPair(UserSpace):
    """User space with iommufds, address spaces, page tables and devices, and a model of them."""

    @initialize(
        name=st.sampled_from(PROFILES),
        scalable=st.booleans(),
        arm=st.booleans(),
        page=st.sampled_from([0x1000, 0x4000, 0x10000]),
        seed=st.integers(0, 3),
    )
    def start(self, name: str, scalable: bool, arm: bool, page: int, seed: int) -> None:
        arm = name in ARM and (arm or "smmuv3" in name)
        kind = UnitType.ARM_SMMUV3 if arm else UnitType.INTEL
        units = tuple(
            Unit(base=BASE + 0x1000 * i, type=kind, scalable=scalable and not arm, input_bits=44)
            for i in range(2)
        )
        devices = tuple(
            PciDevice(bdf=0x18 + 0x80 * i, unit=BASE + 0x1000 * (i % 2)) for i in range(DEVICES)
        )
        self.name, self.page = name, page if arm else 0x1000
        spec = small_machine(
            {0x1000: GiB, 0x4000: 2 * GiB, 0x10000: 4 * GiB}[self.page],
            architecture="aarch64" if arm else "x86_64",
            page_size=self.page,
            hardware=Hardware(units, devices),
            shuffle=True,
            seed=seed,
        )
        self.units, self.devices = units, devices
        self.updates = 0
        self.new_kernel(Kernel(name, spec))
        self.new_memory()

    def new_kernel(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.iommufds: list[Iommufd] = []
        self.vfio: dict[int, VfioDevice] = {}
        self.model: dict[Ioas, dict[int, tuple[int, Permission]]] = {}
        handlers = kernel.luo.handlers
        self.bits = next(h.token_bits for h in handlers if isinstance(h, IommufdHandler))
        self.base = self.blocks()

    def new_memory(self) -> None:
        self.memory = self.kernel.memfd("ram")
        self.memory.truncate(PAGES * self.page)
        self.memory.add_seals(DMA_SEALS)
        self.content: dict[int, bytes] = {}

    def refused(self, change: Callable[[], object], error: str) -> None:
        """An operation must fail so, and leave what is preserved as it is."""
        before = self.blocks()
        with pytest.raises(KernelErrno) as caught:
            change()
        assert caught.value.name == error
        assert self.blocks() == before

    def iommufd(self, number: int) -> Iommufd:
        if not self.iommufds or number % 7 == 6:
            self.iommufds.append(self.kernel.iommufd())
        return self.iommufds[number % len(self.iommufds)]

    def space(self, iommufd: Iommufd, number: int) -> Ioas:
        if not iommufd.ioas or number % 5 == 4:
            self.model[iommufd.ioas_alloc()] = {}
        return iommufd.ioas[number % len(iommufd.ioas)]

    def hwpt(self, iommufd: Iommufd, number: int) -> Hwpt:
        if not iommufd.hwpts or number % 4 == 3:
            iommufd.hwpt_alloc(self.units[number % 2], self.space(iommufd, number))
        return iommufd.hwpts[number % len(iommufd.hwpts)]

    def session(self, name: str) -> OutgoingSession:
        try:
            return self.kernel.luo.session(name)
        except KernelErrno:
            session = self.kernel.luo.create_session(name)
            if name == "a" and id(self.memory) not in session.luo.preserved:
                session.preserve(self.memory, 1)
            return session

    # -- what user space does -------------------------------------------------------------------

    @rule(page=st.integers(0, PAGES - 1), data=st.binary(min_size=1, max_size=100))
    def write(self, page: int, data: bytes) -> None:
        self.memory.write(page * self.page, data)
        self.content[page] = data + self.content.get(page, b"")[len(data) :]

    @rule(
        number=NUMBERS,
        iova=st.integers(0, 1500),
        offset=st.integers(0, 200),
        count=st.integers(1, 56),
        permissions=st.sampled_from([READ_WRITE, Permission.READ]),
    )
    def map(self, number: int, iova: int, offset: int, count: int, permissions: Permission) -> None:
        space = self.space(self.iommufd(number), number // 7)
        model = self.model[space]
        wanted = range(iova, iova + count)
        done = self.attempt(
            lambda: space.map_file(
                self.memory, offset * self.page, iova * self.page, count * self.page, permissions
            ),
            "EEXIST",
            "EBUSY",
        )
        if done:
            assert not any(p in model for p in wanted)
            model |= {p: (offset + i, permissions) for i, p in enumerate(wanted)}

    @rule(number=NUMBERS, iova=st.integers(0, 1500), count=st.integers(1, 200))
    def unmap(self, number: int, iova: int, count: int) -> None:
        space = self.space(self.iommufd(number), number // 7)
        unmap = lambda: space.unmap(iova * self.page, count * self.page)  # noqa: E731
        if self.attempt(unmap, "ENOENT", "EBUSY"):
            for page in range(iova, iova + count):
                self.model[space].pop(page, None)

    @rule(number=NUMBERS, token=st.integers(0, 3))
    def mark(self, number: int, token: int) -> None:
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        errors = ("EADDRINUSE", "EBUSY", *(("EINVAL",) if hwpt.nested else ()))
        self.attempt(lambda: iommufd.mark(hwpt, token, bits=self.bits), *errors)

    @rule(number=NUMBERS)
    def unmark(self, number: int) -> None:
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        if hwpt.domain.ser is None:
            iommufd.unmark(hwpt)

    @rule(number=NUMBERS)
    def nest(self, number: int) -> None:
        iommufd = self.iommufd(number)
        parent = self.hwpt(iommufd, number // 7)
        self.attempt(lambda: iommufd.hwpt_alloc(parent.unit, parent=parent), "EINVAL")

    @rule(number=NUMBERS, device=st.integers(0, DEVICES - 1))
    def attach(self, number: int, device: int) -> None:
        """Also replaces what the device is attached to."""
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        self.attempt(lambda: iommufd.attach(self.devices[device], hwpt), "EBUSY", "EINVAL")

    @rule(number=NUMBERS, device=st.integers(0, DEVICES - 1))
    def detach(self, number: int, device: int) -> None:
        iommufd = self.iommufd(number)
        self.attempt(lambda: iommufd.detach(self.devices[device]), "EINVAL", "EBUSY")

    @rule(number=NUMBERS)
    def destroy(self, number: int) -> None:
        iommufd = self.iommufd(number)
        if iommufd.hwpts:
            hwpt = iommufd.hwpts[number % len(iommufd.hwpts)]
            self.attempt(lambda: iommufd.destroy(hwpt), "EBUSY")
        if iommufd.ioas:
            space = iommufd.ioas[number % len(iommufd.ioas)]
            self.attempt(lambda: iommufd.destroy_ioas(space), "EBUSY")

    @rule(number=NUMBERS, name=NAMES, token=st.integers(2, 4))
    def preserve(self, number: int, name: str, token: int) -> None:
        session, iommufd = self.session(name), self.iommufd(number)
        self.attempt(lambda: session.preserve(iommufd, token), "EEXIST", "EBUSY", "EINVAL")

    @rule(number=st.integers(0, DEVICES - 1), name=NAMES, token=st.integers(5, 9))
    def preserve_device(self, number: int, name: str, token: int) -> None:
        session, device = self.session(name), self.devices[number]
        owner = next((i for i in self.iommufds if device.key in i.devices), None)
        file = self.vfio.get(device.key)
        if file is None or (file.iommufd is not owner and id(file) not in session.luo.preserved):
            file = self.vfio[device.key] = self.kernel.vfio(0, device.bdf, owner)
        self.attempt(lambda: session.preserve(file, token), "EEXIST", "EBUSY", "EINVAL", "ENOSPC")

    @rule(number=NUMBERS, name=NAMES, device=st.integers(0, DEVICES - 1))
    def everything(self, number: int, name: str, device: int) -> None:
        """Mark, preserve, attach, preserve: what a monitor does in one go."""
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        if not hwpt.nested and hwpt.token is None:
            self.mark(number, number % 4)
        self.attempt(lambda: iommufd.attach(self.devices[device], hwpt), "EBUSY", "EINVAL")
        self.preserve(number, "a", 2 + number % 3)
        self.preserve_device(device, "a", 5 + device)

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        """Unpreserves all files of a session."""
        self.session(name).close()

    @rule(number=NUMBERS)
    def failures(self, number: int) -> None:
        """What the kernel refuses leaves nothing behind."""
        session = self.session("a")
        iommufd, page = self.iommufd(number), self.page
        self.refused(lambda: session.preserve(object(), 77), "ENOENT")
        self.refused(lambda: session.preserve(self.kernel.memfd(), 1), "EEXIST")
        space = iommufd.ioas_alloc()
        self.model[space] = {}
        self.refused(lambda: space.map_file(self.memory, 0, page, (PAGES + 1) * page), "EINVAL")
        self.refused(lambda: space.unmap(0, page), "ENOENT")
        free = next(t for t in range(2, 2000) if t not in session.files)
        if iommufd.token is None:
            # A mapping without a file: neither the iommufd nor its HWPTs can be preserved.
            space.map_user(0x1000000, 0, page)
            hwpt = iommufd.hwpt_alloc(self.units[0], space)
            self.refused(lambda: iommufd.destroy_ioas(space), "EBUSY")
            token = next(t for t in range(100, 200) if all(h.token != t for h in iommufd.hwpts))
            iommufd.mark(hwpt, token, bits=self.bits)
            self.refused(lambda: iommufd.mark(hwpt, token, bits=self.bits), "EADDRINUSE")
            self.refused(lambda: session.preserve(iommufd, free), "EINVAL")
            iommufd.destroy(hwpt)
        else:
            where = iommufd.token in session.files
            error = "EBUSY" if where or iommufd.token is not None else "EINVAL"
            self.refused(lambda: session.preserve(iommufd, free), error)
        iommufd.destroy_ioas(space)
        del self.model[space]

    # -- the reboot path --------------------------------------------------------------------------

    @rule(number=st.integers(0, DEVICES - 1))
    def give_up_the_reboot(self, number: int) -> None:
        """Interrupts of a preserved device are on: freezing fails, and all is as before."""
        preserved = [f for f in self.vfio.values() if id(f) in self.kernel.luo.preserved]
        if not preserved:
            return
        file = preserved[number % len(preserved)]
        file.irqs = True
        meant = meant_by(self.kernel)
        self.refused(self.kernel.kexec, "EINVAL")
        assert not self.kernel.gone
        assert meant_by(self.kernel) == meant
        file.irqs = False

    @rule(seed=st.integers(0, 1 << 16))
    def update(self, seed: int) -> None:
        if self.updates < 3:
            self.jump(random.Random(seed))

    def jump(self, chooser: random.Random) -> None:
        """Kexec into the same release, take everything over, go on."""
        self.updates += 1
        self.check_model()
        before, meant = self.kernel, meant_by(self.kernel)
        hardware = before.machine.spec.hardware
        memory = before.kexec().memory
        self.check_image(memory)
        consumer = boot(memory, before.profile, hardware=hardware)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        assert consumer.liveupdate_num == self.updates
        self.user_space(consumer, chooser)
        assert consumer.outcome is Outcome.TAKEN_OVER, consumer.reasons
        assert found_by(Result(consumer)) == meant
        check_pages(before, consumer)
        self.go_on(Kernel.after(consumer, before.machine.spec))
        assert meant_by(self.kernel) == meant
        self.check_model()

    def check_image(self, memory: SparseMemory) -> None:
        """What is handed over breaks no rule, whatever was unpreserved before."""
        layers = ("iommu", "iommufd", "pci", "vfio-pci")
        forms = {layer: self.kernel.profile[layer] for layer in layers}
        with decoded_image.open(memory, overrides=forms) as found:
            report = check.check(found, at_least=Severity.WARNING)
            assert not report.findings, report.findings[:3]

    def user_space(self, consumer: Consumer, chooser: random.Random) -> None:
        """Retrieve, claim, open, move and finish, in any order and with mistakes."""
        names = [s.name for s in consumer.open().sessions]
        chooser.shuffle(names)
        for name in names:
            session = consumer.retrieve_session(name)
            assert failing(consumer.retrieve_session, name) == "EINVAL"
            tokens = session.tokens
            chooser.shuffle(tokens)
            for token in tokens:
                self.too_early(session)
                assert session.retrieve(token) is session.retrieve(token)
            assert failing(session.retrieve, 0xDEAD) == "ENOENT"
            files = [session.retrieve(token) for token in tokens]
            todo: list[Callable[[], None]] = []
            for file in files:
                if isinstance(file, RestoredIommufd):
                    todo += [claim(file, token) for token in file.hwpts]
                elif isinstance(file, RestoredVfio):
                    todo += [file.open, file.replace]
            chooser.shuffle(todo)
            for do in todo:
                if chooser.random() < 0.3:
                    self.too_early(session)
                do()
            session.finish()
            assert failing(session.finish) == "EINVAL"
            assert failing(session.retrieve, 1) == "EINVAL"

    def too_early(self, session: Session) -> None:
        """Finishing is refused as long as a file cannot be finished, and changes nothing."""
        files = session.entry.files
        ready = all(
            file.layer not in ("iommufd", "vfio-pci")
            or (isinstance(file.file, RestoredVfio) and file.file.opened)
            or (
                isinstance(file.file, RestoredIommufd)
                and all(h.claimed for h in file.file.hwpts.values())
                and not any(
                    device.domain is None
                    and device.devices.devices.get(device.device.key)
                    in {h.domain for h in file.file.hwpts.values()}
                    for device in [f.file for f in files]
                    if isinstance(device, RestoredVfio)
                )
                and all(f.file is not None for f in files if f.layer == "vfio-pci")
            )
            for file in files
        )
        if not ready:
            assert failing(session.finish) == "EBUSY"
            assert not session.entry.finished

    def go_on(self, kernel: Kernel) -> None:
        """The kernel that took over is the producer now: preserve everything again."""
        old, models = self.kernel, self.model
        content = self.content
        self.new_kernel(kernel)
        taken = kernel.take_over()
        memory = None
        for session, files in taken.items():
            before = old.luo.session(session)
            for token, file in files.items():
                if isinstance(file, Memfd):
                    memory = file
                elif isinstance(file, Iommufd):
                    self.iommufds.append(file)
                    for hwpt in file.hwpts:
                        was = next(
                            h for h in before.files[token].file.hwpts if h.token == hwpt.token
                        )
                        assert hwpt.ioas is not None
                        self.model[hwpt.ioas] = dict(models[was.ioas])
                elif isinstance(file, VfioDevice):
                    self.vfio[file.device.key] = file
        if memory is None:
            self.new_memory()
        else:
            self.memory, self.content = memory, content
        for session, files in taken.items():
            opened = kernel.luo.create_session(session)
            for token, file in files.items():
                opened.preserve(file, token)

    def check_model(self) -> None:
        """Areas and memory are what the model says."""
        for space, model in self.model.items():
            found = {}
            for area in space.areas:
                for i in range(area.size // self.page):
                    where = area.offset // self.page + i, area.permissions
                    found[area.iova // self.page + i] = where
            assert found == model
        for page, data in self.content.items():
            assert self.memory.read(page * self.page, len(data)) == data

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        for number in range(DEVICES):
            self.map(number, 100 * number, 10 * number, 20, READ_WRITE)
            self.everything(number, "a", number)
        self.jump(random.Random(0))
        # Everything that was preserved can be given back, and nothing else is left.
        flb, luo = self.kernel.iommu, self.kernel.luo
        assert flb is not None
        for session in list(luo.sessions):
            session.close()
        assert flb.count == 0
        assert flb.root == 0
        assert self.blocks() == self.base


def claim(file: RestoredIommufd, token: int) -> Callable[[], None]:
    """Claim a HWPT; twice is once too often, and an unknown token has none."""

    def do() -> None:
        hwpt = file.restore_hwpt(token)
        assert file.devices.boot.view.memory.read(hwpt.reclaimed_at, 1) == b"\1"
        assert failing(file.restore_hwpt, token) == "EEXIST"
        assert failing(file.restore_hwpt, 0xDEAD) == "ENOENT"

    return do


def failing(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(KernelErrno) as caught:
        call(*arguments)
    return caught.value.name


IommuPair.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, phases=[Phase.generate]
)
TestIommuPair = IommuPair.TestCase
