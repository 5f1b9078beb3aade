"""Lists of KHO blocks, followed and checked as the kernel does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from abi.block import KHO_MAX_BLOCKS, kho_block_header_ser
from abi.schema import Struct
from inspector.findings import Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.in_use import block_preserved
from inspector.memory.base import U64Array


def block_chain(boot: Booting, first: int, entry: Struct) -> U64Array:
    """The blocks of a list, checked as the kernel does. Raises KernelErrno (EINVAL, ENOSPC).

    All of them are followed before the count of any is looked at.
    """
    capacity = (boot.view.page_size - kho_block_header_ser.size) // entry.size
    chain = _followed(boot, first)
    for i, (at, (count, behind)) in enumerate(chain.items()):
        if i == KHO_MAX_BLOCKS:
            raise KernelErrno("ENOSPC", f"the list has more than {KHO_MAX_BLOCKS} blocks")
        if not 0 < count <= capacity:
            raise KernelErrno(
                "EINVAL", f"block {at:#x} counts {count} entries, it holds 1 to {capacity}"
            )
        _behind_the_count(boot, at, count, capacity, entry, last=not behind)
    rows = [(at, count) for at, (count, _) in chain.items()]
    return np.array(rows, np.uint64).reshape(-1, 2)


def _followed(boot: Booting, first: int) -> dict[int, tuple[int, int]]:
    """The count of each block of a list and the pointer in it, by address, in order."""
    chain: dict[int, tuple[int, int]] = {}
    at = first
    while at:
        if at in chain:
            raise KernelErrno("EINVAL", f"the list of blocks is cyclic at {at:#x}")
        if len(chain) > 2 * KHO_MAX_BLOCKS:  # two blocks a step are followed
            raise KernelErrno("EINVAL", f"the list has more than {2 * KHO_MAX_BLOCKS} blocks")
        head = boot.view.read(at, kho_block_header_ser.size)
        behind, count = (int.from_bytes(word, "little") for word in (head[:8], head[8:]))
        chain[at] = count, behind
        at = behind
    return chain


def _behind_the_count(
    boot: Booting, at: int, count: int, capacity: int, entry: Struct, *, last: bool
) -> None:
    """Every block but the last is written full: what lies behind a lower count is not read."""
    behind = at + kho_block_header_ser.size + count * entry.size
    if last or count == capacity or not boot.view.present(behind, entry.size):
        return
    data = boot.view.read(behind, entry.size)
    if any(data):
        boot.reasons.add(
            Outcome.STATE_LOST,
            f"block {at:#x} counts {count} entries, holds more and is not the last: they are lost",
            path="/LUO", address=behind, data=data[:64],
        )  # fmt: skip


def block_rows(
    boot: Booting, blocks: U64Array, entry: Struct, path: str, what: str
) -> tuple[npt.NDArray[Any], list[int]]:
    """The entries of all blocks and their addresses."""
    parts: list[npt.NDArray[Any]] = []
    addresses: list[int] = []
    for at, count in blocks.tolist():
        block_preserved(boot, path, what, at)
        start = at + kho_block_header_ser.size
        parts.append(np.frombuffer(boot.view.read(start, count * entry.size), entry.dtype))
        addresses += range(start, start + count * entry.size, entry.size)
    if not parts:
        return np.empty(0, entry.dtype), []
    return np.concatenate(parts), addresses
