"""The object tree of an image: what paths name, and what text and JSON show of it.

Paths look like ``/LUO/sessions/vm0/files/0x1``. Names that contain ``/``, ``%`` or control
characters are percent-encoded (:func:`inspector.text.path_component`); tokens are accepted
in any integer notation.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from abi.errors import UsageError
from inspector import views
from inspector.image import Image, MapState
from inspector.text import display, parse_integer, path_component, plural, size_text
from inspector.walk.luo import File, Flb, Session
from inspector.walk.memfd import Memfd

#: (label, value) pairs, in order.
Facts = list[tuple[str, str]]


@dataclass(slots=True)
class Node:
    """One object.

    ``name`` is its path component, ``title`` what a person calls it, ``facts`` its (label,
    value) pairs in order. ``address`` and ``size`` say which bytes it consists of (what
    ``kho cat`` writes). ``object`` is the decoded object, if there is one.
    """

    name: str
    title: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    address: int | None = None
    size: int | None = None
    object: Any = None
    children: Callable[[], Iterator[Node]] = lambda: iter(())

    def child(self, component: str) -> Node | None:
        """The child a path component names; integers compare by value."""
        wanted = parse_integer(component)
        for node in self.children():
            if node.name == component:
                return node
            if wanted is not None and parse_integer(node.name) == wanted:
                return node
        return None


def build(image: Image) -> Node:
    """The root of the tree."""
    root = image.root
    compatible = ", ".join(display(c) for c in root.compatible)
    return Node(
        "",
        "KHO root",
        [
            ("address", f"{root.address:#x}"),
            ("compatible", compatible),
            ("generation", root.generation.id if root.generation else "unknown"),
            ("moment", str(image.moment)),
            ("page size", size_text(image.page_size)),
        ],
        root.address,
        root.tree.header.totalsize,
        root,
        lambda: _sections(image),
    )


def _sections(image: Image) -> Iterator[Node]:
    yield _scratch(image)
    yield _preserved(image)
    known = {b"memblock", b"kexec-metadata", b"kho_test", b"LUO"}
    if image.reserve_mem is not None:
        yield _reserve_mem(image)
    if image.kexec_metadata is not None:
        meta = image.kexec_metadata
        release = display(meta.previous_release) if meta.previous_release is not None else "?"
        facts = [("version", str(meta.version)), ("previous release", release)]
        if meta.kexec_count is not None:
            facts.append(("kexec count", str(meta.kexec_count)))
        yield Node("kexec-metadata", "", facts, meta.address, 73, meta)
    if image.kho_test is not None:
        test = image.kho_test
        facts = [("address", f"{test.address:#x}"), ("folios", str(test.nr_folios))]
        if test.csum is not None:
            facts.append(("csum", f"{test.csum:#x}"))
        blob = next(b for b in image.blobs if b.name == b"kho_test")
        yield Node("kho_test", "", facts, test.address, blob.size, test)
    for blob in image.blobs:
        if blob.name not in known:
            facts = [("address", f"{blob.address:#x}")]
            if blob.size is not None:
                facts.append(("size", size_text(blob.size)))
            yield Node(
                path_component(blob.name), display(blob.name), facts, blob.address, blob.size, blob
            )
    if any(b.name == b"LUO" for b in image.blobs):
        yield _luo(image)


def _scratch(image: Image) -> Node:
    if image.scratch is None:
        return Node("scratch", "", [("areas", image.scratch_note)])
    handover = image.root.candidate.handover
    areas = image.scratch
    total = sum(a.size for a in areas)

    def children() -> Iterator[Node]:
        for i, area in enumerate(areas):
            facts = [("address", f"{area.address:#x}"), ("size", size_text(area.size))]
            yield Node(str(i), _scratch_role(i), facts, area.address, area.size, area)

    return Node(
        "scratch",
        "",
        [("areas", str(len(areas))), ("size", size_text(total))],
        handover.scratch_address if handover else None,
        16 * len(areas),
        areas,
        children,
    )


def _scratch_role(i: int) -> str:
    return ("low memory", "global")[i] if i < 2 else f"node {i - 2}"


def _preserved(image: Image) -> Node:
    preserved = image.preserved
    if preserved is None:
        note = "lost" if image.map_state is MapState.LOST else "not known"
        return Node("preserved", "", [("map", note)])
    facts = [
        ("blocks", f"{preserved.block_count:,}"),
        ("pages", f"{preserved.page_count:,}"),
        ("size", size_text(preserved.page_count * image.page_size)),
        ("map nodes", str(len(preserved.nodes))),
    ]
    if image.map_state is not MapState.INTACT:
        facts.append(("map", f"{image.map_state}: not all blocks are known"))
    return Node("preserved", "", facts, image.root.map_address, image.page_size, preserved)


def _reserve_mem(image: Image) -> Node:
    regions = image.reserve_mem or []

    def children() -> Iterator[Node]:
        for region in regions:
            yield Node(
                path_component(region.name),
                display(region.name),
                [("start", f"{region.start:#x}"), ("size", size_text(region.size))],
                region.start,
                region.size,
                region,
            )

    return Node("reserve_mem", "", [("regions", str(len(regions)))], None, None, regions, children)


# -- LUO ------------------------------------------------------------------------------------


def _luo(image: Image) -> Node:
    luo = image.luo
    if luo is None:
        blob = next(b for b in image.blobs if b.name == b"LUO")
        return Node("LUO", "", [("state", "not decoded")], blob.address, blob.size, blob)
    files = sum(len(s.files) for s in luo.sessions)
    facts = [
        ("generation", luo.generation.id),
        ("live update", "?" if luo.number is None else f"number {luo.number}"),
    ]
    if luo.recovered:
        facts.append(("found", "by scanning: the structure itself is gone"))

    def children() -> Iterator[Node]:
        yield Node(
            "sessions",
            "",
            [(plural(len(luo.sessions), "session"), plural(files, "file"))],
            None,
            None,
            luo.sessions,
            lambda: (session_node(s) for s in luo.sessions),
        )
        yield Node(
            "flbs", "", [("entries", str(len(luo.flbs)))], None, None, luo.flbs,
            lambda: (flb_node(f) for f in luo.flbs),
        )  # fmt: skip

    blob = next(b for b in image.blobs if b.name == b"LUO")
    return Node("LUO", "", facts, luo.address, blob.size, luo, children)


def session_node(session: Session) -> Node:
    """A session and its files."""
    files = Node(
        "files", "", [("count", str(session.count))], None, None, session.files,
        lambda: (file_node(f) for f in session.files),
    )  # fmt: skip
    facts = [("files", str(session.count))]
    if not session.complete:
        facts.append(("found", str(len(session.files))))
    return Node(
        session.path.rpartition("/")[2],
        display(session.name),
        facts,
        session.address,
        80,
        session,
        lambda: iter((files,)),
    )


def file_node(file: File) -> Node:
    """A preserved file and what its handler keeps for it."""
    facts = [("handler", display(file.compatible)), ("data", f"{file.data:#x}")]
    children: Callable[[], Iterator[Node]] = lambda: iter(())  # noqa: E731
    if isinstance(file.state, Memfd):
        facts += _memfd_facts(file.state)
    elif file.state is not None:
        more, children = views.of(file.state).details(file.state)
        facts += more
    else:
        facts.append(("state", "not decoded"))
    name = file.path.rpartition("/")[2]
    return Node(name, name, facts, file.address, 64, file, children)


def _memfd_facts(memfd: Memfd) -> list[tuple[str, str]]:
    facts = [
        ("size", size_text(memfd.size)),
        ("pos", str(memfd.pos)),
        ("seals", seals_text(memfd.seals)),
        ("folios", f"{memfd.nr_folios:,}"),
    ]
    if not memfd.folios.complete:
        facts.append(("readable folios", f"{len(memfd.folios.pfn):,}"))
    return facts


def seals_text(seals: int | None) -> str:
    """``0x7 (seal, shrink, grow)``."""
    from abi.memfd import SEAL_NAMES

    if seals is None:
        return "not carried"
    names = [name for name, bit in SEAL_NAMES.items() if seals & bit]
    return f"{seals:#x}" + (f" ({', '.join(names)})" if names else "")


def flb_node(flb: Flb) -> Node:
    """One FLB entry."""
    facts = [("data", f"{flb.data:#x}"), ("users", str(flb.count))]
    children: Callable[[], Iterator[Node]] = lambda: iter(())  # noqa: E731
    if flb.state is not None:
        more, children = views.of(flb.state).details(flb.state)
        facts += more
    return Node(
        flb.path.rpartition("/")[2], display(flb.name), facts, flb.address, 64, flb, children
    )


# -- paths ----------------------------------------------------------------------------------


def find(image: Image, path: str) -> Node:
    """The node at ``path``. Raises UsageError that suggests the nearest name."""
    node, done = build(image), ""
    for component in path.strip("/").split("/") if path.strip("/") else ():
        child = node.child(component)
        if child is None:
            names = [n.name for n, _ in zip(node.children(), range(10000), strict=False)]
            near = difflib.get_close_matches(component, names, 1, 0.4)
            if near:
                hint = f"; did you mean {done}/{near[0]}?"
            elif names:
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                hint = f"; there are: {shown}"
            else:
                hint = f"; {done or '/'} has no parts"
            raise UsageError(f"no object {done}/{component}{hint}")
        node, done = child, f"{done}/{child.name}"
    return node


def render(node: Node, *, colour: bool = False, depth: int = 64) -> Iterator[str]:
    """Lines of text: the node and what is below it, as a tree."""
    yield _line(node, colour, node.name or "/")
    yield from _below(node, "", colour, depth)


def _below(node: Node, indent: str, colour: bool, depth: int) -> Iterator[str]:
    if depth <= 0:
        return
    previous: Node | None = None
    for child in node.children():
        if previous is not None:
            yield from _branch(previous, indent, False, colour, depth)
        previous = child
    if previous is not None:
        yield from _branch(previous, indent, True, colour, depth)


def _branch(node: Node, indent: str, last: bool, colour: bool, depth: int) -> Iterator[str]:
    yield f"{indent}{'└── ' if last else '├── '}{_line(node, colour, node.name)}"
    yield from _below(node, indent + ("    " if last else "│   "), colour, depth - 1)


def _line(node: Node, colour: bool, name: str) -> str:
    shown = display(name)
    title = node.title if node.title and node.title != name else ""
    facts = "  ".join(f"{_dim(label, colour)} {display(value)}" for label, value in node.facts)
    head = f"\x1b[1m{shown}\x1b[0m" if colour else shown
    return "  ".join(part for part in (head, f"({display(title)})" if title else "", facts) if part)


def _dim(text: str, colour: bool) -> str:
    return f"\x1b[2m{display(text)}\x1b[0m" if colour else display(text)
