"""The smallest ELF files with sections, for tests."""

from __future__ import annotations

import struct

ALLOC, WRITE, EXEC, COMPRESSED = 2, 1, 4, 0x800


def elf(sections: dict[str, tuple[int, bytes]], *, order: str = "<", wide: bool = True) -> bytes:
    """An ELF with these sections: name -> (flags, bytes)."""
    names = b"\0"
    rows: list[tuple[int, int, int, int, int]] = [(0, 0, 0, 0, 0)]
    body = b""
    head = 64 if wide else 52
    for name, (flags, data) in {**sections, ".shstrtab": (0, b"")}.items():
        at = len(names)
        names += name.encode() + b"\0"
        if name == ".shstrtab":
            data = names
        rows.append((at, 3 if name == ".shstrtab" else 1, flags, head + len(body), len(data)))
        body += data
    table = head + len(body)
    code = order + ("IIQQQQIIQQ" if wide else "10I")
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    entry = struct.calcsize(code)
    fields = (1, 62, 1, 0, 0, table, 0, head, 0, 0, entry, len(rows), len(rows) - 1)
    header = struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), *fields)
    out = ident + header + body
    for name, kind, flags, offset, size in rows:
        out += struct.pack(code, name, kind, flags, 0, offset, size, 0, 0, 1, 0)
    return out
