"""Random lives of iommufds and devices: what the next kernel finds is what was mapped."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from abi.pagetable import READ_WRITE, Permission
from inspector import pagetable
from inspector.findings import Outcome
from inspector.kernel.consumer import consume
from inspector.kernel.device_files import RestoredIommufd, RestoredVfio
from inspector.kernel.errno import KernelErrno
from inspector.kernel.hardware import Hardware, PciDevice, Unit, UnitType
from inspector.kernel.ioas import Hwpt, Ioas
from inspector.kernel.iommufd import Iommufd, IommufdHandler
from inspector.kernel.kernel import Kernel
from inspector.kernel.luo import Session
from inspector.kernel.machine import GiB, small_machine
from inspector.kernel.memfd import DMA_SEALS, Memfd
from inspector.kernel.vfio import VfioDevice

PAGE = 4096
BASE = 0xFED90000
NUMBERS = st.integers(0, 99)
NAMES = st.sampled_from("ab")
PROFILES = (
    "linux-7.0+iommu-rfc-v2",
    "linux-7.0+iommu-v1",
    "linux-7.1+iommu-v2",
    "linux-7.1+iommu-v3",
    "linux-7.3+iommu-vw",
)


class IommuPair(RuleBasedStateMachine):
    """User space with iommufds, address spaces, page tables and devices, and a model of them."""

    @initialize(name=st.sampled_from(PROFILES), scalable=st.booleans(), arm=st.booleans())
    def start(self, name: str, scalable: bool, arm: bool) -> None:
        arm = arm and name.endswith("vw")
        kind = UnitType.ARM_SMMUV3 if arm else UnitType.INTEL
        units = tuple(
            Unit(base=BASE + 0x1000 * i, type=kind, scalable=scalable and not arm, input_bits=44)
            for i in range(2)
        )
        devices = tuple(
            PciDevice(bdf=0x18 + 0x80 * i, unit=BASE + 0x1000 * (i % 2)) for i in range(5)
        )
        self.name = name
        spec = small_machine(
            GiB,
            architecture="aarch64" if arm else "x86_64",
            hardware=Hardware(units, devices),
            shuffle=True,
        )
        self.kernel = Kernel(name, spec)
        self.units, self.devices = units, devices
        self.memory = self.kernel.memfd("ram")
        self.memory.truncate(256 * PAGE)
        self.memory.add_seals(DMA_SEALS)
        self.iommufds: list[Iommufd] = []
        self.vfio: dict[int, VfioDevice] = {}
        self.model: dict[Ioas, dict[int, tuple[int, Permission]]] = {}
        handlers = self.kernel.luo.handlers
        self.bits = next(h.token_bits for h in handlers if isinstance(h, IommufdHandler))

    def attempt(self, change: Callable[[], object], *errors: str) -> bool:
        """Whether an operation succeeded; only the errors named are right."""
        try:
            change()
        except KernelErrno as error:
            assert error.name in errors, error
            return False
        return True

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

    def session(self, name: str) -> Session:
        try:
            return self.kernel.luo.session(name)
        except KernelErrno:
            session = self.kernel.luo.create_session(name)
            if name == "a":
                session.preserve(self.memory, 1)
            return session

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
                self.memory, offset * PAGE, iova * PAGE, count * PAGE, permissions
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
        if self.attempt(lambda: space.unmap(iova * PAGE, count * PAGE), "ENOENT", "EBUSY"):
            for page in range(iova, iova + count):
                self.model[space].pop(page, None)

    @rule(number=NUMBERS, token=st.integers(0, 3))
    def mark(self, number: int, token: int) -> None:
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        self.attempt(lambda: iommufd.mark(hwpt, token, bits=self.bits), "EADDRINUSE", "EBUSY")

    @rule(number=NUMBERS)
    def unmark(self, number: int) -> None:
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        if hwpt.domain.ser is None:
            iommufd.unmark(hwpt)

    @rule(number=NUMBERS, device=st.integers(0, 4))
    def attach(self, number: int, device: int) -> None:
        iommufd = self.iommufd(number)
        hwpt = self.hwpt(iommufd, number // 7)
        self.attempt(lambda: iommufd.attach(self.devices[device], hwpt), "EBUSY", "EINVAL")

    @rule(number=NUMBERS, device=st.integers(0, 4))
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

    @rule(number=st.integers(0, 4), name=NAMES, token=st.integers(5, 9))
    def preserve_device(self, number: int, name: str, token: int) -> None:
        session, device = self.session(name), self.devices[number]
        owner = next((i for i in self.iommufds if device.key in i.devices), None)
        file = self.vfio.get(device.key)
        if file is None or (file.iommufd is not owner and id(file) not in session.luo.preserved):
            file = self.vfio[device.key] = self.kernel.vfio(0, device.bdf, owner)
        self.attempt(lambda: session.preserve(file, token), "EEXIST", "EBUSY", "EINVAL", "ENOSPC")

    @rule(number=NUMBERS, name=NAMES, device=st.integers(0, 4))
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
        self.session(name).close()

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        kernel = self.kernel
        for number in range(5):
            self.map(number, 100 * number, 10 * number, 20, READ_WRITE)
            self.everything(number, "a", number)
        image = kernel.kexec()
        result = consume(
            image.memory, kernel.profile, finish=False, hardware=kernel.machine.spec.hardware
        )
        assert result.outcome is Outcome.TAKEN_OVER, result.reasons
        assert not result.errors
        consumer = result.consumer
        by_name = {s.name: s for s in kernel.luo.sessions}
        seen = 0
        for session in consumer.luo.sessions if consumer.luo is not None else []:
            meant = by_name.pop(session.name.decode())
            assert {f.token for f in session.files} == set(meant.files)
            for entry in session.files:
                file, restored = meant.files[entry.token].file, entry.file
                seen += 1
                if isinstance(file, Memfd):
                    assert restored.size == file.size
                elif isinstance(file, Iommufd):
                    assert isinstance(restored, RestoredIommufd)
                    self.same_hwpts(file, restored)
                else:
                    assert isinstance(restored, RestoredVfio)
                    assert restored.device == file.device
        assert not by_name or consumer.luo is None

        # Everything that was preserved can be given back, and nothing else is left.
        flb = kernel.iommu
        assert flb is not None
        for session in list(kernel.luo.sessions):
            session.close()
        assert flb.count == 0
        assert flb.root == 0
        left = {(int(f), o) for o, frames in kernel.kho.map.blocks() for f in frames.tolist()}
        assert left == self.base

    def same_hwpts(self, file: Iommufd, restored: RestoredIommufd) -> None:
        handler = next(h for h in self.kernel.luo.handlers if isinstance(h, IommufdHandler))
        preserved = {h.token: h for h in handler.hwpts(file)}
        assert set(restored.hwpts) == set(preserved)
        for hwpt in preserved.values():
            assert hwpt.ioas is not None
            table = hwpt.domain.table
            walk = pagetable.walk(
                self.kernel.machine.memory, table.format, table.top, table.levels, vasz=table.bits
            )
            found: dict[int, int] = {}
            for chunk in walk.ranges():
                for iova, pa, size in zip(chunk.iova, chunk.pa, chunk.size, strict=True):
                    for at in range(0, int(size), PAGE):
                        found[(int(iova) + at) // PAGE] = int(pa) + at
            index = {i: f for e in self.memory.extents for i, f in enumerate(e.frames, e.index)}
            meant = {p: int(index[o]) * PAGE for p, (o, _) in self.model[hwpt.ioas].items()}
            assert found == meant
            assert not walk.findings.items

    @property
    def base(self) -> set[tuple[int, int]]:
        """What a kernel preserves before anybody asks it to, by a twin of this one."""
        twin = Kernel(self.name, self.kernel.machine.spec)
        blocks = {(int(f), o) for o, frames in twin.kho.map.blocks() for f in frames.tolist()}
        assert blocks
        return blocks


IommuPair.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, phases=[Phase.generate]
)
TestIommuPair = IommuPair.TestCase
