"""What runs inside the virtual machine: the init program, initramfs images, the ROM."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from lab.host import cache_directory, locked, new_file, os_errors, run, tool, work_area

_HERE = Path(__file__).parent
_INIT_SOURCES = ("init.c", "sha256.c", "sha256.h")
_ROM_SIZE = 0x10000
_ROM_BASE = 0x1_0000_0000 - _ROM_SIZE
_ROM_PARAMETERS = 0x8000


def _compiled(name: str, inputs: tuple[str, ...], commands: list[list[str]]) -> bytes:
    """A compiled guest program, out of the cache if its sources have not changed.

    In the commands ``@name`` stands for a source and ``=name`` for a file of the work area.
    """
    digest = hashlib.sha256()
    for source in inputs:
        digest.update((_HERE / source).read_bytes())
    digest.update(repr(commands).encode())
    kept = cache_directory() / "guest" / f"{name}-{digest.hexdigest()[:16]}"
    with locked(kept.parent / ".lock"):
        if kept.exists():
            with os_errors("read a guest program"):
                return kept.read_bytes()
        for command in commands:
            tool(command[0], "gcc" if command[0] == "gcc" else "binutils", f"building {name}")
        with work_area() as area:
            for command in commands:
                words = [
                    str(_HERE / w[1:]) if w[0] == "@" else str(area / w[1:]) if w[0] == "=" else w
                    for w in command
                ]
                run(words, f"compile the guest's {name}", timeout=120)
            data = (area / "out").read_bytes()
        with new_file(kept) as path:
            path.write_bytes(data)
    return data


def init_program() -> bytes:
    """The static init, compiled at first use."""
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-O2", "-static", "-s"]
    return _compiled("init", _INIT_SOURCES, [["gcc", *flags, "-o", "=out", "@init.c", "@sha256.c"]])


class Archive:
    """A newc archive in the making."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._directories: set[str] = set()

    def directory(self, path: str) -> None:
        """A directory and those above it, if they are not there yet."""
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)
        if path not in self._directories:
            self._directories.add(path)
            self.entry(path, 0o040755)

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """A file, and the directories that lead to it."""
        if "/" in path:
            self.directory(path.rpartition("/")[0])
        self.entry(path, 0o100755 if executable else 0o100644, data)

    def entry(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Anything, under a path without a leading slash."""
        out, name = self._out, path.encode() + b"\0"
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % n for n in numbers) + name
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)

    def compressed(self) -> bytes:
        """The whole of it. Fast rather than small."""
        self.entry("TRAILER!!!", 0)
        return gzip.compress(bytes(self._out), compresslevel=1, mtime=0)


def initramfs(files: Mapping[str, bytes]) -> bytes:
    """A gzipped newc archive with the init program, the mount points and ``files``.

    ``files`` maps paths without a leading slash to their bytes.
    """
    archive = Archive()
    for directory in ("dev", "proc", "sys"):
        archive.directory(directory)
    archive.entry("dev/console", 0o020600, device=(5, 1))
    archive.file("init", init_program(), executable=True)
    for path, data in files.items():
        archive.file(path, data)
    return archive.compressed()


def rom(entry: int, boot_params: int) -> bytes:
    """The ROM that jumps to a kernel's 64-bit ``entry`` with rsi = ``boot_params``."""
    image = bytearray(
        _compiled(
            "rom",
            ("rom.S",),
            [
                ["gcc", "-m64", "-c", "-o", "=object", "@rom.S"],
                ["objcopy", "-O", "binary", "-j", ".text", "=object", "=out"],
            ],
        )
    )
    assert len(image) == _ROM_SIZE
    table = 0x23  # present, writable, accessed
    leaf = 0xE3  # present, writable, accessed, dirty, 2 MiB
    struct.pack_into("<Q", image, 0, (_ROM_BASE + 0x1000) | table)
    for gib in range(4):
        struct.pack_into("<Q", image, 0x1000 + 8 * gib, (_ROM_BASE + 0x2000 + gib * 0x1000) | table)
        for i in range(512):
            address = (gib << 30) + (i << 21)
            struct.pack_into("<Q", image, 0x2000 + gib * 0x1000 + 8 * i, address | leaf)
    struct.pack_into("<QQ", image, _ROM_PARAMETERS, entry, boot_params)
    return bytes(image)


def memory_file(name: str, data: bytes) -> int:
    """A descriptor of an anonymous file with ``data``; QEMU reads it as /proc/self/fd/N."""
    with os_errors("allocate memory"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    return fd
