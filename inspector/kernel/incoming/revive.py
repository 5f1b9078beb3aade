"""The small clients of KHO in the kernel that takes over.

Blobs are looked up by name in the root FDT; ``reserve_mem`` regions are revived, the
kexec-metadata record is read, the self test restores its folios and compares their checksum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abi import fdt, memblock
from abi import kho_test as abi_test
from abi import luo as abi_luo
from abi.boot import CMD_LINE_PTR_OFFSET
from abi.kexec_metadata import (
    KHO_KEXEC_METADATA_VERSION,
    KHO_METADATA_NODE_NAME,
    kho_kexec_metadata,
)
from abi.kho_test import FoliosInfo, KhoTestGeneration
from abi.vmalloc import kho_vmalloc
from inspector.budget import stored_bytes
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming import libfdt
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.pages import restore_vmalloc, take_folios
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.kernel.outgoing.clients import ReserveMem
from inspector.memory.base import U64Array
from inspector.text import c_string, path_component

#: Folio content that is summed at a time, bytes.
_PIECE = 1 << 20
#: Content of a self test that is summed up, even if the image stores less.
_MOST_CONTENT = 1 << 30
_RESERVE_MEM = re.compile(
    rb"(?:^| )reserve_mem=(0x[0-9a-fA-F]+|[1-9][0-9]*[KMGkmg]?):"
    rb"(0x[0-9a-fA-F]+|[1-9][0-9]*[KMGkmg]?):([^ :]+)"
)
_CLIENTS = frozenset(
    name.encode()
    for name in (
        memblock.MEMBLOCK_NODE_NAME,
        KHO_METADATA_NODE_NAME,
        abi_test.KHO_TEST_NODE_NAME,
        abi_luo.LUO_KHO_ENTRY_NAME,
    )
)
#: Blobs that nobody asks for, told one by one.
_MOST_BLOBS = 64


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob as this kernel finds it. ``size`` is None where the format carries none."""

    name: str
    address: int
    size: int | None

    @property
    def path(self) -> str:
        """Its path in the tree."""
        return f"/{self.name}"


@dataclass(slots=True)
class Clients:
    """What the small clients got."""

    #: name -> (address, size) of revived regions.
    reserve_mem: dict[str, tuple[int, int]]
    previous_release: str | None = None
    kexec_count: int | None = None
    #: Whether the self test passed; None if it did not run or could not be decided.
    kho_test: bool | None = None


def find_blob(boot: Booting, name: str) -> Blob | None:
    """Look a blob up. None if it was not handed over; raises KernelErrno (EINVAL)."""
    assert boot.tree is not None
    node = boot.tree.child(name.encode())
    if node is None:
        return None
    generation = boot.generation
    value = node.get(generation.blob_property.encode())
    if value is None or len(value) != 8:
        raise KernelErrno("EINVAL", f"blob {name!r} has no usable {generation.blob_property}")
    size = None
    if generation.size_property is not None:
        raw = node.get(generation.size_property.encode())
        if raw is None or len(raw) != 8:
            raise KernelErrno("EINVAL", f"blob {name!r} has no usable {generation.size_property}")
        size = fdt.native_u64(raw)
    return Blob(name, fdt.native_u64(value), size)


def read_tree(boot: Booting, blob: Blob) -> libfdt.Node:
    """The root of a blob's device tree, as libfdt reads it: no further than it is asked.

    Raises Absent, PageFault, FdtError; its methods do so, too.
    """
    return libfdt.Node(libfdt.Blob(boot.view.read, blob.address))


def revive(boot: Booting, wanted: Sequence[ReserveMem] | None) -> Clients:
    """Run the small clients. ``wanted`` None: the command line asks for what was handed over."""
    found = Clients({})
    _nobody_asks(boot)
    for name, client in (
        (memblock.MEMBLOCK_NODE_NAME, lambda b: _reserve_mem(boot, found, b, wanted)),
        (KHO_METADATA_NODE_NAME, lambda b: _metadata(boot, found, b)),
        (abi_test.KHO_TEST_NODE_NAME, lambda b: _self_test(boot, found, b)),
    ):
        if name == KHO_METADATA_NODE_NAME and not boot.kernel.has("kexec-metadata"):
            continue
        _run(boot, name, client)
    return found


