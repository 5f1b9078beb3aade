"""Is what the inspector decodes equal to the truth that came with a capture?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abi.errors import UnreadableError
from inspector.memory.base import PageState
from lab.expectation import of_image


def differences(image: Path, truth: Path) -> list[str]:
    """Everything in which the decoded image departs from its truth; empty is what is hoped for.

    What the image does not hold (filtered content, a map that the new kernel overwrote) is
    not compared. Raises UnreadableError if either file cannot be read.
    """
    from inspector import image as images

    try:
        record = json.loads(truth.read_bytes())
    except (OSError, ValueError) as error:
        raise UnreadableError(f"cannot read {truth}: {error}") from None
    with images.open(str(image)) as decoded:
        return [
            *_handover(decoded, record),
            *_root(decoded, record),
            *_preserved(decoded, record),
            *_regions(decoded, record),
            *_files(decoded, record),
        ]


def _handover(decoded: Any, record: dict[str, Any]) -> Iterator[str]:
    want = record.get("setup_data_kho")
    moment = record["moment"]
    record_in_image = decoded.root.candidate.handover
    if want and moment.startswith("at purgatory"):
        if record_in_image is None:
            yield "no hand-over record was found"
        elif record_in_image.fdt_address != int(want["fdt_addr"], 0):
            yield f"the record points to {record_in_image.fdt_address:#x}, not {want['fdt_addr']}"
    if want and decoded.root.address != int(want["fdt_addr"], 0):
        yield f"root at {decoded.root.address:#x} instead of {want['fdt_addr']}"
    if decoded.scratch is not None and record.get("scratch"):
        areas = [(int(a["addr"], 0), int(a["size"], 0)) for a in record["scratch"]]
        got = [(s.address, s.size) for s in decoded.scratch]
        if got != areas:
            yield f"scratch areas {got} instead of {areas}"


def _root(decoded: Any, record: dict[str, Any]) -> Iterator[str]:
    blob = record.get("debugfs", {}).get("out/fdt")
    if not blob:
        return
    want = bytes.fromhex(blob)
    got = decoded.memory.read(decoded.root.address, len(want))
    differ = [i for i in range(len(want)) if got[i] != want[i]]
    # Up to 6.19 the address of the map, eight bytes, is filled in after debugfs was read.
    late = differ and differ[-1] - differ[0] < 8 and not any(want[i] for i in differ)
    if differ and not late:
        yield "the root FDT is not the one that debugfs showed"


def _preserved(decoded: Any, record: dict[str, Any]) -> Iterator[str]:
    want = record.get("preserved")
    if want is None or decoded.preserved is None or not decoded.preserved.complete:
        if want is not None and record["moment"].startswith(("at purgatory", "at machine_kexec")):
            yield "the map of preserved memory did not decode"
        return
    from inspector.blocks import blocks

    sum_ = hashlib.sha256()
    for addresses, orders in blocks(decoded.preserved):
        lines = (f"{a:#x} {o}\n" for a, o in zip(addresses.tolist(), orders.tolist(), strict=True))
        sum_.update("".join(lines).encode())
    if sum_.hexdigest() != want["sha256_of_lines_pa_order"]:
        yield (
            f"{decoded.preserved.block_count} preserved blocks, not the {want['blocks']} "
            "that the consumer reserved"
        )


def _regions(decoded: Any, record: dict[str, Any]) -> Iterator[str]:
    got = {r.name.decode("utf-8", "replace"): r for r in decoded.reserve_mem or ()}
    for want in record["reserve_mem"]:
        region = got.get(want["name"])
        if region is None:
            yield f"reserve_mem {want['name']} is missing"
        elif (region.start, region.size) != (int(want["start"], 0), want["size"]):
            yield f"reserve_mem {want['name']} at {region.start:#x}, not {want['start']}"


def _files(decoded: Any, record: dict[str, Any]) -> Iterator[str]:
    if not record["sessions"]:
        return
    expected = of_image(decoded)
    sessions = [s.decode("utf-8", "backslashreplace") for s in expected.sessions]
    if sorted(sessions) != sorted(record["sessions"]):
        yield f"sessions {sessions} instead of {record['sessions']}"
    states = {
        (session.name, file.token): file
        for session in (decoded.luo.sessions if decoded.luo else ())
        for file in session.files
    }
    states = {(name.split(b"\0")[0], token): file for (name, token), file in states.items()}
    got = {(f.session, f.token): f for f in expected.files}
    all_sessions = decoded.luo.sessions if decoded.luo else ()
    cut = {s.name.split(b"\0")[0] for s in all_sessions if not s.complete}
    cut = cut if decoded.survey.holes else set()
    for want in record["files"]:
        key = (want["session"].encode(), int(want["token"], 0))
        file, raw = got.pop(key, None), states.get(key)
        state = raw.state if raw is not None else None
        where = f"file {want['token']} of {want['session']!r}"
        if state is None and raw is not None and _left_out(decoded, raw.data):
            continue  # its page is not in the image
        if raw is None and want["session"].encode() in cut:
            continue  # nor is the list that names it
        if file is None or state is None or file.size is None:
            yield f"{where} is missing or did not decode"
            continue
        if (file.size, file.position) != (want["size"], want["pos"]):
            yield f"{where}: size {file.size}, position {file.position}"
        if state.seals is not None and state.seals != int(want["seals"], 0):
            yield f"{where}: seals {state.seals:#x} instead of {want['seals']}"
        if file.sha256 is not None and file.sha256 != want["sha256"]:
            yield f"{where}: the content differs"
        yield from _frames(decoded, state, want, where)
    for session, token in got:
        yield f"file {token:#x} of {session!r} was never preserved"


def _left_out(decoded: Any, address: int) -> bool:
    return bool(decoded.memory.state(address) != PageState.PRESENT)


def _frames(decoded: Any, state: Any, want: dict[str, Any], where: str) -> Iterator[str]:
    """Page frames in file order, as user space's page map had them; 0 is a hole."""
    if "frames" not in want:
        return
    frames: list[int] = []
    for run in want["frames"]:
        first, _, count = run.partition("+")
        # A hole reads as frame 0, or as the zero page, which is not the file's.
        frames += range(int(first, 16), int(first, 16) + int(count))
    page = decoded.page_size
    for index, address, size in zip(
        state.folios.index.tolist(), state.addresses.tolist(), state.sizes.tolist(), strict=True
    ):
        count = min(size // page, len(frames) - index)
        if frames[index : index + count] != list(range(address // page, address // page + count)):
            yield f"{where}: page {index} is not at {address:#x}"
            return
