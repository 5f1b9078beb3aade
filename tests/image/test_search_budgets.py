"""What a root is searched among may be hostile: each search has a budget, and says so."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from abi import boot, fdt
from abi.fdt_write import FdtWriter
from inspector import locate as located
from inspector import tree_budget
from inspector.check import check
from inspector.decode import decode
from inspector.image import Image
from inspector.kernel import scenario
from inspector.locate import How, locate
from inspector.memory.mapped import MappedMemory
from inspector.memory.segments import Kind, Segment, from_segments
from inspector.memory.sparse import SparseMemory
from inspector.tree_budget import TreeBudget, tree_size

PAGE = 4096
ROOM = 256 << 20


def image_of() -> tuple[SparseMemory, Image]:
    memory = scenario.load("linux-7.3").run().memory
    return memory, decode(memory)


def large_tree(nodes: int, compatible: bytes = b"kho-v4\0") -> bytes:
    """A tree with many nodes; what it says of itself is right."""
    writer = FdtWriter(1 << 20)
    writer.begin_node(b"")
    writer.property(b"compatible", compatible)
    for number in range(nodes):
        writer.begin_node(b"%x" % number)
        writer.end_node()
    writer.end_node()
    return writer.finish()


def boot_params(memory: SparseMemory, at: int, records: list[int]) -> None:
    """A page of boot_params, and its list with one record for each root."""
    memory.write(at, bytes(2 * PAGE))
    memory.write(at + boot.HDRS_OFFSET, boot.HDRS_MAGIC)
    memory.write(at + boot.SETUP_DATA_OFFSET, struct.pack("<Q", at + PAGE))
    for number, root in enumerate(records):
        node = at + PAGE + 64 * number
        following = node + 64 if number + 1 < len(records) else 0
        memory.write(node, struct.pack("<QII", following, boot.SETUP_KEXEC_KHO, 32))
        memory.write(node + 16, struct.pack("<4Q", root, PAGE, 0x2000, 16))


def test_a_damaged_tree_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, image = image_of()
    bad = bytearray(large_tree(10))
    bad[fdt.HEADER_SIZE + 16 :] = bytes(len(bad) - fdt.HEADER_SIZE - 16)  # not one tag
    memory.write(ROOM + 8, bytes(bad))
    for number in range(8):
        boot_params(memory, ROOM + (2 + 2 * number) * PAGE, [ROOM + 8] * 60)
    parsed: list[int] = []
    read_blob = tree_budget.read_blob

    def counted(*args: object) -> bytes:
        parsed.append(1)
        return read_blob(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tree_budget, "read_blob", counted)
    found = locate(memory)
    assert len(parsed) == 1
    led = [h for h in found.handovers if h.fdt_address == ROOM + 8]
    assert len(led) == located._MAX_FOR_ROOT
    assert found.candidates[0].address == image.root.address
    assert found.unsearched == []


def test_lists_that_several_pages_share_are_walked_once() -> None:
    memory, image = image_of()
    before = locate(memory)
    boot_params(memory, ROOM, [image.root.address] * 3)
    for number in range(2, 9):
        memory.write(ROOM + number * PAGE, memory.read(ROOM, PAGE))
    found = locate(memory)
    assert len(found.boot_params) == len(before.boot_params) + 8
    assert len(found.setup_data) == len(before.setup_data) + 3
    assert len(found.handovers) == len(before.handovers) + 3


def test_large_trees_do_not_hide_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are found by the scan or by records: the small ones are read first."""
    memory, image = image_of()
    blob = large_tree(400)
    places = [ROOM + i * 8 * PAGE for i in range(12)]
    for at in places:
        memory.write(at, blob)
    assert len(locate(memory).candidates) == 13
    monkeypatch.setattr(tree_budget, "MAX_MEMORY", 4 * (2 * len(blob) + 401 * tree_budget._NODE))
    found = locate(memory)
    assert 4 <= len(found.candidates) <= 6
    assert found.candidates[0].address == image.root.address
    assert "too many or too large to be real" in found.unsearched[0]
    again = decode(memory)
    assert again.root.address == image.root.address
    assert [f.code for f in check(again).findings if f.code == "KHO-ROOT-017"] == ["KHO-ROOT-017"]
    # The same trees off the pages' beginnings, where only records lead to them.
    for at in places:
        memory.write(at, bytes(8))
        memory.write(at + 8, blob)
    boot_params(memory, ROOM - 2 * PAGE, [at + 8 for at in places])
    found = locate(memory)
    assert len(found.unread) > 4
    assert "that records lead to" in found.unsearched[0]
    assert image.root.address in {c.address for c in found.candidates}
    report = check(decode(memory))
    assert not [f for f in report.findings if f.code == "KHO-ROOT-013"]


