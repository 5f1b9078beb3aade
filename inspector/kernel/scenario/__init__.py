"""Scenarios: which machine, which kernel, what it preserves, what goes wrong.

A scenario is a TOML file (see ``docs/scenarios.md`` and the shipped ones) or is built in
Python. Running it boots a simulated kernel, performs the operations in order, jumps, and
injects the faults::

    from inspector.kernel import scenario

    image = scenario.load("vmm").run()
    image = scenario.parse('kernel = "linux-7.3"').run(seed=7)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from abi.errors import UsageError
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import MachineSpec, NoRoom
from inspector.kernel.outgoing.clients import ReserveMem
from inspector.kernel.outgoing.kernel import Image, Kernel, KhoTestSpec, Moment
from inspector.kernel.outgoing.memfd import pattern_bytes
from inspector.kernel.profile import Finalize, KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.room import room
from inspector.kernel.scenario import guest as scenario_guest
from inspector.kernel.scenario import iommu as scenario_iommu
from inspector.kernel.scenario import machine as scenario_machine
from inspector.kernel.scenario import steps as scenario_steps
from inspector.kernel.scenario import update as scenario_update
from inspector.kernel.scenario.steps import AT_ONCE, Step, World
from inspector.kernel.scenario.update import Update
from inspector.kernel.toml_file import Document, ScenarioError, Table, read_text, unknown
from inspector.text import size_text

#: Importing them adds the file types and steps of layers that are in no release.
_EXTENSIONS = (scenario_guest, scenario_iommu)

__all__ = ["Fault", "Scenario", "ScenarioError", "load", "parse", "shipped"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to inject: its name in :mod:`inspector.kernel.faults`, and which occurrence."""

    name: str
    table: Table | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that makes an image, deterministic for a seed."""

    kernel: KernelProfile
    machine: MachineSpec
    title: str = ""
    release: str | None = None
    live_updates: int = 0
    kexecs: int = 0
    test_flbs: bool = False
    reserve_mem: tuple[ReserveMem, ...] = ()
    patterns: Mapping[str, int] = field(default_factory=dict)
    kho_test: KhoTestSpec | None = None
    steps: tuple[Step, ...] = ()
    finalize: bool = True
    moment: Moment = Moment.HANDOFF
    command_line: str = "kho=on liveupdate=on"
    faults: tuple[Fault, ...] = ()
    updates: tuple[Update, ...] = ()
    root: Table | None = field(default=None, compare=False, repr=False)

    def boot(self, *, seed: int | None = None) -> Kernel:
        """The kernel, booted; nothing done yet. Raises ScenarioError if it cannot boot so."""
        self._check_content()
        machine = self.machine if seed is None else replace(self.machine, seed=seed)
        try:
            kernel = Kernel(
                self.kernel,
                machine,
                release=self.release,
                reserve_mem=self.reserve_mem,
                kho_test=self.kho_test,
                test_flbs=self.test_flbs,
                live_updates=self.live_updates,
                kexecs=self.kexecs,
            )
        except NoRoom as error:
            sizes = [region.size for region in self.reserve_mem]
            where = ("reserve_mem", sizes.index(error.size), "size")
            raise self._error(where, str(error)) from None
        except KernelErrno as error:
            raise self._error(("machine",), f"the kernel does not boot: {error}") from None
        except UsageError as error:
            raise self._error(("machine",), str(error)) from None
        for region in kernel.reserve_mem:
            if region.name in self.patterns:
                for at in range(0, region.size, AT_ONCE):
                    length = min(AT_ONCE, region.size - at)
                    content = pattern_bytes(self.patterns[region.name], at, length)
                    kernel.machine.memory.write(region.start + at, content)
        return kernel

    def _check_content(self) -> None:
        """Raises ScenarioError if there is not the memory for what all kernels store together.

        What a later kernel writes is stored besides what it finds. What the simulated machine
        itself has no memory for is not counted: it ends in ENOMEM before it is stored.
        """
        ram = sum(r.size for r in self.machine.ram)
        wanted: Counter[tuple[str | int, ...]] = Counter()
        for path, size in self._content():
            if size <= ram:
                wanted[path] += size
        most = room()
        if wanted.total() > most:
            largest, _ = wanted.most_common(1)[0]
            hint = ': fill = "head" or "zero" makes a file sparse'
            if "reserve_mem" in largest:
                hint = ": a region without a pattern takes none"
            elif "kho_test" in largest or "step" in largest:
                hint = ""
            raise self._error(
                largest,
                f"the scenario asks for {size_text(wanted.total())} of content in all,"
                f" and there is memory for {size_text(most)}{hint}",
            )

    def _content(self) -> Iterator[tuple[tuple[str | int, ...], int]]:
        """What is stored, and the key that asks for it."""
        for i, region in enumerate(self.reserve_mem):
            if region.name in self.patterns:
                yield ("reserve_mem", i, "size"), region.size
        for step in (*self.steps, *(step for update in self.updates for step in update.steps)):
            path = step.table.path
            yield (*path, "size") if step.table.has("size") else path, step.content
        tests = [(self.root, self.kho_test), *((u.table, u.kho_test) for u in self.updates)]
        for table, test in tests:
            if test is not None:
                at = () if table is None else table.path
                yield (*at, "kho_test", "pages"), test.pages * self.machine.page_size

    def _error(self, path: tuple[str | int, ...], message: str) -> UsageError:
        """An error at a key, if the scenario is of a file."""
        return UsageError(message) if self.root is None else self.root.document.error(path, message)

    def perform(self, kernel: Kernel) -> World:
        """Do the steps on a booted kernel."""
        world = World(kernel)
        for step in self.steps:
            step.run(world)
        return world

    def run(self, *, seed: int | None = None, moment: Moment | str | None = None) -> Image:
        """Boot, do the steps, jump, inject the faults; the image.

        Raises ScenarioError where a step fails that was not expected to.
        """
        kernel = self.boot(seed=seed)
        self.perform(kernel)
        for update in self.updates:
            image = self._jump(kernel, Moment.HANDOFF)
            kernel = update.run(image, kernel.machine.spec)
        image = self._jump(kernel, Moment(moment or self.moment))
        if self.faults:
            from inspector.kernel import faults

            for fault in self.faults:
                try:
                    faults.inject(image, fault.name)
                except UsageError as error:
                    if fault.table is None:
                        raise
                    raise fault.table.error("name", str(error)) from None
        return image

    def _jump(self, kernel: Kernel, moment: Moment) -> Image:
        by_hand = kernel.profile.finalize is Finalize.DEBUGFS
        try:
            if by_hand and self.finalize and not kernel.kho.finalized:
                kernel.finalize()
            return kernel.kexec(moment, command_line=self.command_line)
        except KernelErrno as error:
            raise self._error((), f"the kernel refuses to reboot: {error}") from None
        except UsageError as error:
            raise self._error(("machine", "scratch"), str(error)) from None


def shipped() -> dict[str, str]:
    """Shipped scenarios: name -> title."""
    out = {}
    for entry in resources.files(__name__).joinpath("shipped").iterdir():
        if entry.name.endswith(".toml"):
            first = entry.read_text("utf-8").partition("\n")[0]
            out[entry.name.removesuffix(".toml")] = first.removeprefix("#").strip()
    return dict(sorted(out.items()))


def load(path: str | FilePath) -> Scenario:
    """A scenario from a file, or a shipped one by name. Raises ScenarioError."""
    name = str(path)
    names = shipped()
    if name in names:
        text = resources.files(__name__).joinpath(f"shipped/{name}.toml")
        return parse(text.read_text("utf-8"), name)
    try:
        return parse(read_text(FilePath(path)), name)
    except FileNotFoundError:
        if "/" in name or name.endswith(".toml"):
            raise UsageError(f"{name}: no such file") from None
        raise UsageError(unknown(name, names, "scenario", "kho simulate --list")) from None


def parse(text: str, name: str = "scenario") -> Scenario:
    """A scenario from TOML text. Raises ScenarioError: line, key, reason."""
    root = Document(text, name).root
    try:
        kernel = find_profile(root.text("kernel"))
    except UsageError as error:
        if isinstance(error, ScenarioError):
            raise
        raise root.error("kernel", str(error)) from None
    table = root.table("machine")
    machine = scenario_machine.read(table, root.integer("seed", 0))
    values: dict[str, Any] = {
        "kernel": kernel,
        "machine": machine,
        "title": root.text("title", ""),
        "release": root.text("release", None),
        "live_updates": root.integer("live_updates", 0),
        "kexecs": root.integer("kexecs", root.integer("live_updates", 0), bits=31),
        "test_flbs": root.flag("test_flbs"),
        "finalize": root.flag("finalize", True),
        "moment": Moment(root.choice("moment", list(Moment), "handoff")),
        "command_line": root.text("command_line", "kho=on liveupdate=on"),
    }
    values["reserve_mem"], values["patterns"] = _reserve_mem(root)
    if root.has("kho_test"):
        test = root.table("kho_test")
        values["kho_test"] = KhoTestSpec(
            pages=test.integer("pages", 64, bits=24), max_order=test.integer("max_order", 4, bits=4)
        )
        test.done()
    values["steps"] = tuple(scenario_steps.read(root, kernel))
    values["updates"] = tuple(_updates(root, kernel))
    values["faults"], values["root"] = tuple(_faults(root)), root
    root.done()
    return Scenario(**values)


def _reserve_mem(root: Table) -> tuple[tuple[ReserveMem, ...], dict[str, int]]:
    regions: list[ReserveMem] = []
    patterns: dict[str, int] = {}
    for table in root.tables("reserve_mem"):
        name, align = table.text("name"), table.size("align", 4096)
        if not name or not name.isprintable() or "/" in name:
            raise table.error("name", f"{name!r} is no name of a region")
        if any(r.name == name for r in regions):
            raise table.error("name", f"two regions are called {name!r}")
        if not align or align & (align - 1):
            raise table.error("align", "is no power of two")
        size = table.size("size")
        if not size:
            raise table.error("size", "is 0")
        regions.append(ReserveMem(name, size, align))
        if table.has("pattern"):
            patterns[name] = table.integer("pattern")
        table.done()
    return tuple(regions), patterns


def _updates(root: Table, kernel: KernelProfile) -> Iterator[Update]:
    for table in root.tables("update"):
        update = scenario_update.read(table, kernel)
        kernel = update.kernel
        yield update


def _faults(root: Table) -> list[Fault]:
    found = []
    for table in root.tables("fault"):
        found.append(Fault(table.text("name"), table))
        table.done()
    return found
