"""kexec-metadata (7.1 on): who wrote the image, and how many kexecs there have been.

The blob ``kexec-metadata``. The reader wants 4 bytes, then version 1, then all 73 bytes; else
it ignores the blob with a warning. The first kexec writes count 1, each consumer adds 1.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, chars, u32

KHO_METADATA_NODE_NAME = "kexec-metadata"
KHO_KEXEC_METADATA_VERSION = 1

kho_kexec_metadata = Struct(
    "kho_kexec_metadata",
    "version" / u32 * "1",
    "previous_release" / chars(65) * "release of the kernel that wrote this, terminated",
    "kexec_count" / u32 * "kexecs since the last cold boot",
    doc="The blob; its last member is not aligned.",
)

GENERATIONS: tuple[Generation, ...] = (
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
        notes="Versioned by its first member.",
    ),
)
