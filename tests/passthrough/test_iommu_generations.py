"""Made images of every generation: walked back, and told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iommu_builder import Builder, Built, flat

import kho
from abi import registry
from abi.iommu import IommuGeneration
from abi.iommufd import IommufdGeneration
from abi.schema import PAGE_SIZES
from inspector import passthrough
from inspector.evidence import Plausibility
from inspector.memory.sparse import SparseMemory
from inspector.passthrough.detect_iommu import (
    Anchors,
    detect_iommu,
    detect_iommufd,
    domain_data_readings,
)
from inspector.survey import Survey
from inspector.walk.iommu import walk_iommu

GENERATIONS = [
    g for g in cast("tuple[IommuGeneration, ...]", registry.generations("iommu")) if g.decodable
]
IOMMUFDS = [
    g
    for g in cast("tuple[IommufdGeneration, ...]", registry.generations("iommufd"))
    if g.entry is not None
]
#: With one object of each kind these differ in what lies behind it, if at all.
SIBLINGS = [
    {"iommu-v1-2026-02-partial", "iommu-v1-2026-02"},
    {"iommu-v3-2026-06-base", "iommu-v3-2026-06", "iommu-smmuv3-2026a"},
]
by_id = pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.id)
seeds = st.integers(0, 1 << 32)
quick = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def detect(built: Built, generation: IommuGeneration, anchors: Anchors | None = None) -> Any:
    survey = Survey(built.memory, built.page_size)
    likely = Plausibility(built.memory, built.page_size, None)
    return detect_iommu(survey, likely, generation.strings[0], built.root, anchors or Anchors())


@by_id
@quick
@given(
    seed=seeds,
    page_size=st.sampled_from(PAGE_SIZES),
    counts=st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(0, 200)),
)
def test_what_is_built_is_found(
    generation: IommuGeneration, seed: int, page_size: int, counts: tuple[int, int, int]
) -> None:
    built = Builder(seed, page_size).build(generation, *counts, deleted=0.3)
    survey = Survey(built.memory, page_size)
    state = walk_iommu(survey, generation, built.root, "/flb")
    assert state is not None
    assert state.complete
    assert survey.findings.items == []
    for objects in (state.units, state.domains, state.devices):
        wanted = getattr(built, objects.kind.name)
        assert objects.addresses.tolist() == [a for a, _ in wanted]
        for got, (address, values) in zip(objects, wanted, strict=True):
            want = flat(values)
            assert got.address == address
            assert {k: got.values[k] for k in want} == want
            marks = values.get("obj", values.get("hdr"))
            flags = marks.get("flags", marks.get("state"))
            assert (got.deleted, got.incoming) == (bool(flags & 1), bool(flags & 2))
            assert objects.at(address) is not None
        assert objects.at(1) is None


@by_id
@settings(max_examples=12, deadline=None)
@given(
    seed=seeds,
    counts=st.tuples(st.integers(2, 5), st.integers(2, 200), st.integers(2, 120)),
)
def test_two_objects_of_each_kind_tell_the_generation(
    generation: IommuGeneration, seed: int, counts: tuple[int, int, int]
) -> None:
    built = Builder(seed).build(generation, *counts, deleted=0.3)
    verdict = detect(built, generation)
    assert verdict.generation is generation, verdict
    assert verdict.certain
    assert verdict.candidates[0].fits


@by_id
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_one_object_of_each_kind_is_a_tie(generation: IommuGeneration, seed: int) -> None:
    built = Builder(seed).build(generation, 1, 1, 1, deleted=0)
    verdict = detect(built, generation)
    fitting = {c.generation.id for c in verdict.candidates if c.fits}
    assert generation.id in fitting
    siblings = next((s for s in SIBLINGS if generation.id in s), {generation.id})
    assert fitting <= siblings
    assert {verdict.generation.id, *(g.id for g in verdict.tied)} == fitting
    if generation.id in {"iommu-v1-2026-02", "iommu-v3-2026-06", "iommu-smmuv3-2026a"}:
        # Whatever fits beside it is in the same posting before or after a patch.
        assert len(fitting) > 1
        assert not verdict.certain


@by_id
@pytest.mark.parametrize("entries", IOMMUFDS, ids=lambda g: g.id)
@quick
@given(seed=seeds, count=st.integers(2, 20), small=st.booleans())
def test_iommufd_files_are_told_apart(
    generation: IommuGeneration, entries: IommufdGeneration, seed: int, count: int, small: bool
) -> None:
    builder = Builder(seed)
    built = builder.build(generation, 1, 24, 3, deleted=0)
    bits = 8 if small else 32
    for first in (0, count):
        tokens = builder.random.sample(range(1 << bits), count)
        builder.iommufd(entries, built, tokens, first)
    survey = Survey(built.memory, built.page_size)
    likely = Plausibility(built.memory, built.page_size, None)
    state = walk_iommu(survey, generation, built.root, "/flb")
    verdict = detect_iommufd(survey, likely, "iommufd-v1", built.iommufds, state)
    assert verdict.generation is entries, verdict
    assert verdict.certain


@by_id
@quick
@given(seed=seeds)
def test_hwpts_are_evidence_for_the_stride_of_domains(
    generation: IommuGeneration, seed: int
) -> None:
    builder = Builder(seed)
    built = builder.build(generation, 2, 10, 2, deleted=0)
    for entries in IOMMUFDS:
        built.iommufds.clear()
        builder.iommufd(entries, built, list(range(5, 15)))
        survey = Survey(built.memory, built.page_size)
        anchors = domain_data_readings(survey, built.iommufds)
        wanted = [a for a, _ in built.domains]
        assert any(column.tolist() == wanted for column in anchors.domain_data)
        verdict = detect(built, generation, anchors)
        assert verdict.generation is generation
        assert verdict.certain


@by_id
def test_broken_chains_end_with_findings(generation: IommuGeneration) -> None:
    built = Builder(1).build(generation, 2, 300, 200, deleted=0)
    pages = built.pages["domains"]
    assert len(pages) > 1
    built.memory.write(pages[-1], pages[0].to_bytes(8, "little"))
    survey = Survey(built.memory, built.page_size)
    state = walk_iommu(survey, generation, built.root, "/flb")
    assert state is not None
    assert not state.complete
    assert len(state.domains) == 300
    assert {f.code for f in survey.findings.items} == {"KHO-LST-001"}
    built.memory.write(pages[-1], built.pages["devices"][0].to_bytes(8, "little"))
    survey = Survey(built.memory, built.page_size)
    assert walk_iommu(survey, generation, built.root, "/flb") is not None
    assert "KHO-LST-002" in {f.code for f in survey.findings.items}
    built.memory.write(pages[-1], b"\xff" * 8)
    survey = Survey(built.memory, built.page_size)
    assert walk_iommu(survey, generation, built.root, "/flb") is not None
    assert "KHO-MEM-004" in {f.code for f in survey.findings.items}


@by_id
@settings(max_examples=15, deadline=None)
@given(seed=seeds, data=st.data())
def test_hostile_pages_only_give_findings(
    generation: IommuGeneration, seed: int, data: st.DataObject
) -> None:
    builder = Builder(seed)
    built = builder.build(generation, 2, 130, 20, deleted=0.2)
    builder.iommufd(IOMMUFDS[1], built, [1, 2, 3])
    targets = [built.root, *built.iommufds, *(p for ps in built.pages.values() for p in ps)]
    for _ in range(data.draw(st.integers(1, 4))):
        page = data.draw(st.sampled_from(targets))
        noise = data.draw(st.binary(min_size=1, max_size=64))
        built.memory.write(page + data.draw(st.integers(0, 4032)), noise)
    survey = Survey(built.memory, built.page_size)
    likely = Plausibility(built.memory, built.page_size, None)
    anchors = domain_data_readings(survey, built.iommufds)
    verdict = detect(built, generation, anchors)
    state = walk_iommu(survey, verdict.generation, built.root, "/flb")
    if state is not None:
        for objects in (state.units, state.domains, state.devices):
            assert len(list(objects)) == len(objects)
    detect_iommufd(survey, likely, "iommufd-v1", built.iommufds, state)


def test_columns_agree_with_objects() -> None:
    for generation in GENERATIONS:
        built = Builder(7).build(generation, 3, 150, 90, deleted=0.4)
        state = walk_iommu(Survey(built.memory, 4096), generation, built.root, "/flb")
        assert state is not None
        objects = list(state.devices)
        for name in ("devid", "attachment_id", "domain_phys", "iommu_phys", "ref_count"):
            column = state.devices.column(name)
            assert column.tolist() == [o.get(name) for o in objects]
        assert np.array_equal(state.devices.deleted, [o.deleted for o in objects])
        first = state.domains[0]
        users = [d.index for d in state.devices_of(first)]
        assert users == [
            d.index for d in objects if d.domain_phys == first.address and not d.deleted
        ]


@pytest.mark.parametrize("count", [2, 1 << 31, 1 << 40, 5 << 60, (1 << 64) - 1])
def test_a_count_of_hwpts_that_is_wrong_is_no_other_layout(count: int) -> None:
    """Layouts that read nothing, or nothing but a pointer, fit whatever else is there."""
    path = Path(__file__).parents[2] / "corpus" / "iommu-vw-small_legacy-handoff.elf.zst"
    with kho.open(path) as image:
        memory = SparseMemory.over(image.memory)
        file = next(f for _, f, s in passthrough.iommufds(image) if len(s.hwpts) == 2)
    memory.write(file.data, count.to_bytes(8, "little"))
    with kho.open(memory) as image:
        assert image.generation("iommufd").id == "iommufd-24"
        codes = {f.code for f in image.findings}
        assert (codes == set()) == (count == 2)
        assert ("KHO-IFD-001" in codes) == (count != 2)
        state = next(s for _, f, s in passthrough.iommufds(image) if f.data == file.data)
        assert [int(t) for t in state.records["token"][:2]] == [0x789012, 0xFEDCBA9876543210]
