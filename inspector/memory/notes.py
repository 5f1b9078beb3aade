"""ELF notes and VMCOREINFO, as ELF cores and kdump files carry them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from inspector.memory.base import U64Array

#: Owner of this project's own notes, and their types.
KHO_OWNER = b"KHO"
#: Ranges of pages that are present and zero: pairs of u64 (start, size).
NT_KHO_ZERO = 1
#: ``key=value`` lines.
NT_KHO_NOTES = 2

#: The root of an extract of a running kernel's memory, and its side of a hand-over: ``pa:in``.
KERNEL_ROOT = "KHO_KERNEL_ROOT"
#: Scratch areas, as a running kernel listed them: ``start+size`` each.
SCRATCH_AREAS = "KHO_SCRATCH_AREAS"
_MAX_AREAS = 4096

_HEADER = struct.Struct("<III")
_MAX_TEXT = 1 << 20
_MAX_PAIRS = 4096
#: One for each of the CPUs is normal.
_MAX_NOTES = 1 << 16
#: Notes of text that are read; a dump has one or two.
_MAX_TEXTS = 16

#: e_machine values of the architectures that have KHO, and some neighbours.
MACHINES = {
    21: "ppc64",
    22: "s390x",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}


def parse(data: memoryview) -> Iterator[tuple[bytes, int, memoryview]]:
    """Notes as (owner, type, content); stops quietly where the data make no sense."""
    at = 0
    for _ in range(_MAX_NOTES):
        if at + 12 > len(data):
            return
        name_size, size, kind = _HEADER.unpack_from(data, at)
        name_at = at + 12
        content_at = name_at + (name_size + 3 & ~3)
        if content_at + size > len(data):
            return
        owner = bytes(data[name_at : name_at + min(name_size, 64)]).rstrip(b"\0")
        yield owner, kind, data[content_at : content_at + size]
        at = content_at + (size + 3 & ~3)


def build(owner: bytes, kind: int, content: bytes) -> bytes:
    """One note, padded to four bytes."""
    name = owner + b"\0"
    return b"".join(
        (
            _HEADER.pack(len(name), len(content), kind),
            name.ljust(len(name) + 3 & ~3, b"\0"),
            content.ljust(len(content) + 3 & ~3, b"\0"),
        )
    )


def parse_pairs(text: bytes | memoryview) -> dict[str, str]:
    """``key=value`` lines; what does not print is escaped, what does not fit dropped."""
    pairs: dict[str, str] = {}
    for line in bytes(text[:_MAX_TEXT]).split(b"\0", 1)[0].splitlines()[:_MAX_PAIRS]:
        key, equals, value = line.partition(b"=")
        if equals and key:
            pairs.setdefault(printable(key), printable(value))
    return pairs


def build_pairs(pairs: Mapping[str, str]) -> bytes:
    """The opposite of :func:`parse_pairs`."""
    return "".join(f"{key}={value}\n" for key, value in pairs.items()).encode()


def printable(data: bytes) -> str:
    """Text of a C string out of a dump, without control characters."""
    text = data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def collect(data: memoryview) -> tuple[dict[str, str], U64Array]:
    """What notes tell: pairs of VMCOREINFO and our own, and our zero ranges (n, 2)."""
    pairs: dict[str, str] = {}
    texts = 0
    zero = [np.zeros((0, 2), np.uint64)]
    for owner, kind, content in parse(data):
        if owner == b"VMCOREINFO" or (owner == KHO_OWNER and kind == NT_KHO_NOTES):
            texts += 1
            if texts <= _MAX_TEXTS:
                pairs = parse_pairs(content) | pairs
        elif owner == KHO_OWNER and kind == NT_KHO_ZERO:
            words = np.frombuffer(content[: len(content) & ~15], "<u8")
            zero.append(words.reshape(-1, 2))
    return pairs, np.concatenate(zero)


def page_size_of(notes: Mapping[str, str]) -> int | None:
    """PAGESIZE of VMCOREINFO, if it is a page size that Linux uses."""
    value = notes.get("PAGESIZE", "")
    if value.isascii() and value.isdecimal() and len(value) < 8:
        size = int(value)
        if size & (size - 1) == 0 and 4096 <= size <= 1 << 16:
            return size
    return None


def scratch_areas_of(notes: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """(address, size) of the scratch areas that an extract of a running kernel's memory notes."""
    areas = []
    for word in notes.get(SCRATCH_AREAS, "").split()[:_MAX_AREAS]:
        try:
            start, size = (int(number, 16) for number in word.split("+"))
        except ValueError:
            return ()
        if not 0 <= start <= start + size < 1 << 64:
            return ()
        areas.append((start, size))
    return tuple(areas)


def scratch_areas_note(areas: tuple[tuple[int, int], ...]) -> str:
    """The opposite of :func:`scratch_areas_of`."""
    return " ".join(f"{start:#x}+{size:#x}" for start, size in areas)


def kernel_root_of(notes: Mapping[str, str]) -> dict[int, str]:
    """{address: side} of the root that the kernel named whose memory was extracted."""
    address, _, side = notes.get(KERNEL_ROOT, "").partition(":")
    try:
        pa = int(address, 16)
    except ValueError:
        return {}
    return {pa: side} if side in ("in", "out") and 0 < pa < 1 << 64 else {}
