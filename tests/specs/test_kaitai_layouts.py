"""Every struct of ``layouts.json``: the Kaitai parser reads the same values at the same places.

The expected values are cut out of the bytes by the offsets, sizes and bit positions of
``layouts.json``, which come from compiled declarations, not from the specifications.
"""

from __future__ import annotations

from typing import Any

import pytest
from kaitai_patterns import CASES, array_length, nested, params_for, pattern, struct_size
from kaitai_support import Type, all_types, c_structs

from specs import PARSE_ERRORS, parse


def cases_by_page_size() -> list[Any]:
    return [
        pytest.param(generation, name, entry, label, id=f"{generation}-{name}-{label}")
        for generation, name, entry in CASES
        for label in c_structs()[generation, name].get("size_by_page_size", ["4K"])
    ]


def plain(value: Any) -> Any:
    """Value of an attribute as bytes, a number, or a list of numbers."""
    if hasattr(value, "raw"):
        return value.raw
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [int(v) for v in value]
    return value


def aliases_of(generation: str, struct: dict[str, Any]) -> dict[str, str]:
    found = [t for g, s, t in CASES if (g, s) == (generation, struct["name"])]
    return found[0].aliases if found else {}


def compare(
    obj: Any, data: bytes, generation: str, struct: dict[str, Any], base: int, label: str
) -> int:
    """Compare every member; returns how many there were."""
    compared = 0
    aliases = aliases_of(generation, struct)
    for field in struct["fields"]:
        name = f"{struct['name']}.{field['name']}"
        if field.get("flexible") or field.get("count") == 0 or field.get("size") == 0:
            continue
        value = getattr(obj, aliases.get(field["name"], field["name"]))
        at, size = base + field["offset"], field["size"]
        inner = nested(generation, field)
        length = array_length(field, struct, label)
        if inner is not None:
            elements = [value] if length is None else value
            assert len(elements) == (1 if length is None else length), name
            for i, element in enumerate(elements):
                where = at + i * inner["size"]
                compared += compare(element, data, generation, inner, where, label)
            continue
        value = plain(value)
        if "bit_size" in field:
            word = int.from_bytes(data[at : at + 16], "little") >> field["bit_offset"]
            expected: Any = word & ((1 << field["bit_size"]) - 1)
            if isinstance(value, bytes):
                value = int.from_bytes(value, "little")
        elif length is None:
            signed = field["type"] == "__s32"
            expected = int.from_bytes(data[at : at + size], "little", signed=signed)
        else:
            element_size = size // field["count"]
            cut = data[at : at + length * element_size]
            if isinstance(value, bytes):
                expected = cut
                value = value.ljust(length * element_size, b"\0") if "compat" in name else value
            else:
                expected = [
                    int.from_bytes(cut[i : i + element_size], "little")
                    for i in range(0, len(cut), element_size)
                ]
        assert value == expected, name
        compared += 1
    return compared


@pytest.mark.parametrize(("generation", "name", "entry", "label"), cases_by_page_size())
def test_members_are_where_the_layout_says(
    generation: str, name: str, entry: Type, label: str
) -> None:
    struct = c_structs()[generation, name]
    for seed in range(4 if struct_size(struct, label) <= 256 else 1):
        data = pattern(generation, name, entry, label, seed)
        params = params_for(entry, struct, label)
        obj = parse(entry.parser, data, *params)
        assert compare(obj, data, generation, struct, 0, label) > 0
        assert obj._io.pos() == len(data), "size"


@pytest.mark.parametrize(("generation", "name", "entry", "label"), cases_by_page_size())
def test_a_short_buffer_is_refused(generation: str, name: str, entry: Type, label: str) -> None:
    struct = c_structs()[generation, name]
    data = pattern(generation, name, entry, label, 0)
    params = params_for(entry, struct, label)
    shorter = range(len(data)) if len(data) < 300 else (0, 1, 15, len(data) // 2, len(data) - 1)
    for length in shorter:
        with pytest.raises(PARSE_ERRORS):
            parse(entry.parser, data[:length], *params)


def test_every_struct_has_exactly_one_type() -> None:
    described: dict[tuple[str, str], list[str]] = {}
    for entry in all_types().values():
        for key in entry.c_structs:
            described.setdefault(key, []).append(entry.name)
    missing = sorted(set(c_structs()) - set(described))
    assert missing == []
    twice = {k: v for k, v in described.items() if len(v) > 1}
    assert twice == {}


def test_generations_named_in_the_specifications_exist() -> None:
    generations = {g for g, _ in c_structs()}
    named = {g for t in all_types().values() for g, _ in t.c_structs}
    assert named <= generations
