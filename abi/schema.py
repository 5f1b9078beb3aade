"""The declaration vocabulary: one construct declaration per serialized struct.

A struct is declared once, field by field, in the order and with the types of the C
declaration::

    iommu_hdr_ser = Struct(
        "iommu_hdr_ser",
        "ref_count" / u32 * "users of the object",
        "flags" / flags(u32, DELETED=1, INCOMING=2) * "what became of it",
    )

From that one declaration come

* the construct parser and builder (``parse``, ``build``, ``sizeof``; exact and lossless),
* the numpy structured ``dtype`` for bulk reads, and ``columns`` on top of it,
* ``unpack``: one object as a flat dict, quickly,
* the table of ``fields`` (name, offset, size, bits, meaning, pointer target),
* the C text (``c()``).

Rebuilding is lossless: padding, reserved bytes and unknown flag bits are ordinary
fields. A union is one raw area plus named views of it, a group of bit-fields one raw
integer plus named views; ``build`` starts from the raw area and lays over it every view
that says something else. Members left out of a ``build`` are zero. Integers stay
integers: a ``bool`` that holds 2 survives.

Everything is little endian: KHO exists on little-endian machines only.
"""

from __future__ import annotations

import struct as _struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import construct as cs

from abi.errors import CodecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Page sizes of the machines that have KHO.
PAGE_SIZES = (0x1000, 0x4000, 0x10000)


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
        return cs.Renamed(_Placeholder(self), newname=name)


class Bits:
    """Bit-fields that share one storage unit, least significant first.

    In a packed struct the group takes only the bytes its bits need.
    """

    def __init__(self, storage: Scalar, widths: Mapping[str, int]) -> None:
        self.storage = storage
        self.widths = dict(widths)

    def __rtruediv__(self, name: str) -> Any:
        return cs.Renamed(_Placeholder(self), newname=name)

    def size(self, packed: bool) -> int:
        """Bytes taken."""
        needed = (sum(self.widths.values()) + 7) // 8
        return needed if packed else max(self.storage.size, needed)


class _Placeholder(cs.Construct):  # type: ignore[misc]
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
class _Bit:
    name: str
    area: str  # the raw member; dotted if it lies in a nested struct
    leaf: str  # the raw member's name in the flattened struct
    shift: int
    width: int


