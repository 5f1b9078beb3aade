"""Every struct and constant of the measured census against the declarations.

``tests/data/abi/layouts.json`` comes from the debug information of compiled declarations, one
entry per kernel release or posted series. A declaration is compared for each page size:
size, alignment, packing, and offset, size, count and bits of each field.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from abi import registry
from abi.block import kho_block_header_ser
from abi.registry import Generation, Source
from abi.schema import PAGE_SIZES, Struct, resolve

DATA = Path(__file__).parent.parent / "data" / "abi" / "layouts.json"
LABELS = {"4K": 0x1000, "16K": 0x4000, "64K": 0x10000}
#: Structs of the census that nothing declares yet: to be emptied, not to grow.
NOT_YET: frozenset[tuple[str, str]] = frozenset()
#: Entries of ``constants`` that are no numbers.
NOT_NUMBERS = {"vmlinux section"}
#: Entries that also mention the strings of other entries.
SEVERAL_IN_ONE = {"linux-7.0", "luo-v2-v3-v4-dev"}


@cache
def census() -> dict[str, dict[str, Any]]:
    return {g["id"]: g for g in json.loads(DATA.read_text())["generations"]}


@cache
def covering(census_id: str) -> tuple[Generation, ...]:
    return tuple(g for g in registry.every() if census_id in g.census)


@cache
def declared(census_id: str, name: str) -> tuple[Generation, ...]:
    return tuple(g for g in covering(census_id) if name in g.layouts)


def structs() -> list[Any]:
    return [
        pytest.param(census_id, struct, id=f"{census_id}-{struct['name']}")
        for census_id, entry in census().items()
        for struct in entry.get("structs", [])
    ]


def constants() -> list[Any]:
    return [
        pytest.param(census_id, name, value, id=f"{census_id}-{name}")
        for census_id, entry in census().items()
        for name, value in entry.get("constants", {}).items()
        if name not in NOT_NUMBERS
    ]


def size_of(struct: dict[str, Any], page_size: int) -> int:
    by_page = struct.get("size_by_page_size")
    label = next(label for label, size in LABELS.items() if size == page_size)
    return int(by_page[label] if by_page else struct["size"])


def expected_fields(struct: dict[str, Any], page_size: int) -> dict[str, dict[str, int | None]]:
    """name -> offset, size, count, bit_offset, bit_size for one page size."""
    found: dict[str, dict[str, int | None]] = {}
    for field in struct["fields"]:
        count, size = field.get("count"), field["size"]
        if "element_size" in field:
            if size and "size_by_page_size" in struct:
                # An array that fills the page grows with it, up to the alignment's padding.
                count = (size_of(struct, page_size) - field["offset"]) // field["element_size"]
            if not size:
                count = None  # flexible
            size = field["element_size"] * (count or 0)
        found[field["name"]] = {
            "offset": field["offset"],
            "size": size,
            "count": count,
            "bit_offset": field.get("bit_offset", 0),
            "bit_size": field.get("bit_size", 0),
        }
    return found


def actual_fields(struct: Struct, expected: set[str]) -> dict[str, dict[str, int | None]]:
    """The same of a declaration; an array behind the struct that the census lacks is left out."""
    return {
        f.name: {
            "offset": f.offset,
            "size": f.size,
            "count": f.count,
            "bit_offset": f.bit_offset,
            "bit_size": f.bit_size,
        }
        for f in struct.fields
        if not f.padding and not (f.flexible and f.name not in expected)
    }


@pytest.mark.parametrize(("census_id", "struct"), structs())
def test_struct(census_id: str, struct: dict[str, Any]) -> None:
    name = struct["name"]
    found = declared(census_id, name)
    if (census_id, name) in NOT_YET:
        assert not found, "declared by now: take it out of NOT_YET"
        pytest.skip("not declared yet")
    assert found, f"no generation with {census_id!r} in its census declares {name}"
    for generation in found:
        for page_size in PAGE_SIZES:
            layout = resolve(generation.layouts[name], page_size)
            expected = expected_fields(struct, page_size)
            assert layout.cname == name
            assert layout.size == layout.sizeof() == size_of(struct, page_size)
            assert actual_fields(layout, set(expected)) == expected
            assert layout.alignment == struct["alignment"]
            if struct["alignment"] > 1:
                assert not layout.packed
            assert layout.dtype.itemsize == layout.size


def registers(target: str) -> bool:
    """Whether an address is that of a device and not of memory."""
    return "MMIO" in target


@pytest.mark.parametrize(("census_id", "struct"), structs())
def test_pointers_and_types(census_id: str, struct: dict[str, Any]) -> None:
    """What the census calls a pointer says what it points to; nested structs are nested."""
    for generation in declared(census_id, struct["name"]):
        layout = resolve(generation.layouts[struct["name"]], 0x1000)
        for field in struct["fields"]:
            own = layout.field(field["name"])
            target = field.get("points_to", "")
            if target and not own.bit_size and own.kind != "pointer" and not registers(target):
                assert own.points_to, f"{layout.cname}.{own.name}: {field['points_to']}"
            kind = field["type"]
            if kind.startswith("struct ") and not kind.endswith("*"):
                assert own.struct is not None
                assert own.ctype == kind
            elif field["size"]:
                assert own.struct is None


def number(generation: Generation, name: str, page_size: int) -> int | None:
    try:
        return generation.constant(name, page_size)
    except KeyError:
        return None


@pytest.mark.parametrize(("census_id", "name", "value"), constants())
def test_constant(census_id: str, name: str, value: Any) -> None:
    match = re.fullmatch(r"(.+?) ?\((\d+K)\)", name)
    by_page = dict.fromkeys(PAGE_SIZES, value)
    if isinstance(value, dict):
        by_page = {LABELS[label]: number for label, number in value.items()}
    elif match:
        name, by_page = match[1], {LABELS[match[2]]: value}
    if name.endswith(" per block"):
        entry = name.removesuffix(" per block")
        generation = next(g for g in declared(census_id, entry))
        for page, expected in by_page.items():
            entry_size = resolve(generation.layouts[entry], page).size
            assert (page - kho_block_header_ser.size) // entry_size == expected
        return
    for page, expected in by_page.items():
        found = {g.id: n for g in covering(census_id) if (n := number(g, name, page)) is not None}
        assert found, f"no generation with {census_id!r} in its census declares {name}"
        assert set(found.values()) == {expected}, found


@pytest.mark.parametrize("census_id", census())
def test_enums(census_id: str) -> None:
    """Each enumerator is the name of a value of some field, or a constant."""
    named: dict[str, int] = {}
    for generation in covering(census_id):
        for layout in generation.layouts.values():
            for field in resolve(layout, 0x1000).flat_fields():
                named.update(field.names or {})
        named.update({k: v for k, v in generation.constants.items() if isinstance(v, int)})
    for values in census()[census_id].get("enums", {}).values():
        assert {k: named.get(k) for k in values} == values


def test_every_census_entry_is_covered() -> None:
    assert [c for c in census() if not covering(c)] == []


def test_census_ids_exist() -> None:
    assert {c for g in registry.every() for c in g.census} <= set(census())


@pytest.mark.parametrize("census_id", census())
def test_strings(census_id: str) -> None:
    """Every string the census has for a kernel or series is one that the registry knows."""
    everywhere = {s for g in registry.every() for s in g.strings}
    here = {s for g in covering(census_id) for s in g.strings}
    for key, text in census()[census_id]["compatible"].items():
        if re.search("_NAME|_NUM|_HEADER", key):
            continue
        for word in re.findall(r"(?:[a-z]+[-_])+v\d(?:;[a-z]+-v\d)*", f"{key} {text}"):
            assert word in everywhere, key
            if census_id not in SEVERAL_IN_ONE:
                assert word in here, f"{key}: {word} is a string of another generation"


def test_measured_generations_have_a_census_entry() -> None:
    for generation in registry.every():
        if generation.source is Source.COMPILED and generation.layouts:
            assert generation.census, str(generation)


def test_prose_only_generations_are_marked() -> None:
    prose = {c for c, entry in census().items() if entry["how_measured"] != "compiled"}
    for generation in registry.every():
        if generation.census and set(generation.census) <= prose:
            assert not generation.measured, str(generation)
