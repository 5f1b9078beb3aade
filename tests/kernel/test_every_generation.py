"""Every generation of the registry is made, found again with no hint, and taken over.

The lists here are what cannot be, each with its reason; a generation that is added to the registry
has to be made by a shipped scenario, or this fails.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from meaning import found_by, meant_by

from abi import registry
from abi.registry import Generation
from abi.schema import PAGE_SIZES
from inspector import check, compat
from inspector import image as decoded_image
from inspector.findings import Outcome, Severity
from inspector.image import Image as Decoded
from inspector.kernel import scenario
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.outgoing.kernel import Image
from inspector.kernel.outgoing.memfd import pattern_bytes
from inspector.kernel.profile import profile as find_profile
from inspector.locate import How

#: Nothing of these can be in an image.
NEVER_MADE = {
    "xarray=kho-xarray": "no layer of any known tree refers to one",
    "hugetlb=hugetlb-early": "how its files looked is not known, so no file brings its pools along",
    "iommu=iommu-rfc-v1-2025-09": "no layout of this posting is known",
}
#: The bytes fit these others equally well, always or where an image has little in it (CENSUS).
TIES = {
    "kvm=kvm-vm-v1-minimal": {"kvm-caretaker", "kvm-guest-memfd-v1"},
    "vfio-pci=vfio-pci-v1-2025-11": {"vfio-pci-v1-reset"},
    "iommufd=iommufd-rfc-v1": {"iommufd-13", "iommufd-24"},
}
#: The same bytes, of which a released kernel's form is what they are called.
SPELLINGS = {"memfd=memfd-v2-early": "memfd-v2"}
#: What their own kernel does not restore.
LOST = {"iommufd=iommufd-rfc-v1": "a placeholder: retrieving it is -EOPNOTSUPP"}
#: Others have too little in them to tell it from its neighbours.
PREFERRED = {"vfio-pci=vfio-pci-v1-reset": "vfio-v1-reset"}
#: Too large to run with every other test.
LARGE = {"memfds-10000", "devices-100000", "terabyte"}

EVERY = [g for g in registry.every() if str(g) not in NEVER_MADE]
by_generation = pytest.mark.parametrize("generation", EVERY, ids=str)


@cache
def kernels() -> dict[str, Any]:
    return {name: scenario.load(name).kernel for name in scenario.shipped() if name not in LARGE}


def scenario_of(generation: Generation) -> str:
    """A shipped scenario that makes it: called after it, of a release, or the first."""
    found = [
        name
        for name, kernel in kernels().items()
        if getattr(kernel.get(generation.layer), "id", None) == generation.id
        and not (generation.layer == "dma-alloc" and "smmuv3" not in name)
    ]
    assert found, f"no shipped scenario makes {generation}"
    best = PREFERRED.get(str(generation), generation.id)
    return min(found, key=lambda name: (name != best, not name.startswith("linux-"), name))


@cache
def made(name: str) -> Image:
    return scenario.load(name).run()


def test_what_is_never_made_is_in_the_registry() -> None:
    known = {str(g) for g in registry.every()}
    assert set(NEVER_MADE) | set(TIES) | set(SPELLINGS) | set(LOST) <= known


@by_generation
def test_found_again_without_a_hint(generation: Generation) -> None:
    image = made(scenario_of(generation))
    with decoded_image.open(image.memory) as found:
        verdict = found.verdicts.get(generation.layer)
        if verdict is None:
            assert SEEN[generation.layer](found, generation, image)
            return
        assert verdict.generation is not None
        others = TIES.get(str(generation), set())
        if others:
            assert {verdict.generation.id, *(g.id for g in verdict.tied)} == {
                generation.id,
                *others,
            }
            assert "KHO-GEN-001" in {f.code for f in found.findings}
        else:
            assert verdict.certain
            assert verdict.generation.id == SPELLINGS.get(str(generation), generation.id)
        assert not [f for f in found.findings if f.severity >= Severity.WARNING]


def sizes(found: Decoded, struct: str) -> set[int]:
    return {p.struct.size for p in found.survey.placed if p.struct.cname == struct}


def handed_over_by(found: Decoded) -> How | None:
    handovers = found.location.handovers
    return handovers[0].how if handovers else None


#: Layers that have no verdict of their own: what shows that they were read as meant.
SEEN: dict[str, Any] = {
    "boot": lambda found, g, image: handed_over_by(found) is How.SETUP_DATA,
    "vmalloc": lambda found, g, image: found.kho_test.vmalloc.complete,
    "block": lambda found, g, image: sizes(found, "kho_block_header_ser") == {16},
    "kexec-metadata": lambda found, g, image: (
        found.kexec_metadata.previous_release.decode() == image.kernel.release
    ),
    "kho-test": lambda found, g, image: (
        found.kho_test.nr_folios == len(image.kernel.kho_test.folios)
        and (found.kho_test.vmalloc is None) == (g.id == "kho-test-plain")
    ),
    # Read in the other form, handles lead to no stream table, whose pages are then nobody's.
    "dma-alloc": lambda found, g, image: (
        len(image.kernel.drivers.units) == 1 and check.check(found).ownership.leaked == 0
    ),
}


def assert_taken_over(generation: Generation, image: Image) -> None:
    kernel = image.kernel
    options = {"reserve_mem": kernel.reserve_mem, "hardware": kernel.machine.spec.hardware}
    looked = consume(image.memory, kernel.profile, finish=False, **options)  # type: ignore[arg-type]
    if str(generation) in LOST:
        assert looked.outcome is Outcome.FILE_ERROR
        assert {e.name for e in looked.errors.values()} == {"EOPNOTSUPP"}
        return
    result = consume(image.memory, kernel.profile, **options)  # type: ignore[arg-type]
    assert result.outcome is Outcome.TAKEN_OVER, result.reasons[:3]
    assert not result.errors
    if kernel.luo_or_none is not None:
        assert found_by(looked) == meant_by(kernel)
    assert result.consumer.clients.kho_test is (True if kernel.kho_test is not None else None)
    regions = {r.name: (r.start, r.size) for r in kernel.reserve_mem}
    assert result.consumer.clients.reserve_mem == regions


@by_generation
def test_its_own_kernel_takes_it_over(generation: Generation) -> None:
    name = scenario_of(generation)
    image = made(name)
    assert_taken_over(generation, image)
    chosen = scenario.load(name)
    for region in image.kernel.reserve_mem:
        content = image.memory.read(region.start, region.size)
        meant = chosen.patterns.get(region.name)
        assert content == (
            bytes(region.size) if meant is None else pattern_bytes(meant, 0, region.size)
        )


def strings_of(generation: Generation) -> tuple[str, ...]:
    """The strings of which an image has one; others of a generation are parts of it."""
    several = generation.layer == "pci" or generation.id in ("kho-composite", "kho-v1-radix-rfc")
    return generation.strings if several else ("",)


VARIANTS = [(g, string) for g in EVERY for string in strings_of(g)]
#: A kernel for forms that no release has.
BASES = {
    "kho": "linux-7.0", "luo": "linux-7.2", "guest-memfd": "linux-7.3+guest-memfd",
    "pci": "linux-7.3+iommu-vw", "vfio-pci": "linux-7.3+iommu-vw",
    "iommufd": "linux-7.3+iommu-vw", "iommu": "linux-7.3+iommu-vw",
}  # fmt: skip
DEFECTS = {
    (
        "kho=kho-v2",
        0x4000,
    ): "its tree has a level too few for 16K pages: order 0 is lost (CENSUS 3.2)",
}


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize(("generation", "string"), VARIANTS, ids=lambda v: str(v).replace(";", "-"))
def test_every_string_and_page_size(generation: Generation, string: str, page_size: int) -> None:
    layer = generation.layer
    if (str(generation), page_size) in DEFECTS:
        pytest.skip(DEFECTS[str(generation), page_size])
    if str(generation) == "luo=luo-v1-session-v1":
        pytest.skip("it has no files: its scenario is the whole of it")
    name = (
        f"linux-{generation.kernels[-1]}" if generation.kernels else BASES.get(layer, "linux-7.3")
    )
    if not generation.kernels:
        name += f"+{layer}={generation.id}" + (f":{string}" if string else "")
    image = compat.image_of(find_profile(name), page_size)
    with decoded_image.open(image.memory) as found:
        assert found.page_size == page_size
        verdict = found.verdicts.get(layer)
        if verdict is not None:
            assert verdict.generation is not None
            candidates = {verdict.generation.id, *(g.id for g in verdict.tied)}
            assert SPELLINGS.get(str(generation), generation.id) in candidates
    assert_taken_over(generation, image)