def test_bytes_of_blobs_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, _ = image_of()
    blob = large_tree(40)
    for i in range(4):
        memory.write(ROOM + i * PAGE, blob)
    monkeypatch.setattr(tree_budget, "MAX_BYTES", 2 * len(blob))
    budget = TreeBudget(memory)
    found = [budget.tree(ROOM + i * PAGE) for i in (0, 0, 1, 2, 3)]
    assert [tree is not None for tree in found] == [True, True, True, False, False]
    assert found[0] is found[1]
    assert budget.unread == {ROOM + 2 * PAGE, ROOM + 3 * PAGE}
    assert tree_size(memory, ROOM) == len(blob)
    assert tree_size(memory, ROOM + 4) is None
    assert tree_size(memory, 1 << 50) is None


def test_many_roots_are_compared_at_once() -> None:
    rng = np.random.default_rng(3)
    roots = np.sort(rng.choice(1 << 20, 40, replace=False).astype(np.uint64) << np.uint64(12))
    words = rng.integers(0, 1 << 33, 5000, np.uint64)
    spots = rng.choice(4990, 300, replace=False)
    words[spots] = rng.choice(roots, 300)
    words[spots[:150] + 1] = 4096
    words[-1] = roots[0]
    want = np.flatnonzero(np.isin(words, roots)).tolist()
    few = located._records_in(words[:400].copy(), roots[:1])
    assert few == np.flatnonzero(words[:400] == roots[0]).tolist()
    got = located._records_in(words, roots)
    assert set(got) <= set(want)
    plausible = [
        i for i in want
        if i + 3 >= len(words) or (0 < words[i + 1] <= 65536 and 0 < words[i + 3] <= 65536)
    ]  # fmt: skip
    assert got == plausible


def test_records_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, image = image_of()
    root = image.root.address
    for page in locate(memory).boot_params:
        memory.write(page + boot.SETUP_DATA_OFFSET, bytes(8))
    memory.write(ROOM, struct.pack("<4Q", root, PAGE, 0x2000, 16) * 300)
    found = locate(memory)
    assert sum(h.how is How.KHO_DATA for h in found.handovers) >= 300
    monkeypatch.setattr(located, "_MAX_HANDOVERS", 50)
    found = locate(memory)
    assert len(found.handovers) == 50
    assert "too many lie before" in found.unsearched[-1]


def test_bytes_at_several_addresses_are_searched_once() -> None:
    data = bytearray(16 * PAGE)
    data[5 * PAGE : 5 * PAGE + len(large_tree(3))] = large_tree(3)
    pieces = [Segment(i << 30, (i << 30) + len(data) - 1, Kind.STORED, 0) for i in range(1, 1000)]
    memory = MappedMemory(from_segments(pieces), memoryview(bytes(data)))
    assert memory.aliased
    assert sum(len(view) for _, view in memory.distinct()) == len(data)
    assert sum(len(view) for _, view in memory.extents()) == 999 * len(data)
    found = locate(memory)
    assert [c.address for c in found.candidates] == [(1 << 30) + 5 * PAGE]
    assert "the same bytes of the file" in found.unsearched[0]
    over = SparseMemory.over(memory)
    over.write(1 << 30, b"x")
    assert over.aliased
    assert sum(len(view) for _, view in over.distinct()) == len(data)
