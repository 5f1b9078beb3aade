"""Faults of the hand-over, the root FDT, its blobs, scratch and the preserved-memory map."""

from __future__ import annotations

from collections.abc import Iterator

from abi import boot, kexec_metadata
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.outgoing.preserved import BitmapMap, RadixMap

fault = Library()


# -- hand-over ------------------------------------------------------------------------------


def _kho_data(target: Target) -> int:
    """Address of struct kho_data; x86 only."""
    segments = target.image.segments
    if target.kernel.machine.spec.architecture != "x86_64" or not segments.root:
        raise Inapplicable("needs a hand-over through setup_data")
    at = segments.parameters + 0x1000 + boot.setup_data_hdr.size
    if target.u64(at) != segments.root:
        raise Inapplicable("the segments are not in place yet")
    return at


def _field(name: str) -> int:
    return boot.kho_data.field(name).offset


@fault("handover-fdt-size-zero", 0, "size of the root FDT handed over as 0: KHO is disabled")
def _fdt_size_zero(target: Target) -> None:
    target.write_u64(_kho_data(target) + _field("fdt_size"), 0)


@fault("handover-fdt-size-1024", 0, "size of the root FDT handed over as 1024: accepted")
def _fdt_size_small(target: Target) -> None:
    target.write_u64(_kho_data(target) + _field("fdt_size"), 1024)


@fault("handover-fdt-unmapped", 1, "address of the root FDT beyond the end of memory")
def _fdt_outside(target: Target) -> None:
    target.write_u64(_kho_data(target) + _field("fdt_addr"), _beyond(target))


@fault("handover-scratch-size-zero", 5, "size of the scratch array handed over as 0")
def _scratch_size_zero(target: Target) -> None:
    target.write_u64(_kho_data(target) + _field("scratch_size"), 0)


@fault("handover-scratch-partial-entry", 5, "scratch array ends inside an entry")
def _scratch_partial(target: Target) -> None:
    size = target.image.segments.scratch_size
    target.write_u64(_kho_data(target) + _field("scratch_size"), size + 8)


# -- scratch --------------------------------------------------------------------------------


def _scratch(target: Target, count: int) -> list[int]:
    """Addresses of entries of the scratch array whose areas are not empty."""
    array = target.image.segments.scratch_array
    found = [array + 16 * i for i, (_, size) in enumerate(target.kernel.machine.scratch) if size]
    if len(found) < count or not target.u64(found[0]):
        raise Inapplicable(f"needs {count} scratch area(s) in place")
    return found


@fault("scratch-overlap", 5, "two scratch areas overlap by a page")
def _scratch_overlap(target: Target) -> None:
    first, second = sorted(_scratch(target, 2)[:2], key=target.u64)
    gap = target.u64(second) - target.u64(first)
    target.write_u64(first + 8, gap + target.page)


@fault("scratch-unaligned", 5, "a scratch area begins 512 bytes late")
def _scratch_unaligned(target: Target) -> None:
    entry = _scratch(target, 1)[-1]
    target.write_u64(entry, target.u64(entry) + 512)
    target.write_u64(entry + 8, target.u64(entry + 8) - target.page)


@fault("scratch-beyond-memory", 5, "a scratch area lies beyond the end of memory")
def _scratch_outside(target: Target) -> None:
    target.write_u64(_scratch(target, 1)[-1], _beyond(target))


# -- root FDT -------------------------------------------------------------------------------


@fault("root-magic", 1, "magic of the root FDT destroyed")
def _root_magic(target: Target) -> None:
    target.write(target.kernel.kho.root, b"\xde\xad\xbe\xef")


@fault("root-compatible", 1, "compatible of the root FDT unknown")
def _root_compatible(target: Target) -> None:
    new = target.kernel.kho.compatible[:-1] + "9"
    target.set_root_property("/", "compatible", new.encode() + b"\0")


@fault("root-total-size", 1, "total size of the root FDT larger than a page")
def _root_size(target: Target) -> None:
    target.write(target.kernel.kho.root + 4, (target.page * 2).to_bytes(4, "big"))


@fault("root-map-missing", 1, "root FDT without the property that points to the map")
def _root_no_map(target: Target) -> None:
    name = target.kernel.kho.generation.map_property
    target.edit_root(lambda e: e.delete_property("/", name))


@fault("root-map-zero", 1, "pointer to the map is 0")
def _root_zero_map(target: Target) -> None:
    name = target.kernel.kho.generation.map_property
    target.set_root_property("/", name, bytes(8))


