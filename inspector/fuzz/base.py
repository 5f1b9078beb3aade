"""What is mutated: a small copy of an image, and the places in it that mean something."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from abi.errors import UsageError
from abi.fdt import MAGIC_BYTES
from abi.schema import Field, Struct
from inspector.extract import CONTENT
from inspector.fuzz.memory import PAGE, PatchedMemory
from inspector.image import Image
from inspector.memory.base import MemoryFault, PhysicalMemory
from inspector.moment import SCRATCH_NOTE

#: Pages of a base, at most; what is left out is RAM that the image does not hold.
MAX_PAGES = 4096
#: Pages that copies may be put on.
SPARES = 4
#: Structs of one type that are mutated, at most: more of the same teach nothing.
MAX_PLACES = 256


@dataclass(frozen=True, slots=True)
class Place:
    """A struct of the image at an address."""

    struct: Struct
    address: int
    path: str
    fields: tuple[Field, ...]


@dataclass(slots=True)
class Base:
    """An image to mutate. ``origin`` says in a case where it came from."""

    name: str
    memory: PatchedMemory
    page_size: int
    root: int
    origin: dict[str, str]
    places: list[Place] = field(default_factory=list)
    #: Type name -> its places: what can be copied over one another.
    by_type: dict[str, list[Place]] = field(default_factory=dict)
    #: Device trees: (address, size).
    trees: list[tuple[int, int]] = field(default_factory=list)
    #: Arrays of 64-bit words without a struct: (address, size, kind of claim).
    words: list[tuple[int, int, str]] = field(default_factory=list)
    #: Pages that are free for copies.
    spares: list[int] = field(default_factory=list)
    #: Pointer fields that are not null: place, field, where they lead.
    pointers: list[tuple[Place, Field, int]] = field(default_factory=list)
    #: Addresses of objects: what a pointer may be made to point to.
    objects: list[int] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 of the pages, to tell whether a case meets the base it was made from."""
        state = hashlib.sha256()
        for pa, data in self.memory.pages().items():
            state.update(pa.to_bytes(8, "little") + data)
        return state.hexdigest()


def make_base(image: Image, name: str, origin: dict[str, str]) -> Base:
    """The pages of a decoded image that are not content, and what lies on them."""
    pages = _pages(image)
    spares = _spares(image, pages)
    memory = PatchedMemory(
        pages,
        ram=[(r.start, r.size) for r in image.memory.regions],
        machine=image.memory.machine,
        page_size=image.memory.page_size,
        notes={SCRATCH_NOTE: image.scratch_note} if image.scratch_note else {},
        spares=spares,
    )
    base = Base(name, memory, image.page_size, image.root.address, origin, spares=spares)
    _places(base, image)
    _areas(base, image)
    base.pointers = list(_pointers(base))
    base.objects = sorted({p.address for p in base.places} | {a for a, _ in base.trees})
    return base


def _pages(image: Image) -> dict[int, bytes]:
    pages: dict[int, bytes] = {}
    for claim in image.survey.claims:
        if claim.kind in CONTENT:
            continue
        for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True):
            for pa in range(start & -PAGE, start + min(size, MAX_PAGES * PAGE), PAGE):
                if pa in pages or len(pages) >= MAX_PAGES:
                    continue
                try:
                    pages[pa] = image.memory.read(pa, PAGE)
                except MemoryFault:
                    break
    return pages


def _spares(image: Image, pages: dict[int, bytes]) -> list[int]:
    """A few pages of RAM that the base does not use."""
    found: list[int] = []
    for region in image.memory.regions:
        start = (region.start + (64 << 10)) & -(64 << 10)
        for pa in range(start, min(region.end & -PAGE, start + (256 << 16)), 64 << 10):
            if pa not in pages and len(found) < SPARES:
                found.append(pa)
    return found


def _pointers(base: Base) -> Iterator[tuple[Place, Field, int]]:
    for place in base.places:
        for one in place.fields:
            if one.points_to and one.size == 8 and one.count is None:
                raw = base.memory.peek(place.address + one.offset, 8)
                target = int.from_bytes(raw, "little")
                if target:
                    yield place, one, target


def _places(base: Base, image: Image) -> None:
    by_type: dict[str, list[Place]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    fields: dict[int, tuple[Field, ...]] = {}
    for placed in image.survey.placed:
        known = fields.setdefault(
            id(placed.struct), tuple(f for f in placed.struct.flat_fields() if f.size)
        )
        for address in placed.addresses.tolist():
            key = (placed.struct.cname, address)
            if key in seen or len(by_type[key[0]]) >= MAX_PLACES:
                continue
            seen.add(key)
            by_type[key[0]].append(Place(placed.struct, address, placed.path, known))
    base.by_type = dict(by_type)
    base.places = [p for places in by_type.values() for p in places]


def _areas(base: Base, image: Image) -> None:
    for claim in image.survey.claims:
        if claim.kind in CONTENT or claim.kind == "map-node":
            continue
        for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True):
            if image.memory.state(start, 8) != 2 or size < 8 or size > 1 << 20:
                continue
            if image.memory.read(start, 4) == MAGIC_BYTES:
                base.trees.append((start, size))
            elif claim.kind in ("vmalloc-data", "page-table", "array-page", "block"):
                base.words.append((start, size & ~7, claim.kind))


def from_memory(memory: PhysicalMemory, name: str, origin: dict[str, str]) -> Base:
    """Decode a memory image and take it as a base."""
    from inspector.decode import decode

    return make_base(decode(memory), name, origin)


#: The smallest image that has everything: one session, one memory file of one page.
TINY = """\
kernel = "{kernel}"
[machine]
ram = ["64M"]
[[session]]
name = "vm0"
[[session.file]]
token = 1
size = "4K"
"""
#: Releases of which a small image is simulated where the user names none.
KERNELS = (
    "linux-7.3", "linux-7.2", "linux-7.1", "linux-7.0",
    "linux-6.19", "linux-6.18", "linux-6.17", "linux-6.16",
)  # fmt: skip


def simulated(text: str, name: str) -> Base:
    """The image of a scenario text as a base."""
    from inspector.kernel import scenario

    made = scenario.parse(text, name).run()
    return from_memory(made.memory, name, {"scenario": text})


def tiny(kernel: str = "linux-7.3") -> Base:
    """The smallest image of a release; of one before LUO, an image of the map and scratch."""
    text = TINY.format(kernel=kernel)
    if kernel in ("linux-6.16", "linux-6.17", "linux-6.18"):
        text = text.partition("[[session]]")[0] + "[kho_test]\npages = 4\n"
        text += '[[reserve_mem]]\nname = "trace"\nsize = "64K"\n'
    return simulated(text, f"tiny-{kernel}")


def load(source: str) -> Base:
    """A base from an image file or a scenario (file or name). Raises KhoError."""
    from inspector.kernel import scenario

    if source.startswith("tiny-"):
        return tiny(source.removeprefix("tiny-"))
    if source.endswith(".toml") or source in scenario.shipped():
        made = scenario.load(source).run()
        return from_memory(made.memory, source, {"scenario-name": source})
    if not Path(source).exists():
        raise UsageError(f"{source}: no such image, and no scenario of that name")
    from inspector import image as images

    with images.open(source) as opened:
        return make_base(opened, Path(source).name, {"image": source})


def defaults() -> Iterable[Base]:
    """Small simulated images of every release that is modelled."""
    for kernel in KERNELS:
        yield tiny(kernel)
