"""Compare two ABIs: two kernels, two generations, or a kernel with a generation.

Both sides are brought into the form of :mod:`inspector.layouts.measured`, so that one
comparison serves all. The question of each layer is: may state that one side wrote be read by
the other, and if not, does a compatible string say so?
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from abi import registry
from abi.registry import Generation
from abi.schema import Field, Struct
from inspector.layouts.measured import KERNEL_NAMES, MeasuredField, MeasuredKernel, MeasuredStruct

#: Layers whose structs no string of their own covers (yet): the string that does.
COVERED_BY = {"boot": "kho", "vmalloc": "kho", "block": "kho", "kexec-metadata": "kho"}


_MAX_LAYOUTS = 16


class Verdict(enum.StrEnum):
    """What a comparison says about state that goes from one side to the other."""

    #: The same bytes under the same strings.
    NO_CHANGE = "NO_CHANGE"
    #: Differences that no reader stumbles over.
    COMPATIBLE = "COMPATIBLE"
    #: The bytes differ, or the strings do: the other side refuses.
    INCOMPATIBLE = "INCOMPATIBLE"
    #: The bytes differ, and the strings say that they are the same.
    INCOMPATIBLE_UNANNOUNCED = "INCOMPATIBLE_UNANNOUNCED"

    @property
    def exit_status(self) -> int:
        """0, 1 for differences, 4 for what cannot be read."""
        order = list(Verdict)
        return (0, 1, 4, 4)[order.index(self)]


class ChangeKind(enum.StrEnum):
    """What changed. The value is the stable code of the finding."""

    STRUCT_REMOVED = "KHO-ABI-001"
    STRUCT_ADDED = "KHO-ABI-002"
    SIZE = "KHO-ABI-003"
    FIELD_REMOVED = "KHO-ABI-004"
    FIELD_ADDED = "KHO-ABI-005"
    FIELD_MOVED = "KHO-ABI-006"
    FIELD_RESIZED = "KHO-ABI-007"
    FIELD_RENAMED = "KHO-ABI-008"
    FIELD_TYPE = "KHO-ABI-009"
    RESERVED_USED = "KHO-ABI-010"
    CONSTANT = "KHO-ABI-011"
    STRING = "KHO-ABI-012"
    AMBIGUOUS = "KHO-ABI-013"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. ``breaks``: a reader of the other side would misread."""

    kind: ChangeKind
    struct: str
    field: str
    message: str
    breaks: bool

    @property
    def where(self) -> str:
        """``struct.field``, ``struct``, or the name of a constant."""
        return f"{self.struct}.{self.field}" if self.field else self.struct


@dataclass(frozen=True, slots=True)
class Side:
    """One layer of one side of a comparison.

    ``strings`` is None where they cannot be known (a raw BTF blob has no read-only data).
    ``cover`` are the strings that answer for the layer's bytes, its own or another's.
    """

    name: str
    structs: Mapping[str, tuple[MeasuredStruct, ...]]
    constants: Mapping[str, int] = field(default_factory=dict)
    strings: frozenset[str] | None = None
    cover: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """The comparison of one layer; ``announced`` is None where strings are not known."""

    layer: str
    verdict: Verdict
    changes: tuple[Change, ...]
    announced: bool | None
    old: str
    new: str


# -- sides -------------------------------------------------------------------------------


def declared(struct: Struct) -> MeasuredStruct:
    """A declaration in the form of a measurement."""
    fields = tuple(_declared_fields(struct))
    return MeasuredStruct(
        KERNEL_NAMES.get(struct.cname, struct.cname),
        struct.size,
        fields,
        "struct",
        struct.alignment,
        struct.packed,
    )


def _declared_fields(struct: Struct) -> Iterator[MeasuredField]:
    for item in struct.fields:
        if item.padding:
            continue
        view = bool(item.union) and not item.bit_size
        yield MeasuredField(
            name=item.name,
            offset=item.offset,
            size=item.size,
            type=item.ctype,
            kind=_declared_kind(item),
            count=0 if item.flexible else item.count,
            bit_offset=item.bit_offset,
            bit_size=item.bit_size,
            alignment=1,
            anonymous="union" if view else "",
        )


def _declared_kind(item: Field) -> str:
    if item.struct is not None:
        return "struct"
    if item.ctype == "char":
        return "char"
    if item.ctype.startswith("enum "):
        return "enum"
    return {"bool": "bool", "pointer": "pointer"}.get(item.kind, "int")


def side_of_generation(generation: Generation, page_size: int) -> Side:
    """What a generation says."""
    structs: dict[str, tuple[MeasuredStruct, ...]] = {}
    for name, layout in generation.layouts.items():
        struct = layout if isinstance(layout, Struct) else layout(page_size)
        structs[KERNEL_NAMES.get(name, name)] = (declared(struct),)
    constants = {n: generation.constant(n, page_size) for n in generation.constants}
    strings = frozenset(generation.strings)
    return Side(str(generation), structs, constants, strings, strings or None)


