"""The small clients of KHO: blobs, kexec-metadata, reserve_mem, the self test."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from abi import fdt, memblock
from abi.kexec_metadata import KHO_KEXEC_METADATA_VERSION, kho_kexec_metadata
from abi.kho import KhoGeneration
from abi.kho_test import (
    KHO_TEST_MAGIC,
    NODE_DATA,
    PROP_CSUM,
    PROP_FOLIOS_INFO,
    PROP_MAGIC,
    PROP_NR_FOLIOS,
)
from abi.vmalloc import kho_vmalloc
from inspector.memory.base import MemoryFault, U64Array
from inspector.survey import Survey
from inspector.text import c_string, path_component
from inspector.walk.fdt import read_blob
from inspector.walk.vmalloc import Vmalloc, walk_vmalloc, word_columns


@dataclass(frozen=True, slots=True)
class Blob:
    """A subnode of the root FDT. ``size`` is None where the format carries none."""

    path: str
    name: bytes
    address: int
    size: int | None


@dataclass(frozen=True, slots=True)
class ReserveMem:
    """A named region of the ``reserve_mem=`` command line option; bytes."""

    path: str
    name: bytes
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class KexecMetadata:
    """Who wrote the image and how many kexecs there have been since the last cold boot."""

    address: int
    version: int
    previous_release: bytes | None
    kexec_count: int | None


@dataclass(frozen=True, slots=True)
class KhoTest:
    """The in-kernel self test: folios with a checksum. ``folios`` are (address | order)."""

    address: int
    magic: int | None
    nr_folios: int | None
    csum: int | None
    vmalloc: Vmalloc | None
    folios: U64Array = field(default_factory=lambda: np.empty(0, np.uint64))


def walk_blobs(
    survey: Survey,
    generation: KhoGeneration | None,
    root: fdt.Node,
    address: int | None = None,
) -> list[Blob]:
    """The blobs a root FDT, which lies at ``address``, registers.

    Without a known generation the property that exists is taken (``preserved-data``, else
    ``fdt``). Findings: ``KHO-ROOT-004`` property missing or of the wrong length.
    """
    found = []
    for node in root.children:
        path = f"/{path_component(node.name)}"
        names = (
            (generation.blob_property.encode(),)
            if generation is not None
            else (b"preserved-data", b"fdt")
        )
        value = next((v for n in names if (v := node.get(n)) is not None), None)
        if value is None or len(value) != 8:
            survey.findings.error(
                "KHO-ROOT-004",
                f"{names[0].decode()} {'is missing' if value is None else 'has not 8 bytes'}",
                path=path,
                address=address,
            )
            continue
        size = node.get(b"blob-size")
        wants = generation is not None and generation.size_property is not None
        if wants and (size is None or len(size) != 8):
            survey.findings.error(
                "KHO-ROOT-005",
                "blob-size is missing or has not 8 bytes",
                path=path,
                address=address,
            )
        known = fdt.native_u64(size) if size is not None and len(size) == 8 else None
        found.append(Blob(path, node.name, fdt.native_u64(value), known))
    return found


#: A blob that claims to be larger is read to the end of its page.
MAX_BLOB = 1 << 20


def read_client(survey: Survey, blob: Blob) -> bytes | None:
    """The bytes of a blob: ``blob-size`` of them, or as long as its FDT header says."""
    if not survey.pointer(blob.address, blob.path, "blob", align=1):
        return None
    try:
        if blob.size is not None:
            size = blob.size
            if size > MAX_BLOB:
                survey.findings.error(
                    "KHO-ROOT-006", f"blob-size {blob.size:#x} is implausible",
                    path=blob.path, address=blob.address,
                )  # fmt: skip
                size = survey.page_size - blob.address % survey.page_size
            data = survey.memory.read(blob.address, size)
        else:
            data = read_blob(survey.memory, blob.address)
    except MemoryFault as fault:
        survey.hole(fault.address, blob.path, fault.state)
        return None
    except fdt.FdtError as error:
        survey.findings.error(
            "KHO-ROOT-007", f"blob: {error}", path=blob.path, address=blob.address
        )
        return None
    survey.claim("blob", blob.path, blob.address, max(len(data), 1))
    return data


def _tree(survey: Survey, blob: Blob, data: bytes) -> fdt.Node | None:
    try:
        return fdt.parse(data).root
    except fdt.FdtError as error:
        survey.findings.error(
            "KHO-ROOT-007", f"blob: {error}", path=blob.path, address=blob.address
        )
        return None


def walk_reserve_mem(survey: Survey, blob: Blob, data: bytes) -> list[ReserveMem]:
    """The regions of memblock's blob. Findings ``KHO-RSV-001`` (strings), ``-002`` (values)."""
    root = _tree(survey, blob, data)
    if root is None:
        return []
    if memblock.MEMBLOCK_COMPATIBLE.encode() not in root.compatible:
        survey.findings.error(
            "KHO-RSV-001",
            "the blob is not compatible with memblock-v1",
            path=blob.path,
            address=blob.address,
        )
    regions = []
    for node in root.children:
        path = f"{blob.path}/{path_component(node.name)}"
        start, size = node.get(b"start"), node.get(b"size")
        if start is None or size is None or len(start) != 8 or len(size) != 8:
            survey.findings.error(
                "KHO-RSV-002",
                "start or size is missing or has not 8 bytes",
                path=path,
                address=blob.address,
            )
            continue
        if memblock.RESERVE_MEM_COMPATIBLE.encode() not in node.compatible:
            survey.findings.error(
                "KHO-RSV-001",
                "the region is not compatible with reserve-mem-v1",
                path=path,
                address=blob.address,
            )
        region = ReserveMem(path, node.name, fdt.native_u64(start), fdt.native_u64(size))
        survey.claim("reserve-mem", path, region.start, region.size)
        regions.append(region)
    return regions


