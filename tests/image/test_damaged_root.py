"""A root FDT that cannot be read is named, where something leads to it."""

from __future__ import annotations

import pytest

from inspector.decode import decode
from inspector.image import NoRootError
from inspector.kernel import scenario


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (0, b"\0", "no device tree here"),
        (0x38, b"\0\0\0\2", "END_NODE without a node"),
    ],
)
def test_what_is_wrong_with_it_is_said(offset: int, data: bytes, why: str) -> None:
    memory = scenario.load("linux-7.3").run().memory
    root = decode(memory).root.address
    memory.write(root + offset, data)
    with pytest.raises(NoRootError, match=f"no KHO root that can be read at {root:#x}.*{why}"):
        decode(memory)
