"""Bytes of serialized structs, quickly.

The construct builder of :class:`abi.schema.Struct` checks and explains; this one is for the
hundred thousands of objects that a large image holds: :func:`pack` for one struct,
:func:`pack_many` for columns.
"""

from __future__ import annotations

import struct as _struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.schema import Struct

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Member:
    """How a member is written: a scalar, an array of scalars, bytes, bits, or a struct."""

    offset: int
    size: int
    code: _struct.Struct | None = None
    nested: Struct | None = None
    mask: int = 0
    shift: int = 0


_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@cache
def _members(struct: Struct) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for field in struct.fields:
        if field.flexible:
            continue
        if field.bit_size:
            raw = struct.dtype.fields
            assert raw is not None
            kind, offset = raw[field.union][:2]
            shift = 8 * (field.offset - offset) + field.bit_offset
            members[field.name] = _Member(
                offset, kind.itemsize, mask=(1 << field.bit_size) - 1, shift=shift
            )
            members[field.union] = _Member(
                offset, kind.itemsize, _struct.Struct("<" + _CODES[kind.itemsize])
            )
        elif field.struct is not None and field.count is None:
            members[field.name] = _Member(field.offset, field.size, nested=field.struct)
        elif field.ctype == "char" or field.struct is not None:
            members[field.name] = _Member(field.offset, field.size)
        else:
            count = field.count or 1
            code = _CODES[field.size // count]
            code = code.lower() if field.ctype == "s32" else code
            packer = _struct.Struct(f"<{count if field.count else ''}{code}")
            members[field.name] = _Member(field.offset, field.size, packer)
    return members


def _put(out: bytearray, base: int, struct: Struct, values: Values, lenient: bool) -> None:
    members = _members(struct)
    for name, value in values.items():
        if value is None:
            continue
        member = members.get(name)
        if member is None:
            if lenient:
                continue
            raise ValueError(f"struct {struct.cname} has no member {name!r}")
        at = base + member.offset
        if member.nested is not None:
            _put(out, at, member.nested, value, lenient)
        elif isinstance(value, bytes):
            if len(value) > member.size:
                raise ValueError(f"{name} has {member.size} bytes")
            out[at : at + len(value)] = value
        elif member.mask:
            word = int.from_bytes(out[at : at + member.size], "little")
            word |= (int(value) & member.mask) << member.shift
            out[at : at + member.size] = word.to_bytes(member.size, "little")
        elif isinstance(value, (list, tuple)):
            assert member.code is not None
            member.code.pack_into(out, at, *value)
        else:
            assert member.code is not None
            member.code.pack_into(out, at, value)


def pack(struct: Struct, values: Values, *, lenient: bool = False) -> bytes:
    """The bytes of one struct; members left out, or None, are zero.

    Nested structs and union views are mappings, arrays lists. ``lenient`` skips names that the
    struct has no member for; otherwise they raise ValueError.
    """
    out = bytearray(struct.size)
    _put(out, 0, struct, values, lenient)
    return bytes(out)


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
