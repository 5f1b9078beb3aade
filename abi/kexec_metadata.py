"""kexec-metadata (7.1 on): who wrote the image, and the number of kexecs so far."""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, chars, u32

KHO_METADATA_NODE_NAME = "kexec-metadata"
KHO_KEXEC_METADATA_VERSION = 1

kho_kexec_metadata = Struct(
    "kho_kexec_metadata",
    "version" / u32,
    "previous_release" / chars(65) * "release of the kernel that wrote it, NUL-terminated",
    "kexec_count" / u32 * "1 at the first kexec; each consumer adds 1",
    doc="Ignored with a warning unless version is 1 and all 73 bytes are there.",
)

GENERATIONS = (
    Generation(
        layer="kexec-metadata",
        id="kexec-metadata-v1",
        strings=(),
        layouts={"kho_kexec_metadata": kho_kexec_metadata},
        provenance="Linux 7.1.13, 7.2.12, 7.3.4",
        kernels=("7.1", "7.2", "7.3"),
        date="2026-06",
        constants={"KHO_KEXEC_METADATA_VERSION": KHO_KEXEC_METADATA_VERSION},
        census=("linux-7.1", "linux-7.2", "linux-7.3"),
    ),
)
