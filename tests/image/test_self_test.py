"""The self test's two ways to list its folios, which have the same size for two of them."""

from __future__ import annotations

import pytest

from inspector import image as images
from inspector.findings import Severity
from inspector.image import Image
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


@pytest.mark.parametrize("value", [0x1234567, 0xDEAD0001, 0xFFFFFFFF00000003])
@pytest.mark.parametrize("release", ["6.18", "7.3"])
def test_what_a_booted_kernel_has_freed_is_lost_and_not_wrong(release: str, value: int) -> None:
    """Be it reused in part only, as a real one did: the rest looks whole."""
    memory = (
        scenario.parse(SCENARIO.format(release=release, seed=0, pages=64, order=3)).run().memory
    )
    with images.open(memory) as image:
        chunk = next(
            c for c in image.survey.claims if c.kind == "vmalloc-chunk" and "kho_test" in c.owner
        )
        root = image.root.address
    memory.write(int(chunk.starts[0]) + 8, value.to_bytes(8, "little"))
    memory.kernel_roots = {root: "in"}
    with images.open(memory) as image:
        assert not wrong(image)
        assert image.kho_test is not None
        assert [lost for lost in image.lost if "self test freed them" in lost]
    memory.kernel_roots = {root: "out"}
    with images.open(memory) as image:
        assert wrong(image)


def wrong(image: Image) -> list[str]:
    return [f.code for f in image.survey.findings.items if f.severity is not Severity.INFO]
