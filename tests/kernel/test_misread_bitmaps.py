"""Images of 6.17, whose bitmaps have 512 bytes, under kernels that read a page of each.

What decides was measured with 24 hand-overs of a real 6.17.8 and 40 simulated ones, all booted by
a real 6.18.15: the map's largest order, how much memory there is, and what lies beside a bitmap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from abi.kho import MapKind
from inspector import image as images
from inspector.findings import Outcome
from inspector.kernel import faults, scenario
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.machine import Machine, small_machine
from inspector.kernel.machine.slab import Slab
from inspector.memory.sparse import SparseMemory
from inspector.walk.bitmap_chunks import pointers_behind

MiB = 1 << 20
SEEDS = range(6)


def made(
    seed: int, ram: int, *, kernel: str = "6.17", order: int | None = None, more: str = ""
) -> Any:
    """A hand-over of a machine with ``ram`` MiB; a self test with folios up to an order."""
    text = f'kernel = "linux-{kernel}"\nseed = {seed}\n[machine]\nram = ["{ram}M"]\n{more}\n'
    if order is not None:
        text += f"[kho_test]\npages = {4 << order}\nmax_order = {order}\n"
    return scenario.parse(text).run()


def outcomes(image: Any, kernel: str) -> set[Outcome]:
    return {reason.outcome for reason in consume(image.memory, kernel).reasons}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("consumer", ["linux-6.18", "linux-6.19"])
def test_pages_alone_are_taken_over(seed: int, consumer: str) -> None:
    """Order 0 reaches 128 MiB: junk bits mean memory, which is reserved and no more."""
    result = consume(made(seed, 512).memory, consumer)
    assert result.outcome is Outcome.TAKEN_OVER
    assert any("nobody preserved" in note for note in result.notes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("ram", "order", "dies"), [
    (512, 0, False), (512, 1, False), (1024, 2, False), (4096, 4, False),
    (256, 3, True), (512, 4, True), (1024, 5, True), (4096, 8, True),
])  # fmt: skip
def test_the_largest_order_decides(seed: int, ram: int, order: int, dies: bool) -> None:
    """A bit behind a bitmap of order n means a block up to 128 MiB << n further on."""
    image = made(seed, ram, order=order)
    with images.open(image.memory) as decoded:
        if not (decoded.preserved.orders == order).any():
            pytest.skip("the self test drew no folio of that order")
    assert consume(image.memory, "linux-6.17").outcome is Outcome.TAKEN_OVER
    found = outcomes(image, "linux-6.18")
    assert (Outcome.BOOT_FAILS in found) == dies
    assert Outcome.CORRUPTION not in found
    assert Outcome.CANNOT_TELL not in found


def test_pages_reserved_in_scratch_warn() -> None:
    """Seen with 256 MiB: the kernel lies in scratch, and patches pages that are not reserved."""
    image = made(1, 256, order=1)
    result = consume(image.memory, "linux-6.19")
    warned = [r for r in result.reasons if r.outcome is Outcome.TAKEN_OVER_WITH_WARNINGS]
    assert warned
    assert {r.dmesg for r in warned} == {"__text_poke"}


def test_preserved_memory_in_scratch_is_told_from_junk() -> None:
    image = made(1, 512, more='scratch = ["256M", "0", "16M"]')
    faults.inject(image, "map-scratch")
    (reason,) = (
        r for r in consume(image.memory, "linux-6.18").reasons if r.outcome is Outcome.CORRUPTION
    )
    base, size = image.kernel.machine.scratch[0]
    assert reason.address == base + size // 2


@pytest.mark.parametrize("seed", range(24))
def test_the_writer_is_known_by_the_bytes(seed: int) -> None:
    """A map with a single bitmap, which may begin a page by chance."""
    for kernel, kind in [("6.17", MapKind.BITMAP_512), ("6.18", MapKind.BITMAP_PAGE)]:
        image = made(seed, 512, kernel=kernel, more="fragmentation = 0.4\nshuffle = true")
        with images.open(image.memory) as decoded:
            assert decoded.generation("kho").map_kind is kind
        assert consume(image.memory, f"linux-{kernel}").outcome is Outcome.TAKEN_OVER


def test_bits_of_scattered_pages_are_no_pointers() -> None:
    random = np.random.default_rng(5)
    memory = SparseMemory([(0, 64 << 12)], page_size=4096)
    nodes = np.arange(8, dtype=np.uint64) << np.uint64(12)
    for part in (0.05, 0.5, 0.95):
        for node in nodes.tolist():
            memory.write(node, np.packbits(random.random(4096 * 8) < part))
        assert pointers_behind(memory, nodes, 4096) == 0
    pointers = 0xFFFF888000000000 + random.integers(0, 1 << 29, 448, np.uint64)
    memory.write(512, pointers.astype("<u8"))
    assert pointers_behind(memory, nodes[:1], 4096) > 300


def slab(seed: int) -> tuple[Slab, Machine]:
    machine = Machine(small_machine(seed=seed), scratch_align=2 * MiB)
    return Slab(machine, 512), machine


def test_neighbours_follow_the_seed() -> None:
    contents = []
    for seed in (1, 1, 2):
        one, machine = slab(seed)
        places = [one.alloc() for _ in range(40)]
        assert len(set(places)) == 40
        assert not any(any(machine.memory.read(at, 512)) for at in places)
        contents.append([machine.memory.read(base, 8192 * 2) for base in one.blocks])
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("page_size", [0x1000, 0x4000, 0x10000])
def test_neighbours_are_as_in_a_real_cache(page_size: int) -> None:
    """Of 653 objects beside and behind real bitmaps 96 % held something, half of it not zero."""
    architecture = "x86_64" if page_size == 0x1000 else "aarch64"
    spec = small_machine(4096 * MiB, architecture=architecture, page_size=page_size)
    machine = Machine(spec, scratch_align=64 * MiB)
    cache = Slab(machine, 512)
    while len(cache.blocks) < 12:
        cache.alloc()
    size = page_size << (page_size == 0x1000)
    words = np.concatenate([
        np.frombuffer(machine.memory.read(base + size, size), "<u8").reshape(-1, 64)
        for base in cache.blocks
    ])  # fmt: skip
    held = np.count_nonzero(words, axis=1)
    assert 0.85 < (held > 1).mean() < 0.97
    assert 27 <= np.median(held) <= 35
    assert (words >> np.uint64(48) == (1 << 16) - 1).sum() > held.sum() / 2
