"""The scenarios in docs/scenarios.md run as they stand; those of updates go on from the first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.kernel import scenario

PAGE = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_scenario_of_the_page_runs(number: int) -> None:
    text = BLOCKS[number]
    if text.startswith("[[update]]"):
        text = f"{BLOCKS[0]}\n{text}"
    assert scenario.parse(text, f"block {number}").run(seed=1)
