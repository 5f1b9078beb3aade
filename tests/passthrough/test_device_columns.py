"""Rules that look at all devices at once say what looking at each of them would say."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from iommu_builder import Builder

import kho
from abi import registry
from abi.iommu import Header, IommuGeneration
from inspector import passthrough
from inspector.check.passthrough import _first_alike
from inspector.device_tables.cross_vtd import _sound, root_table_of
from inspector.evidence import Plausibility
from inspector.passthrough.detect_iommu import Anchors, detect_iommu
from inspector.survey import Survey
from inspector.walk.iommu import walk_iommu

CORPUS = Path(__file__).parents[2] / "corpus"
LATEST = [
    g
    for g in cast("tuple[IommuGeneration, ...]", registry.generations("iommu"))
    if g.decodable and g.header is Header.FLAGS
]


@pytest.mark.parametrize("generation", LATEST, ids=lambda g: g.id)
def test_a_unit_may_have_a_whole_segment_behind_it(generation: IommuGeneration) -> None:
    built = Builder(1).build(generation, 2, 20, 20, deleted=0)
    place = generation.units.objects.field("hdr.ref_count")
    for address, _ in built.units:
        built.memory.write(address + place.offset, (1 << 16).to_bytes(place.size, "little"))
    survey = Survey(built.memory, built.page_size)
    likely = Plausibility(built.memory, built.page_size, None)
    verdict = detect_iommu(survey, likely, generation.strings[0], built.root, Anchors())
    assert verdict.candidates[0].generation is generation
    assert verdict.candidates[0].violations == ()


@pytest.mark.parametrize("generation", LATEST, ids=lambda g: g.id)
def test_users_are_the_live_devices_that_point_to_an_object(generation: IommuGeneration) -> None:
    built = Builder(2).build(generation, 3, 40, 150, deleted=0.3)
    state = walk_iommu(Survey(built.memory, built.page_size), generation, built.root, "/flb")
    devices = list(state.devices)
    for domain in state.domains:
        users = [d for d in devices if d.domain_phys == domain.address and not d.deleted]
        assert state.devices_of(domain) == users
        assert state.users_of(domain).tolist() == [d.index for d in users]
        units = {d.iommu_phys for d in users}
        assert {u.address for u in state.units_of(domain)} == units
    for unit in state.units:
        users = [d for d in devices if d.iommu_phys == unit.address and not d.deleted]
        assert state.devices_of(unit) == users


def test_first_alike_is_the_first_row_with_the_same_keys() -> None:
    chance = random.Random(3)
    for count in (0, 1, 2, 50, 400):
        keys = [np.array([chance.randrange(9) for _ in range(count)], np.uint64) for _ in "ab"]
        rows = list(zip(*(k.tolist() for k in keys), strict=True))
        assert _first_alike(*keys).tolist() == [rows.index(r) for r in rows]


def test_devices_that_the_tables_agree_with_are_sound() -> None:
    with kho.open(CORPUS / "iommu-vw-small_legacy-handoff.elf.zst") as image:
        state = passthrough.iommu_state(image)
        survey = Survey(image.memory, image.page_size)
        unit = next(state.units.live())
        users = state.users_of(unit)
        root = root_table_of(survey, state, unit)
        assert len(users)
        assert _sound(state, root, users).all()
        for index, device in enumerate(state.devices_of(unit)):
            domain = state.domains.at(device.domain_phys)
            truth = [device.devid, device.attachment_id, domain.top_table_phys, domain.levels]
            for wrong in range(4):
                asked = list(truth)
                asked[wrong] ^= 1 << 13 if wrong == 2 else 64
                columns = [np.array([v], np.uint64) for v in asked]
                assert not root.sound(*columns).any(), (index, wrong)
        assert not root.sound(*(np.array([1 << 40], np.uint64),) * 4).any()
