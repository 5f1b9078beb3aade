"""tmpfs mounts (handler ``tmpfs-mnt-v1``): the options that the mount is made again with."""

from __future__ import annotations

from dataclasses import dataclass

from abi.registry import Generation
from abi.schema import resolve
from inspector.survey import Survey

#: Permissions, set-id and sticky bits, and the type of a directory.
_MODE = 0o47777


@dataclass(slots=True)
class TmpfsMount:
    """A mount. ``max_blocks`` is its limit in pages; what ``flags`` mean is not known."""

    path: str
    generation: Generation
    address: int
    page_size: int
    max_blocks: int
    mode: int
    flags: int

    @property
    def limit(self) -> int:
        """Its limit in bytes."""
        return self.max_blocks * self.page_size


def walk_tmpfs_mount(
    survey: Survey, generation: Generation, address: int, path: str
) -> TmpfsMount | None:
    """The mount whose struct lies at ``address``; None if it cannot be read.

    Findings: ``KHO-TMP-001`` the mode has bits that no directory has.
    """
    layout = resolve(generation.layouts["tmpfs_luo_mnt_ser"], survey.page_size)
    if not survey.pointer(address, path, layout.cname, align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    mount = TmpfsMount(
        path, generation, address, survey.page_size,
        values["max_blocks"], values["mode"], values["flags"],
    )  # fmt: skip
    if mount.mode & ~_MODE:
        survey.findings.warning(
            "KHO-TMP-001", f"mode {mount.mode:#o} is that of no directory",
            path=path, address=address + 8,
        )  # fmt: skip
    return mount
