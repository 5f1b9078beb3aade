"""BPF Type Format: the kernel's own description of its types, read without a library.

Reads a raw blob (``/sys/kernel/btf/vmlinux``) of either byte order, alone or split from a base
(modules). Every kind of Linux 7.3 is known; a later kind is skipped if the blob describes its
shape (``struct btf_layout``, Linux 7.1). Bounds of every id, offset and length are checked, and
chains, nesting and the records that are looked at in all are limited, so that a hostile blob
ends in a :class:`BtfError`.

Source: ``Documentation/bpf/btf.rst`` and ``include/uapi/linux/btf.h`` of Linux 7.1.
"""

from __future__ import annotations

import enum
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Literal

from abi.errors import CodecError
from inspector.layouts.measured import (
    ANONYMOUS,
    FUNCTION,
    MeasuredField,
    MeasuredStruct,
    plain,
    pointer_to,
    qualified,
)

MAGIC = 0xEB9F
#: Limits against hostile blobs, far above what kernels have.
MAX_CHAIN = 64
MAX_NESTING = 32
MAX_FIELDS = 1 << 14
MAX_NAME = 512
#: Types of one blob: no more fit the kernel's own limit (BTF_MAX_TYPE).
MAX_TYPES = 1 << 20
#: Records that one blob may have looked at: the structs of a kernel take some ten thousand.
MAX_STEPS = 1 << 22
#: Different layouts of one name; kernels have two or three of the names that are used twice.
MAX_LAYOUTS = 16

_HEADER_SIZE = 24


class BtfError(CodecError):
    """The bytes are no BTF, or contradict themselves; ``offset`` is inside the blob."""


