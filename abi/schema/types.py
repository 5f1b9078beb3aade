"""The types of members, and what is known of a member once it has its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import construct as cs

if TYPE_CHECKING:
    from abi.schema.struct import Struct


class Scalar(cs.FormatField):  # type: ignore[misc]
    """One integer of fixed size, with what is known about its meaning.

    ``ctype`` is its spelling in C, ``points_to`` what lies at the physical address it
    holds, ``names`` the values (``kind`` "enum") or bits ("flags") that have a name.
    """

    def __init__(
        self,
        code: str,
        ctype: str,
        *,
        points_to: str = "",
        kind: str = "int",
        names: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__("<", code)
        self.code = code
        self.ctype = ctype
        self.points_to = points_to
        self.kind = kind
        self.names = dict(names or {})

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.length)

    @property
    def dtype_spec(self) -> str:
        """The numpy type string."""
        return f"<{'i' if self.code.islower() else 'u'}{self.length}"


class Chars(cs.Bytes):  # type: ignore[misc]
    """A character array: raw bytes, terminators and all that follows them included."""

    ctype = "char"

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Items(cs.Array):  # type: ignore[misc]
    """An array of ``count`` scalars or structs."""

    def __init__(self, item: Scalar | Struct, count: int) -> None:
        super().__init__(count, item)
        self.item = item
        self.items = count


class Union:
    """Alternatives over the same bytes; the largest gives the size."""

    def __init__(self, alternatives: Mapping[str, Struct]) -> None:
        self.alternatives = dict(alternatives)
        self.size = max(s.size for s in alternatives.values())

    def __rtruediv__(self, name: str) -> Any:
        return cs.Renamed(Placeholder(self), newname=name)


class Bits:
    """Bit-fields that share one storage unit, least significant first.

    In a packed struct the group takes only the bytes its bits need.
    """

    def __init__(self, storage: Scalar, widths: Mapping[str, int]) -> None:
        self.storage = storage
        self.widths = dict(widths)

    def __rtruediv__(self, name: str) -> Any:
        return cs.Renamed(Placeholder(self), newname=name)

    def size(self, packed: bool) -> int:
        """Bytes taken."""
        needed = (sum(self.widths.values()) + 7) // 8
        return needed if packed else max(self.storage.size, needed)


class Placeholder(cs.Construct):  # type: ignore[misc]
    """Carries a Union or Bits through construct's ``name / type * doc`` syntax."""

    def __init__(self, what: Union | Bits) -> None:
        super().__init__()
        self.what = what


u8 = Scalar("B", "u8")
u16 = Scalar("H", "u16")
u32 = Scalar("L", "u32")
u64 = Scalar("Q", "u64")
s32 = Scalar("l", "s32")
#: A C ``bool`` in the ABI: one byte of which every value must survive.
boolean = Scalar("B", "bool", kind="bool")


def phys(target: str) -> Scalar:
    """A physical address of ``target``; 0 means absent."""
    return Scalar("Q", "u64", points_to=target, kind="phys")


def kernel_pointer(target: str) -> Scalar:
    """A virtual address, meaningful only in the kernel that wrote it."""
    return Scalar("Q", target + " *", kind="pointer")


def flags(storage: Scalar, **bits: int) -> Scalar:
    """A flag word; ``bits`` names masks. Unknown bits are kept like any others."""
    return Scalar(storage.code, storage.ctype, kind="flags", names=bits)


def enum(storage: Scalar, **values: int) -> Scalar:
    """An enumeration stored in ``storage``."""
    return Scalar(storage.code, storage.ctype, kind="enum", names=values)


def chars(count: int) -> Chars:
    """``char[count]``."""
    return Chars(count)


def array(item: Scalar | Struct, count: int) -> Items:
    """``item[count]``."""
    return Items(item, count)


def union(**alternatives: Struct) -> Union:
    """An anonymous union of named structs."""
    return Union(alternatives)


def bits(storage: Scalar, **widths: int) -> Bits:
    """Bit-fields ``name : width`` of type ``storage``."""
    return Bits(storage, widths)


@dataclass(frozen=True, slots=True)
class Field:
    """One line of a struct's field table.

    ``offset`` and ``size`` are bytes from the start of the struct. A bit-field has
    ``bit_size`` > 0 and ``bit_offset`` within the byte at ``offset``; its ``size`` is that
    of its declared type. ``count`` is the array length or None. ``union`` names the raw
    area of which this is a view. ``flexible`` marks the array that follows the struct.
    """

    name: str
    offset: int
    size: int
    ctype: str
    doc: str = ""
    count: int | None = None
    bit_offset: int = 0
    bit_size: int = 0
    points_to: str = ""
    kind: str = "int"
    names: Mapping[str, int] | None = None
    union: str = ""
    padding: bool = False
    flexible: bool = False
    struct: Struct | None = None


@dataclass(frozen=True, slots=True)
class Bit:
    name: str
    area: str  # the raw member; dotted if it lies in a nested struct
    leaf: str  # the raw member's name in the flattened struct
    shift: int
    width: int


@dataclass(frozen=True, slots=True)
class View:
    name: str
    area: str
    struct: Struct


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar, char array or scalar array of the flattened struct."""

    name: str
    offset: int
    count: int | None
    type: Scalar | Chars
