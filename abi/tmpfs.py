"""tmpfs mounts: the options of a mount that is made again after the update.

Never in a release. The handler string is ``tmpfs-mnt-v1``; the file is the mount's
descriptor. The files of the mount are not part of it.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, u32, u64

tmpfs_luo_mnt_ser = Struct(
    "tmpfs_luo_mnt_ser",
    "max_blocks" / u64 * "size limit, in pages",
    "mode" / u32 * "of the root directory",
    "flags" / u32,
    doc="A tmpfs mount.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="tmpfs",
        id="tmpfs-mnt-v1",
        strings=("tmpfs-mnt-v1",),
        layouts={"tmpfs_luo_mnt_ser": tmpfs_luo_mnt_ser},
        provenance="tmpfs mount preservation development tree",
        date="2026",
        census=("tmpfs-mnt-v1",),
    ),
)
