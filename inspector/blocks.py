"""The preserved blocks as text or JSON, in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from inspector.memory.base import U64Array
from inspector.pagetable.text import hex_lines
from inspector.walk.preserved import PreservedMap

#: (addresses, orders) of blocks, or (starts, sizes in bytes) of ranges.
Columns = tuple[U64Array, U64Array]
_PIECE = 1 << 16


def blocks(preserved: PreservedMap) -> Iterator[Columns]:
    """Every block, ascending by address, whatever the map's defects.

    Blocks of a broken map may overlap; they are then sorted in one piece.
    """
    if preserved.disjoint:
        for addresses, orders in preserved.blocks():
            yield addresses, orders.astype(np.uint64)
        return
    # Overlap: only then do the blocks of different runs interleave.
    limit = 1 << 24
    parts: list[Columns] = []
    for addresses, orders in preserved.blocks():
        parts.append((addresses, orders.astype(np.uint64)))
        limit -= len(addresses)
        if limit < 0:
            break
    address = np.concatenate([p[0] for p in parts])
    order = np.concatenate([p[1] for p in parts])
    rank = np.lexsort((order, address))
    yield address[rank], order[rank]


def ranges(preserved: PreservedMap) -> Iterator[Columns]:
    """Merged ranges of preserved bytes, ascending."""
    starts, ends = preserved.intervals()
    yield starts, ends - starts


def encode(chunks: Iterable[Columns], style: str, *, ranges: bool) -> Iterator[bytes]:
    """Lines (``text``), an object a line (``jsonl``), or one document (``json``)."""
    if style == "text":
        for first, second in _pieces(chunks):
            yield hex_lines((first, second)) if ranges else _block_lines(first, second)
        return
    keys = ("start", "size") if ranges else ("address", "order")
    head = '{"schema_version": 1, "%s": [' % ("ranges" if ranges else "blocks")
    separator = b"\n"
    if style == "json":
        yield head.encode()
    for first, second in _pieces(chunks):
        rows = [
            f'{{"{keys[0]}": "{a:#x}", "{keys[1]}": {b}}}'
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]
        if style == "json":
            yield separator + ",\n".join(rows).encode()
            separator = b",\n"
        else:
            yield "\n".join(rows).encode() + b"\n"
    if style == "json":
        yield b"\n]}\n"


def _pieces(chunks: Iterable[Columns]) -> Iterator[Columns]:
    for first, second in chunks:
        for at in range(0, len(first), _PIECE):
            yield first[at : at + _PIECE], second[at : at + _PIECE]


def _block_lines(addresses: U64Array, orders: U64Array) -> bytes:
    if int(orders.max()) < 10:
        tail = (orders.astype(np.uint8) + np.uint8(ord("0"))).reshape(-1, 1)
        return hex_lines((addresses,), tail)
    rows = zip(addresses.tolist(), orders.tolist(), strict=True)
    return "".join(f"{address:#x} {order}\n" for address, order in rows).encode()
