"""The small clients of KHO on the producer's side.

``reserve_mem`` regions, the kexec-metadata record, and the in-kernel self test, which makes a
known-good input out of random folios.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abi import kho_test as abi_test
from abi import memblock
from abi.fdt_write import FdtWriter
from abi.kexec_metadata import (
    KHO_KEXEC_METADATA_VERSION,
    KHO_METADATA_NODE_NAME,
    kho_kexec_metadata,
)
from abi.vmalloc import kho_vmalloc
from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.kho import Kho, VmallocArea, VmallocDescriptor
from inspector.kernel.record import pack


@dataclass(frozen=True, slots=True)
class ReserveMem:
    """A region of ``reserve_mem=size:align:name``. ``start`` is 0 until memory is laid out."""

    name: str
    size: int
    align: int = 4096
    start: int = 0


def preserve_reserve_mem(kho: Kho, regions: Sequence[ReserveMem]) -> int | None:
    """Preserve the regions and register their blob; its address. None without regions."""
    if not regions:
        return None
    page = kho.machine.page_size
    writer = FdtWriter(page)
    writer.begin_node("")
    writer.property_string("compatible", memblock.MEMBLOCK_COMPATIBLE)
    for region in regions:
        shift = kho.machine.page_shift
        kho.preserve_pages(region.start >> shift, -(-region.size // page))
        writer.begin_node(region.name)
        writer.property_string("compatible", memblock.RESERVE_MEM_COMPATIBLE)
        writer.property_u64(memblock.PROP_START, region.start)
        writer.property_u64(memblock.PROP_SIZE, region.size)
        writer.end_node()
    writer.end_node()
    blob = writer.finish()
    address = kho.alloc_preserve(page)
    kho.machine.memory.write(address, writer.page())
    kho.add_blob(memblock.MEMBLOCK_NODE_NAME, address, len(blob))
    return address


def preserve_metadata(kho: Kho, release: str, count: int) -> int:
    """Write and register the kexec-metadata record; its address."""
    address = kho.alloc_preserve(kho_kexec_metadata.size)
    values = {
        "version": KHO_KEXEC_METADATA_VERSION,
        "previous_release": release.encode()[:64],
        "kexec_count": count,
    }
    kho.machine.memory.write(address, pack(kho_kexec_metadata, values))
    kho.add_blob(KHO_METADATA_NODE_NAME, address, kho_kexec_metadata.size)
    return address


@dataclass(slots=True)
class KhoTest:
    """What the self test preserved: (frame, order) of its folios and their checksum."""

    address: int
    folios: list[tuple[int, int]]
    checksum: int
    area: VmallocArea | None = None
    descriptor: VmallocDescriptor | None = None


def preserve_kho_test(kho: Kho, *, seed: int, pages: int, max_order: int) -> KhoTest:
    """Fill folios of random orders, ``pages`` in all, and register them. Raises ENOMEM."""
    machine = kho.machine
    rng, bytes_rng = random.Random(seed), np.random.default_rng(seed)
    folios: list[tuple[int, int]] = []
    words = np.zeros(0, np.uint64)
    checksum, left = 0, pages
    while left:
        order = min(rng.randrange(max_order + 1), left.bit_length() - 1)
        try:
            frame = machine.alloc(order)
        except KernelErrno:
            if order == 0:
                raise
            max_order = order - 1
            continue
        content = bytes_rng.bytes(machine.page_size << order)
        machine.memory.write(frame << machine.page_shift, content)
        checksum = partial_sum(content, checksum, machine.spec.architecture)
        kho.preserve_folio(frame, order)
        folios.append((frame, order))
        left -= 1 << order
    words = np.array([f << machine.page_shift | o for f, o in folios], "<u8")
    test = KhoTest(0, folios, checksum)
    if kho.profile.has("vmalloc"):
        test.area = kho.vmalloc(max(1, words.nbytes))
        kho.vmalloc_write(test.area, words)
        test.descriptor = kho.preserve_vmalloc(test.area)
        info = pack(kho_vmalloc, test.descriptor.values)
        size = machine.page_size
    else:
        info = words.tobytes()
        size = machine.page_size + len(info)
        size = machine.page_size << (-(-size // machine.page_size) - 1).bit_length()
    writer = FdtWriter(size)
    writer.begin_node("")
    writer.property_string("compatible", abi_test.KHO_TEST_COMPATIBLE)
    writer.property(abi_test.PROP_MAGIC, abi_test.KHO_TEST_MAGIC.to_bytes(4, "little"))
    writer.begin_node(abi_test.NODE_DATA)
    writer.property(abi_test.PROP_NR_FOLIOS, len(folios).to_bytes(4, "little"))
    writer.property(abi_test.PROP_FOLIOS_INFO, info)
    writer.property(abi_test.PROP_CSUM, checksum.to_bytes(4, "little"))
    writer.end_node()
    writer.end_node()
    blob = writer.finish()
    test.address = kho.alloc_preserve(size)
    machine.memory.write(test.address, writer.page())
    kho.add_blob(abi_test.KHO_TEST_NODE_NAME, test.address, len(blob))
    return test


def partial_sum(data: bytes, start: int, architecture: str = "x86_64") -> int:
    """The kernel's partial Internet checksum of ``data`` added to ``start``, 32 bits.

    Ones' complement sums have two zeros and many representations; which one comes out depends
    on the architecture's way of folding: x86-64 folds 64 bits to 32, the generic code used on
    arm64 folds to 16 bits first and adds that to ``start``.
    """
    words = np.frombuffer(data[: len(data) & ~3], "<u4")
    total = int(words.sum(dtype=np.uint64)) + int.from_bytes(data[len(data) & ~3 :], "little")
    if architecture == "x86_64":
        return _canonical(total + start, 32)
    total = _canonical(total, 16) + start
    return total & 0xFFFFFFFF if total <= 0xFFFFFFFF else (total & 0xFFFFFFFF) + 1


def _canonical(total: int, bits: int) -> int:
    """A sum with end-around carry: 0 only if nothing but zeros was added."""
    return (total - 1) % ((1 << bits) - 1) + 1 if total else 0
