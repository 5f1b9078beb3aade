"""From the state of a file or an FLB to the module that shows it.

A view is imported where an image has such state: most images have none, and it takes its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from inspector.tree import Node

#: (label, value) pairs in order, and what makes the parts when they are asked for.
Details = tuple[list[tuple[str, str]], Callable[[], "Iterator[Node]"]]

PASSTHROUGH = "inspector.passthrough.view"
HANDLERS = "inspector.handlers.view"
#: Module of a state's class -> module that shows it.
_VIEWS: Mapping[str, str] = {
    "inspector.walk.iommu": PASSTHROUGH,
    "inspector.walk.iommufd": PASSTHROUGH,
    "inspector.walk.pci": PASSTHROUGH,
    "inspector.walk.vfio_pci": PASSTHROUGH,
    "inspector.walk.guest_memfd": HANDLERS,
    "inspector.walk.hugetlb": HANDLERS,
    "inspector.walk.kvm": HANDLERS,
    "inspector.walk.tmpfs": HANDLERS,
}


class View(Protocol):
    """What a module that shows states has."""

    def details(self, state: Any) -> Details:
        """What the tree shows of a file's or an FLB's state."""

    def file_state(self, state: Any) -> dict[str, Any]:
        """The keys of a file's JSON entry that its state fills."""

    def flb_state(self, state: Any) -> dict[str, Any]:
        """The keys of an FLB's JSON entry that its state fills."""


def name(state: Any) -> str | None:
    """The name of the module that shows a state, None for plain memory files and no state."""
    return _VIEWS.get(type(state).__module__)


def of(state: Any) -> View:
    """The module that shows a state."""
    return cast("View", import_module(_VIEWS[type(state).__module__]))