def walk_metadata(survey: Survey, blob: Blob, data: bytes) -> KexecMetadata | None:
    """kexec-metadata. Findings ``KHO-META-001`` too short, ``-002`` unknown version."""
    if len(data) < 4:
        survey.findings.warning(
            "KHO-META-001",
            f"{len(data)} bytes are too few: ignored",
            path=blob.path,
            address=blob.address,
        )
        return None
    version = int.from_bytes(data[:4], "little")
    if version != KHO_KEXEC_METADATA_VERSION:
        survey.findings.warning(
            "KHO-META-002",
            f"version {version} is unknown: ignored",
            path=blob.path,
            address=blob.address,
        )
        return KexecMetadata(blob.address, version, None, None)
    if len(data) < kho_kexec_metadata.size:
        survey.findings.warning(
            "KHO-META-001",
            f"{len(data)} bytes are too few: ignored",
            path=blob.path,
            address=blob.address,
        )
        return None
    survey.place(kho_kexec_metadata, blob.address, blob.path)
    values = kho_kexec_metadata.unpack(data)
    return KexecMetadata(
        blob.address, version, c_string(values["previous_release"]), values["kexec_count"]
    )


def _describes_two(info: bytes, page_size: int) -> bool:
    """Whether 16 bytes describe the area of a list of two folios, rather than are that list."""
    if len(info) != kho_vmalloc.size:
        return False
    values = kho_vmalloc.unpack(info)
    return bool(
        values["first"] % page_size == 0
        and values["flags"] & 1
        and values["order"] < 20
        and values["total_pages"] == 1 << values["order"]
    )


def walk_kho_test(survey: Survey, blob: Blob, data: bytes) -> KhoTest | None:
    """The self test, in the plain form (6.16, 6.17) or with a vmalloc array (6.18 on)."""
    root = _tree(survey, blob, data)
    if root is None:
        return None

    def word(node: fdt.Node | None, name: str) -> int | None:
        value = node.get(name.encode()) if node is not None else None
        return int.from_bytes(value, "little") if value is not None and len(value) == 4 else None

    magic = word(root, PROP_MAGIC)
    if magic != KHO_TEST_MAGIC:
        survey.findings.warning(
            "KHO-TEST-001", "magic is wrong or missing", path=blob.path, address=blob.address
        )
    node = root.child(NODE_DATA.encode())
    count, csum = word(node, PROP_NR_FOLIOS), word(node, PROP_CSUM)
    info = node.get(PROP_FOLIOS_INFO.encode()) if node is not None else None
    vmalloc = None
    folios = np.empty(0, np.uint64)
    if info is not None and count is not None:
        if len(info) == 8 * count and not _describes_two(info, survey.page_size):
            folios = np.frombuffer(info, "<u8").astype(np.uint64)
        elif len(info) == kho_vmalloc.size:
            vmalloc = walk_vmalloc(survey, kho_vmalloc.unpack(info), blob.path)
            folios = word_columns(survey, vmalloc, 1, count, blob.path)[0][:, 0]
    mask = np.uint64(survey.page_size - 1)
    order = np.minimum(folios & mask, np.uint64(51))
    used = folios != 0
    survey.claim(
        "folio", blob.path, (folios & ~mask)[used], (np.uint64(survey.page_size) << order)[used]
    )
    return KhoTest(blob.address, magic, count, csum, vmalloc, folios)
