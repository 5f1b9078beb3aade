"""Layouts as measured on a compiled kernel, out of BTF or DWARF, in one form for both.

The form is that of the layout census (``tests/data/abi/layouts.json``): byte offsets from the
start of the struct; a bit-field has the byte of its first bit as ``offset`` and the bit's number
in that byte, counted from the least significant one; its ``size`` is that of the declared type.
Members of anonymous structs and unions are members of the struct around them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from abi.errors import UnreadableError

#: How the kernel spells the declarations that have a name of their own in :mod:`abi`.
KERNEL_NAMES = {"setup_data_hdr": "setup_data"}

#: Members that a record may have; the structs of a kernel have some thousand.
_MAX_MEMBERS = 1 << 16

#: How an unnamed type and a function are spelled.
ANONYMOUS = "(anonymous)"
FUNCTION = "()"

_PLAIN = {
    "long unsigned int": "unsigned long",
    "short unsigned int": "unsigned short",
    "long long unsigned int": "unsigned long long",
    "long int": "long",
    "short int": "short",
    "long long int": "long long",
    "_Bool": "bool",
    "__int128 unsigned": "unsigned __int128",
}


def plain(name: str) -> str:
    """A base type as a programmer spells it (``unsigned long``, not ``long unsigned int``)."""
    return _PLAIN.get(name, name)


def pointer_to(target: str) -> str:
    """The spelling of a pointer to the type spelled ``target``."""
    return target + ("*" if target.endswith("*") else " *")


def qualified(spelling: str, words: Collection[str]) -> str:
    """A spelling with ``const``, ``volatile`` and ``restrict`` at their usual places."""
    order = " ".join(word for word in ("const", "volatile", "restrict") if word in words)
    if not order:
        return spelling
    return f"{spelling}{order}" if spelling.endswith("*") else f"{order} {spelling}"


@dataclass(frozen=True, slots=True)
class MeasuredField:
    """One member.

    ``type`` is the C spelling, of the element if it is an array of ``count`` (0: flexible)
    elements. ``kind`` is what the element is: int, char, bool, enum, float, pointer, struct,
    union, or void. ``anonymous`` says whether it comes out of an anonymous "union" or "struct".
    ``members`` are those of a struct or union type without a name; their offsets too count from
    the start of the outermost struct. ``alignment`` is the natural one of the type.
    """

    name: str
    offset: int
    size: int
    type: str
    kind: str
    count: int | None = None
    bit_offset: int = 0
    bit_size: int = 0
    alignment: int = 1
    anonymous: str = ""
    members: tuple[MeasuredField, ...] = ()

    @property
    def flexible(self) -> bool:
        """An array without a length, which takes no room in the struct."""
        return self.count == 0

    @property
    def element_size(self) -> int:
        """Bytes of one element; of a flexible array 0 if unknown."""
        if self.count is None:
            return self.size
        return self.size // self.count if self.count else 0

    @property
    def bit_span(self) -> tuple[int, int]:
        """First bit, and the one behind the last, from the start of the struct."""
        start = 8 * self.offset + self.bit_offset
        return start, start + (self.bit_size or 8 * self.size)

    def to_json(self) -> dict[str, Any]:
        """The member as the census writes it."""
        out: dict[str, Any] = {"name": self.name, "offset": self.offset, "type": self.type}
        out["kind"] = self.kind
        if self.count is not None:
            out.update(element_size=self.element_size, count=self.count)
        out["size"] = self.size
        if self.bit_size:
            out.update(
                storage_bytes=self.size,
                bit_position_in_struct=8 * self.offset + self.bit_offset,
                bit_offset=self.bit_offset,
                bit_size=self.bit_size,
            )
        if self.alignment != 1:
            out["alignment"] = self.alignment
        if self.anonymous:
            out["in_anonymous"] = self.anonymous
        if self.members:
            out["members"] = [member.to_json() for member in self.members]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasuredField:
        """The member that :meth:`to_json` wrote, or the census itself."""
        count = data.get("count")
        return cls(
            name=str(data["name"]),
            offset=int(data["offset"]),
            size=int(data["size"]),
            type=str(data["type"]),
            kind=str(data.get("kind") or _kind_of_spelling(data)),
            count=None if count is None else int(count),
            bit_offset=int(data.get("bit_offset", 0)),
            bit_size=int(data.get("bit_size", 0)),
            alignment=int(data.get("alignment", 1)),
            anonymous=str(data.get("in_anonymous", "")),
            members=tuple(cls.from_json(member) for member in data.get("members", ())),
        )


def _kind_of_spelling(data: Mapping[str, Any]) -> str:
    spelling = str(data["type"])
    if spelling.endswith("*"):
        return "pointer"
    if "union" in spelling:
        return "union"
    head = spelling.split(" ")[0]
    return head if head in ("struct", "enum", "bool", "char") else "int"


@dataclass(frozen=True, slots=True)
class MeasuredStruct:
    """One struct or union of one kernel.

    ``packed`` and ``alignment`` are deduced: a struct counts as packed if a member lies where
    its type could not otherwise be, or if the size is no multiple of the alignment.
    """

    name: str
    size: int
    fields: tuple[MeasuredField, ...]
    kind: str = "struct"
    alignment: int = 1
    packed: bool = False

    @classmethod
    def of(
        cls, name: str, size: int, fields: tuple[MeasuredField, ...], kind: str = "struct"
    ) -> MeasuredStruct:
        """Deduce alignment and packing from the fields."""
        natural = max((f.alignment for f in fields), default=1)
        packed = size % natural != 0 or any(
            f.offset % f.alignment for f in fields if not f.bit_size
        )
        return cls(name, size, fields, kind, 1 if packed else natural, packed)

    def field(self, name: str) -> MeasuredField | None:
        """The member of a name; dotted names reach into unnamed types."""
        head, _, rest = name.partition(".")
        for candidate in self.fields:
            if candidate.name == head:
                if not rest:
                    return candidate
                inner = replace(self, fields=candidate.members)
                return inner.field(rest)
        return None

    def padding(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of bytes that no member covers, of a union's tail too."""
        covered = 0
        for start, end in sorted(f.bit_span for f in self.fields):
            gap, at = start // 8 - (covered + 7) // 8, (covered + 7) // 8
            if gap > 0:
                yield at, gap
            covered = max(covered, end)
        at = (covered + 7) // 8
        if at < self.size:
            yield at, self.size - at

    def to_json(self) -> dict[str, Any]:
        """The struct as the census writes it."""
        out: dict[str, Any] = {"name": self.name, "size": self.size}
        if self.kind != "struct":
            out["kind"] = self.kind
        out.update(alignment=self.alignment, packed=self.packed)
        out["fields"] = [f.to_json() for f in self.fields]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasuredStruct:
        """The struct that :meth:`to_json` wrote, or the census itself."""
        return cls(
            name=str(data["name"]),
            size=int(data["size"]),
            fields=tuple(MeasuredField.from_json(f) for f in data["fields"]),
            kind=str(data.get("kind", "struct")),
            alignment=int(data.get("alignment", 1)),
            packed=bool(data.get("packed", False)),
        )