def _run(boot: Booting, name: str, client: object) -> None:
    path = f"/{name}"
    try:
        blob = find_blob(boot, name)
        if blob is not None:
            client(blob)  # type: ignore[operator]
        elif name == memblock.MEMBLOCK_NODE_NAME:
            for region in asked_for(boot):
                _fresh(boot, region.name, path, boot.root)
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, lack.why or f"what {name} handed over is not in the image",
            path=path, address=lack.address,
        )  # fmt: skip
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"{name} leads to {fault.address:#x}, outside memory", path=path,
            address=fault.address,
        )  # fmt: skip
    except (fdt.FdtError, KernelErrno) as error:
        if name == KHO_METADATA_NODE_NAME:
            boot.notes.append(f"kexec-metadata is ignored: {error}")
        else:
            boot.reasons.add(Outcome.STATE_LOST, f"{name} is lost: {error}", path=path)


def _nobody_asks(boot: Booting) -> None:
    """Blobs whose name no client of any kernel looks up."""
    assert boot.tree is not None
    for node in boot.tree.children[:_MOST_BLOBS]:
        if node.name.partition(b"@")[0] not in _CLIENTS:
            name = path_component(node.name)
            boot.reasons.add(
                Outcome.STATE_LOST, "nobody asks for a blob of this name", path=f"/{name}",
                address=boot.root,
            )  # fmt: skip
    if boot.root_ends:
        return
    message = "the root FDT is damaged: what comes behind is not found, and nobody says so"
    # A kernel with LUO always has a blob for it.
    if boot.kernel.has("luo") and boot.tree.child(abi_luo.LUO_KHO_ENTRY_NAME.encode()) is None:
        boot.reasons.add(Outcome.STATE_LOST, message, path="/", address=boot.root)
    else:
        boot.notes.append(message)


# -- reserve_mem --------------------------------------------------------------------------------


def _reserve_mem(
    boot: Booting, found: Clients, blob: Blob, wanted: Sequence[ReserveMem] | None
) -> None:
    root = read_tree(boot, blob)
    if memblock.MEMBLOCK_COMPATIBLE.encode() not in root.compatible:
        _lost_region(boot, blob.path, "the blob does not say memblock-v1", blob.address)
        return
    nodes = root.children
    # A name without a unit finds a node that has one.
    names = [n.name.partition(b"@")[0].decode("utf-8", "backslashreplace") for n in nodes]
    own = asked_for(boot) if wanted is None else None
    asked = {r.name: r for r in wanted or own or ()} if wanted is not None or own else None
    found_names: set[str] = set()
    for name, node in zip(names, nodes, strict=True):
        if name in found_names:
            continue  # the first of a name is the one that is found
        found_names.add(name)
        path = f"{blob.path}/{name}"
        start, size = node.get(memblock.PROP_START.encode()), node.get(memblock.PROP_SIZE.encode())
        usable = start is not None and size is not None and len(start) == len(size) == 8
        if memblock.RESERVE_MEM_COMPATIBLE.encode() not in node.compatible or not usable:
            _lost_region(boot, path, "its description is malformed", blob.address)
            continue
        at, length = fdt.native_u64(start or b""), fdt.native_u64(size or b"")
        if asked is not None:
            if name not in asked and own:
                boot.reasons.add(
                    Outcome.STATE_LOST,
                    "the command line does not ask for this region: its memory stays reserved",
                    path=path, address=blob.address,
                )  # fmt: skip
                continue
            if name not in asked:
                boot.notes.append(f"region {name} is not asked for: its memory stays reserved")
                continue
            want = asked[name]
            if want.size != length or (want.align and at % want.align):
                _lost_region(
                    boot, path, f"{length:#x} bytes at {at:#x} are not what the command line asks"
                    f" for ({want.size:#x}, aligned to {want.align:#x})", at,
                )  # fmt: skip
                continue
        if boot.view.in_ram(at) is False:
            boot.reasons.add(
                Outcome.STATE_LOST,
                f"region {at:#x}+{length:#x} is revived outside memory, the old one is lost",
                path=path, address=at,
            )  # fmt: skip
        elif not _covered(boot, at, length):
            boot.reasons.add(
                Outcome.CORRUPTION, f"region {at:#x}+{length:#x} is revived but not preserved",
                path=path, address=at,
            )  # fmt: skip
        found.reserve_mem[name] = (at, length)
    for name in asked or ():
        if name not in names and own:
            _fresh(boot, name, blob.path, blob.address)
        elif name not in names:
            boot.notes.append(f"region {name} was not handed over: a fresh one is made")


