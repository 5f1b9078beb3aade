"""Find LUO's sessions when the structure that points to them is gone.

From 7.2 on the page of ``struct luo_ser`` is freed early in the next kernel and reused;
session blocks, file blocks and everything behind them stay until user space retrieves
them. A page that is a session block has a shape that hardly anything else has: a sane
{next, count} header and entries whose names are terminated, whose padding is zero and
whose file lists have the same shape again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from abi import registry
from abi.block import kho_block_header_ser
from abi.luo import LuoGeneration
from abi.schema import Struct, resolve
from inspector.image import MapState
from inspector.memory.base import PageState, PhysicalMemory, U8Array
from inspector.walk.luo import Luo, is_name, walk_flbs, walk_sessions

if TYPE_CHECKING:
    from inspector.image import Image
    from inspector.walk.clients import Blob

#: Present memory beyond this is not searched.
SCAN_LIMIT = 16 << 30
_CHUNK = 4096


def sessions_by_scan(image: Image, blob: Blob) -> Luo | None:
    """Sessions and FLBs of the newest struct generation, found by their shape; or None.

    Stale copies (of a preserve that failed, of an older update) look the same, but are not
    preserved any more. Blocks that nothing points to are taken as heads of lists; of sessions
    with the same name the one in the longest list wins.
    """
    generation = cast("LuoGeneration", registry.get("luo", "luo-v5"))
    page = image.page_size
    session = resolve(generation.layouts["luo_session_ser"], page)
    file = resolve(generation.layouts["luo_file_ser"], page)
    flb = resolve(generation.layouts["luo_flb_ser"], page)
    heads = _preserved(image, _blocks(image.memory, page, session, file))
    if not heads:
        return None
    found = Luo(generation, blob.address, recovered=True)
    lists = [walk_sessions(image.survey, generation, head) for head in heads]
    lists.sort(key=lambda sessions: -sum(len(s.files) for s in sessions))
    names: set[bytes] = set()
    for sessions in lists:
        for one in sessions:
            if one.name not in names:
                names.add(one.name)
                found.sessions.append(one)
    found.sessions_address = heads[0]
    pages = _preserved(image, _flb_pages(image.memory, page, flb))
    if pages:
        found.flbs_address = pages[0]
        found.flbs = walk_flbs(image.survey, generation, pages[0])
    found.lost.append("liveupdate number")
    return found


def _preserved(image: Image, pages: list[int]) -> list[int]:
    """Those that the map has; all of them where it has been reused."""
    if image.preserved is None or image.map_state is MapState.DAMAGED:
        return pages
    covered = image.preserved.covers(np.array(pages, np.uint64), image.page_size)
    return [page for page, held in zip(pages, covered, strict=True) if held]


def _candidates(memory: PhysicalMemory, page: int, capacity: int) -> list[tuple[int, int]]:
    """(page, next) of pages that start with {aligned next, 1 <= count <= capacity}."""
    out: list[tuple[int, int]] = []
    read = 0
    for start, view in memory.distinct():
        read += len(view)
        if read > SCAN_LIMIT:
            break
        skip = -start % page
        count = (len(view) - skip) // page
        if count <= 0:
            continue
        words = np.ndarray((count, 2), "<u8", view, skip, (page, 8))
        hit = (
            (words[:, 0] % np.uint64(page) == 0)
            & (words[:, 0] >> np.uint64(52) == 0)
            & (words[:, 1] >= 1)
            & (words[:, 1] <= np.uint64(capacity))
        )
        out += [(start + skip + i * page, int(words[i, 0])) for i in np.flatnonzero(hit).tolist()]
    return out


def _blocks(memory: PhysicalMemory, page: int, session: Struct, file: Struct) -> list[int]:
    header = kho_block_header_ser.size
    possible = _candidates(memory, page, (page - header) // session.size)
    good = {
        pa: following
        for pa, following in possible
        if _is_session_block(memory, pa, page, session, file)
    }
    followed = set(good.values())
    return [pa for pa in good if pa not in followed]


def _is_session_block(
    memory: PhysicalMemory, pa: int, page: int, session: Struct, file: Struct
) -> bool:
    data = memory.read(pa, page)
    following = int.from_bytes(data[:8], "little")
    count = int.from_bytes(data[8:16], "little")
    # Memory of a running host may have changed since it was searched.
    if following % page or not 1 <= count <= (page - 16) // session.size:
        return False
    for i in range(count):
        at = 16 + i * session.size
        name, rest = data[at : at + 64], data[at + 64 : at + session.size]
        if not is_name(name):
            return False
        files, number = int.from_bytes(rest[:8], "little"), int.from_bytes(rest[8:16], "little")
        if bool(files) != bool(number) or files % page:
            return False
        if files and not _is_file_block(memory, files, page, file):
            return False
    return True


def _is_file_block(memory: PhysicalMemory, pa: int, page: int, file: Struct) -> bool:
    if pa >> 52 or memory.state(pa, page) is not PageState.PRESENT:
        return False
    data = memory.read(pa, page)
    count = int.from_bytes(data[8:16], "little")
    if not 1 <= count <= (page - 16) // file.size:
        return False
    return all(is_name(data[16 + i * file.size :][:48]) for i in range(count))


def _flb_pages(memory: PhysicalMemory, page: int, flb: Struct) -> list[int]:
    """Pages of {pgcnt 1, count} and entries with proper names and counts."""
    out = []
    capacity = (page - 16) // flb.size
    read = 0
    for start, view in memory.distinct():
        read += len(view)
        if read > SCAN_LIMIT:
            break
        skip = -start % page
        count = (len(view) - skip) // page
        if count <= 0:
            continue
        words = np.ndarray((count, 2), "<u8", view, skip, (page, 8))
        hit = (words[:, 0] == 1) & (words[:, 1] >= 1) & (words[:, 1] <= np.uint64(capacity))
        for i in np.flatnonzero(hit).tolist():
            data: U8Array = np.frombuffer(view, np.uint8, page, skip + i * page)
            raw = data.tobytes()
            entries = int(words[i, 1])
            if all(_is_flb(raw[16 + j * flb.size :][: flb.size]) for j in range(entries)):
                out.append(start + skip + i * page)
    return out


def _is_flb(entry: bytes) -> bool:
    return is_name(entry[:48]) and 1 <= int.from_bytes(entry[56:64], "little") < 1 << 20