def layer_structs(layer: str) -> set[str]:
    """Names of the structs that any generation of a layer has, as the kernel spells them."""
    return {KERNEL_NAMES.get(n, n) for g in registry.generations(layer) for n in g.layouts}


def layer_strings(layer: str, strings: frozenset[str]) -> frozenset[str]:
    """Those strings that name a generation of a layer, known or of the same family."""
    known = {s for g in registry.generations(layer) for s in g.strings}
    families = {_family(s) for s in known if _family(s) != s}
    return frozenset(s for s in strings if s in known or _family(s) in families)


def _family(string: str) -> str:
    """``kho-v4;radix-v1`` -> ``kho``: what stays when versions are counted up."""
    head, sep, tail = string.partition("-v")
    return head if sep and tail[:1].isdigit() else string


def side_of_kernel(kernel: MeasuredKernel, layer: str) -> Side:
    """What a kernel says about a layer. Constants are its enumerators only."""
    names = layer_structs(layer)
    constants = {n for g in registry.generations(layer) for n in g.constants}
    own = None if kernel.strings is None else layer_strings(layer, kernel.strings)
    cover = own
    if kernel.strings is not None and layer in COVERED_BY:
        cover = layer_strings(COVERED_BY[layer], kernel.strings)
    return Side(
        kernel.source,
        {n: s for n, s in kernel.structs.items() if n in names},
        {n: v for n, v in kernel.constants.items() if n in constants},
        own,
        cover,
    )


# -- comparison --------------------------------------------------------------------------


def compare(layer: str, old: Side, new: Side) -> LayerDiff:
    """Compare one layer of two sides."""
    changes = list(diff_structs(old.structs, new.structs))
    for name in sorted(old.constants.keys() & new.constants.keys()):
        before, after = old.constants[name], new.constants[name]
        if before != after:
            changes.append(
                Change(ChangeKind.CONSTANT, name, "", f"{name} was {before}, is {after}", True)
            )
    announced: bool | None = None
    if old.cover is not None and new.cover is not None:
        gone, come = old.cover - new.cover, new.cover - old.cover
        announced = bool(gone)
        if (gone or come) and layer not in COVERED_BY:
            message = f"strings were {listed(old.cover)}, are {listed(new.cover)}"
            changes.append(Change(ChangeKind.STRING, "compatible", "", message, announced))
    verdict = judge(changes, announced)
    return LayerDiff(layer, verdict, tuple(changes), announced, old.name, new.name)


def judge(changes: list[Change], announced: bool | None) -> Verdict:
    """The verdict of a list of changes."""
    broken = [c for c in changes if c.breaks]
    if not changes:
        return Verdict.NO_CHANGE
    if not broken:
        return Verdict.COMPATIBLE
    layout = any(c.kind is not ChangeKind.STRING for c in broken)
    if layout and announced is False:
        return Verdict.INCOMPATIBLE_UNANNOUNCED
    return Verdict.INCOMPATIBLE


def listed(strings: Iterable[str]) -> str:
    """Strings for a sentence."""
    return ", ".join(sorted(strings)) or "none"


def diff_structs(
    old: Mapping[str, tuple[MeasuredStruct, ...]],
    new: Mapping[str, tuple[MeasuredStruct, ...]],
) -> Iterator[Change]:
    """All differences of two sets of structs, by name."""
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield Change(ChangeKind.STRUCT_REMOVED, name, "", f"struct {name} is gone", True)
        elif name not in old:
            yield Change(ChangeKind.STRUCT_ADDED, name, "", f"struct {name} is new", False)
        else:
            yield from _diff_candidates(name, old[name], new[name])


def _diff_candidates(
    name: str, old: tuple[MeasuredStruct, ...], new: tuple[MeasuredStruct, ...]
) -> Iterator[Change]:
    """Compare the nearest pair where a name has several layouts on one side."""
    attempts = [list(diff_struct(a, b)) for a in old[:_MAX_LAYOUTS] for b in new[:_MAX_LAYOUTS]]
    changes = min(attempts, key=lambda c: (sum(change.breaks for change in c), len(c)))
    if len(new) > 1:
        sizes = ", ".join(str(s.size) for s in new)
        yield Change(
            ChangeKind.AMBIGUOUS, name, "",
            f"struct {name} has {len(new)} layouts in one kernel (sizes {sizes})", False,
        )  # fmt: skip
    yield from changes