@dataclass(frozen=True, slots=True)
class _View:
    name: str
    area: str
    struct: Struct


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A scalar, char array or scalar array of the flattened struct."""

    name: str
    offset: int
    count: int | None
    type: Scalar | Chars


class Struct(cs.Construct):  # type: ignore[misc]
    """A C struct with fixed size: see the module's docstring.

    ``packed`` structs have no implicit padding; in others the compiler's padding becomes
    fields named ``_pad<offset>``. ``tail`` is the (name, element) of the array that
    follows the struct up to the end of its page; it is not part of ``size``.
    """

    def __init__(
        self,
        name: str,
        *members: Any,
        packed: bool = True,
        doc: str = "",
        tail: tuple[str, Struct | Scalar] | None = None,
    ) -> None:
        super().__init__()
        self.name = None  # construct's own: the name in a parent, not of the type
        self.cname = name
        self.packed = packed
        self.tail = tail
        self.docs = doc
        self.fields: list[Field] = []
        self.alignment = 1
        self._native: list[Any] = []
        self._areas: dict[str, tuple[int, int]] = {}
        self._bits: list[_Bit] = []
        self._views: list[_View] = []
        self._flat: dict[str, dict[str, str]] = {}
        self._items: dict[str, Struct] = {}
        self._leaves: list[_Leaf] = []
        self._end = 0
        self._own = {member.name for member in members}
        for member in members:
            kind = getattr(member.subcon, "what", None)
            self._own |= set(kind.widths) if isinstance(kind, Bits) else set()
        for member in members:
            self._add(member.name, member.subcon, member.docs or "")
        if tail is not None and not packed:
            item = tail[1]
            self.alignment = max(
                self.alignment, item.alignment if isinstance(item, Struct) else item.size
            )
        self._pad_to(self.alignment)
        self.size = self._end
        if tail is not None:
            item = tail[1]
            self.fields.append(
                Field(
                    tail[0],
                    self.size,
                    0,
                    item.ctype if isinstance(item, Scalar) else f"struct {item.cname}",
                    flexible=True,
                    points_to=item.points_to if isinstance(item, Scalar) else "",
                    struct=item if isinstance(item, Struct) else None,
                )
            )
        #: The plain construct.Struct underneath: raw areas only, compilable.
        self.construct = cs.Struct(*self._native)

    # -- declaration -----------------------------------------------------------------

    def _pad_to(self, alignment: int) -> None:
        gap = 0 if self.packed else -self._end % alignment
        if gap:
            name = f"_pad{self._end}"
            self._native.append(cs.Renamed(cs.Bytes(gap), newname=name))
            self._leaves.append(_Leaf(name, self._end, gap, Chars(gap)))
            self.fields.append(Field(name, self._end, gap, "u8", count=gap, padding=True))
            self._end += gap

    def _place(self, name: str, kind: Any, size: int, alignment: int) -> int:
        if self.packed:
            alignment = 1
        self.alignment = max(self.alignment, alignment)
        self._pad_to(alignment)
        offset = self._end
        self._native.append(cs.Renamed(kind, newname=name))
        self._end += size
        return offset

    def _add(self, name: str, kind: Any, doc: str) -> None:
        while isinstance(kind, cs.Renamed):
            doc = doc or kind.docs or ""
            kind = kind.subcon
        if isinstance(kind, _Placeholder):
            if isinstance(kind.what, Union):
                self._add_union(name, kind.what, doc)
            else:
                self._add_bits(name, kind.what, doc)
        elif isinstance(kind, Scalar):
            offset = self._place(name, kind, kind.size, kind.size)
            self._leaves.append(_Leaf(name, offset, None, kind))
            self.fields.append(_scalar_field(name, offset, kind, doc))
        elif isinstance(kind, Chars):
            offset = self._place(name, kind, kind.count, 1)
            self._leaves.append(_Leaf(name, offset, kind.count, kind))
            self.fields.append(Field(name, offset, kind.count, "char", doc, count=kind.count))
        elif isinstance(kind, Items):
            self._add_items(name, kind, doc)
        elif isinstance(kind, Struct):
            offset = self._place(name, kind.construct, kind.size, kind.alignment)
            self._views.append(_View(name, name, kind))
            flat = self._flat[name] = self._flat_names(name, kind)
            for leaf in kind._leaves:
                self._leaves.append(_moved(leaf, flat[leaf.name], offset))
            self._bits += [
                _Bit(flat[b.name], f"{name}.{b.area}", flat[b.leaf], b.shift, b.width)
                for b in kind._bits
            ]
            self.fields.append(
                Field(name, offset, kind.size, f"struct {kind.cname}", doc, struct=kind)
            )
        else:
            raise TypeError(f"{self.cname}.{name}: {type(kind).__name__} is not in the vocabulary")

    def _flat_names(self, name: str, kind: Struct) -> dict[str, str]:
        """Names of a nested struct's leaves and bits here; a taken one gets a prefix."""
        taken = self._own | {x.name for x in self._leaves} | {x.name for x in self._bits}
        inner = [leaf.name for leaf in kind._leaves] + [bit.name for bit in kind._bits]
        return {n: f"{name}.{n}" if n in taken else n for n in inner}

    def _add_items(self, name: str, kind: Items, doc: str) -> None:
        item = kind.item
        if isinstance(item, Struct):
            size, alignment, ctype = item.size, item.alignment, f"struct {item.cname}"
            native: Any = cs.Array(kind.items, item.construct)
            leaf_type: Scalar | Chars = Chars(size * kind.items)
            points_to, count = "", size * kind.items
        else:
            size, alignment, ctype, native = item.size, item.size, item.ctype, kind
            leaf_type, points_to, count = item, item.points_to, kind.items
        offset = self._place(name, native, size * kind.items, alignment)
        if isinstance(item, Struct):
            self._items[name] = item
        self._leaves.append(_Leaf(name, offset, count, leaf_type))
        self.fields.append(
            Field(
                name,
                offset,
                size * kind.items,
                ctype,
                doc,
                count=kind.items,
                points_to=points_to,
                struct=item if isinstance(item, Struct) else None,
            )
        )

    def _add_union(self, name: str, kind: Union, doc: str) -> None:
        alignment = max(s.alignment for s in kind.alternatives.values())
        offset = self._place(name, cs.Bytes(kind.size), kind.size, alignment)
        self._areas[name] = (offset, kind.size)
        self._leaves.append(_Leaf(name, offset, kind.size, Chars(kind.size)))
        for view, struct in kind.alternatives.items():
            self._views.append(_View(view, name, struct))
            self.fields.append(
                Field(
                    view, offset, struct.size, f"struct {struct.cname}", doc,
                    union=name, struct=struct,
                )
            )  # fmt: skip

    def _add_bits(self, name: str, kind: Bits, doc: str) -> None:
        size = kind.size(self.packed)
        native = Scalar({1: "B", 2: "H", 4: "L", 8: "Q"}[size], kind.storage.ctype)
        offset = self._place(name, native, size, kind.storage.size)
        self._leaves.append(_Leaf(name, offset, None, native))
        shift = 0
        for bit_name, width in kind.widths.items():
            self._bits.append(_Bit(bit_name, name, name, shift, width))
            self.fields.append(
                Field(
                    bit_name, offset + shift // 8, kind.storage.size, kind.storage.ctype, doc,
                    bit_offset=shift % 8, bit_size=width, union=name,
                )
            )  # fmt: skip
            shift += width

    # -- construct engine ------------------------------------------------------------

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        return self._with_views(self.construct._parsereport(stream, context, path))

    def _with_views(self, obj: Any) -> Any:
        for view in self._views:
            raw = obj[view.area]
            if view.area in self._areas:
                obj[view.name] = view.struct.parse(raw[: view.struct.size])
            else:
                view.struct._with_views(raw)
        for name, item in self._items.items():
            for element in obj[name]:
                item._with_views(element)
        for bit in self._bits:
            if "." not in bit.area:
                obj[bit.name] = obj[bit.area] >> bit.shift & ((1 << bit.width) - 1)
        return obj

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        self.construct._build(self._completed(obj), stream, context, path)
        return obj

    def _completed(self, obj: Any) -> dict[str, Any]:
        """A mapping with every raw member: zero where ``obj`` is silent, views laid over."""
        if not isinstance(obj, Mapping):
            raise TypeError(f"struct {self.cname} is built from a mapping, not {obj!r}")
        known = {f.name for f in self.fields if not f.flexible}
        known |= set(self._areas) | {b.area for b in self._bits}
        unknown = [k for k in obj if k not in known and k != "_io"]
        if unknown:
            raise CodecError(f"struct {self.cname} has no field {unknown[0]!r}")
        out: dict[str, Any] = {}
        nested = {v.name: v.struct for v in self._views if v.area not in self._areas}
        for native in self._native:
            value = obj.get(native.name)
            item = self._items.get(native.name)
            if item is not None and value is not None:
                value = [item._completed(element) for element in value]
            out[native.name] = _default(native, value, nested.get(native.name))
        given = dict(out)
        for view in self._views:
            if view.area in self._areas and obj.get(view.name) is not None:
                data = view.struct.build(obj[view.name])
                if data != given[view.area][: len(data)]:
                    out[view.area] = data + given[view.area][len(data) :]
        for bit in self._bits:
            if "." not in bit.area and obj.get(bit.name) is not None:
                mask = ((1 << bit.width) - 1) << bit.shift
                value = int(obj[bit.name]) << bit.shift
                if value & ~mask:
                    raise CodecError(f"struct {self.cname}: {bit.name} has {bit.width} bits")
                if bit.area not in obj or (obj[bit.area] & mask) != value:
                    out[bit.area] = (out[bit.area] & ~mask) | value
        return out

    def _sizeof(self, context: Any, path: str) -> int:
        return self.size

    # -- flat engine -----------------------------------------------------------------

    @cached_property
    def _packer(self) -> tuple[_struct.Struct, tuple[tuple[str, int | None], ...]]:
        codes: list[str] = []
        names: list[tuple[str, int | None]] = []
        at = 0
        for leaf in self._leaves:
            assert leaf.offset == at
            if isinstance(leaf.type, Chars):
                codes.append(f"{leaf.count}s")
                names.append((leaf.name, None))
                at += leaf.count or 0
            else:
                codes.append(f"{leaf.count or ''}{leaf.type.code}")
                names.append((leaf.name, leaf.count))
                at += leaf.type.size * (leaf.count or 1)
        return _struct.Struct("<" + "".join(codes)), tuple(names)

    def unpack(self, data: Any, offset: int = 0, *views: str) -> dict[str, Any]:
        """One object as a flat dict: nested structs dissolved, bit-fields resolved.

        A nested member whose name is taken by an outer one keeps its struct's name as prefix
        (``folios.flags``); :meth:`nested` gives a nested struct's members by their own names.
        ``views`` names union alternatives to add, their members prefixed ``view.``. Char
        arrays are bytes, other arrays tuples. Raises CodecError on a short buffer.
        """
        packer, names = self._packer
        try:
            values = packer.unpack_from(data, offset)
        except _struct.error:
            raise CodecError(
                f"struct {self.cname} needs {self.size} bytes, {max(len(data) - offset, 0)} left",
                offset,
            ) from None
        out: dict[str, Any] = {}
        at = 0
        for name, count in names:
            if count is None:
                out[name] = values[at]
                at += 1
            else:
                out[name] = values[at : at + count]
                at += count
        for bit in self._bits:
            raw = out[bit.leaf]
            out[bit.name] = raw >> bit.shift & ((1 << bit.width) - 1)
        for view in self._views:
            if view.name in views:
                start = offset + self._areas[view.area][0]
                for name, value in view.struct.unpack(data, start).items():
                    out[f"{view.name}.{name}"] = value
        return out

    def nested(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The members of a nested struct out of a dict that :meth:`unpack` made."""
        return {inner: values[flat] for inner, flat in self._flat[name].items()}

    # -- numpy engine ----------------------------------------------------------------

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy structured type: nested structs nested, union views overlapping."""
        import numpy as np

        names: list[str] = []
        formats: list[Any] = []
        offsets: list[int] = []
        areas: dict[str, tuple[int, Any]] = {}
        for field in self.fields:
            if field.bit_size:
                area = next(lf for lf in self._leaves if lf.name == field.union)
                assert isinstance(area.type, Scalar)
                areas[field.union] = (area.offset, np.dtype(area.type.dtype_spec))
                continue
            if field.flexible:
                continue
            base: Any
            if field.struct is not None:
                base = field.struct.dtype
            elif field.padding or field.ctype == "char":
                base = np.dtype(np.uint8)
            else:
                width = field.size // (field.count or 1)
                base = np.dtype(f"<{'i' if field.ctype == 's32' else 'u'}{width}")
            names.append(field.name)
            formats.append((base, (field.count,)) if field.count is not None else base)
            offsets.append(field.offset)
        for name, (offset, size) in self._areas.items():
            areas[name] = (offset, np.dtype((np.uint8, (size,))))
        for name, (offset, kind) in areas.items():
            names.append(name)
            formats.append(kind)
            offsets.append(offset)
        return np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": self.size}
        )

    def columns(self, records: npt.NDArray[Any], *views: str) -> dict[str, npt.NDArray[Any]]:
        """Columns of a structured array of :attr:`dtype`, named as :meth:`unpack` names them."""
        out: dict[str, npt.NDArray[Any]] = {}
        nested = {v.name: v for v in self._views}
        for field in self.fields:
            if field.flexible:
                continue
            if field.bit_size:
                raw = records[field.union]
                bit = next(b for b in self._bits if b.name == field.name)
                out[field.name] = (raw >> raw.dtype.type(bit.shift)) & raw.dtype.type(
                    (1 << bit.width) - 1
                )
            elif field.struct is not None and field.count is None:
                view = nested[field.name]
                if view.area in self._areas:
                    if field.name in views:
                        inner = field.struct.columns(records[field.name])
                        out.update({f"{field.name}.{k}": v for k, v in inner.items()})
                else:
                    inner = field.struct.columns(records[field.name])
                    names = self._flat[field.name]
                    out.update({names.get(k, k): v for k, v in inner.items()})
            else:
                out[field.name] = records[field.name]
        return out

    # -- tables and text -------------------------------------------------------------

    def field(self, name: str) -> Field:
        """The field called ``name``; dotted names reach into nested structs.

        Offsets are from the start of *this* struct. Raises KeyError.
        """
        head, _, rest = name.partition(".")
        for candidate in self.fields:
            if candidate.name == head:
                if not rest:
                    return candidate
                if candidate.struct is not None:
                    return _shifted(candidate.struct.field(rest), candidate.offset, name)
        raise KeyError(f"struct {self.cname} has no field {name!r}")

    def flat_fields(self) -> list[Field]:
        """Scalar fields with nested structs and union views dissolved, dotted names."""
        out: list[Field] = []
        for field in self.fields:
            if field.struct is not None and field.count is None and not field.flexible:
                out += [
                    _shifted(inner, field.offset, f"{field.name}.{inner.name}")
                    for inner in field.struct.flat_fields()
                ]
            else:
                out.append(field)
        return out

    def capacity(self, page_size: int) -> int:
        """How many elements of ``tail`` fit in a page behind this header."""
        if self.tail is None:
            raise TypeError(f"struct {self.cname} has no elements behind it")
        return (page_size - self.size) // self.tail[1].size

    def c(self) -> str:
        """The declaration as C text, with offsets and meanings as comments."""
        body: list[tuple[str, str]] = []
        union_open = ""
        for field in self.fields:
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
        lines = [f"struct {self.cname} {{"]
        for line, comment in body:
            gap = " " * (width - len(line.expandtabs(8)) + 1)
            lines.append(f"{line}{gap}/* {comment} */" if comment else line)
        lines.append(f"}}{' __packed' if self.packed else ''};  /* {self.size} bytes */")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<struct {self.cname}, {self.size} bytes>"


