"""Bytes of serialized structs, quickly.

The construct builder of :class:`abi.schema.Struct` checks and explains; this one is for the
hundred thousands of objects that a large image holds: :func:`pack` for one struct,
:func:`pack_many` for columns.
"""

from __future__ import annotations

import struct as _struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.schema import Struct

Values = Mapping[str, Any]
_TO_FLATTEN = frozenset({dict, type(None)})


@dataclass(frozen=True, slots=True)
class _Member:
    """How a member is written: a scalar, an array of scalars, bytes, bits, or a struct."""

    name: str
    offset: int
    size: int
    code: str = ""
    array: _struct.Struct | None = None
    nested: Struct | None = None
    mask: int = 0
    shift: int = 0


_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@cache
def _members(struct: Struct) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for field in struct.fields:
        name, offset, size = field.name, field.offset, field.size
        if field.flexible:
            continue
        if field.bit_size:
            raw = struct.dtype.fields
            assert raw is not None
            kind, at = raw[field.union][:2]
            shift = 8 * (offset - at) + field.bit_offset
            mask = (1 << field.bit_size) - 1
            members[name] = _Member(name, at, kind.itemsize, mask=mask, shift=shift)
            code = _CODES[kind.itemsize]
            members[field.union] = _Member(field.union, at, kind.itemsize, code)
        elif field.struct is not None and field.count is None:
            members[name] = _Member(name, offset, size, nested=field.struct)
        elif field.ctype == "char" or field.struct is not None:
            members[name] = _Member(name, offset, size)
        else:
            code = _CODES[size // (field.count or 1)]
            code = code.lower() if field.ctype == "s32" else code
            many = _struct.Struct(f"<{field.count}{code}") if field.count else None
            members[name] = _Member(name, offset, size, "" if many else code, many)
    return members


class Packer:
    """Makes structs of values that are given for the same members again and again.

    ``names`` are the members, dots reach into nested structs and union views; ``lenient`` is
    that of :func:`pack`. Members that overlap none before them make one format, with pad bytes
    between; what overlaps and bits come after it, in the order of their names.
    """

    def __init__(self, struct: Struct, names: tuple[str, ...], lenient: bool = False) -> None:
        laid: list[tuple[int, int, _Member]] = []
        #: What makes bytes of the value at a place.
        self._make: list[tuple[int, Callable[[Any], bytes]]] = []
        self._after: list[tuple[int, int, _Member]] = []
        met = bytearray(struct.size)
        for place, name in enumerate(names):
            found = _find(struct, name, lenient)
            if found is None:
                continue
            at, member = found
            if not member.code and not member.mask:
                self._make.append((place, partial(_bytes_of, member)))
            if member.mask or any(met[at : at + member.size]):
                self._after.append((place, at, member))
            else:
                laid.append((at, place, member))
            met[at : at + member.size] = b"\1" * member.size
        laid.sort(key=lambda each: each[:2])
        codes, end = ["<"], 0
        for at, _, member in laid:
            codes.append(f"{at - end}x{member.code or f'{member.size}s'}")
            end = at + member.size
        self._packer = _struct.Struct(f"{''.join(codes)}{struct.size - end}x")
        order = [place for _, place, _ in laid]
        # A getter of one value gives no tuple.
        self._pick = itemgetter(*order) if len(order) > 1 else partial(_each, order)

    def pack(self, values: list[Any]) -> bytes:
        """The bytes; ``values`` in the order of the names."""
        for place, make in self._make:
            values[place] = make(values[place])
        packed = self._packer.pack(*self._pick(values))
        return self._overlaid(bytearray(packed), values) if self._after else packed

    def _overlaid(self, out: bytearray, values: list[Any]) -> bytes:
        for place, at, member in self._after:
            end = at + member.size
            if member.mask:
                word = int.from_bytes(out[at:end], "little")
                word |= (int(values[place]) & member.mask) << member.shift
                out[at:end] = word.to_bytes(member.size, "little")
            else:
                _struct.pack_into(f"<{member.code or f'{member.size}s'}", out, at, values[place])
        return bytes(out)


def _each(order: list[int], values: list[Any]) -> list[Any]:
    return [values[place] for place in order]


def _find(struct: Struct, name: str, lenient: bool) -> tuple[int, _Member] | None:
    """Offset and member of a name. Raises ValueError; ``lenient``: None if there is none."""
    base, within = 0, struct
    *outer, last = name.split(".")
    for part in outer:
        member = _members(within).get(part)
        if member is None and lenient:
            return None
        if member is None or member.nested is None:
            raise ValueError(f"struct {within.cname} has no struct {part!r}")
        base, within = base + member.offset, member.nested
    member = _members(within).get(last)
    if member is None and lenient:
        return None
    if member is None or member.nested is not None:
        raise ValueError(f"struct {within.cname} has no member {last!r} of one value")
    return base + member.offset, member


def _bytes_of(member: _Member, value: Any) -> bytes:
    """The bytes of a member that is no scalar. Raises ValueError if there are too many."""
    if not isinstance(value, bytes):
        assert member.array is not None
        return member.array.pack(*value)
    if len(value) > member.size:
        raise ValueError(f"{member.name} has {member.size} bytes")
    return value


def flat(values: Values) -> tuple[list[str], list[Any]]:
    """Names, with dots for what is nested, and values; those that are None are left out."""
    names, given = list(values), list(values.values())
    if _TO_FLATTEN.isdisjoint(map(type, given)):
        return names, given
    names, given = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            inner, items = flat(value)
            names += [f"{name}.{each}" for each in inner]
            given += items
        elif value is not None:
            names.append(name)
            given.append(value)
    return names, given


@cache
def _packer(struct: Struct, names: tuple[str, ...], lenient: bool) -> Packer:
    return Packer(struct, names, lenient)


def pack(struct: Struct, values: Values, *, lenient: bool = False) -> bytes:
    """The bytes of one struct; members left out, or None, are zero.

    Nested structs and union views are dicts, arrays lists. ``lenient`` skips names that the
    struct has no member for; otherwise they raise ValueError.
    """
    names, given = flat(values)
    return _packer(struct, tuple(names), lenient).pack(given)


def pack_many(struct: Struct, count: int, columns: Values) -> npt.NDArray[Any]:
    """``count`` structs from columns (arrays or scalars by member name)."""
    records = np.zeros(count, struct.dtype)
    for name, value in columns.items():
        records[name] = value
    return records


@cache
def has(struct: Struct, name: str) -> bool:
    """Whether a struct has a member of this name (dots reach into nested structs)."""
    try:
        struct.field(name)
    except KeyError:
        return False
    return True
