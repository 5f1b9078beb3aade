"""The fault library: ways to break an image, one invariant each.

::

    image = scenario.load("linux-7.3").run()
    faults.inject(image, "session-cycle")
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from abi.errors import UsageError
from inspector.kernel.faults import guest, iommu, luo, memory, pci, root, tables
from inspector.kernel.faults.base import Change, Fault, Inapplicable, Target
from inspector.kernel.outgoing.kernel import Image
from inspector.kernel.toml_file import unknown

__all__ = ["FAULTS", "Change", "Fault", "Inapplicable", "inject"]

_MODULES = (root, luo, memory, guest, pci, iommu, tables)

#: All faults by name.
FAULTS: Mapping[str, Fault] = MappingProxyType(
    {name: fault for module in _MODULES for name, fault in module.fault.faults.items()}
)


def inject(image: Image, name: str) -> list[Change]:
    """Break an image in place; what was changed.

    Raises UsageError for an unknown fault, Inapplicable if the image has nothing to break.
    """
    if name not in FAULTS:
        raise UsageError(unknown(name, FAULTS, "fault", "kho simulate --faults"))
    target = Target(image)
    FAULTS[name].inject(Target(image, dry=True))
    FAULTS[name].inject(target)
    return target.changes
