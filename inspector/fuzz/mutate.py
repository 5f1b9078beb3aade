"""Mutation by meaning: a case is a few edits, the same for the same seed and number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from abi.schema import Field
from inspector.fuzz import trees, values
from inspector.fuzz.base import Base, Place
from inspector.fuzz.edit import Edit
from inspector.fuzz.memory import PAGE

_M64 = (1 << 64) - 1


def rng_of(seed: int, number: int) -> random.Random:
    """The generator of case ``number`` of ``seed``."""
    return random.Random(seed << 40 | number)


class Mutator:
    """Makes cases for the bases it is given; structs are crossed over between all of them."""

    def __init__(self, bases: Sequence[Base]) -> None:
        self.bases = list(bases)
        donors: dict[str, list[bytes]] = {}
        for base in self.bases:
            for name, places in base.by_type.items():
                pool = donors.setdefault(name, [])
                pool += [_raw(base, p) for p in places[:32]]
        self._donors = donors
        self._used: dict[tuple[int, int, str], list[int]] = {}

    def case(self, seed: int, number: int) -> tuple[Base, tuple[Edit, ...]]:
        """Case ``number`` of ``seed``."""
        return self.pick(rng_of(seed, number))

    def pick(self, rng: random.Random) -> tuple[Base, tuple[Edit, ...]]:
        """A case made with a generator of one's own (which coverage may steer)."""
        base = self.bases[rng.randrange(len(self.bases))]
        count = 1
        while count < 8 and rng.random() < 0.45:
            count += 1
        edits: list[Edit] = []
        for _ in range(count):
            edits += self._one(base, rng)
        return base, tuple(edits)

    def _one(self, base: Base, rng: random.Random) -> list[Edit]:
        dice = rng.random()
        if dice < 0.55 and base.places:
            return self._field(base, rng)
        if dice < 0.65 and base.trees:
            return trees.mutate(base, rng)
        if dice < 0.73 and base.places:
            return self._cross(base, rng)
        if dice < 0.80 and base.places:
            return self._clone(base, rng)
        if dice < 0.86 and base.places:
            return self._move(base, rng)
        if dice < 0.92 and base.words:
            return self._word(base, rng)
        if dice < 0.94:
            return [Edit(rng.choice(base.objects), None, "page left out")]
        return self._bytes(base, rng)

    # -- one field -----------------------------------------------------------------------

    def _place(self, base: Base, rng: random.Random) -> Place:
        # By type first: an image has thousands of folios and one root.
        names = list(base.by_type)
        return rng.choice(base.by_type[rng.choice(names)])

    def _field(self, base: Base, rng: random.Random) -> list[Edit]:
        place = self._place(base, rng)
        field = rng.choice(place.fields)
        data = mutate_field(base, place, field, rng, self._elements(base, place, field))
        return [data] if data is not None else []

    def _elements(self, base: Base, place: Place, field: Field) -> list[int]:
        """Which elements of an array member are not zero."""
        if field.count is None or field.ctype == "char":
            return []
        key = (id(base), place.address, field.name)
        known = self._used.get(key)
        if known is None:
            raw = _bytes_at(base, place.address + field.offset, field.size)
            width = max(field.size // max(field.count, 1), 1)
            known = [
                i for i in range(field.count) if any(raw[i * width : i * width + width])
            ][:1024]  # fmt: skip
            self._used[key] = known
        return known

    # -- whole structs -------------------------------------------------------------------

    def _cross(self, base: Base, rng: random.Random) -> list[Edit]:
        """Another struct of the same type, of this image or another one, in this one's place."""
        place = self._place(base, rng)
        donor = rng.choice(self._donors[place.struct.cname])
        return [Edit(place.address, donor, f"another {place.struct.cname}")]

    def _clone(self, base: Base, rng: random.Random) -> list[Edit]:
        """An element copied behind itself; the counts that cover it mostly follow."""
        place = self._place(base, rng)
        size = place.struct.size
        copies = rng.choice((1, 1, 2, 3, 60))
        end = min((place.address + size + PAGE - 1) & -PAGE, place.address + size * (copies + 1))
        raw = _raw(base, place) * copies
        edits = [Edit(place.address + size, raw[: max(end - place.address - size, 0)], "clone")]
        if rng.random() < 0.8:
            edits += _raise_counts(base, place.address & -PAGE, copies)
        return edits

    def _move(self, base: Base, rng: random.Random) -> list[Edit]:
        """A page copied elsewhere; whatever points to it points to the copy, or half of it."""
        page = rng.choice(base.objects) & -PAGE
        if rng.random() < 0.8:
            spare = base.spares[rng.randrange(len(base.spares))] if base.spares else page
        else:
            spare = rng.choice(base.objects) & -PAGE
        edits = [Edit(spare, _bytes_at(base, page, PAGE), "page copied")]
        for place, field, target in base.pointers:
            if target & -PAGE == page and rng.random() < 0.9:
                moved = spare | target & PAGE - 1
                edits.append(_store(base, place, field, moved, "points to the copy"))
        return edits

    # -- what has no struct --------------------------------------------------------------

    def _word(self, base: Base, rng: random.Random) -> list[Edit]:
        start, size, kind = rng.choice(base.words)
        at = start + 8 * rng.randrange(min(size, 64 if rng.random() < 0.7 else size) // 8 or 1)
        old = int.from_bytes(_bytes_at(base, at, 8), "little")
        if rng.random() < 0.5:
            new = values.pointer(rng, old, start, base.objects, [])
        else:
            new = values.integer(rng, old, 64, [])
        return [Edit(at, (new & _M64).to_bytes(8, "little"), kind)]

    def _bytes(self, base: Base, rng: random.Random) -> list[Edit]:
        at = rng.choice(base.objects) + rng.randrange(128 if rng.random() < 0.7 else PAGE)
        what = rng.randrange(4)
        old = _bytes_at(base, at, 64)
        if what == 0:
            return [Edit(at, bytes([old[0] ^ 1 << rng.randrange(8)]), "bit flipped")]
        if what == 1:
            return [Edit(at, rng.randbytes(rng.choice((1, 2, 4, 8, 64))), "noise")]
        if what == 2:
            source = rng.choice(base.objects)
            length = rng.choice((8, 16, 64, 256))
            return [Edit(at, _bytes_at(base, source, length), "bytes copied")]
        fill = rng.choice((b"\0", b"\xff")) * rng.choice((8, 64, 512, PAGE))
        return [Edit(at, fill, "filled")]


def mutate_field(
    base: Base, place: Place, field: Field, rng: random.Random, elements: list[int]
) -> Edit | None:
    """One field, or one element of an array, changed by its meaning."""
    at, size = place.address + field.offset, field.size
    role = values.role(field)
    if role == "string":
        like = base.by_type[place.struct.cname]
        others = [_bytes_at(base, p.address + field.offset, size) for p in like[:8]]
        new = values.string(rng, _bytes_at(base, at, size), others)
        return Edit(at, new, f"{place.struct.cname}.{field.name}")
    note = f"{place.struct.cname}.{field.name}"
    if field.count is not None:
        width = size // field.count
        if elements and rng.random() < 0.7:
            index = rng.choice(elements)
        else:
            index = rng.randrange(field.count)
        at, size, note = at + index * width, width, f"{note}[{index}]"
    if field.bit_size:
        size = (field.bit_offset + field.bit_size + 7) // 8
    if size not in (1, 2, 4, 8) or field.struct is not None:
        raw = bytearray(_bytes_at(base, at, size))
        if raw:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return Edit(at, bytes(raw), note)
    old = int.from_bytes(_bytes_at(base, at, size), "little")
    bits = field.bit_size or 8 * size
    mask = (1 << bits) - 1 << field.bit_offset
    part = (old & mask) >> field.bit_offset
    if role == "pointer":
        same = [p.address for p in base.by_type[place.struct.cname]]
        value = values.pointer(rng, part, place.address, base.objects, same)
    else:
        value = values.integer(rng, part, bits, list((field.names or {}).values()))
    whole = old & ~mask | value << field.bit_offset & mask
    return Edit(at, whole.to_bytes(size, "little"), note)


def _raise_counts(base: Base, page: int, by: int) -> list[Edit]:
    """Headers of ``page``, and structs that point to it, count ``by`` elements more."""
    edits = []
    owners = {page, *(p.address for p, _, target in base.pointers if target == page)}
    for place in base.places:
        if place.address in owners:
            for field in place.fields:
                if field.name.rpartition(".")[2] == "count" and field.count is None:
                    raw = _bytes_at(base, place.address + field.offset, field.size)
                    value = int.from_bytes(raw, "little") + by
                    edits.append(_store(base, place, field, value, "count follows"))
    return edits


def _store(base: Base, place: Place, field: Field, value: int, note: str) -> Edit:
    data = (value & (1 << 8 * field.size) - 1).to_bytes(field.size, "little")
    return Edit(place.address + field.offset, data, f"{place.struct.cname}.{field.name}: {note}")


def _raw(base: Base, place: Place) -> bytes:
    return _bytes_at(base, place.address, place.struct.size)


def _bytes_at(base: Base, pa: int, size: int) -> bytes:
    """What the unedited base holds; zeros where it holds nothing."""
    return base.memory.peek(pa, size)