@dataclass(frozen=True, slots=True)
class MeasuredKernel:
    """What one kernel (or module) says about its layouts.

    ``structs`` may hold several layouts of one name: different source files, or a name used
    twice. ``constants`` are enumerators, ``strings`` those of the wanted strings that lie in its
    read-only data, or None if there was nothing to search. ``origin`` tells where it was read
    (``btf``, ``dwarf``, ``record``).
    """

    source: str
    origin: str
    structs: Mapping[str, tuple[MeasuredStruct, ...]]
    constants: Mapping[str, int] = field(default_factory=dict)
    strings: frozenset[str] | None = None
    release: str = ""
    byteorder: str = "little"

    @property
    def page_size(self) -> int | None:
        """The page size that page-filling structs of KHO show; None if there are none."""
        for name in ("kho_vmalloc_chunk", "kho_radix_leaf", "kho_radix_node", "khoser_mem_chunk"):
            for struct in self.structs.get(name, ()):
                if struct.size in (0x1000, 0x4000, 0x10000):
                    return struct.size
        return None

    def to_json(self) -> dict[str, Any]:
        """Names, offsets and sizes only: fit to be recorded."""
        return {
            "format": "kho-measured-kernel",
            "format_version": 1,
            "source": self.source,
            "origin": self.origin,
            "release": self.release,
            "byteorder": self.byteorder,
            "strings": None if self.strings is None else sorted(self.strings),
            "constants": dict(sorted(self.constants.items())),
            "structs": [s.to_json() for name in sorted(self.structs) for s in self.structs[name]],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasuredKernel:
        """What :meth:`to_json` wrote.

        :raises UnreadableError: it is something else.
        """
        try:
            if data["format"] != "kho-measured-kernel" or data["format_version"] != 1:
                raise UnreadableError("not a record of measured layouts")
            if sum(len(item["fields"]) for item in data["structs"]) > _MAX_MEMBERS:
                raise UnreadableError(f"a record of more than {_MAX_MEMBERS:,} members")
            structs: dict[str, list[MeasuredStruct]] = {}
            for item in data["structs"]:
                struct = MeasuredStruct.from_json(item)
                structs.setdefault(struct.name, []).append(struct)
            strings = data["strings"]
            return cls(
                source=str(data["source"]),
                origin="record",
                structs={name: tuple(layouts) for name, layouts in structs.items()},
                constants={str(k): int(v) for k, v in data["constants"].items()},
                strings=None if strings is None else frozenset(map(str, strings)),
                release=str(data["release"]),
                byteorder=str(data["byteorder"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UnreadableError(f"not a record of measured layouts: {error!r}") from None
