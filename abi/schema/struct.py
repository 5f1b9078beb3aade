"""A struct: the construct engine, the flat engine and the numpy engine of one declaration."""

from __future__ import annotations

import struct as _struct
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import construct as cs

from abi.errors import CodecError
from abi.schema.text import declaration
from abi.schema.types import (
    Bit,
    Bits,
    Chars,
    Field,
    Items,
    Leaf,
    Placeholder,
    Scalar,
    Union,
    View,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
        self._bits: list[Bit] = []
        self._views: list[View] = []
        self._flat: dict[str, dict[str, str]] = {}
        self._items: dict[str, Struct] = {}
        self._leaves: list[Leaf] = []
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
            self._leaves.append(Leaf(name, self._end, gap, Chars(gap)))
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
        if isinstance(kind, Placeholder):
            if isinstance(kind.what, Union):
                self._add_union(name, kind.what, doc)
            else:
                self._add_bits(name, kind.what, doc)
        elif isinstance(kind, Scalar):
            offset = self._place(name, kind, kind.size, kind.size)
            self._leaves.append(Leaf(name, offset, None, kind))
            self.fields.append(_scalar_field(name, offset, kind, doc))
        elif isinstance(kind, Chars):
            offset = self._place(name, kind, kind.count, 1)
            self._leaves.append(Leaf(name, offset, kind.count, kind))
            self.fields.append(Field(name, offset, kind.count, "char", doc, count=kind.count))
        elif isinstance(kind, Items):
            self._add_items(name, kind, doc)
        elif isinstance(kind, Struct):
            offset = self._place(name, kind.construct, kind.size, kind.alignment)
            self._views.append(View(name, name, kind))
            flat = self._flat[name] = self._flat_names(name, kind)
            for leaf in kind._leaves:
                self._leaves.append(_moved(leaf, flat[leaf.name], offset))
            self._bits += [
                Bit(flat[b.name], f"{name}.{b.area}", flat[b.leaf], b.shift, b.width)
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
        self._leaves.append(Leaf(name, offset, count, leaf_type))
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
        self._leaves.append(Leaf(name, offset, kind.size, Chars(kind.size)))
        for view, struct in kind.alternatives.items():
            self._views.append(View(view, name, struct))
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
        self._leaves.append(Leaf(name, offset, None, native))
        shift = 0
        for bit_name, width in kind.widths.items():
            self._bits.append(Bit(bit_name, name, name, shift, width))
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
        return declaration(self)

    def __repr__(self) -> str:
        return f"<struct {self.cname}, {self.size} bytes>"


def _scalar_field(name: str, offset: int, kind: Scalar, doc: str) -> Field:
    return Field(
        name, offset, kind.size, kind.ctype, doc,
        points_to=kind.points_to, kind=kind.kind, names=kind.names or None,
    )  # fmt: skip


def _moved(leaf: Leaf, name: str, by: int) -> Leaf:
    return Leaf(name, leaf.offset + by, leaf.count, leaf.type)


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
