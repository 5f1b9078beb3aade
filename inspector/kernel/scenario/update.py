"""``[[update]]``: the image is taken over, and the kernel that did it hands over again.

Every session is retrieved with all its files, devices are moved to page tables of the new kernel,
and everything is finished. With ``preserve`` (the default) sessions of the same names then hold
the same files under the same tokens again, of all kinds or of those that it lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from abi.errors import UsageError
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.machine import MachineSpec
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.kernel import Image, Kernel, KhoTestSpec
from inspector.kernel.outgoing.kvm import GuestMemfd, KvmVcpu, KvmVm
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.outgoing.tmpfs import TmpfsMount
from inspector.kernel.outgoing.vfio import VfioDevice
from inspector.kernel.profile import KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.scenario import steps as scenario_steps
from inspector.kernel.scenario.steps import Step, World
from inspector.kernel.toml_file import ScenarioError, Table, unknown

#: Kinds of files by what they are in a running kernel.
_KINDS: dict[type, str] = {
    Memfd: "memfd",
    KvmVm: "kvm-vm",
    KvmVcpu: "kvm-vcpu",
    GuestMemfd: "guest-memfd",
    HugeMemfd: "huge-memfd",
    TmpfsMount: "tmpfs-mount",
    Iommufd: "iommufd",
    VfioDevice: "vfio-pci",
}
#: Those that exist after an update whether they are preserved again or not.
_MEMORY = frozenset(_KINDS.values()) - {"iommufd", "vfio-pci"}
_GOOD = (Outcome.TAKEN_OVER, Outcome.TAKEN_OVER_WITH_WARNINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of a chain. ``kernel`` takes over what came before."""

    kernel: KernelProfile
    release: str | None = None
    kho_test: KhoTestSpec | None = None
    test_flbs: bool = False
    preserve: frozenset[str] = frozenset(_KINDS.values())
    finish: bool = True
    steps: tuple[Step, ...] = ()
    table: Table | None = field(default=None, compare=False, repr=False)

    def error(self, message: str) -> UsageError:
        """An error at the update."""
        return UsageError(message) if self.table is None else self.table.error(None, message)

    def run(self, image: Image, spec: MachineSpec) -> Kernel:
        """Take the image over, and do the steps. Raises UsageError if it cannot be."""
        before = image.kernel
        result = consume(
            image.memory,
            self.kernel,
            finish=self.finish,
            reserve_mem=before.reserve_mem,
            hardware=spec.hardware,
        )
        if result.outcome not in _GOOD or result.errors:
            first = result.reasons[0].message if result.reasons else ""
            for path, error in result.errors.items():
                first = first or f"{path}: {error}"
            raise self.error(f"{self.kernel} does not take over: {result.outcome}: {first}")
        kernel = Kernel.after(
            result.consumer,
            spec,
            release=self.release,
            kho_test=self.kho_test,
            test_flbs=self.test_flbs,
        )
        world = World(kernel)
        try:
            self._take_over(world)
        except KernelErrno as error:
            raise self.error(f"what was taken over cannot be preserved again: {error}") from None
        except UsageError as error:
            raise self.error(str(error)) from None
        for step in self.steps:
            step.run(world)
        return kernel

    def _take_over(self, world: World) -> None:
        """Name the files, and preserve those of the kinds wanted again."""
        kernel = world.kernel
        for session, files in kernel.take_over({*self.preserve, *_MEMORY}).items():
            for token, file in files.items():
                world.files[f"{session}/{token:#x}"] = file
                for hwpt in file.hwpts if isinstance(file, Iommufd) else ():
                    name = f"{session}/{token:#x}/{hwpt.token:#x}"
                    world.objects |= {name: hwpt, f"{name}/ioas": hwpt.ioas}
            if self.preserve:
                opened = kernel.luo.create_session(session)
                world.add_session(session, opened)
                for token, file in files.items():
                    if _kind(file) in self.preserve:
                        opened.preserve(file, token)


def _kind(file: Any) -> str:
    return next(kind for type_, kind in _KINDS.items() if type(file) is type_)


def _preserve(table: Table) -> frozenset[str]:
    """``true``, ``false``, or a list of kinds."""
    if not isinstance(table.raw("preserve"), list):
        return frozenset(_KINDS.values() if table.flag("preserve", True) else ())
    kinds = table.strings("preserve")
    for kind in kinds:
        if kind not in _KINDS.values():
            raise table.error("preserve", unknown(kind, sorted(_KINDS.values()), "kind of file"))
    return frozenset(kinds)


def read(table: Table, before: KernelProfile) -> Update:
    """An update out of its table. Raises ScenarioError."""
    kernel = before
    if table.has("kernel"):
        try:
            kernel = find_profile(table.text("kernel"))
        except UsageError as error:
            if isinstance(error, ScenarioError):
                raise
            raise table.error("kernel", str(error)) from None
    test = None
    if table.has("kho_test"):
        inner = table.table("kho_test")
        test = KhoTestSpec(
            pages=inner.integer("pages", 64, bits=24),
            max_order=inner.integer("max_order", 4, bits=4),
        )
        inner.done()
    update = Update(
        kernel=kernel,
        release=table.text("release", None),
        kho_test=test,
        test_flbs=table.flag("test_flbs"),
        preserve=_preserve(table),
        finish=table.flag("finish", True),
        steps=tuple(scenario_steps.read(table, kernel)),
        table=table,
    )
    table.done()
    return update
