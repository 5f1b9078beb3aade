"""Indented JSON is what the standard library writes."""

from __future__ import annotations

import json
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.json_text import pieces, text


class Number(IntEnum):
    ONE = 1


class Name(StrEnum):
    A = "a\n"


keys = st.text() | st.integers() | st.booleans() | st.none()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
scalars |= st.sampled_from([Number.ONE, Name.A])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
        | st.dictionaries(keys, inner)
    ),
    max_leaves=40,
)  # fmt: skip


@given(value=values)
def test_same_text_as_the_standard_library(value: Any) -> None:
    wanted = json.dumps(value, indent=2)
    assert text(value) == wanted
    assert "".join(pieces(value)) == wanted


def test_deep_and_large_values() -> None:
    value: Any = [{"a": (1, 2)}]
    for depth in range(12):
        value = {"deep": value, "list": [depth, [], {}]}
    assert "".join(pieces(value)) == json.dumps(value, indent=2)
    rows = {"rows": [{"i": i, "name": f"device {i}"} for i in range(1000)]}
    assert max(map(len, pieces(rows))) < 200
    assert "".join(pieces(rows)) == json.dumps(rows, indent=2)


def test_what_has_no_text_is_refused() -> None:
    with pytest.raises(TypeError):
        text({"a": object()})
