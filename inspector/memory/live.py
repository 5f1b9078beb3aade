"""The running host: /proc/kcore through drgn, and what debugfs shows of KHO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abi.errors import UnreadableError
from inspector.memory import notes
from inspector.memory.program import ProgramMemory, import_drgn, ram_of_this_host

DEBUGFS = Path("/sys/kernel/debug/kho")
_MAX_BLOB = 16 << 20
_MAX_FILES = 1024


def open_live(*, vmcoreinfo: str | None = None) -> ProgramMemory:
    """Physical memory of this host. Needs drgn and, as a rule, root.

    ``vmcoreinfo`` is given to drgn in place of the kernel's own. Raises UnreadableError.
    """
    drgn = import_drgn()
    program = drgn.Program(vmcoreinfo=vmcoreinfo) if vmcoreinfo else drgn.Program()
    try:
        program.set_kernel()
    except PermissionError:
        raise UnreadableError("/proc/kcore: permission denied; run as root") from None
    except Exception as error:  # drgn has no common base of its errors
        reason = notes.printable(str(error).encode())
        raise UnreadableError(f"/proc/kcore: drgn cannot read it ({reason})") from None
    regions = ram_of_this_host()
    if regions is None:
        raise UnreadableError("/proc/iomem: shows no addresses of RAM; run as root")
    memory = ProgramMemory(program, regions=regions)
    memory.kind = "live"
    return memory


@dataclass(frozen=True, slots=True)
class DebugfsBlob:
    """A file below /sys/kernel/debug/kho.

    ``side`` is ``in`` (received from the previous kernel) or ``out`` (for the next one),
    ``name`` the path below it (``fdt``, ``sub_fdts/LUO``, ``scratch_phys``).
    """

    side: str
    name: str
    data: bytes


def debugfs_blobs(root: Path = DEBUGFS) -> list[DebugfsBlob]:
    """What debugfs shows of KHO on this host; nothing if it is not there or not readable."""
    blobs = []
    for side in ("in", "out"):
        try:
            paths = sorted(p for p in (root / side).rglob("*") if p.is_file())
        except OSError:
            continue
        for path in paths[:_MAX_FILES]:
            try:
                with path.open("rb") as stream:
                    data = stream.read(_MAX_BLOB)
            except OSError:
                continue  # write-only switches such as "finalize", or gone meanwhile
            blobs.append(DebugfsBlob(side, str(path.relative_to(root / side)), data))
    return blobs
