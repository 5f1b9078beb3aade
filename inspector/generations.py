"""The registry of generations as people and programs read it (``kho abi list|show``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from abi import registry
from abi.errors import UsageError
from abi.registry import Generation
from abi.schema import Field, Struct, resolve


def listing(layer: str | None = None) -> list[dict[str, Any]]:
    """One row for each generation, oldest first within its layer."""
    chosen = registry.generations(layer) if layer else tuple(registry.every())
    return [
        {
            "layer": g.layer,
            "id": g.id,
            "strings": list(g.strings),
            "kernels": list(g.kernels),
            "released": g.released,
            "source": str(g.source),
            "measured": g.measured,
            "date": g.date or None,
            "structs": sorted(g.layouts),
            "provenance": g.provenance,
            "notes": g.notes or None,
        }
        for g in chosen
    ]


def table(rows: list[dict[str, Any]], *, colour: bool = False) -> Iterator[str]:
    """The rows aligned for a terminal, a heading for each layer."""
    width = max((len(r["id"]) for r in rows), default=0)
    layer = None
    for row in rows:
        if row["layer"] != layer:
            layer = row["layer"]
            yield f"\x1b[1m{layer}\x1b[0m" if colour else layer
        known = "" if row["measured"] else f"  [unmeasured: {row['source']}]"
        where = _kernels(row["kernels"]) if row["kernels"] else row["provenance"]
        strings = ", ".join(row["strings"]) or "-"
        yield f"  {row['id']:<{width}}  {strings:<28}  {where}{known}"


def _kernels(kernels: list[str]) -> str:
    if len(kernels) > 2:
        return f"Linux {kernels[0]} to {kernels[-1]}"
    return "Linux " + ", ".join(kernels)


def resolve_generation(name: str) -> list[Generation]:
    """Generations that ``LAYER=ID``, an id, a layer or a struct's name means."""
    if "=" in name:
        layer, _, own = name.partition("=")
        return [registry.get(layer, own)]
    every = list(registry.every())
    found = [g for g in every if g.id == name] or [g for g in every if g.layer == name]
    found = found or [g for g in every if name in g.layouts]
    if not found:
        import difflib

        names = {g.id for g in every} | {s for g in every for s in g.layouts} | set(registry.LAYERS)
        near = difflib.get_close_matches(name, sorted(names), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; see 'kho abi list'"
        raise UsageError(f"no generation, layer or struct {name!r}{hint}")
    return found


def text(name: str, page_size: int) -> Iterator[str]:
    """C declarations, each distinct layout once, with the generations that have it."""
    generations = resolve_generation(name)
    only = name if any(name in g.layouts for g in generations) else None
    first = True
    for declaration, owners in _distinct(generations, only, page_size):
        if not first:
            yield ""
        first = False
        yield f"/* {', '.join(str(g) for g in owners)} */"
        if declaration.docs:
            yield f"/* {declaration.docs} */"
        yield from declaration.c().splitlines()
    for generation in generations if only is None else ():
        facts = _constants(generation, page_size)
        if facts or generation.notes:
            yield ""
            yield f"/* {generation}: {generation.provenance} ({generation.source}) */"
        for constant, value in facts.items():
            yield f"#define {constant} {value:#x}" if value > 9 else f"#define {constant} {value}"
        if generation.notes:
            yield f"/* {generation.notes} */"


def _distinct(
    generations: list[Generation], only: str | None, page_size: int
) -> Iterator[tuple[Struct, list[Generation]]]:
    seen: dict[int, tuple[Struct, list[Generation]]] = {}
    for generation in generations:
        for cname, layout in generation.layouts.items():
            if only is None or cname == only:
                struct = resolve(layout, page_size)
                seen.setdefault(id(struct), (struct, []))[1].append(generation)
    yield from seen.values()


def _constants(generation: Generation, page_size: int) -> dict[str, int]:
    return {
        name: value if isinstance(value, int) else value[page_size]
        for name, value in generation.constants.items()
    }


def describe(name: str, page_size: int) -> dict[str, Any]:
    """The same as a JSON document: field tables with offsets, sizes and bits."""
    return {
        "page_size": page_size,
        "generations": [
            {
                "layer": g.layer,
                "id": g.id,
                "strings": list(g.strings),
                "source": str(g.source),
                "provenance": g.provenance,
                "constants": _constants(g, page_size),
                "structs": [_struct(resolve(s, page_size)) for s in g.layouts.values()],
            }
            for g in resolve_generation(name)
        ],
    }


def _struct(struct: Struct) -> dict[str, Any]:
    return {
        "name": struct.cname,
        "size": struct.size,
        "packed": struct.packed,
        "alignment": struct.alignment,
        "doc": struct.docs or None,
        "fields": [_field(f) for f in struct.fields],
    }


def _field(field: Field) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": field.name,
        "offset": field.offset,
        "size": field.size,
        "type": field.ctype,
        "count": field.count,
        "points_to": field.points_to or None,
        "meaning": field.doc or None,
        "values": dict(field.names) if field.names else None,
    }
    if field.bit_size:
        entry["bit_offset"], entry["bit_size"] = field.bit_offset, field.bit_size
    if field.flexible:
        entry["flexible"] = True
    return entry
