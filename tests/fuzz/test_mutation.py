"""Mutations: they are what they say, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from abi import fdt
from inspector.decode import decode
from inspector.fuzz import base as bases
from inspector.fuzz import trees, values
from inspector.fuzz.base import Base, tiny
from inspector.fuzz.memory import PAGE
from inspector.fuzz.mutate import Mutator, mutate_field, rng_of


@pytest.fixture(scope="module")
def small() -> Base:
    return tiny("linux-7.3")


@pytest.mark.parametrize("kernel", bases.KERNELS)
def test_a_base_says_what_its_image_says(kernel: str) -> None:
    base = tiny(kernel)
    image = decode(base.memory)
    assert image.findings == []
    assert image.generation("kho") is not None
    assert base.root == image.root.address
    assert base.places
    assert base.trees
    for place in base.places:
        assert base.memory.state(place.address, place.struct.size) == 2


def test_the_same_seed_makes_the_same_cases() -> None:
    one, other = (Mutator([tiny("linux-7.3"), tiny("linux-6.19")]) for _ in range(2))
    for number in range(200):
        base, edits = one.case(7, number)
        again, same = other.case(7, number)
        assert base.name == again.name
        assert edits == same
    assert [one.case(8, n)[1] for n in range(50)] != [one.case(7, n)[1] for n in range(50)]


def test_every_kind_of_mutation_happens(small: Base) -> None:
    mutator = Mutator([small])
    notes: Counter[str] = Counter()
    for number in range(1500):
        notes.update(edit.note for edit in mutator.case(1, number)[1])
    fields = {f"{p.struct.cname}.{f.name}" for p in small.places for f in p.fields}
    touched = {note.partition("[")[0] for note in notes}
    assert len(fields & touched) > 0.9 * len(fields)
    for note in ("device tree", "clone", "page copied", "page left out", "bit flipped", "noise"):
        assert notes[note], note
    assert any("count follows" in note for note in notes)
    assert any("points to the copy" in note for note in notes)


def test_a_field_is_changed_within_its_bytes(small: Base) -> None:
    for place in small.places:
        for field in place.fields:
            for number in range(20):
                edit = mutate_field(small, place, field, rng_of(2, number), [])
                assert edit is not None
                assert edit.data is not None
                begin = place.address + field.offset
                assert begin <= edit.address
                assert edit.address + len(edit.data) <= begin + max(field.size, 8)


def test_a_bit_field_leaves_its_neighbours_alone() -> None:
    from abi.schema import Struct, bits, u64

    struct = Struct("s", "word" / bits(u64, low=12, high=52))
    low = struct.field("low")
    base = tiny("linux-7.3")
    spare = base.places[0].address & -PAGE
    place = bases.Place(struct, spare, "/", (low,))
    base.by_type["s"] = [place]
    old = int.from_bytes(base.memory.peek(spare, 8), "little")
    for number in range(100):
        edit = mutate_field(base, place, low, rng_of(3, number), [])
        assert edit is not None
        assert edit.data is not None
        raw = edit.data + base.memory.peek(spare + len(edit.data), 8 - len(edit.data))
        assert int.from_bytes(raw, "little") >> 12 == old >> 12


def test_copied_pages_can_leave_the_image_sound(small: Base) -> None:
    """A moved structure whose pointers follow is read as before, from its new place."""
    mutator = Mutator([small])
    moved = 0
    for number in range(400):
        edits = mutator._move(small, rng_of(4, number))
        if len(edits) < 2 or edits[0].address not in small.spares:
            continue
        small.memory.apply(edits)
        image = decode(small.memory)
        small.memory.reset()
        if (
            image.luo
            and image.luo.sessions
            and image.luo.sessions[0].address >> 12 in {s >> 12 for s in small.spares}
        ):
            assert image.luo.sessions[0].name == b"vm0"
            moved += 1
    assert moved


def test_device_trees_stay_parseable_often(small: Base) -> None:
    address, size = small.trees[0]
    blob = small.memory.peek(address, size)
    parsed = changed = 0
    for number in range(400):
        other = trees.mutate_blob(blob, rng_of(5, number), small.objects)
        assert len(other) == size
        changed += other != blob
        try:
            parsed += fdt.parse(other).root != fdt.parse(blob).root
        except fdt.FdtError:
            continue
    assert changed > 300
    assert parsed > 60


def test_roles() -> None:
    from abi.luo import luo_session_ser

    roles = {f.name.rpartition(".")[2]: values.role(f) for f in luo_session_ser.flat_fields()}
    assert roles["name"] == "string"
    assert roles["files"] == "pointer"
    assert roles["count"] == "count"


def test_memory_is_as_before_after_a_case(small: Base) -> None:
    mutator = Mutator([small])
    digest, regions = small.digest, small.memory.regions
    for number in range(300):
        _, edits = mutator.case(6, number)
        small.memory.apply(edits)
        small.memory.reset()
    assert small.digest == digest
    assert small.memory.regions == regions
