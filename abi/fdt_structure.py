"""The structure block of a flattened device tree: its tags, and the tree they say.

Used by :mod:`abi.fdt`, which is the place to import from.
"""

from __future__ import annotations

import enum
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from abi.fdt_values import FdtError, stringlist

_LITTLE_HOST = sys.byteorder == "little"


class Tag(enum.IntEnum):
    """Tags of the structure block."""

    BEGIN_NODE = 1
    END_NODE = 2
    PROP = 3
    NOP = 4
    END = 9


class AnomalyKind(enum.StrEnum):
    """What libfdt reads over without complaint."""

    BAD_PROPERTY_NAME = "bad-property-name"
    DUPLICATE_PROPERTY = "duplicate-property"
    DUPLICATE_NODE = "duplicate-node"
    PROPERTY_AFTER_NODE = "property-after-node"
    ROOT_HAS_NAME = "root-has-name"
    RESERVATIONS_UNTERMINATED = "reservations-unterminated"
    OVERLAPPING_BLOCKS = "overlapping-blocks"
    #: Only where a damaged tree was asked for: the structure block breaks off.
    CUT_SHORT = "cut-short"


class Anomaly(NamedTuple):
    """One oddity: its kind, the blob offset where it is, and a sentence."""

    kind: AnomalyKind
    offset: int
    message: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one parse. The defaults fit every device tree that Linux boots with."""

    size: int = 4 << 20  #: bytes of blob, and of what is handed over with it
    depth: int = 64  #: nested nodes; the kernel's own limit
    nodes: int = 1 << 17
    properties: int = 1 << 18
    reservations: int = 1 << 16
    name: int = 1024  #: bytes of one property name (the specification allows 31)
    name_bytes: int = 4 << 20  #: bytes of all different property names together
    anomalies: int = 64


DEFAULT_LIMITS = Limits()


class Token(NamedTuple):
    """One tag of the structure block, with every byte that belongs to it.

    ``name`` is a node's name; ``name_offset`` and ``value`` are a property's; ``padding`` is
    what follows up to the next tag, for a node including the name's NUL; ``gap`` is what
    versions before 16 put in front of a property's value. ``offset`` counts from the start of
    the structure block.
    """

    tag: int
    offset: int = 0
    name: bytes = b""
    name_offset: int = 0
    value: bytes = b""
    padding: bytes = b""
    gap: bytes = b""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as libfdt sees it. Property values are raw bytes, in the order of the blob."""

    name: bytes
    properties: Mapping[bytes, bytes] = field(default_factory=dict)
    children: tuple[Node, ...] = ()

    def child(self, name: bytes) -> Node | None:
        """The first child of exactly this name."""
        for node in self.children:
            if node.name == name:
                return node
        return None

    def get(self, name: bytes) -> bytes | None:
        """The value of a property, or None."""
        return self.properties.get(name)

    @property
    def compatible(self) -> tuple[bytes, ...]:
        """The strings of ``compatible``; empty if it is absent or malformed."""
        try:
            return stringlist(self.properties.get(b"compatible", b""))
        except FdtError:
            return ()

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """This node and all below it, parents first, with their paths (``b"/"`` is the root)."""
        yield path or b"/", self
        for node in self.children:
            yield from node.walk(path + b"/" + node.name)


def cell_counts(node: Node) -> tuple[int, int]:
    """``#address-cells`` and ``#size-cells`` of a node; 2 and 1 where absent or malformed."""

    def one(name: bytes, default: int) -> int:
        value = node.properties.get(name, b"")
        number = int.from_bytes(value, "big") if len(value) == 4 else default
        return number if number <= 4 else default

    return one(b"#address-cells", 2), one(b"#size-cells", 1)


