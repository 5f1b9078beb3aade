"""Single codecs and walkers on mutated buffers: device trees, maps, arrays, page tables.

Here everything is small, so that ten thousands of cases fit in a second, and what is wrong in
one walker is not hidden behind another one that gives up first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from abi import fdt
from abi.errors import UsageError
from abi.schema import Struct
from inspector.fuzz import trees, values
from inspector.fuzz.base import KERNELS, Base, tiny
from inspector.fuzz.edit import Edit
from inspector.fuzz.memory import PAGE, PatchedMemory
from inspector.fuzz.target import Mismatch
from inspector.survey import Survey

if TYPE_CHECKING:
    from inspector.fuzz.target import Target

_START = 0x10000
_RAM = ((_START, 64 * PAGE),)


def _small(name: str, pages: dict[int, bytes], page_size: int = PAGE) -> Base:
    base = Base(
        name, PatchedMemory(pages, ram=_RAM), page_size, min(pages), {"built": name},
        objects=sorted(pages),
    )  # fmt: skip
    for pa, data in pages.items():
        base.words.append((pa, PAGE, name))
        if any(data):
            base.words.append((pa, (len(data.rstrip(b"\0")) + 15) & ~7, name))
    return base


def _edit_words(base: Base, rng: random.Random) -> tuple[Edit, ...]:
    """A few words of a few pages changed; mostly those that are in use."""
    edits: list[Edit] = []
    while not edits or (len(edits) < 12 and rng.random() < 0.6):
        start, size, _ = rng.choice(base.words)
        at = start + 8 * rng.randrange(max(min(size, PAGE) // 8, 1))
        old = base.memory.peek(at, 8)
        dice = rng.random()
        if dice < 0.4:
            new = values.pointer(rng, int.from_bytes(old, "little"), start, base.objects, [])
            data = (new & (1 << 64) - 1).to_bytes(8, "little")
        elif dice < 0.8:
            data = values.integer(rng, int.from_bytes(old, "little"), 64, []).to_bytes(8, "little")
        elif dice < 0.85:
            data = base.memory.peek(rng.choice(base.objects), PAGE)
            at = start
        elif dice < 0.9:
            data = rng.randbytes(rng.choice((8, 64, 512)))
        elif dice < 0.97:
            data = rng.choice((b"\0", b"\xff", b"\x55")) * rng.choice((8, 512, PAGE))
        else:
            edits.append(Edit(start, None, "page left out"))
            continue
        edits.append(Edit(at, data, "words"))
    return tuple(edits)


class BufferTarget:
    """One walker on the small memories that :func:`built` makes by name."""

    slow = False

    def __init__(
        self,
        name: str,
        kinds: Sequence[str],
        edit: Callable[[Base, random.Random], tuple[Edit, ...]],
        consume: Callable[[Base], None],
    ) -> None:
        self.name, self.kinds = name, kinds
        self._edit, self.run = edit, consume
        self._bases: list[Base] = []

    def pick(self, rng: random.Random) -> tuple[Base, tuple[Edit, ...]]:
        """A case."""
        if not self._bases:
            self._bases = [built(kind) for kind in self.kinds]
        base = self._bases[rng.randrange(len(self._bases))]
        return base, self._edit(base, rng)


# -- device trees -------------------------------------------------------------------------------


def _fdt_base(name: str) -> Base:
    _, kernel, number = name.split(":")
    image = tiny(kernel)
    address, _ = image.trees[int(number)]
    blob = fdt.parse(image.memory.peek(address, PAGE)).build()
    header = fdt.peek(blob)
    assert header is not None
    # Compact: a tree in a page is mostly slack, in which mutations are lost.
    tree = fdt.parse(blob[: header.totalsize])
    used = max(header.off_dt_struct + header.size_dt_struct,
               header.off_dt_strings + header.size_dt_strings)  # fmt: skip
    small = blob[:4] + used.to_bytes(4, "big") + blob[8:used] if tree else blob
    base = _small(name, {_START: small.ljust(PAGE, b"\0")})
    base.trees = [(_START, min(used + 16, PAGE))]
    return base


def _edit_tree(base: Base, rng: random.Random) -> tuple[Edit, ...]:
    address, size = base.trees[0]
    blob = base.memory.peek(address, size)
    while True:
        blob = trees.mutate_blob(blob, rng, base.objects)
        if rng.random() < 0.4:
            break
    if rng.random() < 0.1:
        blob = blob[: rng.randrange(len(blob))] + rng.randbytes(8)
    return (Edit(address, blob[:PAGE], "device tree"),)


def _run_tree(base: Base) -> None:
    size = base.trees[0][1] if base.trees else PAGE
    blob = base.memory.peek(_START, size)
    fdt.peek(blob)
    tree = fdt.parse(blob)
    if tree.build() != blob:
        raise Mismatch("rebuild: the blob built is not the blob parsed")
    for _, node in tree.root.walk():
        _ = node.compatible, fdt.cell_counts(node)
    _ = tree.reserved


# -- preserved-memory map ---------------------------------------------------------------------


@cache
def _map_facts(kernel: str) -> tuple[Any, int]:
    from inspector.decode import decode

    image = decode(tiny(kernel).memory)
    return image.root.generation, image.root.map_address or 0


def _map_base(name: str) -> Base:
    from inspector.decode import decode

    kernel = name.split(":")[1]
    image = decode(tiny(kernel).memory)
    assert image.preserved is not None
    nodes = {pa & -PAGE for pa in image.preserved.nodes.tolist()}
    return _small(name, {pa: image.memory.read(pa, PAGE) for pa in sorted(nodes)})


def _run_map(base: Base) -> None:
    from inspector.walk.preserved import walk_map

    generation, root = _map_facts(base.origin["built"].split(":")[1])
    found = walk_map(Survey(base.memory, base.page_size), generation, root)
    _ = found.block_count, found.page_count, found.disjoint
    found.intervals()
    starts = found.starts[:4096]
    if not found.heads_at(starts).all() or not found.orders_at(starts)[1].all():
        raise AssertionError("a run of blocks begins where no block begins")


# -- arrays -------------------------------------------------------------------------------------


def _array_parts(name: str) -> tuple[Struct, bool]:
    """(page header with its element, whether the root counts)."""
    from abi import registry

    _, layer, ident, kind = name.split(":")
    generation: Any = registry.get(layer, ident)
    array = next(a for a in generation.arrays if a.name == kind)
    return array.page, array.total is not None


def _array_base(name: str) -> Base:
    page, counted = _array_parts(name)
    assert page.tail is not None
    size = cast("Struct", page.tail[1]).size
    capacity = page.capacity(PAGE)
    rng = random.Random(name)
    pages = {}
    for i in range(3):
        at = _START + 2 * i * PAGE
        follows = at + 2 * PAGE if i < 2 else 0
        count = capacity if i < 2 else capacity // 2
        head = follows.to_bytes(8, "little") + (0 if counted else count).to_bytes(8, "little")
        body = b"".join(rng.randbytes(size) for _ in range(count))
        pages[at] = (head + body).ljust(PAGE, b"\0")[:PAGE]
    return _small(name, pages)


def _edit_array(base: Base, rng: random.Random) -> tuple[Edit, ...]:
    """Mostly the headers: objects are any bytes at all."""
    edits = list(_edit_words(base, rng)[:2])
    for _ in range(rng.randrange(1, 3)):
        page = rng.choice(base.objects)
        old = int.from_bytes(base.memory.peek(page, 8), "little")
        if rng.random() < 0.5:
            new = values.pointer(rng, old, page, base.objects, [])
            edits.append(Edit(page, (new & (1 << 64) - 1).to_bytes(8, "little"), "next"))
        else:
            new = values.integer(rng, 40, rng.choice((8, 64)), [])
            edits.append(Edit(page + 8, new.to_bytes(8, "little"), "count"))
    return tuple(edits)


@cache
def _parts(name: str) -> tuple[Struct, bool]:
    return _array_parts(name)


def _run_array(base: Base) -> None:
    from inspector.walk.paged_array import walk_paged_array

    page, counted = _parts(base.origin["built"])
    survey = Survey(base.memory, PAGE)
    total = int.from_bytes(base.memory.peek(_START + 16, 2), "little") if counted else None
    array = walk_paged_array(survey, _START, page, "/a", "array", total)
    if len(array) != len(array.addresses) or len(array) > max(array.total, 0):
        raise Mismatch(f"array: {len(array)} objects at {len(array.addresses)} addresses")
    if len(array):
        array.values(0)
        array.struct.columns(array.records)


# -- block lists and vmalloc --------------------------------------------------------------------


def _blocks_base(name: str) -> Base:
    from inspector.decode import decode

    image = tiny("linux-7.3")
    decoded = decode(image.memory)
    assert decoded.luo is not None
    pages = {pa & -PAGE for t in ("kho_block_header_ser", "kho_vmalloc_chunk", "memfd_luo_ser")
             for pa in (p.address for p in image.by_type[t])}  # fmt: skip
    base = _small(name, {pa: image.memory.peek(pa, PAGE) for pa in sorted(pages)})
    base.root = decoded.luo.sessions_address
    return base


def _run_blocks(base: Base) -> None:
    from inspector.walk.luo import walk_sessions
    from inspector.walk.vmalloc import walk_vmalloc

    survey = Survey(base.memory, PAGE)
    generation, root, vmalloc, where = _block_facts()
    walk_sessions(survey, generation, root)
    raw = base.memory.peek(where, vmalloc.size)
    walk_vmalloc(survey, vmalloc.unpack(raw), "/v")


@cache
def _block_facts() -> tuple[Any, int, Struct, int]:
    from abi.vmalloc import kho_vmalloc
    from inspector.decode import decode

    image = tiny("linux-7.3")
    decoded = decode(image.memory)
    assert decoded.luo is not None
    memfd = image.by_type["memfd_luo_ser"][0]
    field = next(f for f in memfd.struct.fields if f.struct is kho_vmalloc)
    generation = decoded.luo.generation
    return generation, decoded.luo.sessions_address, kho_vmalloc, memfd.address + field.offset


# -- page tables --------------------------------------------------------------------------------


def _table_base(name: str) -> Base:
    """A tree with two tables a level, a few leaves of every size."""
    import numpy as np

    from abi.pagetable import lookup

    _, format_name, depth = name.split(":")
    form = lookup(format_name)
    step = form.granule
    tables = {(level, i): _START + (2 * (int(depth) - 1 - level) + i) * step
              for level in range(int(depth)) for i in range(2)}  # fmt: skip
    pages: dict[int, bytes] = {}
    rng = random.Random(name)
    for (level, i), at in tables.items():
        words = np.zeros(form.entries, np.uint64)
        if level:
            below = [tables[level - 1, j] for j in range(2)]
            words[i : i + 2] = form.encode_table(level, below)
        if form.levels[level].has_leaves:
            size = form.levels[level].size
            where = [rng.randrange(1 << 40) // size * size for _ in range(4)]
            words[6:10] = form.encode_leaf(level, where)
            for larger, at_level in form.leaf_sizes().items():
                if at_level == level and larger > size and larger // size <= 32:
                    first = 32 if larger // size == 32 else 16
                    words[first : first + larger // size] = form.encode_leaf(level, 0, larger)
        raw = words.tobytes()
        for k in range(0, len(raw), PAGE):
            pages[at + k] = raw[k : k + PAGE].ljust(PAGE, b"\0")
    base = _small(name, pages)
    base.root = tables[int(depth) - 1, 0]
    return base


def _run_table(base: Base) -> None:
    from inspector.pagetable import Limits, walk

    _, format_name, depth = base.origin["built"].split(":")
    limits = Limits(tables=256, repeats=64, skips=64)
    walked = walk(base.memory, format_name, base.root, int(depth), limits=limits)
    for chunk in walked.ranges():
        if len(chunk.iova) > 1 << 20:
            raise Mismatch("ranges: a chunk is larger than promised")
    _ = walked.stats, walked.findings, walked.table_pages


_BUILDERS: dict[str, Callable[[str], Base]] = {
    "fdt": _fdt_base,
    "map": _map_base,
    "arrays": _array_base,
    "blocks": _blocks_base,
    "pagetable": _table_base,
}


def built(name: str) -> Base:
    """A small memory by name. Raises UsageError."""
    builder = _BUILDERS.get(name.partition(":")[0])
    if builder is None:
        raise UsageError(f"no such input to build: {name!r}")
    return builder(name)


def _fdt_kinds() -> list[str]:
    return [f"fdt:{kernel}:{i}" for kernel in KERNELS for i in range(len(tiny(kernel).trees))]


def _array_kinds() -> list[str]:
    from abi import registry

    return [
        f"arrays:iommu:{g.id}:{a.name}"
        for g in registry.generations("iommu")
        for a in getattr(g, "arrays", ())
    ]


def _table_kinds() -> list[str]:
    from abi.pagetable import FORMATS

    return [
        f"pagetable:{name}:{form.depths[0] if form.depths[0] > 1 else 2}"
        for name, form in FORMATS.items()
        if form.granule == PAGE
    ]


BUFFER_TARGETS: dict[str, Callable[[Sequence[Base]], Target]] = {
    "fdt": lambda _: BufferTarget("fdt", _fdt_kinds(), _edit_tree, _run_tree),
    "map": lambda _: BufferTarget("map", [f"map:{k}" for k in KERNELS], _edit_words, _run_map),
    "arrays": lambda _: BufferTarget("arrays", _array_kinds(), _edit_array, _run_array),
    "blocks": lambda _: BufferTarget("blocks", ["blocks"], _edit_words, _run_blocks),
    "pagetable": lambda _: BufferTarget("pagetable", _table_kinds(), _edit_words, _run_table),
}
