"""Made PCI state and VFIO files of every generation: walked back, and told apart."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iommu_builder import Builder

from abi import registry
from abi.pci import ArrayForm, PciGeneration
from abi.schema import Struct
from abi.vfio_pci import SavedCapability, VfioPciGeneration, build_saved_capabilities
from inspector.evidence import Plausibility
from inspector.passthrough.detect_pci import VfioFile, detect_pci, detect_vfio_pci
from inspector.survey import Survey
from inspector.walk.pci import walk_pci
from inspector.walk.preserved import PreservedMap
from inspector.walk.vfio_pci import walk_vfio_pci

PCI = cast("tuple[PciGeneration, ...]", registry.generations("pci"))
VFIO = cast("tuple[VfioPciGeneration, ...]", registry.generations("vfio-pci"))
CASES = [(g, s) for g in PCI for s in g.strings]
some = settings(max_examples=12, deadline=None)
Key = tuple[int, int]


def keys_of(generator: random.Random, count: int) -> list[Key]:
    """So many devices on one segment, ascending."""
    return [(0, bdf) for bdf in sorted(generator.sample(range(8, 1 << 13), count))]


def build_pci(builder: Builder, generation: PciGeneration, keys: list[Key], spare: int) -> int:
    """The FLB's address. ``spare``: free slots behind the devices."""
    chance = builder.random
    raw = b""
    for domain, bdf in keys:
        values: dict[str, Any] = {"domain": domain, "bdf": bdf}
        if "path" in generation.device.dtype.names:
            values = {"path": domain << 16 | bdf, "flags": 0, "driver_data": builder.page()}
        if "driver_name" in generation.device.dtype.names:
            values["driver_name"] = b"vfio-pci".ljust(63, b"\0")
        if generation.has_refcount:
            values["refcount"] = chance.randrange(1, 4)
        raw += generation.device.build(values)
    count = {generation.count: len(keys)}
    if generation.form is ArrayForm.BLOCKS:
        capacity = (builder.page_size - 16) // generation.device.size
        following = 0
        pieces = [raw[at : at + capacity * 8] for at in range(0, len(raw), capacity * 8)]
        for piece in reversed(pieces):
            head = following.to_bytes(8, "little") + (len(piece) // 8).to_bytes(8, "little")
            following = builder.page(head + piece)
        return builder.page(generation.root.build({"version": 2, "devices": following, **count}))
    if generation.maximum:
        count[generation.maximum] = len(keys) + spare
        raw += bytes(spare * generation.device.size)
    raw = generation.root.build(count) + raw
    return builder.page(raw, -(-len(raw) // builder.page_size))


@pytest.mark.parametrize(("generation", "string"), CASES, ids=lambda v: getattr(v, "id", v))
@some
@given(seed=st.integers(0, 1 << 32), count=st.integers(2, 700), spare=st.integers(0, 9))
def test_pci(generation: PciGeneration, string: str, seed: int, count: int, spare: int) -> None:
    builder = Builder(seed)
    keys = keys_of(builder.random, count)
    address = build_pci(builder, generation, keys, spare)
    survey = Survey(builder.memory, 4096)
    state = walk_pci(survey, generation, address, "/flb")
    assert state is not None
    assert state.complete
    assert state.keys == keys
    assert [(d.domain, d.bdf) for d in state.devices] == keys
    assert len(state.slots) == count + (spare if generation.maximum else 0)
    assert survey.findings.items == []
    likely = Plausibility(builder.memory, 4096, None)
    verdict = detect_pci(survey, likely, string, address, frozenset(keys))
    assert verdict.generation is generation, verdict
    assert verdict.certain


def build_vfio(
    builder: Builder, generation: VfioPciGeneration, key: Key, token: int
) -> tuple[int, dict[str, Any]]:
    """A file's data, and what is in it."""
    values: dict[str, Any] = {"bdf": key[1]}
    if generation.has_domain:
        values["domain"] = key[0]
    if any(f.name == "reset_works" for f in generation.root.fields):
        values["reset_works"] = 1
    if generation.has_iommufd:
        values["iommufd_ser"] = {"token": token & 0xFFFFFFFF}
    if generation.saved_state:
        chance = builder.random
        records = [
            SavedCapability(0, chance.randrange(1, 64), chance.randrange(2), chance.randbytes(n))
            for n in chance.sample(range(1, 600), 5)
        ]
        saved = [chance.getrandbits(32) for _ in range(16)]
        fixed = b"".join(word.to_bytes(4, "little") for word in saved)
        body = fixed + build_saved_capabilities(records)
        values |= {
            "cfg_size": 4096,
            "pci_config_map": list(chance.randbytes(4096)),
            "vconfig": list(chance.randbytes(4096)),
            "rbar": [chance.getrandbits(32) for _ in range(7)],
            "pci_saved_state_phys": builder.page(body, -(-len(body) // 4096)),
        }
        values["records"] = [(r.cap_nr, r.cap_extended, r.data) for r in records]
    built = {k: v for k, v in values.items() if k != "records"}
    raw = generation.root.build(built)
    return builder.page(raw, -(-len(raw) // 4096)), values


@pytest.mark.parametrize("generation", VFIO, ids=lambda g: g.id)
@some
@given(seed=st.integers(0, 1 << 32), count=st.integers(2, 12))
def test_vfio(generation: VfioPciGeneration, seed: int, count: int) -> None:
    builder = Builder(seed)
    keys = keys_of(builder.random, count)
    token = builder.random.getrandbits(40) | 1 << 20
    built = [build_vfio(builder, generation, key, token) for key in keys]
    survey = Survey(builder.memory, 4096)
    for key, (address, values) in zip(keys, built, strict=True):
        device = walk_vfio_pci(survey, generation, address, "/file")
        assert device is not None
        assert (device.domain, device.bdf) == (key[0] if generation.has_domain else None, key[1])
        assert device.reset_works == values.get("reset_works")
        want = token & 0xFFFFFFFF if generation.has_iommufd else None
        assert device.iommufd_token == want
        if generation.saved_state:
            saved = device.saved_state
            assert saved is not None
            assert saved.complete
            found = [(c.cap_nr, c.cap_extended, c.data) for c in saved.capabilities]
            assert found == values["records"]
            assert list(device.values["rbar"]) == values["rbar"]
            assert bytes(device.values["vconfig"]) == bytes(values["vconfig"])
    assert survey.findings.items == []
    verdict = detect_vfio_pci(
        survey,
        generation.strings[0],
        [VfioFile(address, (token,)) for address, _ in built],
        frozenset(keys),
    )
    assert verdict.generation is generation, verdict
    assert verdict.certain == (generation.id != "vfio-pci-v1-2025-11")


def test_a_reset_that_never_works_leaves_a_tie() -> None:
    builder = Builder(1)
    generation = next(g for g in VFIO if g.id == "vfio-pci-v1-2025-11")
    address, _ = build_vfio(builder, generation, (0, 0x18), 5)
    survey = Survey(builder.memory, 4096)
    verdict = detect_vfio_pci(
        survey, "vfio-pci-v1", [VfioFile(address, (5,))], frozenset({(0, 0x18)})
    )
    assert verdict.generation is generation
    assert [g.id for g in verdict.tied] == ["vfio-pci-v1-reset"]


def test_saved_state_that_does_not_end() -> None:
    builder = Builder(2)
    generation = next(g for g in VFIO if g.saved_state)
    address, values = build_vfio(builder, generation, (0, 0x18), 5)
    where = values["pci_saved_state_phys"] + 64 + 3
    builder.memory.write(where, b"\xff\xff\xff\x7f")
    page = np.array([where & -4096], np.uint64)
    one, none = np.ones(1, np.uint64), np.empty(0, np.uint64)
    for orders, found, undecided in (([0], ["KHO-VFI-002"], []), ([1], [], ["KHO-VFI-002"])):
        block = PreservedMap(4096, page, one, np.array(orders, np.uint8), none, none)
        survey = Survey(builder.memory, 4096)
        device = walk_vfio_pci(survey, generation, address, "/file", block)
        assert device is not None
        assert device.saved_state is not None
        assert not device.saved_state.complete
        assert [f.code for f in survey.findings.items if f.code != "KHO-MEM-001"] == found
        assert list(survey.undecided) == undecided


@pytest.mark.parametrize("generation", PCI, ids=lambda g: g.id)
def test_absurd_counts_end_soon(generation: PciGeneration) -> None:
    builder = Builder(3)
    root = bytearray(b"\xff" * generation.root.size)
    if generation.form is ArrayForm.BLOCKS:
        root[8:] = bytes(8)
    address = builder.page(bytes(root))
    survey = Survey(builder.memory, 4096)
    state = walk_pci(survey, generation, address, "/flb")
    assert state is not None
    assert len(state.records) < 1 << 20
    assert survey.findings.items


def test_every_form_is_built() -> None:
    assert {g.form for g in PCI} == set(ArrayForm)
    assert all(isinstance(g.root, Struct) for g in VFIO)
