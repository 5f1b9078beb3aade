"""A damaged map is walked as the kernel walks it."""

import pytest

from abi.memory_map import RadixGeometry
from inspector.findings import Outcome
from inspector.kernel import scenario
from inspector.kernel.incoming import radix
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.incoming.view import View
from inspector.memory.base import Region
from inspector.memory.sparse import SparseMemory

GEOMETRY = RadixGeometry(0x1000)
RAM = 64 << 20


def machine() -> tuple[SparseMemory, View]:
    memory = SparseMemory([(0, RAM)])
    return memory, View(memory, 0x1000, [Region(0, RAM)])


def build(memory: SparseMemory, blocks: list[tuple[int, int]]) -> list[list[int]]:
    """A map of (address, order) blocks from 1 MiB on; the nodes of each block's path."""
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for pa, order in blocks:
        key, path, parent = GEOMETRY.key(pa, order), [], None
        for level in range(GEOMETRY.depth - 1, -1, -1):
            name = level, key >> GEOMETRY.shift(level + 1)
            if name not in nodes:
                nodes[name] = 0x100000 + 0x1000 * len(nodes)
                memory.mark_zero(nodes[name], 0x1000)
            at = nodes[name]
            path.append(at)
            if parent is not None:
                memory.write(parent, at.to_bytes(8, "little"))
            if level:
                slot = key >> GEOMETRY.shift(level) & (1 << GEOMETRY.table_bits) - 1
                parent = at + 8 * slot
            else:
                bit = key & (1 << GEOMETRY.leaf_bits) - 1
                byte = memory.read(at + bit // 8, 1)[0] | 1 << bit % 8
                memory.write(at + bit // 8, bytes([byte]))
        paths.append(path)
    return paths


def blocks_of(found: radix.Walk) -> set[tuple[int, int]]:
    out = set()
    for starts, counts, orders in zip(found.starts, found.counts, found.orders, strict=True):
        for start, count, order in zip(starts.tolist(), counts, orders, strict=True):
            out |= {(start + (i << 12 + int(order)), int(order)) for i in range(int(count))}
    return out


BLOCKS = [(0x200000, 0), (0x201000, 0), (0x400000, 9), (0x3000000, 4)]


def test_a_sound_map():
    memory, view = machine()
    paths = build(memory, BLOCKS)
    found = radix.walk(view, GEOMETRY, paths[0][0])
    assert blocks_of(found) == set(BLOCKS)
    assert set(found.nodes) == {at for path in paths for at in path}
    assert not found.fatal


def test_a_leaf_that_is_reached_twice_is_read_twice():
    memory, view = machine()
    (path, *_) = build(memory, [(0x200000, 0)])
    table, leaf = path[-2], path[-1]
    slot = next(i for i in range(512) if memory.u64(table + 8 * i))
    memory.write(table + 8 * (slot + 1), leaf.to_bytes(8, "little"))
    found = radix.walk(view, GEOMETRY, path[0])
    again = 0x200000 + (1 << GEOMETRY.leaf_bits + 12)
    assert blocks_of(found) == {(0x200000, 0), (again, 0)}
    assert not found.fatal


def test_a_cycle_has_an_end_and_kills():
    memory, view = machine()
    (path, *_) = build(memory, [(0x200000, 0)])
    memory.write(path[0], path[0].to_bytes(8, "little") * 512)
    found = radix.walk(view, GEOMETRY, path[0])
    assert found.fatal
    assert found.visits <= radix.MAX_VISITS + 1


@pytest.mark.parametrize("target", [RAM, 0x6B6B6B6B6B6B6B6B])
def test_a_node_outside_memory_kills(target):
    memory, view = machine()
    (path, *_) = build(memory, [(0x200000, 0)])
    memory.write(path[2] + 8, target.to_bytes(8, "little"))
    assert "outside memory" in radix.walk(view, GEOMETRY, path[0]).fatal[0][0]


def test_a_node_that_the_image_lacks_is_told():
    memory, view = machine()
    (path, *_) = build(memory, [(0x200000, 0)])
    memory.write(path[2] + 8 * 511, (0x3FF0000).to_bytes(8, "little"))
    found = radix.walk(view, GEOMETRY, path[0])
    assert found.absent == [0x3FF0000]
    assert not found.fatal


def test_key_0_is_no_block():
    memory, view = machine()
    (path, *_) = build(memory, [(0x200000, 0)])
    for table in path[:-1]:
        slot = next(i for i in range(512) if memory.u64(table + 8 * i))
        child = memory.u64(table + 8 * slot)
        memory.write(table, bytes(4096))
        memory.write(table, child.to_bytes(8, "little"))
    memory.write(path[-1], b"\1")
    assert radix.walk(view, GEOMETRY, path[0]).fatal


def test_an_unaligned_node_in_zero_memory_is_empty_and_harmless():
    """What was a leaf now leads nowhere: its blocks are lost, the kernel boots."""
    image = scenario.load("linux-7.3").run()
    memory, kho = image.memory, image.kernel.kho
    memory.mark_zero(0, 0x3000)
    root = kho.map.write()
    slot = next(i for i in range(512) if memory.u64(root + 8 * i) == 0)
    memory.write(root + 8 * slot, (0x1040).to_bytes(8, "little"))
    assert consume(memory, "linux-7.3").outcome is Outcome.TAKEN_OVER
