"""The quick packer of records against the construct builder of the same declarations."""

from __future__ import annotations

import random
from typing import Any

import pytest

from abi import registry
from abi.schema import Struct, array, bits, chars, resolve, u8, u16, u32, u64, union
from abi.schema.types import Field
from inspector.kernel.record import Packer, flat, has, pack, pack_many


def _structs() -> list[Struct]:
    found: dict[int, Struct] = {}
    for generation in registry.every():
        for layout in generation.layouts.values():
            struct = resolve(layout, 4096)
            found[id(struct)] = struct
    return list(found.values())


def _values(struct: Struct, rng: random.Random, *, views: bool) -> dict[str, Any]:
    """A value for every member; of the alternatives of a union one, or none."""
    values: dict[str, Any] = {}
    unions: set[str] = set()
    for field in struct.fields:
        if field.flexible or field.padding:
            continue
        if field.bit_size:
            values[field.name] = rng.getrandbits(field.bit_size)
        elif field.struct is not None and field.count is None:
            if field.union and (not views or field.union in unions):
                continue
            unions.add(field.union)
            values[field.name] = _values(field.struct, rng, views=views)
        elif field.struct is None:
            values[field.name] = _value(field, rng)
    return values


def _value(field: Field, rng: random.Random) -> Any:
    count = field.count or 1
    if field.ctype == "char":
        return rng.randbytes(count)
    bits = 8 * field.size // count - (field.ctype == "s32")
    return [rng.getrandbits(bits) for _ in range(count)] if field.count else rng.getrandbits(bits)


@pytest.mark.parametrize("views", [False, True])
def test_as_the_builder(views: bool) -> None:
    """Every struct of every generation comes out as construct builds it."""
    rng = random.Random(1)
    structs = _structs()
    assert len(structs) > 50
    for struct in structs:
        values = _values(struct, rng, views=views)
        assert pack(struct, values) == struct.build(values), struct.cname
        names, given = flat(values)
        assert Packer(struct, tuple(names)).pack(given) == struct.build(values)
        some = {name: value for name, value in values.items() if rng.random() < 0.5}
        assert pack(struct, some) == struct.build(some), struct.cname


_INNER = Struct("inner", "low" / u16, "high" / u16)
_OUTER = Struct("outer", "first" / u64, "pair" / _INNER, "last" / u32)


def test_members_left_out_are_zero() -> None:
    assert pack(_OUTER, {}) == bytes(_OUTER.size)
    assert pack(_OUTER, {"last": 7, "pair": None}) == bytes(12) + b"\7\0\0\0"
    assert pack(_OUTER, {"pair": {"high": 1, "low": None}}) == bytes(10) + b"\1\0" + bytes(4)


def test_unknown_names() -> None:
    for values in ({"other": 1}, {"pair": {"other": 1}}, {"pair": 1}, {"last": {"low": 1}}):
        with pytest.raises(ValueError, match=r"struct (outer|inner) has no"):
            pack(_OUTER, values)
    assert pack(_OUTER, {"other": 1, "more": {"x": 2}}, lenient=True) == bytes(_OUTER.size)
    assert not has(_OUTER, "other")
    assert has(_OUTER, "pair.low")


def test_bytes() -> None:
    """Bytes fill char and byte arrays from the start; too many are refused."""
    struct = Struct("bytes", "before" / u32, "name" / chars(8), "map" / array(u8, 4))
    assert (
        pack(struct, {"name": b"vm0", "map": b"\1"}) == bytes(4) + b"vm0" + bytes(5) + b"\1\0\0\0"
    )
    assert pack(struct, {"map": [1, 2, 3, 4]}) == bytes(12) + b"\1\2\3\4"
    for name, size in (("name", 8), ("map", 4)):
        with pytest.raises(ValueError, match=f"{name} has {size} bytes"):
            pack(struct, {name: bytes(size + 1)})


def test_overlaps() -> None:
    """Of what overlaps, the later one counts; bits are set beside what their word holds."""
    struct = Struct("bits", "word" / bits(u32, low=4, high=28), "more" / u32)
    assert pack(struct, {"high": 1, "more": 2, "low": 3}) == bytes([0x13, 0, 0, 0, 2, 0, 0, 0])
    assert pack(struct, {"low": 3, "word": 0x40}) == bytes([0x40]) + bytes(7)
    assert pack(struct, {"word": 0x40, "low": 3}) == bytes([0x43]) + bytes(7)
    viewed = Struct("viewed", "u" / union(pair=_INNER, other=Struct("o", "x" / u64)))
    both = {"other": {"x": 0x1122334455667788}, "pair": {"high": 0}}
    assert pack(viewed, both).hex() == "8877000044332211"


def test_columns() -> None:
    made = pack_many(_OUTER, 3, {"first": [1, 2, 3], "last": 9})
    assert made.tobytes() == b"".join(pack(_OUTER, {"first": i, "last": 9}) for i in (1, 2, 3))
