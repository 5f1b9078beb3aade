"""The machine of the next kernel, for verdicts: its IOMMUs and PCI devices, from a TOML file.

::

    [[machine.iommu]]
    base = 0xfed90000
    scalable = true

    [[machine.device]]
    bdf = "0000:00:03.0"
    count = 4
    driver = "vfio-pci"

These are the tables of a scenario; a whole scenario, a shipped one by its name too, serves as well.
"""

from __future__ import annotations

from pathlib import Path

from abi.errors import UsageError
from inspector.kernel import scenario
from inspector.kernel.machine.hardware import Hardware
from inspector.kernel.scenario import machine as scenario_machine
from inspector.kernel.toml_file import Document, ScenarioError, read_text, unknown


def load(name: str) -> Hardware:
    """The hardware that a file, or a shipped scenario, describes. Raises UsageError."""
    if name in scenario.shipped():
        return scenario.load(name).machine.hardware
    try:
        text = read_text(Path(name))
    except FileNotFoundError:
        if "/" in name or name.endswith(".toml"):
            raise UsageError(f"{name}: no such file") from None
        raise UsageError(
            unknown(name, scenario.shipped(), "scenario", "kho simulate --list")
        ) from None
    return parse(text, name)


def parse(text: str, name: str = "hardware") -> Hardware:
    """The hardware of TOML text. Raises ScenarioError: line, key, reason."""
    root = Document(text, name).root
    if root.has("kernel"):
        return scenario.parse(text, name).machine.hardware
    if not root.has("machine"):
        raise root.error("machine", "is missing: a table with iommu and device")
    table = root.table("machine")
    found = scenario_machine.hardware(table)
    table.done()
    root.done()
    try:
        found.check()
    except UsageError as error:
        if isinstance(error, ScenarioError):
            raise
        raise table.error(None, str(error)) from None
    return found