def _scalar_field(name: str, offset: int, kind: Scalar, doc: str) -> Field:
    return Field(
        name, offset, kind.size, kind.ctype, doc,
        points_to=kind.points_to, kind=kind.kind, names=kind.names or None,
    )  # fmt: skip


def _moved(leaf: _Leaf, name: str, by: int) -> _Leaf:
    return _Leaf(name, leaf.offset + by, leaf.count, leaf.type)


def _shifted(field: Field, by: int, name: str) -> Field:
    from dataclasses import replace

    return replace(field, offset=field.offset + by, name=name)


def _default(native: Any, value: Any, nested: Struct | None) -> Any:
    """``value``, or the zero of a native member."""
    kind = native.subcon
    if nested is not None:
        return nested._completed({} if value is None else value)
    if value is not None:
        return value
    if isinstance(kind, cs.Bytes):
        return bytes(kind.length)
    if isinstance(kind, cs.Array):
        item = kind.subcon
        zero = item.parse(bytes(item.sizeof()))
        return [zero] * kind.count
    return 0


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


#: A declaration whose size depends on the page size: call it with one of PAGE_SIZES.
PerPage = Callable[[int], Struct]
Layout = Struct | PerPage


def per_page(declare: Callable[[int], Struct]) -> PerPage:
    """Make a declaration out of a function of the page size; each size is declared once."""

    @cache
    def declared(page_size: int) -> Struct:
        if page_size not in PAGE_SIZES:
            raise ValueError(f"no machine with KHO has pages of {page_size} bytes")
        return declare(page_size)

    declared.__doc__ = declare.__doc__
    return declared


def resolve(layout: Layout, page_size: int) -> Struct:
    """The struct of a layout for one page size."""
    return layout if isinstance(layout, Struct) else layout(page_size)