def diff_struct(old: MeasuredStruct, new: MeasuredStruct) -> Iterator[Change]:
    """All differences of two structs."""
    name = old.name
    if old.size != new.size:
        yield Change(
            ChangeKind.SIZE, name, "", f"size of struct {name} was {old.size}, is {new.size}", True
        )
    # A flexible array takes no room, and the schemas say otherwise what follows a struct.
    before = {f.name: f for f in old.fields if not f.flexible}
    after = {f.name: f for f in new.fields if not f.flexible}
    gone = [f for f in before.values() if f.name not in after]
    come = [f for f in after.values() if f.name not in before]
    for field_ in before.values():
        if field_.name in after:
            yield from _diff_field(name, field_, after[field_.name])
    for field_ in list(gone):
        same = (f for f in come if f.bit_span == field_.bit_span and f.count == field_.count)
        twin = next(same, None)
        if twin is not None:
            gone.remove(field_)
            come.remove(twin)
            yield _renamed(name, field_, twin)
    for field_ in gone:
        taken = [f for f in come if _inside(f, field_)]
        reserved = is_reserved(field_.name)
        message = f"{name}.{field_.name} (offset {field_.offset}, {_extent(field_)}) is gone"
        if reserved:
            message = f"reserved {name}.{field_.name} gave way to {_names(taken)}"
        kind = ChangeKind.RESERVED_USED if reserved else ChangeKind.FIELD_REMOVED
        yield Change(kind, name, field_.name, message, not reserved)
    free = [f for f in old.fields if is_reserved(f.name)]
    for field_ in come:
        room = any(_inside(field_, f) for f in free) or _in_padding(field_, old)
        beyond = field_.offset >= old.size
        yield Change(
            ChangeKind.FIELD_ADDED, name, field_.name,
            f"{name}.{field_.name} is new at offset {field_.offset}, {_extent(field_)}"
            + (", where nothing was" if room and not beyond else ""),
            not room and not beyond and not _overlays(field_, old),
        )  # fmt: skip


def _diff_field(struct: str, old: MeasuredField, new: MeasuredField) -> Iterator[Change]:
    where = f"{struct}.{old.name}"
    if old.bit_span[0] != new.bit_span[0]:
        yield Change(
            ChangeKind.FIELD_MOVED, struct, old.name,
            f"{where} was at {_place(old)}, is at {_place(new)}", True,
        )  # fmt: skip
    # A flexible array has no size; a pointer union and its u64 have the same.
    if _width(old) != _width(new):
        yield Change(
            ChangeKind.FIELD_RESIZED, struct, old.name,
            f"{where} had {_extent(old)}, has {_extent(new)}", True,
        )  # fmt: skip
    elif _meaning(old) != _meaning(new):
        yield Change(
            ChangeKind.FIELD_TYPE, struct, old.name, f"{where} was {old.type}, is {new.type}", False
        )


def _renamed(struct: str, old: MeasuredField, new: MeasuredField) -> Change:
    kind = ChangeKind.RESERVED_USED if is_reserved(old.name) else ChangeKind.FIELD_RENAMED
    return Change(
        kind, struct, new.name,
        f"{struct}.{old.name} at offset {old.offset} is now called {new.name}", False,
    )  # fmt: skip


def _width(item: MeasuredField) -> tuple[int, int | None]:
    if item.bit_size:
        return item.bit_size, None
    return 8 * item.size, 0 if item.flexible else None


def _meaning(item: MeasuredField) -> str:
    """What the bytes are, as far as a reader cares: spelling and sign do not matter.

    An unnamed union of an address and a pointer, a phys_addr_t and a u64 are all one.
    """
    if item.kind in ("int", "enum", "char"):
        return "number" if item.count is None or item.element_size > 1 else "bytes"
    if item.kind == "union" or (item.kind == "struct" and item.members):
        return "number" if item.size in (1, 2, 4, 8) and item.count is None else item.kind
    return {"bool": "number"}.get(item.kind, item.kind)


def _inside(inner: MeasuredField, outer: MeasuredField) -> bool:
    return outer.bit_span[0] <= inner.bit_span[0] and inner.bit_span[1] <= outer.bit_span[1]


def _in_padding(item: MeasuredField, struct: MeasuredStruct) -> bool:
    start, end = item.bit_span
    return any(8 * at <= start and end <= 8 * (at + size) for at, size in struct.padding())


def _overlays(item: MeasuredField, struct: MeasuredStruct) -> bool:
    """Another view in a union that was there before."""
    return item.anonymous == "union" and any(
        f.anonymous == "union" and f.offset == item.offset and item.size <= f.size
        for f in struct.fields
    )


def is_reserved(name: str) -> bool:
    """Whether a member is there only to keep room."""
    return name.strip("_").startswith(("reserved", "pad", "unused", "spare", "rsvd", "resv"))


def _extent(item: MeasuredField) -> str:
    return f"{item.bit_size} bits" if item.bit_size else f"{item.size} bytes"


def _place(item: MeasuredField) -> str:
    bit = f", bit {item.bit_offset}" if item.bit_size else ""
    return f"offset {item.offset}{bit}"


def _names(fields: list[MeasuredField]) -> str:
    return ", ".join(f.name for f in fields) or "other members"
