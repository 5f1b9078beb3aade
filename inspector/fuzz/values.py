"""Values that a field of a given meaning is made to hold."""

from __future__ import annotations

import random
import re
from functools import cache

from abi.schema import Field

_COUNT = re.compile(r"count|^nr_|num|size|order|level|pgcnt|len|vasz|index|pos")
#: Numbers at which readers go wrong.
EDGES = (
    0, 1, 2, 3, 7, 8, 16, 51, 52, 63, 64, 255, 256, 511, 512, 4095, 4096, 1 << 16, 1 << 20,
    1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 47, 1 << 51, 1 << 52, (1 << 52) - 4096,
    1 << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 4096,
)  # fmt: skip


@cache
def strings() -> tuple[bytes, ...]:
    """Every compatible string that a known generation writes."""
    from abi import registry

    return tuple(sorted({s.encode() for g in registry.every() for s in g.strings}))


def role(field: Field) -> str:
    """``pointer``, ``names``, ``count``, ``string`` or ``integer``."""
    if field.kind in ("phys", "pointer") or field.points_to:
        return "pointer"
    if field.ctype == "char":
        return "string"
    if field.names or field.kind == "bool":
        return "names"
    return "count" if _COUNT.search(field.name.rpartition(".")[2]) else "integer"


def pointer(rng: random.Random, old: int, own: int, objects: list[int], same: list[int]) -> int:
    """An address: ``own`` is the struct's, ``same`` are those of structs of its type."""
    what = rng.randrange(14)
    if what == 0:
        return 0
    if what == 1:
        return own
    if what == 2:
        return own & -4096
    if what <= 5 and objects:
        return rng.choice(objects)
    if what == 6 and objects:
        return rng.choice(objects) + rng.choice((1, 2, 4, 8, 16, 2048, 4095))
    if what == 7 and same:
        return rng.choice(same)
    if what == 8:
        return old + rng.choice((1, 8, 4096, -4096, 65536)) & (1 << 64) - 1
    if what == 9:
        return old ^ 1 << rng.randrange(64)
    if what == 10:
        return rng.randrange(1 << 34) & -4096
    if what == 11 and objects:
        return rng.choice(objects) & -4096
    return rng.choice(EDGES)


def integer(rng: random.Random, old: int, bits: int, names: list[int]) -> int:
    """A number of ``bits`` bits; ``names`` are the values or masks that mean something."""
    what = rng.randrange(8)
    if names and what < 4:
        value = rng.choice(names)
        if what == 0:
            value = old ^ value
        elif what == 1:
            value += 1
        elif what == 2:
            value = old | value
    elif what == 4:
        value = old + rng.choice((1, -1, 2, 8, -2))
    elif what == 5:
        value = old ^ 1 << rng.randrange(bits)
    elif what == 6:
        value = rng.getrandbits(bits)
    else:
        value = rng.choice(EDGES)
    return value & (1 << bits) - 1


def string(rng: random.Random, old: bytes, others: list[bytes]) -> bytes:
    """A character array of the same length; ``others`` are those of its like."""
    size = len(old)
    what = rng.randrange(11)
    if what == 0:
        return b"A" * size  # no terminator
    if what == 1:
        return bytes(size)
    if what == 2 and others:
        return rng.choice(others)[:size].ljust(size, b"\0")
    if what == 3:
        return (rng.choice(strings()) + b"\0")[:size].ljust(size, b"\0")
    if what == 4:
        return b"\x1b]0;x\x07\n\r\t\x9b/%../"[:size].ljust(size, b"\0")
    if what == 5:
        return b"\xff\xfe\xc3\x28\xed\xa0\x80"[:size].ljust(size, b"\0")
    if what == 6:
        return old.partition(b"\0")[0][: size - 1].ljust(size - 1, b"\0") + b"x"
    if what == 7:
        return (b"/" + old)[:size]
    if what == 8:
        return (b"." * rng.randrange(1, 3)).ljust(size, b"\0")[:size]
    if what == 9:
        return rng.randbytes(size)
    at = rng.randrange(size) if size else 0
    return old[:at] + bytes([rng.randrange(256)]) + old[at + 1 :]
