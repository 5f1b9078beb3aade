"""A declaration as C text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abi.schema.types import Field

if TYPE_CHECKING:
    from abi.schema.struct import Struct


def declaration(struct: Struct) -> str:
    """The declaration as C text, with offsets and meanings as comments."""
    body: list[tuple[str, str]] = []
    union_open = ""
    for field in struct.fields:
        if field.padding:
            continue
        in_union = field.union if field.struct is not None else ""
        if union_open and in_union != union_open:
            body.append(("\t};", ""))
        if in_union and in_union != union_open:
            body.append(("\tunion {", ""))
        union_open = in_union
        suffix = ""
        if field.bit_size:
            suffix = f" : {field.bit_size}"
        elif field.flexible:
            suffix = "[]"
        elif field.count is not None:
            suffix = f"[{field.count}]"
        star = field.ctype.endswith("*")
        decl = f"{field.ctype}{'' if star else ' '}{field.name}{suffix};"
        body.append((("\t\t" if in_union else "\t") + decl, _comment(field)))
    if union_open:
        body.append(("\t};", ""))
    width = max((len(line.expandtabs(8)) for line, _ in body), default=0)
    lines = [f"struct {struct.cname} {{"]
    for line, comment in body:
        gap = " " * (width - len(line.expandtabs(8)) + 1)
        lines.append(f"{line}{gap}/* {comment} */" if comment else line)
    lines.append(f"}}{' __packed' if struct.packed else ''};  /* {struct.size} bytes */")
    return "\n".join(lines)


def _comment(field: Field) -> str:
    where = f"{field.offset:#x}"
    if field.bit_size:
        where += f".{field.bit_offset}"
    parts = [where]
    if field.points_to:
        parts.append(f"-> {field.points_to}")
    if field.names:
        values = (f"{k}={v:#x}" if field.kind == "flags" else f"{v} {k}"
                  for k, v in field.names.items())  # fmt: skip
        parts.append(", ".join(values))
    if field.doc:
        parts.append(field.doc)
    return "; ".join(parts)
