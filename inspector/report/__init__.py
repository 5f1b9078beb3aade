"""One self-contained HTML page about an image: ``kho report``.

Everything on the page comes from the image and is data: the template escapes it, and
names are spelled as on a terminal. The page loads nothing and works without a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inspector.check import check, present
from inspector.check.rule import Report
from inspector.image import Image
from inspector.output import atomic_output
from inspector.report.pictures import Bar, Strip, iova_strips, memory_strip, session_bars
from inspector.summary import summarise
from inspector.text import display, size_text
from inspector.tree import Node, build

if TYPE_CHECKING:
    from inspector.kernel.profile import KernelProfile
    from inspector.kernel.profile_file import Target

#: Objects shown in the tree; a report is a page to read, not a dump.
MAX_OBJECTS = 4000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one kernel would do with the image."""

    kernel: str
    outcome: str
    reasons: tuple[str, ...]


def write(
    image: Image, out: str | os.PathLike[str], *, source: str = "", force: bool = False
) -> None:
    """Write the report to ``out``, atomically.

    Raises UsageError if ``out`` exists and ``force`` is not given, OutputError if it cannot be
    written.
    """
    page = render(image, source=source).encode("utf-8")
    with atomic_output(out, force=force) as fd:
        view = memoryview(page)
        while view:
            view = view[os.write(fd, view) :]


def render(image: Image, *, source: str = "") -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inspector.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["show"] = display
    environment.filters["size"] = size_text
    report = check(image)
    return environment.get_template("page.html.j2").render(
        title=display(os.path.basename(source) or "image"),
        facts=summarise(image),
        report=report,
        account=present.document(report)["ownership"],
        verdicts=_verdicts(image),
        memory=memory_strip(image, report.ownership),
        domains=iova_strips(image),
        sessions=session_bars(image),
        tree=_tree(build(image)),
    )


def _verdicts(image: Image) -> list[Verdict]:
    """What each released kernel would do, and those whose series the image is of."""
    from inspector import compat
    from inspector.image import Moment

    if image.moment is Moment.INCOMING:
        return []
    options = compat.Options(root=image.root.address, page_size=image.page_size)
    found = []
    for target in _targets(image):
        verdict = compat.judge(image.memory, target, options)
        reasons = tuple(
            display(f"{r.path}: {r.message}" if r.path.strip("/") else r.message)
            for r in verdict.reasons[:3]
        )
        found.append(Verdict(target.kernel.name, str(verdict.outcome), reasons))
    return found


def _targets(image: Image) -> Iterator[Target]:
    """Released kernels, and for state that none of them has the series that wrote it."""
    from inspector.kernel.profile import SERIES, released
    from inspector.kernel.profile_file import Target, find

    layers = {k: v.generation.id for k, v in image.verdicts.items() if v.generation is not None}

    def known(kernel: KernelProfile) -> int:
        """How many layers of the image the kernel has in this form; 0 if not those of the core."""
        own = {layer: generation.id for layer, generation in kernel.generations.items()}
        same = layers.items() & own.items()
        core = {layer for layer in ("kho", "luo") if layer in layers}
        return len(same) if core <= {layer for layer, _ in same} else 0

    kernels = list(released())
    yield from map(Target, kernels)
    most = max(map(known, kernels))
    if most == len(layers):
        return
    variants = [
        max((find(f"{k.name}+{series}") for k in reversed(kernels)), key=lambda t: known(t.kernel))
        for series in SERIES
    ]
    best = max(known(target.kernel) for target in variants)
    yield from (t for t in variants if best > most and known(t.kernel) == best)


@dataclass(slots=True)
class _Budget:
    left: int = MAX_OBJECTS


def _tree(node: Node, budget: _Budget | None = None, depth: int = 0) -> dict[str, Any]:
    budget = budget or _Budget()
    children = []
    more = False
    for child in node.children():
        if budget.left <= 0 or depth > 12:
            more = True
            break
        budget.left -= 1
        children.append(_tree(child, budget, depth + 1))
    return {
        "name": display(node.name or "/"),
        "title": display(node.title) if node.title and node.title != node.name else "",
        "facts": [(label, display(value)) for label, value in node.facts],
        "children": children,
        "more": more,
        "open": depth < 2,
    }


__all__ = ["Bar", "Report", "Strip", "Verdict", "render", "write"]