class Kind(enum.IntEnum):
    """What a type record describes."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Words behind the three of the record itself: (once, for each of vlen).
_SHAPES: dict[int, tuple[int, int]] = {
    Kind.INT: (1, 0),
    Kind.PTR: (0, 0),
    Kind.ARRAY: (3, 0),
    Kind.STRUCT: (0, 3),
    Kind.UNION: (0, 3),
    Kind.ENUM: (0, 2),
    Kind.FWD: (0, 0),
    Kind.TYPEDEF: (0, 0),
    Kind.VOLATILE: (0, 0),
    Kind.CONST: (0, 0),
    Kind.RESTRICT: (0, 0),
    Kind.FUNC: (0, 0),
    Kind.FUNC_PROTO: (0, 2),
    Kind.VAR: (1, 0),
    Kind.DATASEC: (0, 3),
    Kind.FLOAT: (0, 0),
    Kind.DECL_TAG: (1, 0),
    Kind.TYPE_TAG: (0, 0),
    Kind.ENUM64: (0, 3),
}
_QUALIFIERS = {Kind.CONST: "const", Kind.VOLATILE: "volatile", Kind.RESTRICT: "restrict"}
_TAGGED = {Kind.STRUCT: "struct", Kind.UNION: "union", Kind.ENUM: "enum", Kind.ENUM64: "enum"}
_TRANSPARENT = {Kind.TYPEDEF, Kind.TYPE_TAG, *_QUALIFIERS}
_INT_SIGNED, _INT_CHAR, _INT_BOOL = 1, 2, 4


class Btf:
    """The types of one blob, numbered from 1; with a base, on from the base's last.

    :param data: the raw blob.
    :param base: the blob that this one was split from.
    :raises BtfError: the framing is broken.
    """

    def __init__(self, data: bytes | bytearray | memoryview, base: Btf | None = None) -> None:
        data = bytes(data)
        self.base = base
        self.byteorder: Literal["little", "big"] = _byteorder(data)
        if base is not None and base.byteorder != self.byteorder:
            raise BtfError("BTF and its base differ in byte order", 0)
        code = "<" if self.byteorder == "little" else ">"
        version, _flags, length = struct.unpack_from(code + "BBI", data, 2)
        if version != 1:
            raise BtfError(f"BTF version {version} is not known", 2)
        if not _HEADER_SIZE <= length <= len(data):
            raise BtfError(f"BTF header of {length} bytes", 4)
        sections = struct.unpack_from(code + "4I", data, 8)
        types = _section(data, length, sections[0], sections[1], "type", 8)
        self._strings = _section(data, length, sections[2], sections[3], "string", 16)
        if self._strings and self._strings[-1]:
            raise BtfError("string section does not end with NUL", 20)
        if base is None and (not self._strings or self._strings[0]):
            raise BtfError("string section does not start with NUL", 16)
        shapes = _SHAPES
        if length >= 32:
            extra = struct.unpack_from(code + "2I", data, 24)
            shapes = shapes | _layout(_section(data, length, extra[0], extra[1], "layout", 24))
        #: Where the strings and ids of this blob start in the numbering of base and blob.
        self._first_string = base.string_end if base else 0
        self.first_id = base.end_id if base else 1
        self._origin = length + sections[0]
        self._words = array("I")
        self._words.frombytes(types[: len(types) & ~3])
        if self.byteorder != sys.byteorder:
            self._words.byteswap()
        self._starts = array("I")
        #: Indices of the structs and unions, and of the enumerations.
        self._structs = array("I")
        self._enums = array("I")
        self._alignments: dict[int, int] = {}
        self._steps = MAX_STEPS
        self._pointer_size = 0
        self._index(shapes)

    def _index(self, shapes: dict[int, tuple[int, int]]) -> None:
        words, append = self._words, self._starts.append
        listed: dict[int, array[int]] = {Kind.STRUCT: self._structs, Kind.UNION: self._structs}
        listed |= {Kind.ENUM: self._enums, Kind.ENUM64: self._enums}
        count = len(words)
        at = 0
        while at < count:
            if at + 3 > count:
                raise BtfError("type section ends inside a record", self._origin + 4 * at)
            info = words[at + 1]
            kind = info >> 24 & 0x7F
            shape = shapes.get(kind)
            if shape is None:
                raise BtfError(f"type kind {kind} is not known", self._origin + 4 * at)
            if kind in listed:
                listed[kind].append(len(self._starts))
            append(at)
            if len(self._starts) > MAX_TYPES:
                raise BtfError(f"more than {MAX_TYPES} types", self._origin + 4 * at)
            at += 3 + shape[0] + shape[1] * (info & 0xFFFFFF)
        if at > count:
            raise BtfError("type section ends inside a record", self._origin + 4 * count)

    @property
    def end_id(self) -> int:
        """One more than the largest type id."""
        return self.first_id + len(self._starts)

    @property
    def string_end(self) -> int:
        """The first offset behind the strings, the base's included."""
        return self._first_string + len(self._strings)

    def __len__(self) -> int:
        return len(self._starts)

    # -- records ---------------------------------------------------------------------

    def _record(self, id_: int) -> tuple[Btf, int]:
        """The blob that holds a type, and the index of its first word there."""
        self._steps -= 1
        if self._steps < 0:
            raise BtfError(f"more than {MAX_STEPS} records to look at", self._origin)
        btf: Btf | None = self
        while btf is not None:
            if id_ >= btf.first_id:
                index = id_ - btf.first_id
                if index < len(btf._starts):
                    return btf, btf._starts[index]
                break
            btf = btf.base
        raise BtfError(f"type id {id_} does not exist", self._origin)

    def kind(self, id_: int) -> int:
        """The kind of a type; 0 for void."""
        if id_ == 0:
            return Kind.VOID
        btf, at = self._record(id_)
        return btf._words[at + 1] >> 24 & 0x7F

    def name(self, id_: int) -> str:
        """The name of a type; empty if it has none."""
        if id_ == 0:
            return "void"
        btf, at = self._record(id_)
        return btf.string(btf._words[at])

    def string(self, offset: int) -> str:
        """A string by its offset. Undecodable bytes are escaped, long names are cut."""
        if offset < self._first_string and self.base is not None:
            return self.base.string(offset)
        start = offset - self._first_string
        if not 0 <= start < len(self._strings):
            raise BtfError(f"string offset {offset} is out of bounds", 16)
        text = self._strings[start : start + MAX_NAME].split(b"\0", 1)[0]
        return text.decode("utf-8", "backslashreplace")

    def _target(self, id_: int) -> int:
        btf, at = self._record(id_)
        return btf._words[at + 2]

    def resolve(self, id_: int) -> int:
        """The type behind typedefs, qualifiers and tags."""
        for _ in range(MAX_CHAIN):
            if self.kind(id_) not in _TRANSPARENT:
                return id_
            id_ = self._target(id_)
        raise BtfError(f"type chain longer than {MAX_CHAIN}", self._origin)

    @property
    def pointer_size(self) -> int:
        """Bytes of a pointer, which BTF tells only through the size of ``long``."""
        if self.base is not None:
            return self.base.pointer_size
        if not self._pointer_size:
            words, self._pointer_size = self._words, 8
            for at in self._starts:
                is_int = words[at + 1] >> 24 & 0x7F == Kind.INT and words[at + 2] in (4, 8)
                if is_int and plain(self.string(words[at])) in ("long", "unsigned long"):
                    self._pointer_size = words[at + 2]
                    break
        return self._pointer_size

    def size(self, id_: int) -> int:
        """Bytes of a type; 0 for void, functions and forward declarations."""
        count = 1
        for _ in range(MAX_CHAIN):
            id_ = self.resolve(id_)
            kind = self.kind(id_)
            if kind == Kind.PTR:
                return count * self.pointer_size
            if kind in (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT):
                return count * self._target(id_)
            if kind != Kind.ARRAY:
                return 0
            id_, elements = self._array(id_)
            count *= elements
        raise BtfError(f"arrays nested deeper than {MAX_CHAIN}", self._origin)

    def _array(self, id_: int) -> tuple[int, int]:
        btf, at = self._record(id_)
        return btf._words[at + 3], btf._words[at + 5]

    def spelling(self, id_: int, nesting: int = 0) -> str:
        """A type as C writes it; of functions only that they are."""
        if nesting > MAX_CHAIN:
            raise BtfError(f"type chain longer than {MAX_CHAIN}", self._origin)
        words: set[str] = set()
        for _ in range(MAX_CHAIN):
            kind = self.kind(id_)
            if kind in _QUALIFIERS:
                words.add(_QUALIFIERS[Kind(kind)])
            elif kind != Kind.TYPE_TAG:
                break
            id_ = self._target(id_)
        if kind == Kind.PTR:
            target = self.spelling(self._target(id_), nesting + 1)
            return qualified(pointer_to(target), words)
        if kind == Kind.ARRAY:
            element, count = self._array(id_)
            return qualified(f"{self.spelling(element, nesting + 1)} [{count}]", words)
        return qualified(self._plain(id_, kind), words)

    def _plain(self, id_: int, kind: int) -> str:
        if kind == Kind.FUNC_PROTO:
            return FUNCTION
        name = self.name(id_)
        if kind == Kind.FWD:
            btf, at = self._record(id_)
            return f"{'union' if btf._words[at + 1] >> 31 else 'struct'} {name}"
        if kind in _TAGGED:
            return f"{_TAGGED[Kind(kind)]} {name or ANONYMOUS}"
        return plain(name)

    # -- structs and enumerations ----------------------------------------------------

    def structs(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, int]]:
        """(name, id) of the structs and unions of this blob and its bases, of ``names`` only."""
        if self.base is not None:
            yield from self.base.structs(names)
        wanted = None if names is None else {name.encode() for name in names}
        if wanted is not None:
            names = [name.decode() for name in wanted]
        words, strings, first = self._words, self._strings, self._first_string
        for index in self._structs:
            at = self._starts[index]
            if words[at]:
                if wanted is not None and words[at] >= first:
                    start = words[at] - first
                    if strings[start : start + MAX_NAME].split(b"\0", 1)[0] not in wanted:
                        continue
                name = self.string(words[at])
                if wanted is None or name.encode() in wanted:
                    yield name, self.first_id + index

    def measure(self, id_: int) -> MeasuredStruct:
        """The layout of a struct or union."""
        kind = self.kind(id_)
        if kind not in (Kind.STRUCT, Kind.UNION):
            raise BtfError(f"type {id_} is no struct", self._origin)
        budget = [MAX_FIELDS]
        fields = tuple(self._fields(id_, 0, "", 0, budget))
        word = "struct" if kind == Kind.STRUCT else "union"
        return MeasuredStruct.of(self.name(id_), self._target(id_), fields, word)

    def layouts(self, names: Iterable[str]) -> dict[str, tuple[MeasuredStruct, ...]]:
        """The different layouts, :data:`MAX_LAYOUTS` at most, of each name that is there."""
        # A dictionary for each name: its keys are a set that keeps the order.
        out: dict[str, dict[MeasuredStruct, None]] = {}
        for name, id_ in self.structs(list(names)):
            known = out.setdefault(name, {})
            if len(known) < MAX_LAYOUTS:
                known[self.measure(id_)] = None
        return {name: tuple(known) for name, known in out.items()}

    def _members(self, id_: int) -> Iterator[tuple[str, int, int, int]]:
        """(name, type, bit offset, bit-field size) of each direct member."""
        btf, at = self._record(id_)
        words = btf._words
        info = words[at + 1]
        for index in range(at + 3, at + 3 + 3 * (info & 0xFFFFFF), 3):
            name, type_, offset = words[index : index + 3]
            bits = 0
            if info >> 31:
                offset, bits = offset & 0xFFFFFF, offset >> 24
            yield btf.string(name), type_, offset, bits

    def _fields(
        self, id_: int, base_bits: int, anonymous: str, nesting: int, budget: list[int]
    ) -> Iterator[MeasuredField]:
        if nesting > MAX_NESTING:
            raise BtfError(f"structs nested deeper than {MAX_NESTING}", self._origin)
        for name, type_, offset, bits in self._members(id_):
            budget[0] -= 1
            if budget[0] < 0:
                raise BtfError(f"a struct of more than {MAX_FIELDS} members", self._origin)
            start = base_bits + offset
            resolved = self.resolve(type_)
            kind = self.kind(resolved)
            if not name and kind in (Kind.STRUCT, Kind.UNION):
                inside = "union" if kind == Kind.UNION else anonymous or "struct"
                yield from self._fields(resolved, start, inside, nesting + 1, budget)
                continue
            yield self._field(name, type_, start, bits, anonymous, nesting, budget)

    def _field(
        self,
        name: str,
        type_: int,
        start: int,
        bits: int,
        anonymous: str,
        nesting: int,
        budget: list[int],
    ) -> MeasuredField:
        element, count = type_, None
        for _ in range(MAX_CHAIN):
            resolved = self.resolve(element)
            if self.kind(resolved) != Kind.ARRAY:
                break
            element, elements = self._array(resolved)
            count = elements if count is None else count * elements
        kind = self.kind(resolved)
        if kind == Kind.INT and count is None and not bits:
            # Before the kind flag, a bit-field was an INT of odd size and offset.
            btf, at = self._record(resolved)
            encoding = btf._words[at + 3]
            start += encoding >> 16 & 0xFF
            if start % 8 or encoding & 0xFF != 8 * btf._words[at + 2]:
                bits = encoding & 0xFF
        members: tuple[MeasuredField, ...] = ()
        if kind in (Kind.STRUCT, Kind.UNION) and not self.name(resolved):
            members = tuple(self._fields(resolved, start, "", nesting + 1, budget))
        return MeasuredField(
            name=name,
            offset=start // 8,
            size=self.size(type_),
            type=self.spelling(element),
            kind=self._kind_name(resolved, kind),
            count=count,
            bit_offset=start % 8 if bits else 0,
            bit_size=bits,
            alignment=self._alignment(resolved, 0),
            anonymous=anonymous,
            members=members,
        )

    def _kind_name(self, id_: int, kind: int) -> str:
        if kind == Kind.INT:
            btf, at = self._record(id_)
            encoding = btf._words[at + 3] >> 24
            if encoding & _INT_BOOL:
                return "bool"
            one_byte = btf._words[at + 2] == 1
            return "char" if one_byte and self.name(id_) == "char" else "int"
        names = {
            Kind.PTR: "pointer",
            Kind.STRUCT: "struct",
            Kind.UNION: "union",
            Kind.ENUM: "enum",
            Kind.ENUM64: "enum",
            Kind.FLOAT: "float",
            Kind.FWD: "struct",
        }
        return names.get(Kind(kind), "void") if kind in _SHAPES else "void"

    def _alignment(self, id_: int, nesting: int) -> int:
        """The natural alignment of a resolved type, as far as its members tell."""
        kind = self.kind(id_)
        if kind == Kind.ARRAY:
            if nesting > MAX_CHAIN:
                raise BtfError(f"arrays nested deeper than {MAX_CHAIN}", self._origin)
            return self._alignment(self.resolve(self._array(id_)[0]), nesting + 1)
        if kind not in (Kind.STRUCT, Kind.UNION):
            return max(1, min(self.size(id_), 16))
        known = self._alignments.get(id_)
        if known is None:
            self._alignments[id_] = 0
            known = self._alignments[id_] = self._struct_alignment(id_, nesting)
        if not known:
            raise BtfError(f"struct {self.name(id_)!r} contains itself", self._origin)
        return known

    def _struct_alignment(self, id_: int, nesting: int) -> int:
        if nesting > MAX_NESTING:
            raise BtfError(f"structs nested deeper than {MAX_NESTING}", self._origin)
        size, alignment, packed = self._target(id_), 1, False
        for _, type_, offset, bits in self._members(id_):
            natural = self._alignment(self.resolve(type_), nesting + 1)
            packed |= bool(size % natural) or (not bits and bool(offset % (8 * natural)))
            alignment = max(alignment, natural)
        return 1 if packed else alignment

    def enumerators(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """Values of enumerators, of ``names`` only; the first of a name counts."""
        out = {} if self.base is None else self.base.enumerators(names)
        wanted = None if names is None else {name.encode() for name in names}
        words, strings, first = self._words, self._strings, self._first_string
        for number in self._enums:
            at = self._starts[number]
            info = words[at + 1]
            step = 2 if info >> 24 & 0x7F == Kind.ENUM else 3
            for index in range(at + 3, at + 3 + step * (info & 0xFFFFFF), step):
                start = words[index] - first
                if wanted is not None and start >= 0:
                    text = strings[start : start + MAX_NAME].split(b"\0", 1)[0]
                    if text not in wanted:
                        continue
                value, bits = words[index + 1], 32
                if step == 3:
                    value, bits = value | words[index + 2] << 32, 64
                if info >> 31 and value >> (bits - 1):
                    value -= 1 << bits
                name = self.string(words[index])
                if wanted is None or name.encode() in wanted:
                    out.setdefault(name, value)
        return out


def _byteorder(data: bytes) -> Literal["little", "big"]:
    if len(data) < _HEADER_SIZE:
        raise BtfError(f"BTF cut short at {len(data)} bytes", len(data))
    if data[:2] == b"\x9f\xeb":
        return "little"
    if data[:2] == b"\xeb\x9f":
        return "big"
    raise BtfError("no BTF: the magic number is missing", 0)


def _section(data: bytes, base: int, offset: int, size: int, what: str, where: int) -> bytes:
    if base + offset + size > len(data):
        raise BtfError(f"{what} section of {size} bytes at {offset} is out of bounds", where)
    return data[base + offset : base + offset + size]


def _layout(section: bytes) -> dict[int, tuple[int, int]]:
    """Shapes of kinds, from 0 on, as the blob itself gives them; only unknown ones count."""
    shapes: dict[int, tuple[int, int]] = {}
    for kind in range(min(len(section) // 4, 0x80)):
        once, each = section[4 * kind], section[4 * kind + 1]
        if kind not in _SHAPES and kind and not (once | each) & 3:
            shapes[kind] = (once // 4, each // 4)
    return shapes