@fault("root-not-preserved", 2, "page of the root FDT missing in the map")
def _root_unpreserved(target: Target) -> None:
    target.set_block(target.kernel.kho.root // target.page, 0, on=False)


def _blob(target: Target) -> tuple[str, int]:
    """Name and address of a blob that is a page by itself."""
    for name, blob in reversed(target.kernel.kho.blobs.items()):
        if target.preserved(blob.address // target.page, 0):
            return name, blob.address
    raise Inapplicable("the root has no blob of one page")


@fault("blob-not-preserved", 2, "page of a blob missing in the map")
def _blob_unpreserved(target: Target) -> None:
    target.set_block(_blob(target)[1] // target.page, 0, on=False)


@fault("blob-beyond-memory", 2, "a blob beyond the end of memory")
def _blob_outside(target: Target) -> None:
    name, _ = _blob(target)
    prop, value = target.kernel.kho.generation.blob_property, _beyond(target)
    target.set_root_property(f"/{name}", prop, value.to_bytes(8, "little"))


@fault("blob-size-too-large", 2, "blob-size reaches beyond the preserved block")
def _blob_size(target: Target) -> None:
    name, _ = _blob(target)
    prop = target.kernel.kho.generation.size_property
    if prop is None:
        raise Inapplicable("the format has no blob sizes")
    value = (target.page * 3).to_bytes(8, "little")
    target.set_root_property(f"/{name}", prop, value)


@fault("metadata-version", 10, "kexec-metadata of version 2: ignored with a warning")
def _metadata_version(target: Target) -> None:
    target.write_u32(_metadata(target), 2)


@fault("metadata-count", 10, "kexec count lower than the number of live updates")
def _metadata_count(target: Target) -> None:
    at = _metadata(target) + kexec_metadata.kho_kexec_metadata.field("kexec_count").offset
    if target.kernel.luo_or_none is None:
        raise Inapplicable("needs a live update orchestrator")
    target.write_u32(at, 0)


def _metadata(target: Target) -> int:
    blob = target.kernel.kho.blobs.get(kexec_metadata.KHO_METADATA_NODE_NAME)
    if blob is None:
        raise Inapplicable("the kernel writes no kexec-metadata")
    return blob.address


# -- map ------------------------------------------------------------------------------------


def _beyond(target: Target) -> int:
    """An address behind all memory, aligned to a gigabyte."""
    end = max(r.end for r in target.kernel.machine.spec.ram)
    return (end + (4 << 30)) >> 30 << 30


def _radix(target: Target) -> RadixMap:
    block_map = target.kernel.kho.map
    if not isinstance(block_map, RadixMap):
        raise Inapplicable("the map is no radix tree")
    return block_map


def _chunks(target: Target, count: int = 1) -> list[int]:
    block_map = target.kernel.kho.map
    if not isinstance(block_map, BitmapMap) or len(block_map.chunks) < count:
        raise Inapplicable(f"the map has not {count} chunk(s) of bitmaps")
    return block_map.chunks


def _slots(target: Target, table: int) -> Iterator[tuple[int, int]]:
    """(address of the slot, child) of the used slots of a table."""
    for at in range(table, table + target.page, 8):
        child = target.u64(at)
        if child:
            yield at, child


@fault("map-node-unaligned", 3, "a pointer inside the map is not page aligned")
def _map_unaligned(target: Target) -> None:
    block_map = target.kernel.kho.map
    if isinstance(block_map, RadixMap):
        slot, child = next(_slots(target, block_map.root))
        target.write_u64(slot, child + 24)
    else:
        at = _chunks(target)[0] + 16 + 8
        target.write_u64(at, target.u64(at) + 24)


@fault("map-node-beyond-memory", 3, "a pointer inside the map leads beyond the end of memory")
def _map_outside(target: Target) -> None:
    block_map = target.kernel.kho.map
    if isinstance(block_map, RadixMap):
        slot, _ = next(_slots(target, block_map.root))
        target.write_u64(slot, _beyond(target))
    else:
        target.write_u64(_chunks(target)[0] + 16 + 8, _beyond(target))


@fault("map-cycle", 3, "a node of the map is reached twice")
def _map_cycle(target: Target) -> None:
    block_map = target.kernel.kho.map
    if isinstance(block_map, RadixMap):
        slot, _ = next(_slots(target, block_map.root))
        target.write_u64(slot, block_map.root)
    else:
        chunks = _chunks(target)
        target.write_u64(chunks[-1], chunks[0])


@fault("map-key-too-wide", 3, "a slot of the radix root is used that no key can reach")
def _map_wide(target: Target) -> None:
    root = _radix(target).root
    last = root + target.page - 8
    if target.u64(last):
        raise Inapplicable("the last slot of the root is in use")
    target.write_u64(last, target.free_page())


@fault("map-chunk-over-capacity", 3, "a chunk of bitmaps counts more than fit")
def _chunk_count(target: Target) -> None:
    target.write_u32(_chunks(target)[0] + 12, target.page // 16 + 100)


@fault("map-span-unaligned", 3, "a bitmap begins at an address that is no multiple of its span")
def _span(target: Target) -> None:
    at = _chunks(target)[0] + 16
    target.write_u64(at, target.u64(at) + target.page)


@fault("map-garbage", 3, "every node of the map overwritten with garbage")
def _map_garbage(target: Target) -> None:
    for at, size in target.kernel.kho.map.nodes:
        target.write(at, bytes((7 * i + 13) & 255 for i in range(size)))


@fault("map-zeroed", 3, "every node of the map zeroed")
def _map_zero(target: Target) -> None:
    for at, size in target.kernel.kho.map.nodes:
        target.write(at, bytes(size))


@fault("map-overlap", 4, "a block of order 1 overlaps preserved pages")
def _map_overlap(target: Target) -> None:
    target.set_block(target.kernel.kho.root // target.page & ~1, 1)


@fault("map-scratch", 4, "a preserved page lies inside scratch")
def _map_scratch(target: Target) -> None:
    base, size = next((a for a in target.kernel.machine.scratch if a[1]), (0, 0))
    if not size:
        raise Inapplicable("the machine has no scratch")
    target.set_block((base + size // 2) // target.page, 0)


@fault("map-block-beyond-memory", 4, "a preserved page lies beyond the end of memory")
def _map_block_outside(target: Target) -> None:
    target.set_block(_beyond(target) // target.page, 0)


@fault("map-order-impossible", 4, "a block of order 40 is preserved")
def _map_order(target: Target) -> None:
    target.set_block(0, 40)
