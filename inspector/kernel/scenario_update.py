"""``[[update]]``: the image is taken over, and the kernel that did it hands over again.

Every session is retrieved with all its files, devices are moved to page tables of the new kernel,
and everything is finished. With ``preserve`` (the default) sessions of the same names then hold the
same memory files under the same tokens again; iommufds and devices are opened anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abi.errors import UsageError
from inspector.findings import Outcome
from inspector.kernel import scenario_steps
from inspector.kernel.consumer import Result, consume
from inspector.kernel.kernel import Image, Kernel, KhoTestSpec
from inspector.kernel.machine import MachineSpec
from inspector.kernel.memory_file import RestoredMemfd
from inspector.kernel.profile import KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.scenario_file import ScenarioError, Table
from inspector.kernel.scenario_steps import Step, World

_GOOD = (Outcome.TAKEN_OVER, Outcome.TAKEN_OVER_WITH_WARNINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of a chain. ``kernel`` takes over what came before."""

    kernel: KernelProfile
    release: str | None = None
    kho_test: KhoTestSpec | None = None
    test_flbs: bool = False
    preserve: bool = True
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
        restored = _memory_files(result)
        kernel = Kernel.after(
            result.consumer,
            spec,
            release=self.release,
            kho_test=self.kho_test,
            test_flbs=self.test_flbs,
        )
        world = World(kernel)
        for session, files in restored.items():
            for token, file in files.items():
                name = f"{session}/{token:#x}"
                world.files[name] = kernel.adopt(file, name)
            if self.preserve:
                opened = kernel.luo.create_session(session)
                world.add_session(session, opened)
                for token in files:
                    opened.preserve(world.files[f"{session}/{token:#x}"], token)
        for step in self.steps:
            step.run(world)
        return kernel


def _memory_files(result: Result) -> dict[str, dict[int, RestoredMemfd]]:
    """The memory files by session and token, in the order of the image."""
    if result.consumer.luo is None:
        return {}
    return {
        entry.name.decode("utf-8", "surrogateescape"): {
            file.token: file.file for file in entry.files if isinstance(file.file, RestoredMemfd)
        }
        for entry in result.consumer.luo.sessions
    }


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
        preserve=table.flag("preserve", True),
        finish=table.flag("finish", True),
        steps=tuple(scenario_steps.read(table, kernel)),
        table=table,
    )
    table.done()
    return update
