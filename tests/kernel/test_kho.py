"""KHO on the producer's side: cutting, the map in all forms, finalization, blobs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.memory_map import RadixGeometry
from inspector import image as decoded_image
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import GiB, Machine, MachineSpec, MiB, Ram, small_machine
from inspector.kernel.outgoing.clients import ReserveMem, partial_sum
from inspector.kernel.outgoing.kernel import Kernel, KhoTestSpec
from inspector.kernel.outgoing.preserved import BitmapMap, BlockMap, RadixMap

RELEASES = ("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3")


def kernel(release: str = "7.3", **more: object) -> Kernel:
    return Kernel(f"linux-{release}", small_machine(), **more)  # type: ignore[arg-type]


KHO = kernel().kho


def blocks_of(image: decoded_image.Image) -> set[tuple[int, int]]:
    found = image.preserved
    assert found is not None
    page = image.page_size
    return {
        (int(start) + i * (page << int(order)), int(order))
        for start, count, order in zip(found.starts, found.counts, found.orders, strict=True)
        for i in range(int(count))
    }


@settings(max_examples=40)
@given(st.integers(0, 5000), st.integers(1, 5000))
def test_ranges_are_cut_greedily(frame: int, count: int) -> None:
    kho = KHO
    at = frame
    for order, first in kho.cut(frame, count):
        assert first == at
        left = frame + count - at
        biggest = max(o for o in range(left.bit_length()) if at % (1 << o) == 0 and 1 << o <= left)
        assert order == biggest
        at += 1 << order
    assert at == frame + count


@pytest.mark.parametrize(("release", "whole"), [("6.19", True), ("7.1", False)])
def test_blocks_stay_on_their_node_from_7_1_on(release: str, whole: bool) -> None:
    border = (GiB + 4096) >> 12
    spec = MachineSpec(ram=(Ram(0, GiB + 4096, 0), Ram(GiB + 4096, GiB - 4096, 1)))
    kho = Kernel(f"linux-{release}", spec).kho
    cuts = list(kho.cut(border - 1, 4))
    spans = [o for o, f in cuts if f < border < f + (1 << o)]
    assert bool(spans) is whole
    assert sum(1 << o for o, _ in cuts) == 4


MAPS = {
    "radix-4k": (0x1000, lambda m: RadixMap(m, RadixGeometry(0x1000))),
    "radix-16k": (0x4000, lambda m: RadixMap(m, RadixGeometry(0x4000))),
    "radix-64k": (0x10000, lambda m: RadixMap(m, RadixGeometry(0x10000))),
    "bitmap-512": (0x1000, lambda m: BitmapMap(m, 512)),
    "bitmap-page": (0x1000, lambda m: BitmapMap(m, 0x1000)),
}


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.booleans(), st.integers(0, 12), st.lists(st.integers(0, 1 << 20), max_size=20)
        ),
        max_size=12,
    )
)
def test_maps_are_sets_of_blocks(name: str, changes: list[tuple[bool, int, list[int]]]) -> None:
    page_size, make = MAPS[name]
    architecture = "x86_64" if page_size == 0x1000 else "aarch64"
    machine = Machine(
        small_machine(4 * GiB, page_size=page_size, architecture=architecture),
        scratch_align=512 * MiB,
    )
    block_map: BlockMap = make(machine)
    model: set[tuple[int, int]] = set()
    for on, order, numbers in changes:
        frames = np.unique(np.array(numbers, np.uint64)) << np.uint64(order)
        (block_map.set if on else block_map.clear)(frames, order)
        pairs = {(int(f), order) for f in frames}
        model = model | pairs if on else model - pairs
    found = {(int(f), order) for order, frames in block_map.blocks() for f in frames}
    assert found == model
    root = block_map.write()
    for frame, order in model:
        where = block_map.locate(frame, order)
        assert where is not None
        assert machine.memory.read(where[0], 1)[0] & where[1]
        assert block_map.has(frame, order)
    assert root or not changes or isinstance(block_map, BitmapMap)


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_is_decoded_as_it_was_meant(release: str) -> None:
    producer = kernel(
        release,
        reserve_mem=[ReserveMem("trace", 3 * MiB), ReserveMem("oops", 5 * 4096, 4096)],
        kho_test=KhoTestSpec(pages=40, max_order=3),
    )
    if release < "6.19":
        producer.finalize()
    image = producer.kexec()
    with decoded_image.open(image.memory) as found:
        assert found.root is not None
        assert found.root.address == image.root
        assert not found.findings
        assert found.generation("kho") == producer.profile["kho"]
        meant = {
            (int(frame) << 12, order)
            for order, frames in producer.kho.map.blocks()
            for frame in frames
        }
        assert blocks_of(found) == meant
        assert [(r.name, r.start, r.size) for r in found.reserve_mem] == [
            (r.name.encode(), r.start, r.size) for r in producer.reserve_mem
        ]
        test = producer.kho_test
        assert test is not None
        assert found.kho_test is not None
        assert found.kho_test.csum == test.checksum
        assert found.kho_test.folios.tolist() == [f << 12 | o for f, o in test.folios]
        assert [(s.address, s.size) for s in found.scratch] == list(producer.machine.scratch)


def test_finalization_by_hand() -> None:
    producer = kernel("6.17")
    frame = producer.machine.alloc()
    producer.kho.preserve_folio(frame)
    producer.finalize()
    for operation in (producer.kho.preserve_folio, producer.kho.unpreserve_folio):
        with pytest.raises(KernelErrno, match="EBUSY"):
            operation(frame)
    with pytest.raises(KernelErrno, match="EEXIST"):
        producer.finalize()
    producer.kho.abort()
    with pytest.raises(KernelErrno, match="ENOENT"):
        producer.kho.abort()
    producer.kho.unpreserve_folio(frame)
    assert producer.kexec().root == 0  # not finalized: nothing is handed over


def test_later_kernels_cannot_be_finalized_by_hand() -> None:
    with pytest.raises(KernelErrno, match="EOPNOTSUPP"):
        kernel("7.3").finalize()


@pytest.mark.parametrize(("release", "refused"), [("6.17", True), ("7.2", True), ("7.3", False)])
def test_preserving_scratch(release: str, refused: bool) -> None:
    producer = kernel(release)
    frame = producer.machine.scratch[0][0] >> 12
    if refused:
        with pytest.raises(KernelErrno, match="EINVAL"):
            producer.kho.preserve_folio(frame)
        with pytest.raises(KernelErrno, match="EINVAL"):
            producer.kho.preserve_pages(frame - 4, 8)
    else:
        producer.kho.preserve_folio(frame)


@pytest.mark.parametrize("release", ["6.17", "6.19", "7.3"])
def test_blobs(release: str) -> None:
    producer = kernel(release)
    page = producer.kho.alloc_preserve(4096)
    producer.kho.add_blob("mine", page, 17)
    with pytest.raises(KernelErrno, match="EEXIST"):
        producer.kho.add_blob("mine", page, 17)
    if release != "6.17":
        fill = (producer.kho.add_blob(f"blob-{i}", page, 17) for i in range(1000))
        with pytest.raises(KernelErrno, match="ENOMEM"):
            list(fill)
    producer.kho.remove_blob("mine")
    assert "mine" not in producer.kho.blobs


@given(st.integers(1, 1200), st.sampled_from([0, 2]))
@settings(max_examples=12)
def test_vmalloc_chunks(blocks: int, order: int) -> None:
    producer = kernel("7.3")
    kho, page = producer.kho, 4096
    before = producer.machine.pages_out - len(kho.map.nodes)
    area = kho.vmalloc(blocks * page << order, order=order)
    content = bytes(range(256)) * 16 * (blocks << order)
    kho.vmalloc_write(area, content)
    descriptor = kho.preserve_vmalloc(area)
    assert descriptor.total_pages == blocks << order
    found: list[int] = []
    chunk = descriptor.first
    chunks = 0
    while chunk:
        words = np.frombuffer(producer.machine.memory.read(chunk, page), "<u8")
        used = words[1:][words[1:] != 0]
        found += used.tolist()
        chunks += 1
        assert len(used) == 511 or not words[0]
        chunk = int(words[0])
    assert chunks == blocks // 511 + 1  # a full chunk always has a successor
    assert found == [int(f) << 12 for f in area.frames]
    assert b"".join(producer.machine.memory.read(pa, page << order) for pa in found) == content
    kho.unpreserve_vmalloc(area, descriptor)
    kho.vfree(area)
    assert producer.machine.pages_out - len(kho.map.nodes) == before
    with pytest.raises(KernelErrno, match="EOPNOTSUPP"):
        kho.preserve_vmalloc(type(area)(area.frames, 0, 8, 0))


def test_small_bitmaps_are_neighbours_in_a_slab() -> None:
    producer = kernel("6.17")
    for order in range(6):
        producer.kho.map.set(np.array([1 << 12], np.uint64), order)
    bitmaps = sorted(pa for pa, size in producer.kho.map.nodes if size == 512)
    assert len(bitmaps) >= 6
    assert len({pa >> 13 for pa in bitmaps}) < len(bitmaps)
    assert any(pa % 4096 for pa in bitmaps)


def test_checksum_of_real_self_tests() -> None:
    """The order of additions differs by architecture; both were seen in captures."""
    assert partial_sum(bytes(8), 0) == 0
    assert partial_sum(b"\xff" * 8, 0) == 0xFFFFFFFF
    assert partial_sum(b"\xff" * 8, 0, "aarch64") == 0xFFFF
    assert partial_sum(b"\1\0\0\0", 0xFFFFFFFF) == 1


@pytest.mark.parametrize(
    "name",
    [
        "linux-7.0+kho=kho-v1-radix-rfc",
        "linux-7.1+kho=kho-v2",
        "linux-7.1+kho=kho-composite",
        "linux-7.1+kho=kho-v4",
        "linux-7.3+kho=kho-v3",
    ],
)
def test_development_forms_of_the_root(name: str) -> None:
    producer = Kernel(name, small_machine())
    file = producer.memfd()
    file.write(0, b"x" * 100_000)
    producer.luo.create_session("a").preserve(file, 1)
    image = producer.kexec()
    with decoded_image.open(image.memory) as found:
        assert found.generation("kho") == producer.profile["kho"]
        meant = {
            (int(frame) << 12, order)
            for order, frames in producer.kho.map.blocks()
            for frame in frames
        }
        assert blocks_of(found) == meant
