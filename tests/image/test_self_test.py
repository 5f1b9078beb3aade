"""The self test's two ways to list its folios, which have the same size for two of them."""

from __future__ import annotations

import pytest

from inspector import image as images
from inspector.kernel import scenario

SCENARIO = """
kernel = "linux-{release}"
seed = {seed}
[machine]
ram = ["256M"]
[kho_test]
pages = {pages}
max_order = {order}
"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("pages", "order"), [(1, 0), (2, 0), (3, 0), (4, 1)])
@pytest.mark.parametrize("release", ["6.17", "6.18", "7.3"])
def test_few_folios(release: str, pages: int, order: int, seed: int) -> None:
    text = SCENARIO.format(release=release, seed=seed, pages=pages, order=order)
    with images.open(scenario.parse(text).run().memory) as image:
        test = image.kho_test
        assert test is not None
        assert (test.vmalloc is None) == (release == "6.17")
        assert sum(1 << (int(word) & 0xFFF) for word in test.folios) == pages
        assert not [f for f in image.survey.findings.items if f.code.startswith("KHO-VML")]