def _fresh(boot: Booting, name: str, path: str, address: int) -> None:
    """A region that is asked for and was not handed over.

    Early boot has no memory but scratch, so that is where it goes; handing it over again is
    then refused (with KEXEC_HANDOVER_DEBUG with a warning at once).
    """
    boot.reasons.add(
        Outcome.TAKEN_OVER_WITH_WARNINGS,
        f"the command line asks for region {name!r}, which was not handed over: a fresh one is made"
        " in scratch memory, which cannot be handed over",
        path=path, address=address, dmesg="kho_preserve_pages",
    )  # fmt: skip


def asked_for(boot: Booting) -> tuple[ReserveMem, ...]:
    """The regions that the new kernel's command line asks for, if the image holds that line."""
    if boot.handover is None or boot.handover.parent is None:
        return ()
    try:
        raw = boot.view.read(boot.handover.parent + CMD_LINE_PTR_OFFSET, 4)
        pointer = int.from_bytes(raw, "little")
        # It may end anywhere in its page.
        line = c_string(boot.view.read(pointer, min(2048, -pointer % boot.view.page_size or 2048)))
    except (Absent, PageFault):
        return ()
    found = []
    for size, align, name in _RESERVE_MEM.findall(line):
        text = name.decode("ascii", "backslashreplace")
        found.append(ReserveMem(text, _memparse(size), max(_memparse(align), 4096)))
    return tuple(found)


def _memparse(text: bytes) -> int:
    unit = b"KMGTPE".find(text[-1:].upper()) + 1 if text[-1:].isalpha() else 0
    digits = text[:-1] if unit else text
    return int(digits, 0) << 10 * unit


def _covered(boot: Booting, at: int, length: int) -> bool:
    assert boot.preserved is not None
    if not length:
        return True
    end = min(at + length, (1 << 64) - 1)
    start = np.array([min(at, (1 << 64) - 1)], np.uint64)
    return bool(boot.preserved.covers(start, end - int(start[0]))[0])


def _lost_region(boot: Booting, path: str, why: str, address: int) -> None:
    boot.reasons.add(
        Outcome.STATE_LOST, f"{why}: a fresh region is made, the old one is lost", path=path,
        address=address,
    )  # fmt: skip


# -- kexec-metadata -------------------------------------------------------------------------------


def _metadata(boot: Booting, found: Clients, blob: Blob) -> None:
    size = blob.size or 0
    version = int.from_bytes(boot.view.read(blob.address, 4), "little") if size >= 4 else None
    if version != KHO_KEXEC_METADATA_VERSION or size < kho_kexec_metadata.size:
        known = version in (None, KHO_KEXEC_METADATA_VERSION)
        boot.reasons.add(
            Outcome.TAKEN_OVER_WITH_WARNINGS,
            f"kexec-metadata of {f'{size} bytes' if known else f'version {version}'} is ignored",
            path=blob.path, address=blob.address,
            dmesg="kexec-metadata is too short" if known else "kexec-metadata version",
        )  # fmt: skip
        return
    values = kho_kexec_metadata.unpack(boot.view.read(blob.address, kho_kexec_metadata.size))
    found.previous_release = c_string(values["previous_release"]).decode("utf-8", "replace")
    found.kexec_count = values["kexec_count"]


