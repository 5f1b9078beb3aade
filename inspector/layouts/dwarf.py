"""Layouts out of DWARF debug information, through drgn (an extra).

drgn does what takes years to get right: it indexes the compilation units in parallel, follows
split and compressed sections, and completes forward declarations. This module only turns its
types into the form of :mod:`inspector.layouts.measured`, with limits as
:mod:`inspector.layouts.btf` has them: debug information may nest, repeat and go in circles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from abi.errors import KhoError, UnreadableError
from inspector.layouts.measured import (
    ANONYMOUS,
    FUNCTION,
    MeasuredField,
    MeasuredStruct,
    plain,
    pointer_to,
    qualified,
)

MAX_NESTING = 32
MAX_CHAIN = 64
MAX_FIELDS = 1 << 14
MAX_NAME = 512
#: Types and members of one file that are looked at; the structs of a kernel take some thousand.
MAX_STEPS = 1 << 18


class MissingDrgnError(KhoError):
    """DWARF was asked for and drgn is not installed."""

    exit_status = 2

    def __init__(self) -> None:
        super().__init__(
            "reading DWARF needs drgn: pip install 'kho-inspector[drgn]'"
            " (or give a file with BTF: a vmlinux built with CONFIG_DEBUG_INFO_BTF)"
        )


class Dwarf:
    """The types of one file with debug information.

    :raises MissingDrgnError: drgn is not installed.
    :raises UnreadableError: drgn finds no debug information in the file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import drgn
        except ImportError:
            raise MissingDrgnError from None
        self._drgn: Any = drgn
        self._path = path
        self._steps = MAX_STEPS
        self._program: Any = drgn.Program()
        try:
            module = self._program.extra_module(str(path), 0, create=True)
            module.try_file(str(path), force=True)
        except Exception as error:  # drgn raises its own, OSError and ValueError
            text = " ".join(str(error).split())
            raise UnreadableError(f"{path}: no debug information: {text}") from None
        if module.debug_file_status != drgn.ModuleFileStatus.HAVE:
            raise UnreadableError(f"{path}: no debug information (CONFIG_DEBUG_INFO)")

    @property
    def byteorder(self) -> str:
        """``little`` or ``big``."""
        platform = self._program.platform
        if platform is None:
            return "little"
        little = platform.flags & self._drgn.PlatformFlags.IS_LITTLE_ENDIAN
        return "little" if little else "big"

    def layouts(self, names: Iterable[str]) -> dict[str, tuple[MeasuredStruct, ...]]:
        """The layout of each of these structs or unions that is there."""
        out: dict[str, tuple[MeasuredStruct, ...]] = {}
        for name in names:
            for word in ("struct", "union"):
                try:
                    type_ = self._program.type(f"{word} {name}")
                except (LookupError, SyntaxError, ValueError):
                    continue
                if type_.is_complete():
                    out[name] = (self._measure(name, type_, word),)
                    break
        return out

    def _measure(self, name: str, type_: Any, word: str) -> MeasuredStruct:
        try:
            return self.measure(name, type_, word)
        except KhoError as error:
            raise UnreadableError(f"{self._path}: {error}") from None
        except Exception as error:  # drgn parses late, and raises what it finds then
            text = " ".join(str(error).split())
            raise UnreadableError(f"{self._path}: {word} {name}: {text}") from None

    def _step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise UnreadableError(f"more than {MAX_STEPS} types and members to look at")

    def enumerators(self, names: Iterable[str]) -> dict[str, int]:
        """Values of those of these names that are enumerators (macros leave no trace)."""
        out = {}
        for name in names:
            try:
                out[name] = int(self._program.constant(name).value_())
            except (LookupError, TypeError, ValueError):
                continue
        return out

    def measure(self, name: str, type_: Any, word: str = "struct") -> MeasuredStruct:
        """The layout of a drgn struct or union type."""
        fields = tuple(self._fields(type_, 0, "", 0, [MAX_FIELDS]))
        return MeasuredStruct.of(name, int(type_.size), fields, word)

    def _name(self, text: str | None) -> str:
        """A name, cut if it is long; what is long costs more."""
        if text is None or len(text) <= MAX_NAME:
            return text or ""
        self._steps -= len(text) // MAX_NAME
        return text[:MAX_NAME]

    def _resolve(self, type_: Any) -> Any:
        for _ in range(MAX_CHAIN):
            self._step()
            if type_.kind != self._drgn.TypeKind.TYPEDEF:
                return type_
            type_ = type_.type
        raise UnreadableError(f"type chain longer than {MAX_CHAIN}")

    def _element(self, type_: Any) -> tuple[Any, Any, int | None]:
        """What arrays are of, as it is spelled and resolved, and how many there are."""
        element, resolved, count = type_, self._resolve(type_), None
        for _ in range(MAX_CHAIN):
            if resolved.kind != self._drgn.TypeKind.ARRAY:
                return element, resolved, count
            length = resolved.length or 0
            count = length if count is None else count * length
            element = resolved.type
            resolved = self._resolve(element)
        raise UnreadableError(f"arrays nested deeper than {MAX_CHAIN}")

    def _is_compound(self, type_: Any) -> bool:
        kinds = self._drgn.TypeKind
        return type_.kind in (kinds.STRUCT, kinds.UNION, kinds.CLASS)

    def _fields(
        self, type_: Any, base_bits: int, anonymous: str, nesting: int, budget: list[int]
    ) -> Iterator[MeasuredField]:
        if nesting > MAX_NESTING:
            raise UnreadableError(f"structs nested deeper than {MAX_NESTING}")
        for member in type_.members or ():
            budget[0] -= 1
            if budget[0] < 0:
                raise UnreadableError(f"a struct of more than {MAX_FIELDS} members")
            start = base_bits + member.bit_offset
            resolved = self._resolve(member.type)
            if not member.name and self._is_compound(resolved):
                union = resolved.kind == self._drgn.TypeKind.UNION
                inside = "union" if union else anonymous or "struct"
                yield from self._fields(resolved, start, inside, nesting + 1, budget)
            else:
                yield self._field(member, start, anonymous, nesting, budget)

    def _field(
        self, member: Any, start: int, anonymous: str, nesting: int, budget: list[int]
    ) -> MeasuredField:
        element, resolved, count = self._element(member.type)
        bits = member.bit_field_size or 0
        members: tuple[MeasuredField, ...] = ()
        if self._is_compound(resolved) and resolved.tag is None:
            members = tuple(self._fields(resolved, start, "", nesting + 1, budget))
        return MeasuredField(
            name=self._name(member.name),
            offset=start // 8,
            size=self._size(resolved) * (1 if count is None else count),
            type=self.spelling(element),
            kind=self._kind_name(resolved),
            count=count,
            bit_offset=start % 8 if bits else 0,
            bit_size=bits,
            alignment=self._alignment(resolved),
            anonymous=anonymous,
            members=members,
        )

    def _size(self, type_: Any) -> int:
        try:
            return int(self._drgn.sizeof(type_))
        except TypeError:
            return 0

    def _kind_name(self, type_: Any) -> str:
        kinds = self._drgn.TypeKind
        if type_.kind == kinds.INT:
            return "char" if type_.name == "char" else "int"
        names = {
            kinds.BOOL: "bool",
            kinds.ENUM: "enum",
            kinds.FLOAT: "float",
            kinds.POINTER: "pointer",
            kinds.STRUCT: "struct",
            kinds.CLASS: "struct",
            kinds.UNION: "union",
        }
        return names.get(type_.kind, "void")

    def _alignment(self, type_: Any, nesting: int = 0) -> int:
        if nesting > MAX_NESTING:
            raise UnreadableError(f"structs nested deeper than {MAX_NESTING}")
        _, type_, _ = self._element(type_)
        if not self._is_compound(type_):
            return max(1, min(self._size(type_), 16))
        size, alignment, packed = self._size(type_), 1, False
        for member in type_.members or ():
            natural = self._alignment(member.type, nesting + 1)
            packed |= bool(size % natural)
            packed |= member.bit_field_size is None and bool(member.bit_offset % (8 * natural))
            alignment = max(alignment, natural)
        return 1 if packed else alignment

    def spelling(self, type_: Any, nesting: int = 0) -> str:
        """A type as :meth:`inspector.layouts.btf.Btf.spelling` spells it."""
        if nesting > MAX_CHAIN:
            raise UnreadableError(f"type chain longer than {MAX_CHAIN}")
        self._step()
        kinds, flags = self._drgn.TypeKind, self._drgn.Qualifiers
        words = [q.name.lower() for q in flags if q is not flags.NONE and type_.qualifiers & q]
        if type_.kind == kinds.POINTER:
            return qualified(pointer_to(self.spelling(type_.type, nesting + 1)), words)
        if type_.kind == kinds.ARRAY:
            return qualified(
                f"{self.spelling(type_.type, nesting + 1)} [{type_.length or 0}]", words
            )
        if type_.kind == kinds.FUNCTION:
            return qualified(FUNCTION, words)
        if type_.kind in (kinds.STRUCT, kinds.UNION, kinds.CLASS, kinds.ENUM):
            head = {kinds.UNION: "union", kinds.ENUM: "enum"}.get(type_.kind, "struct")
            return qualified(f"{head} {self._name(type_.tag) or ANONYMOUS}", words)
        if type_.kind == kinds.VOID:
            return qualified("void", words)
        return qualified(plain(self._name(type_.name)), words)
