"""Debug information that nests, repeats and goes in circles ends in one line."""

from __future__ import annotations

from typing import Any

import pytest

from abi.errors import UnreadableError
from inspector.layouts import dwarf as dwarf_module
from inspector.layouts.dwarf import Dwarf

drgn = pytest.importorskip("drgn")
PROGRAM = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
INT = PROGRAM.int_type("int", 4, True)


def struct(tag: str | None, size: int, *members: tuple[Any, str | None, int]) -> Any:
    """A struct type; a member is (type or a function that gives it, name, offset)."""
    return PROGRAM.struct_type(
        tag, size, [drgn.TypeMember(kind, name, 8 * at) for kind, name, at in members]
    )


def measured(type_: Any) -> Dwarf:
    """Measure a type as the debug information of a file would be."""
    dwarf = Dwarf.__new__(Dwarf)
    dwarf._drgn, dwarf._program, dwarf._path = drgn, PROGRAM, "x.ko"
    dwarf._steps = dwarf_module.MAX_STEPS
    dwarf._measure("s", type_, "struct")
    return dwarf


def test_what_kernels_have_costs_little() -> None:
    dwarf = measured(struct("s", 8, (INT, "a", 0), (PROGRAM.array_type(INT, 1), "b", 4)))
    assert dwarf_module.MAX_STEPS - dwarf._steps < 20


def test_twice_as_many_members_at_each_depth() -> None:
    inner = struct("t", 0)
    for _ in range(30):
        inner = struct("t", 0, (inner, "a", 0), (inner, "b", 0))
    with pytest.raises(UnreadableError, match=r"x\.ko: more than 262144 types and members"):
        measured(struct("s", 8, (inner, "x", 0)))


def test_one_large_struct_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dwarf_module, "MAX_STEPS", 1000)
    large = struct(None, 4000, *((INT, f"m{i}", 4 * i) for i in range(100)))
    members = ((large, f"n{i}", 4000 * i) for i in range(100))
    with pytest.raises(UnreadableError, match="more than 1000 types and members"):
        measured(struct("s", 400_000, *members))


@pytest.mark.parametrize("name", ["a", None])
def test_a_struct_in_itself(name: str | None) -> None:
    found: list[Any] = []
    found.append(
        struct(
            None if name is None else "s",
            8,
            (lambda: drgn.Object(PROGRAM, found[0], value={}), name, 0),
        )
    )
    with pytest.raises(UnreadableError, match="nested deeper than 32"):
        measured(found[0])


def test_chains() -> None:
    alias, pointer, array = INT, INT, INT
    for i in range(100):
        alias = PROGRAM.typedef_type(f"t{i}", alias)
        pointer = PROGRAM.pointer_type(pointer, 8)
        array = PROGRAM.array_type(array, 1)
    for kind in (alias, pointer, array):
        with pytest.raises(UnreadableError, match=r"longer than 64|deeper than 64"):
            measured(struct("s", 8, (kind, "a", 0)))


def test_what_drgn_finds_late_is_one_line() -> None:
    def broken() -> Any:
        raise ValueError("no\nsuch type")

    with pytest.raises(UnreadableError, match=r"x\.ko: struct s: no such type"):
        measured(struct("s", 8, (broken, "a", 0)))


def test_long_names_are_cut_and_cost_more() -> None:
    long = PROGRAM.typedef_type("t" * 100_000, INT)
    dwarf = measured(struct("s", 8, (long, "m" * 100_000, 0)))
    assert dwarf_module.MAX_STEPS - dwarf._steps > 300