class TreeParser:
    """One pass over the structure block. State that the error paths need lives here."""

    __slots__ = (
        "anomalies",
        "base",
        "limits",
        "name_bytes",
        "names",
        "open",
        "root",
        "salvage",
        "strings",
        "strings_base",
        "structure",
        "version",
    )

    def __init__(
        self,
        structure: tuple[int, bytes],
        strings: tuple[int, bytes],
        version: int,
        limits: Limits,
        anomalies: list[Anomaly],
        salvage: bool = False,
    ) -> None:
        """``structure`` and ``strings`` come with their offsets in the blob.

        ``salvage``: where the structure breaks off, the tree ends, with an anomaly.
        """
        self.base, self.structure = structure
        self.strings_base, self.strings = strings
        self.version = version
        self.limits = limits
        self.anomalies = anomalies
        self.salvage = salvage
        self.names: dict[int, bytes | None] = {}
        self.name_bytes = 0
        self.root: Node | None = None
        #: The nodes that are open: name, properties, children, names of the children.
        self.open: list[tuple[bytes, dict[bytes, bytes], list[Node], set[bytes]]] = []

    def error(self, message: str, offset: int) -> FdtError:
        return FdtError(message, self.base + offset)

    def note(self, kind: AnomalyKind, offset: int, message: str) -> None:
        if len(self.anomalies) < self.limits.anomalies:
            self.anomalies.append(Anomaly(kind, self.base + offset, message))

    def property_name(self, offset: int) -> bytes | None:
        """The string at an offset of the strings block; None if there is none."""
        limit = self.limits.name
        end = self.strings.find(b"\0", offset, offset + limit + 1)
        name = None if end < 0 else self.strings[offset:end]
        if name is None and offset + limit < len(self.strings):
            raise FdtError(f"property name longer than {limit} bytes", self.strings_base + offset)
        self.names[offset] = name
        self.name_bytes += 0 if name is None else len(name)
        if self.name_bytes > self.limits.name_bytes:
            raise FdtError(
                f"property names exceed {self.limits.name_bytes} bytes together",
                self.strings_base,
            )
        return name

    def run(self) -> tuple[Node, int]:
        """The root node, and the offset behind the END tag."""
        try:
            return self._read()
        except FdtError as error:
            if not self.salvage or (self.root is None and not self.open):
                raise
            self.note(AnomalyKind.CUT_SHORT, error.offset - self.base, str(error))
        # The nodes that are open end here.
        root = self.root
        for name, values, children, _ in reversed(self.open):
            if root is not None:
                children.append(root)
            root = Node(name, values, tuple(children))
        assert root is not None
        return root, len(self.structure)

    def _read(self) -> tuple[Node, int]:
        structure, limits, names = self.structure, self.limits, self.names
        size = len(structure)
        words = _words(structure)
        count = len(words)
        old_format = self.version < 16  # aligns values to 8 bytes, names nodes by full paths
        nodes = properties = i = 0
        stack = self.open
        while i < count:
            tag = words[i]
            if tag == 3:  # PROP, by far the most frequent
                if i + 3 > count:
                    break
                length = words[i + 1]
                at = 4 * i + 12
                if old_format and length >= 8:
                    at = at + 7 & ~7
                end = at + length
                if end > size:
                    raise self.error(
                        f"property of {length} bytes runs out of the structure block", 4 * i
                    )
                if not stack:
                    raise self.error("property outside of a node", 4 * i)
                properties += 1
                if properties > limits.properties:
                    raise self.error(f"more than {limits.properties} properties", 4 * i)
                name_offset = words[i + 2]
                name = names.get(name_offset)
                if name is None and name_offset not in names:
                    name = self.property_name(name_offset)
                _, values, children, _ = stack[-1]
                if name is None:
                    self.note(
                        AnomalyKind.BAD_PROPERTY_NAME,
                        4 * i,
                        f"property name offset {name_offset:#x} leads to no string",
                    )
                elif children:
                    self.note(
                        AnomalyKind.PROPERTY_AFTER_NODE,
                        4 * i,
                        f"property {name!r} follows a child node, where libfdt does not look",
                    )
                elif name in values:
                    self.note(
                        AnomalyKind.DUPLICATE_PROPERTY, 4 * i, f"second property named {name!r}"
                    )
                else:
                    values[name] = structure[at:end]
                i = end + 3 >> 2
            elif tag == 1:  # BEGIN_NODE
                if self.root is not None:
                    raise self.error("second root node", 4 * i)
                if len(stack) >= limits.depth:
                    raise self.error(f"nodes nested deeper than {limits.depth}", 4 * i)
                nodes += 1
                if nodes > limits.nodes:
                    raise self.error(f"more than {limits.nodes} nodes", 4 * i)
                at = 4 * i + 4
                end = structure.find(b"\0", at)
                if end < 0:
                    raise self.error("node name without end", at)
                name = structure[at:end]
                if old_format:  # full paths
                    name = name[name.rfind(b"/") + 1 :]
                if stack:
                    siblings = stack[-1][3]
                    if name in siblings:
                        self.note(AnomalyKind.DUPLICATE_NODE, 4 * i, f"second node named {name!r}")
                    siblings.add(name)
                elif name:
                    self.note(AnomalyKind.ROOT_HAS_NAME, 4 * i, f"root node is named {name!r}")
                stack.append((name, {}, [], set()))
                i = end + 4 >> 2
            elif tag == 2:  # END_NODE
                if not stack:
                    raise self.error("END_NODE without a node", 4 * i)
                name, values, children, _ = stack.pop()
                node = Node(name, values, tuple(children))
                if stack:
                    stack[-1][2].append(node)
                else:
                    self.root = node
                i += 1
            elif tag == 4:  # NOP
                i += 1
            elif tag == 9:  # END
                if self.root is None:
                    raise self.error("END before the root node ended", 4 * i)
                return self.root, 4 * i + 4
            else:
                raise self.error(f"unknown tag {tag:#x}", 4 * i)
        raise self.error("structure block ends without END", size)


def _words(block: bytes) -> array[int]:
    words = array("I")
    words.frombytes(block[: len(block) & ~3])
    if _LITTLE_HOST:
        words.byteswap()
    return words


def decode_tokens(block: bytes, version: int) -> Iterator[Token]:
    """Tags of a structure block that :class:`TreeParser` has accepted."""
    words = _words(block)
    i = 0
    while True:
        tag, at = words[i], 4 * i
        if tag == Tag.BEGIN_NODE:
            end = block.index(b"\0", at + 4)
            i = end + 4 >> 2
            yield Token(tag, at, block[at + 4 : end], padding=block[end : 4 * i])
        elif tag == Tag.PROP:
            length, name_offset = words[i + 1], words[i + 2]
            start = at + 12
            if version < 16 and length >= 8:
                start = start + 7 & ~7
            end = start + length
            i = end + 3 >> 2
            yield Token(
                tag,
                at,
                name_offset=name_offset,
                value=block[start:end],
                padding=block[end : 4 * i],
                gap=block[at + 12 : start],
            )
        else:
            yield Token(tag, at)
            i += 1
            if tag == Tag.END:
                return


def encode_token(token: Token) -> bytes:
    head = token.tag.to_bytes(4, "big")
    if token.tag == Tag.BEGIN_NODE:
        return head + token.name + (token.padding or bytes(4 - len(token.name) % 4))
    if token.tag == Tag.PROP:
        return (
            head
            + len(token.value).to_bytes(4, "big")
            + token.name_offset.to_bytes(4, "big")
            + token.gap
            + token.value
            + (token.padding or bytes(-len(token.value) % 4))
        )
    return head
