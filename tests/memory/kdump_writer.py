"""A small writer of kdump files, for tests only: every compression, framing and defect."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FLAGS = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}


def compress(name: str, page: bytes) -> bytes:
    """One page the way makedumpfile stores it."""
    if name == "zlib":
        return zlib.compress(page, 1)
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(page)
    if name == "lzo":
        import lzallright

        return bytes(lzallright.LZOCompressor().compress(page))
    if name == "snappy":
        import cramjam

        return bytes(cramjam.snappy.compress_raw(page))
    return page


@dataclass
class Kdump:
    """What goes into a dump; ``ram`` are page frames in memory, ``pages`` those dumped."""

    pages: Mapping[int, bytes]
    ram: Iterable[int]
    page_size: int = 4096
    compression: str = "zlib"
    version: int = 6
    release: str = "7.3.4"
    machine: str = "x86_64"
    vmcoreinfo: bytes = b"OSRELEASE=7.3.4\nPAGESIZE=4096\n"
    notes: bytes = b""
    status: int | None = None
    max_mapnr: int | None = None
    split: tuple[int, int] | None = None
    one_bitmap: bool = False
    overrides: dict[str, int] = field(default_factory=dict)

    def build(self) -> bytes:
        """The bytes of the file."""
        size = self.page_size
        ram, dumped = set(self.ram) | set(self.pages), set(self.pages)
        frames = self.max_mapnr if self.max_mapnr is not None else max(ram) + 1
        bitmap = bytearray(-(-frames // 8 // size) * size or size)
        bitmaps = []
        for members in (dumped,) if self.one_bitmap else (ram, dumped):
            bits = bytearray(bitmap)
            for pfn in members:
                bits[pfn // 8] |= 1 << pfn % 8
            bitmaps.append(bytes(bits))
        blocks = sum(map(len, bitmaps)) // size
        start, end = self.split or (0, 0)
        info_at = size + 512
        note_at = info_at + len(self.vmcoreinfo)
        sub = struct.pack(
            "<QiiQQQQQQQQQQQ",
            0,
            31,
            1 if self.split else 0,
            start,
            end,
            info_at if self.version >= 3 else 0,
            len(self.vmcoreinfo) if self.version >= 3 else 0,
            note_at if self.notes else 0,
            len(self.notes),
            0,
            0,
            start if self.version >= 6 else 0,
            end if self.version >= 6 else 0,
            frames if self.version >= 6 else 0,
        )
        sub = sub.ljust(512, b"\0") + self.vmcoreinfo + self.notes
        sub_blocks = -(-len(sub) // size)
        flag = FLAGS[self.compression]
        values = {
            "status": flag if self.status is None else self.status,
            "block_size": size,
            "sub_hdr_size": sub_blocks,
            "bitmap_blocks": blocks,
            "max_mapnr": min(frames, 0xFFFFFFFF),
        } | self.overrides
        names = ("Linux", "host", self.release, "#1", self.machine, "")
        uts = b"".join(n.encode().ljust(65, b"\0") for n in names)
        header = b"KDUMP   " + struct.pack("<i", self.version) + uts + bytes(6)
        header += struct.pack(
            "<qqIiiIIIIIIi",
            0,
            0,
            values["status"],
            values["block_size"],
            values["sub_hdr_size"],
            values["bitmap_blocks"],
            values["max_mapnr"],
            len(dumped),
            0,
            0,
            0,
            1,
        )
        body = header.ljust(size, b"\0") + sub.ljust(sub_blocks * size, b"\0") + b"".join(bitmaps)
        mine = [p for p in sorted(dumped) if not self.split or start <= p < end]
        at = len(body) + 24 * len(mine)
        descriptors, data = [], []
        zero_at: tuple[int, int, int] | None = None
        for pfn in mine:
            page = self.pages[pfn]
            if zero_at is not None and not any(page):
                descriptors.append(struct.pack("<QIIQ", *zero_at, 0))
                continue
            packed = compress(self.compression, page)
            used = flag
            if len(packed) >= size:
                packed, used = page, 0
            if not any(page):
                zero_at = (at, len(packed), used)
            descriptors.append(struct.pack("<QIIQ", at, len(packed), used, 0))
            data.append(packed)
            at += len(packed)
        return body + b"".join(descriptors) + b"".join(data)


def flatten(data: bytes, record: int = 5000, rewrite: bool = True, end: bool = True) -> bytes:
    """The flattened form of a file; with ``rewrite`` the header is written twice."""
    out = [b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)]
    out[0] = out[0].ljust(4096, b"\0")
    if rewrite:
        out.append(struct.pack(">qq", 0, 600) + b"\xaa" * 600)
    pieces = [(at, data[at : at + record]) for at in range(0, len(data), record)]
    for at, piece in pieces[1::2] + pieces[::2]:
        out.append(struct.pack(">qq", at, len(piece)) + piece)
    if end:
        out.append(struct.pack(">qq", -1, -1))
    return b"".join(out)
