"""Kaitai Struct specifications of the ABI, and the parsers generated from them.

A second, independent description of the formats that :mod:`abi` decodes, usable from
every language that Kaitai Struct compiles to (see ``docs/kaitai.md``). The specifications
are the ``.ksy`` files of this package; the Python parsers are in ``specs.generated``::

    >>> from specs import Luo, parse
    >>> block = parse(Luo.SessionBlock, page, 4096)     # one page, page size as parameter
    >>> [s.name.text for s in block.sessions]
    [b'vm-alpha', b'db-cache']

One stream cannot follow physical pointers; :mod:`specs.follow` does, given something that
reads physical memory, and :mod:`specs.reader` reads a whole image that way.
"""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import Any

from kaitaistruct import KaitaiStream, KaitaiStructError

#: What a parser raises for bytes that it refuses: the runtime's own errors (a stream that
#: ends early, a value that a ``valid`` key forbids), and text that is not ASCII.
PARSE_ERRORS: tuple[type[Exception], ...] = (KaitaiStructError, EOFError, UnicodeDecodeError)

#: Top-level parser -> module below ``specs.generated``, which is also the name of its ``.ksy``.
PARSERS: dict[str, str] = {
    "AmdIommuTables": "amd_iommu_tables",
    "CString": "c_string",
    "DmaAllocLuo": "dma_alloc_luo",
    "Fdt": "fdt",
    "FolioEntry": "folio_entry",
    "GuestMemfdLuo": "guest_memfd_luo",
    "HugetlbLuo": "hugetlb_luo",
    "IommuLuo": "iommu_luo",
    "IommuLuoRfc": "iommu_luo_rfc",
    "IommufdLuo": "iommufd_luo",
    "KexecMetadata": "kexec_metadata",
    "KhoBitmaps": "kho_bitmaps",
    "KhoBlock": "kho_block",
    "KhoBoot": "kho_boot",
    "KhoFdtProps": "kho_fdt_props",
    "KhoRadix": "kho_radix",
    "KhoSelftest": "kho_selftest",
    "KhoVmalloc": "kho_vmalloc",
    "KhoXarray": "kho_xarray",
    "KvmLuo": "kvm_luo",
    "LiveupdateUapi": "liveupdate_uapi",
    "Luo": "luo",
    "MemfdLuo": "memfd_luo",
    "PciLuo": "pci_luo",
    "QemuCpr": "qemu_cpr",
    "Smmuv3Tables": "smmuv3_tables",
    "TmpfsLuo": "tmpfs_luo",
    "VfioPciLuo": "vfio_pci_luo",
    "VtdTables": "vtd_tables",
}


def __getattr__(name: str) -> Any:
    """Import a top-level parser when it is first asked for."""
    if name not in PARSERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    parser = getattr(import_module(f"{__name__}.generated.{PARSERS[name]}"), name)
    globals()[name] = parser
    return parser


def __dir__() -> list[str]:
    return sorted([*globals(), *PARSERS])


def parse(parser: Any, data: bytes | bytearray | memoryview, *params: Any) -> Any:
    """Parse ``data`` with a generated class, which gets ``params`` before the stream.

    Raises one of :data:`PARSE_ERRORS` if the bytes are refused. Bytes behind the struct are
    ignored. Instances (attributes computed from a position) are parsed when first used, and
    may raise then.
    """
    return parser(*params, KaitaiStream(BytesIO(data)))
