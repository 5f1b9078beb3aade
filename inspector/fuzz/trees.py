"""Mutation of device trees: header, tags, property names, lengths and values."""

from __future__ import annotations

import random
from functools import lru_cache

from abi import fdt
from abi.fdt_structure import decode_tokens, encode_token
from inspector.fuzz import values
from inspector.fuzz.base import Base
from inspector.fuzz.edit import Edit

_TAGS = (0, 1, 2, 3, 4, 5, 8, 9, 10, 0xFFFFFFFF)


def mutate(base: Base, rng: random.Random) -> list[Edit]:
    """One device tree of an image, changed in one respect."""
    address, size = rng.choice(base.trees)
    blob = base.memory.peek(address, size)
    return [Edit(address, mutate_blob(blob, rng, base.objects), "device tree")]


def mutate_blob(blob: bytes, rng: random.Random, objects: list[int]) -> bytes:
    """A device tree with one thing changed; no longer than before."""
    what = rng.randrange(10)
    if what == 0:
        return _header(blob, rng)
    if what == 1:
        at = rng.randrange(len(blob))
        return blob[:at] + bytes([blob[at] ^ 1 << rng.randrange(8)]) + blob[at + 1 :]
    parsed = _parsed(blob)
    if parsed is None:
        return _header(blob, rng)
    tree, whole = parsed
    if what == 2 and tree.strings:
        at = tree.header.off_dt_strings + rng.randrange(len(tree.strings))
        return blob[:at] + bytes([rng.choice((0, 65, 255))]) + blob[at + 1 :]
    tokens = list(whole)
    _change(tokens, rng, len(tree.strings), objects)
    structure = b"".join(encode_token(t) for t in tokens)
    return _rebuilt(tree, structure, len(blob), repair=rng.random() < 0.8)


@lru_cache(maxsize=256)
def _parsed(blob: bytes) -> tuple[fdt.Fdt, tuple[fdt.Token, ...]] | None:
    """A tree and its tags, None if it does not parse."""
    try:
        tree = fdt.parse(blob)
    except fdt.FdtError:
        return None
    return tree, tuple(decode_tokens(tree.structure, tree.header.version))


def _header(blob: bytes, rng: random.Random) -> bytes:
    at = 4 * rng.randrange(10)
    old = int.from_bytes(blob[at : at + 4], "big")
    new = values.integer(rng, old, 32, [40, 56, 17, 16, len(blob)])
    return blob[:at] + new.to_bytes(4, "big") + blob[at + 4 :]


def _change(tokens: list[fdt.Token], rng: random.Random, names: int, objects: list[int]) -> None:
    """Change a list of tags in place."""
    i = rng.randrange(len(tokens))
    properties = [j for j, t in enumerate(tokens) if t.tag == fdt.Tag.PROP]
    what = rng.randrange(9)
    if what == 0:
        del tokens[i]
    elif what == 1:
        tokens.insert(i, tokens[i])
    elif what == 2:
        tokens.insert(i, replace_tag(tokens[rng.randrange(len(tokens))], rng.choice(_TAGS)))
    elif what == 3:
        j = rng.randrange(len(tokens))
        tokens[i], tokens[j] = tokens[j], tokens[i]
    elif what == 4:
        name = rng.choice((b"LUO", b"memblock", b"", b"x" * 40, b"\x1b[2J", b"a/b", b"kho_test"))
        tokens[i] = tokens[i]._replace(name=name, padding=b"")
    elif properties:
        j = rng.choice(properties)
        token = tokens[j]
        if what == 5:
            tokens[j] = token._replace(name_offset=rng.choice((0, 1, names, 1 << 31, 11)))
        elif what == 6:
            cut = rng.randrange(len(token.value) + 1)
            tokens[j] = token._replace(value=token.value[:cut], padding=b"")
        else:
            tokens[j] = token._replace(value=_value(token.value, rng, objects), padding=b"")


def replace_tag(token: fdt.Token, tag: int) -> fdt.Token:
    """The same token with another tag."""
    return token._replace(tag=tag, padding=b"")


def _value(old: bytes, rng: random.Random, objects: list[int]) -> bytes:
    if len(old) == 8:
        number = int.from_bytes(old, "little")
        new = values.pointer(rng, number, number, objects, [])
        return (new & (1 << 64) - 1).to_bytes(8, "little")
    if len(old) == 4:
        return values.integer(rng, int.from_bytes(old, "little"), 32, []).to_bytes(4, "little")
    if rng.random() < 0.5:
        return rng.choice(values.strings()) + b"\0"
    return values.string(rng, old, []) + rng.randbytes(rng.randrange(9))


def _rebuilt(tree: fdt.Fdt, structure: bytes, size: int, *, repair: bool) -> bytes:
    """The blob with another structure block; ``repair`` moves the rest and corrects sizes."""
    header = tree.header
    if not repair:
        at = header.off_dt_struct
        whole = bytearray(tree.build()[:size].ljust(size, b"\0"))
        whole[at : at + len(structure)] = structure
        return bytes(whole[:size])
    reservations = tree.reservations or bytes(16)
    at = 40 + len(reservations)
    strings = at + len(structure)
    end = strings + len(tree.strings)
    head = header._replace(
        totalsize=max(header.totalsize, end) if end <= size else end,
        off_mem_rsvmap=40,
        off_dt_struct=at,
        off_dt_strings=strings,
        size_dt_struct=len(structure),
    )
    raw = b"".join(word.to_bytes(4, "big") for word in head)
    return (raw + reservations + structure + tree.strings)[:size].ljust(size, b"\0")
