"""Guest memory as files: raw, ELF core, kdump, and what makedumpfile leaves of it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

from lab.host import LabError, os_errors, run, tool, work_area
from lab.qemu import Machine
from lab.ram import Ram

#: ``filtered``: makedumpfile's dump level 31 (no zero, cache, user and free pages).
FORMATS = ("raw", "elf", "kdump", "filtered")
_CHUNK = 1 << 20
_DIRECT_MAP = 0xFFFF888000000000
_PT_LOAD, _PT_NOTE, _ET_CORE, _EM_X86_64 = 1, 4, 4, 62
_MAX_NOTE = 1 << 16


def save(machine: Machine, path: Path, kind: str, vmcoreinfo: bytes) -> None:
    """Write the guest's memory to ``path``.

    ``vmcoreinfo`` is what /sys/kernel/vmcoreinfo says ("address size"); only ``filtered``
    needs it. Raises LabError.
    """
    if kind == "raw":
        with os_errors(f"write {path}"), open(path, "wb") as f:
            _pour(machine.ram, f, 0)
    elif kind == "filtered":
        _filter(machine.ram, path, vmcoreinfo)
    else:
        machine.dump(path.resolve(), "elf" if kind == "elf" else "kdump-zlib")
        with os_errors(f"write {path}"):
            path.chmod(0o644)


def _pour(ram: Ram, f: IO[bytes], base: int) -> None:
    """Memory as a sparse stretch of a file; offset ``base`` is physical address 0."""
    for address, offset, size in ram.extents():
        for at in range(0, size, _CHUNK):
            piece = os.pread(ram.fd, min(_CHUNK, size - at), offset + at)
            if piece.count(0) != len(piece):
                f.seek(base + address + at)
                f.write(piece)
    f.truncate(base + (ram.size if ram.low == ram.size else ram.size - ram.low + (4 << 30)))


def _filter(ram: Ram, path: Path, vmcoreinfo: bytes) -> None:
    """What makedumpfile keeps. It reads a core like /proc/vmcore's, not QEMU's (whose
    program headers do not follow the ELF header), so such a one is made first."""
    program = tool("makedumpfile", "makedumpfile", "a filtered dump")
    fields = vmcoreinfo.split()
    if len(fields) != 2:
        raise LabError("the kernel has no /sys/kernel/vmcoreinfo: no filtered dump")
    note = ram.read(int(fields[0], 16), min(int(fields[1], 16), _MAX_NOTE))
    if ram.low != ram.size:
        raise LabError("a filtered dump is made of machines below 3.5 GiB only")
    with work_area(path.parent) as area:
        core = area / "vmcore"
        with os_errors("write a core for makedumpfile"), open(core, "wb") as f:
            header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
            header += struct.pack(
                "<HHIQQQIHHHHHH", _ET_CORE, _EM_X86_64, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
            )
            base = -(-(64 + 2 * 56 + len(note)) // 4096) * 4096
            header += struct.pack(
                "<IIQQQQQQ", _PT_NOTE, 0, 64 + 2 * 56, 0, 0, len(note), len(note), 0
            )
            header += struct.pack(
                "<IIQQQQQQ", _PT_LOAD, 7, base, _DIRECT_MAP, 0, ram.size, ram.size, 0
            )
            f.write(header + note)
            _pour(ram, f, base)
        run(
            [program, "-c", "-d", "31", str(core), str(area / "out")],
            "filter with makedumpfile",
            timeout=600,
        )
        with os_errors(f"write {path}"):
            os.replace(area / "out", path)
            path.chmod(0o644)
