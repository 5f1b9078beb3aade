"""Hazards in a layout, told before it becomes ABI.

Each rule has bitten a posted series or a released kernel; the rule's text says how. Structs come
from a kernel, or from a generation's declarations.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from inspector.findings import Severity
from inspector.layouts.compare import is_reserved
from inspector.layouts.measured import MeasuredField, MeasuredStruct


class Rule(enum.StrEnum):
    """The value is the stable code of the finding."""

    BIT_FIELD = "KHO-ABI-101"
    ENUM = "KHO-ABI-102"
    BOOL = "KHO-ABI-103"
    LONG = "KHO-ABI-104"
    POINTER = "KHO-ABI-105"
    PADDING = "KHO-ABI-106"
    UNALIGNED = "KHO-ABI-107"
    IOCTL_SIZE = "KHO-ABI-108"
    IOCTL_RESERVED = "KHO-ABI-109"
    NARROW = "KHO-ABI-110"
    NO_VERSION = "KHO-ABI-111"
    NO_LENGTH = "KHO-ABI-112"
    MIXED_PACKING = "KHO-ABI-113"


#: Why each rule is there: one sentence, for ``kho explain`` and SARIF.
WHY: dict[Rule, str] = {
    Rule.BIT_FIELD: "The place of a bit-field is the compiler's choice, and a group at the end of"
    " a packed struct takes fewer bytes than its type; use a flags word with masks.",
    Rule.ENUM: "The size and sign of an enum are the compiler's choice, and an unknown value is"
    " undefined; use a fixed-size integer.",
    Rule.BOOL: "A bool that holds neither 0 nor 1 is undefined to its reader; use a u8.",
    Rule.LONG: "A long is 4 bytes for one kernel and 8 for another; use u32 or u64.",
    Rule.POINTER: "A kernel pointer means nothing in the next kernel and tells an address of this"
    " one; store a physical address, or keep it outside of the serialized struct.",
    Rule.PADDING: "The compiler's padding is not written, so that it hands over stale bytes and"
    " cannot become a field later; name it and set it to zero.",
    Rule.UNALIGNED: "An unaligned 64-bit member is slow or traps, cannot be accessed atomically,"
    " and makes every element of an array start at another offset.",
    Rule.IOCTL_SIZE: "An ioctl argument whose size is no multiple of 8 has another size for"
    " 32-bit callers; pad it explicitly.",
    Rule.IOCTL_RESERVED: "An ioctl argument without a flags or reserved member cannot be extended"
    " within its size.",
    Rule.NARROW: "The member is narrower than the 64-bit thing it names; large values cannot be"
    " represented.",
    Rule.NO_VERSION: "Nothing in the struct, and no string of its layer, tells its version.",
    Rule.NO_LENGTH: "A header whose elements have no size of their own: a reader cannot skip"
    " what it does not know.",
    Rule.MIXED_PACKING: "A struct that is not packed lies inside a packed one: its padding is in"
    " the middle of the ABI, and its members are not where its alignment promises.",
}

_LONG = re.compile(r"\b(unsigned )?long\b|\bs?size_t\b|\b(u?intptr|ptrdiff)_t\b")
_TOKEN = re.compile(r"(\A|_)(token|cookie)s?\Z")
_ADDRESS = re.compile(r"(\A|_)(phys|paddr|pa|phys_addr)\Z")
_VERSION = re.compile(r"version|compatible|\Amagic\Z|\Afeatures?\Z|\Ahdr\Z")
_LENGTH = re.compile(r"size|len|length|stride|bytes")
_HEADER = re.compile(r"(hdr|header|array)(_ser)?\Z")


@dataclass(frozen=True, slots=True)
class Hazard:
    """One finding of the linter."""

    rule: Rule
    severity: Severity
    struct: str
    field: str
    message: str

    @property
    def where(self) -> str:
        """``struct.field`` or ``struct``."""
        return f"{self.struct}.{self.field}" if self.field else self.struct


def is_ioctl(struct: MeasuredStruct) -> bool:
    """Whether a struct looks like an ioctl argument: it starts with its own size."""
    first = struct.fields[0] if struct.fields else None
    serialized = struct.name.endswith(("_ser", "_lu", "_hdr"))
    return not serialized and first is not None and (first.name, first.size) == ("size", 4)


def lint(
    structs: Iterable[MeasuredStruct], *, versioned: Callable[[str], bool] = lambda _: False
) -> list[Hazard]:
    """All hazards, by struct and offset.

    :param versioned: tells whether a version string covers a struct (by name).
    """
    by_name = {s.name: s for s in structs}
    embedded = {f.type.removeprefix("struct ") for s in by_name.values() for f in s.fields}
    wide_tokens = sorted(
        f"{s.name}.{f.name}"
        for s in by_name.values()
        for f in s.fields
        if f.size == 8 and _TOKEN.search(f.name)
    )
    hazards: list[Hazard] = []
    for struct in by_name.values():
        hazards += _members(struct, wide_tokens)
        hazards += _padding(struct)
        hazards += _packing(struct, by_name)
        if is_ioctl(struct):
            hazards += _ioctl(struct)
        elif struct.name not in embedded:
            hazards += _self_description(struct, versioned(struct.name))
    return hazards


def _members(struct: MeasuredStruct, wide_tokens: list[str]) -> Iterator[Hazard]:
    for item in struct.fields:
        where = f"{struct.name}.{item.name}"

        def warn(rule: Rule, text: str, item: MeasuredField = item) -> Hazard:
            return Hazard(rule, Severity.WARNING, struct.name, item.name, text)

        if item.bit_size:
            yield warn(Rule.BIT_FIELD, f"{where} is a bit-field of {item.bit_size} bits")
        if item.kind == "enum":
            yield warn(Rule.ENUM, f"{where} is an {item.type}")
        if item.kind == "bool":
            yield warn(Rule.BOOL, f"{where} is a bool")
        if item.kind == "int" and _LONG.search(item.type):
            yield warn(Rule.LONG, f"{where} is of type {item.type}")
        if item.kind == "pointer":
            yield warn(Rule.POINTER, f"{where} is a {item.type}")
        wide = item.element_size == 8 and item.kind in ("int", "pointer") and not item.bit_size
        if wide and item.offset % 8:
            yield warn(Rule.UNALIGNED, f"{where} is 64 bits wide at offset {item.offset}")
        if wide and not item.offset % 8 and struct.packed and struct.size % 8:
            yield warn(
                Rule.UNALIGNED,
                f"{where} is 64 bits wide in a struct of {struct.size} bytes:"
                " unaligned in every other element of an array",
            )
        if item.size == 4 and _TOKEN.search(item.name) and not item.bit_size:
            others = ", ".join(wide_tokens[:3]) or "LUO's tokens"
            yield warn(Rule.NARROW, f"{where} holds 32 bits of a token; {others} hold 64")
        if item.size < 8 and _ADDRESS.search(item.name) and item.kind == "int":
            yield warn(Rule.NARROW, f"{where} holds {8 * item.size} bits of a physical address")


def _padding(struct: MeasuredStruct) -> Iterator[Hazard]:
    for offset, size in struct.padding():
        plural = "s" if size > 1 else ""
        yield Hazard(
            Rule.PADDING,
            Severity.WARNING,
            struct.name,
            "",
            f"struct {struct.name} has {size} byte{plural} of implicit padding at offset {offset}",
        )


def _packing(struct: MeasuredStruct, by_name: dict[str, MeasuredStruct]) -> Iterator[Hazard]:
    if not struct.packed:
        return
    for item in struct.fields:
        inner = by_name.get(item.type.removeprefix("struct "))
        if inner is None or inner.packed or inner.alignment == 1:
            continue
        misaligned = item.offset % inner.alignment
        if misaligned or any(True for _ in inner.padding()):
            yield Hazard(
                Rule.MIXED_PACKING,
                Severity.WARNING,
                struct.name,
                item.name,
                f"{struct.name}.{item.name} is a struct {inner.name}, aligned to"
                f" {inner.alignment} elsewhere, at offset {item.offset} of a packed struct",
            )


def _ioctl(struct: MeasuredStruct) -> Iterator[Hazard]:
    if struct.size % 8:
        yield Hazard(
            Rule.IOCTL_SIZE,
            Severity.WARNING,
            struct.name,
            "",
            f"struct {struct.name} is {struct.size} bytes, no multiple of 8",
        )
    if not any(is_reserved(f.name) or "flags" in f.name for f in struct.fields):
        yield Hazard(
            Rule.IOCTL_RESERVED,
            Severity.WARNING,
            struct.name,
            "",
            f"struct {struct.name} has no flags and no reserved member",
        )


def _self_description(struct: MeasuredStruct, versioned: bool) -> Iterator[Hazard]:
    names = [f.name for f in struct.fields]
    if not versioned and not any(_VERSION.search(n) for n in names):
        yield Hazard(
            Rule.NO_VERSION,
            Severity.INFO,
            struct.name,
            "",
            f"struct {struct.name} has no version, and no versioned string covers it",
        )
    if _HEADER.search(struct.name) and not any(_LENGTH.search(n) for n in names):
        yield Hazard(
            Rule.NO_LENGTH,
            Severity.INFO,
            struct.name,
            "",
            f"struct {struct.name} does not tell the size of what follows it",
        )