# -- the self test --------------------------------------------------------------------------------


def _self_test(boot: Booting, found: Clients, blob: Blob) -> None:
    generation = boot.kernel.get("kho-test")
    if not isinstance(generation, KhoTestGeneration):
        return
    root = read_tree(boot, blob)
    node = root.child(abi_test.NODE_DATA.encode())
    count = _word(node, abi_test.PROP_NR_FOLIOS)
    csum = _word(node, abi_test.PROP_CSUM)
    info = node.get(abi_test.PROP_FOLIOS_INFO.encode()) if node is not None else None
    if count is None or csum is None or info is None:
        _test_failed(boot, blob, "a property is missing or malformed")
        return
    if abi_test.KHO_TEST_COMPATIBLE.encode() not in root.compatible:
        _test_failed(boot, blob, "it does not say that it is a test's")
        return
    if _word(root, abi_test.PROP_MAGIC) != abi_test.KHO_TEST_MAGIC:
        _test_failed(boot, blob, "magic is wrong")
        return
    if generation.folios_info is FoliosInfo.ARRAY:
        if len(info) != 8 * count:
            _test_failed(boot, blob, f"{len(info)} bytes of folios_info for {count} folios")
            return
        folios = np.frombuffer(info, "<u8").astype(np.uint64)
    else:
        if len(info) != kho_vmalloc.size:
            _test_failed(boot, blob, f"folios_info of {len(info)} bytes is no vmalloc descriptor")
            return
        area = restore_vmalloc(boot, kho_vmalloc.unpack(info), blob.path)
        folios = area.words(boot, min(count, area.size // 8))
    _restore_test(boot, found, blob, folios, csum)


def _restore_test(boot: Booting, found: Clients, blob: Blob, folios: U64Array, csum: int) -> None:
    shift = np.uint64(boot.view.page_shift)
    orders = take_folios(boot, folios >> shift)
    if (orders < 0).any():
        i = int(np.flatnonzero(orders < 0)[0])
        _test_failed(boot, blob, f"folio {int(folios[i]):#x} is not preserved")
        return
    # What the test has restored it frees, be it its own or not.
    for order in np.unique(orders).tolist():
        boot.freed.add((folios >> shift)[orders == order], order)
    total = csum_of = 0
    content = sum((boot.view.page_size << order) for order in orders.tolist())
    if content > max(_MOST_CONTENT, stored_bytes(boot.view.memory)):
        raise Absent(blob.address, f"the self test's folios are of {content} bytes: not summed up")
    for address, order in zip((folios >> shift << shift).tolist(), orders.tolist(), strict=True):
        size = boot.view.page_size << order
        for at in range(address, address + size, _PIECE):
            piece = min(_PIECE, address + size - at)
            if not boot.view.present(at, piece):
                boot.notes.append("kho_test: content is not in the image, its sum is not checked")
                return
            total += abi_test.partial_sum(boot.view.read(at, piece))
    csum_of = abi_test.partial_sum(b"", total)
    found.kho_test = csum_of == abi_test.partial_sum(b"", csum)
    if not found.kho_test:
        boot.reasons.add(
            Outcome.CORRUPTION, f"the self test's folios sum up to {csum_of:#x}, not {csum:#x}",
            path=blob.path, address=blob.address, dmesg="KHO restore failed",
        )  # fmt: skip


def _test_failed(boot: Booting, blob: Blob, why: str) -> None:
    boot.reasons.add(
        Outcome.STATE_LOST, f"the self test is not restored: {why}", path=blob.path,
        address=blob.address, dmesg="KHO restore failed",
    )  # fmt: skip


def _word(node: libfdt.Node | None, name: str) -> int | None:
    value = node.get(name.encode()) if node is not None else None
    return int.from_bytes(value, "little") if value is not None and len(value) == 4 else None
