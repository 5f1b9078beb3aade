"""Bytes of serialized structs, quickly: one numpy record per struct.

The construct builder of :class:`abi.schema.Struct` checks and explains; this one is for the
hundred thousands of objects that a large image holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.schema import Struct

Values = Mapping[str, Any]


def fill(record: Any, values: Values) -> None:
    """Set members of a numpy record; a mapping fills a nested struct, None is left alone."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            fill(record[name], value)
        elif isinstance(value, bytes):
            room = record[name]
            room[:] = 0
            room[: len(value)] = np.frombuffer(value, np.uint8)
        else:
            record[name] = value


def known(struct: Struct, values: Values) -> dict[str, Any]:
    """Those values that the struct has members for, nested ones likewise."""
    fields = {f.name: f for f in struct.fields}
    out: dict[str, Any] = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            continue
        if field.bit_size:
            out[field.union] = out.get(field.union, 0) | value << field.bit_offset
            continue
        if isinstance(value, Mapping):
            assert field.struct is not None
            value = known(field.struct, value)
        out[name] = value
    return out


def pack(struct: Struct, values: Values) -> bytes:
    """The bytes of one struct; members left out are zero. Raises ValueError for a wrong name."""
    record = np.zeros((), struct.dtype)
    fill(record, values)
    return record.tobytes()


def pack_many(struct: Struct, count: int, columns: Values) -> npt.NDArray[Any]:
    """``count`` structs from columns (arrays or scalars by member name)."""
    records = np.zeros(count, struct.dtype)
    fill(records, columns)
    return records


def has(struct: Struct, name: str) -> bool:
    """Whether a struct has a member of this name (dots reach into nested structs)."""
    return name in _members(struct)


@lru_cache(maxsize=256)
def _members(struct: Struct) -> frozenset[str]:
    names = {f.name for f in struct.fields}
    for field in struct.fields:
        if field.struct is not None and not field.flexible:
            names |= {f"{field.name}.{inner}" for inner in _members(field.struct)}
    return frozenset(names)
