"""The registry, and the overview in docs/ that has to keep up with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from abi import registry
from abi.errors import UsageError
from abi.schema import PAGE_SIZES, resolve

OVERVIEW = Path(__file__).parents[2] / "docs" / "abi.md"
RELEASES = ("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3")


def test_every_layer_has_generations_with_unique_ids() -> None:
    for layer in registry.LAYERS:
        found = registry.generations(layer)
        assert found
        assert len({g.id for g in found}) == len(found)
        for generation in found:
            assert generation.layer == layer
            assert registry.get(layer, generation.id) is generation
            assert str(generation) == f"{layer}={generation.id}"
            assert generation.provenance
            assert re.match(r"20\d\d", generation.date)


def test_one_generation_for_each_release() -> None:
    for layer in registry.LAYERS:
        written = [k for g in registry.generations(layer) for k in g.kernels]
        assert len(written) == len(set(written))
        assert set(written) <= set(RELEASES)
        assert written == sorted(written, key=RELEASES.index)


@pytest.mark.parametrize(
    ("layer", "kernel", "generation"),
    [
        ("kho", "6.16", "kho-v1-bitmap512"),
        ("kho", "6.17", "kho-v1-bitmap512"),
        ("kho", "6.18", "kho-v1-bitmap-page"),
        ("kho", "7.0", "kho-v1-bitmap-page"),
        ("kho", "7.1", "kho-v3"),
        ("kho", "7.3", "kho-v4"),
        ("luo", "6.18", None),
        ("luo", "6.19", "luo-v1"),
        ("luo", "7.1", "luo-v1-flb"),
        ("luo", "7.2", "luo-v5"),
        ("memfd", "6.19", "memfd-v1"),
        ("memfd", "7.3", "memfd-v2"),
        ("vmalloc", "6.17", None),
        ("block", "7.1", None),
        ("kexec-metadata", "7.0", None),
        ("pci", "7.3", None),
        ("iommu", "7.3", None),
    ],
)
def test_what_a_release_writes(layer: str, kernel: str, generation: str | None) -> None:
    found = registry.of_kernel(layer, kernel)
    assert (found.id if found else None) == generation


def test_strings_that_name_several() -> None:
    assert [g.id for g in registry.named("kho", "kho-v1")] == [
        "kho-v1-bitmap512", "kho-v1-radix-rfc", "kho-v1-bitmap-page",
    ]  # fmt: skip
    assert len(registry.named("pci", "pci-v1")) == 5
    assert len(registry.named("vfio-pci", "vfio-pci-v1")) == 4
    assert len(registry.named("kvm", "kvm_vm_luo_v1")) == 3
    assert registry.named("luo", "nothing") == ()


def test_overrides() -> None:
    chosen = registry.parse_overrides(["kho=kho-v4", "luo=luo-v5"])
    assert {k: g.id for k, g in chosen.items()} == {"kho": "kho-v4", "luo": "luo-v5"}
    for spec, message in (
        ("kho", "expected LAYER=ID"),
        ("koh=kho-v4", "did you mean 'kho'"),
        ("luo=luo-v55", "did you mean 'luo-v5'"),
    ):
        with pytest.raises(UsageError, match=message):
            registry.parse_overrides([spec])


def test_constants_of_each_page_size() -> None:
    for generation in registry.every():
        for name, value in generation.constants.items():
            if not isinstance(value, int):
                assert set(value) == set(PAGE_SIZES), name
            assert all(generation.constant(name, page) >= 0 for page in PAGE_SIZES)
    with pytest.raises(KeyError):
        registry.get("kho", "kho-v4").constant("NOTHING", 0x1000)


def test_every_struct_of_the_core_says_what_it_is() -> None:
    core = list(registry.LAYERS)[: list(registry.LAYERS).index("pci")]
    for layer in core:
        for generation in registry.generations(layer):
            for layout in generation.layouts.values():
                struct = resolve(layout, 0x1000)
                assert struct.docs or struct.cname.startswith("liveupdate_"), struct.cname


def test_the_overview_has_every_generation_and_string() -> None:
    text = OVERVIEW.read_text()
    for generation in registry.every():
        assert f"`{generation.id}`" in text, generation.id
    for layer in registry.LAYERS:
        assert f"`{layer}`" in text, layer


def test_the_overview_has_nothing_else() -> None:
    known = {g.id for g in registry.every()}
    rows = [line.split("|") for line in OVERVIEW.read_text().splitlines() if line.startswith("|")]
    ids = {
        cell.strip(" `")
        for row in rows
        for cell in row[1:3]
        if re.fullmatch(r" `[a-z][a-z0-9-]+` ", cell)
    }
    assert ids - set(registry.LAYERS) <= known | {s for g in registry.every() for s in g.strings}
