"""What a kernel ought to find in an image: sessions, files, regions.

Out of a truth file where there is one (written by the machine that made the image), else
out of the image itself, through the inspector.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from abi.errors import KhoError, UnreadableError
from inspector.memory.base import PageState

_SEAL_EXEC = 0x20
_IMPLIED_BY_EXEC = 0x1E
_MAX_CONTENT = 2 << 30
_MAX_ORDER = 18
_MAX_EXPOSED = 4096
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """One file. What is None is not known, and not compared."""

    session: bytes
    token: int
    size: int | None = None
    position: int | None = None
    seals: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ExpectedRegion:
    """One reserve_mem region: physical start and size in bytes."""

    name: str
    start: int
    size: int
    sha256: str | None = None


@dataclass(slots=True)
class Expectation:
    """Everything that is looked for. ``kho_test`` says whether the self test left data."""

    sessions: list[bytes] = field(default_factory=list)
    files: list[ExpectedFile] = field(default_factory=list)
    regions: list[ExpectedRegion] = field(default_factory=list)
    kho_test: bool = False
    #: Content counts even where the image that is booted lacks it.
    complete: bool = False
    #: Preserved pages that lie in scratch memory, where early boot may put anything.
    exposed: list[int] = field(default_factory=list)

    @property
    def content(self) -> int:
        """Bytes of all files together."""
        return sum(f.size or 0 for f in self.files)

    def of(self, session: bytes) -> list[ExpectedFile]:
        """The files of one session."""
        return [f for f in self.files if f.session == session]


def _number(value: Any) -> int | None:
    if value is None:
        return None
    return int(value, 0) if isinstance(value, str) else int(value)


def from_truth(path: Path) -> Expectation:
    """Read a truth file. Raises UnreadableError."""
    try:
        data = json.loads(path.read_bytes())
        return from_record(data)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is not a truth file: {error!r}") from None


def restored_seals(seals: int) -> int:
    """The seals that a retrieved file has if these were preserved.

    A restored file is executable whatever it was, and on an executable file F_SEAL_EXEC
    brings the seals against writing with it (docs/kernel-findings.md).
    """
    return seals | _IMPLIED_BY_EXEC if seals & _SEAL_EXEC else seals


def from_record(data: dict[str, Any]) -> Expectation:
    """The expectation of a truth record (see :mod:`lab.truth`)."""
    # memfd-v1 has no field for seals: what user space asked for is not what is handed over.
    keeps_seals = not str(data.get("producer", "")).startswith("6.")

    def seals_of(file: dict[str, Any]) -> int | None:
        if not keeps_seals or file.get("seals") is None:
            return None
        seals = int(file["seals"], 0)
        return seals if data.get("restored_seals") else restored_seals(seals)

    left_out = data.get("content_left_out", {})
    limit = int(left_out.get("files_and_regions_above_bytes", 1 << 62))
    files = [
        ExpectedFile(
            file["session"].encode("utf-8", "surrogateescape"),
            int(file["token"], 0),
            _number(file.get("size")),
            _number(file.get("pos")),
            seals_of(file),
            file.get("sha256") if int(file.get("size") or 0) <= limit else None,
        )
        for file in data["files"]
        if not file.get("preserve_rc")
    ]
    regions = [
        ExpectedRegion(
            r["name"],
            int(r["start"], 0),
            int(r["size"]),
            r.get("sha256") if int(r["size"]) <= limit else None,
        )
        for r in data.get("reserve_mem", ())
    ]
    blobs = {*data.get("root", {}).get("subnodes", ()), *data.get("debugfs", ())}
    return Expectation(
        [s.encode("utf-8", "surrogateescape") for s in data["sessions"]],
        files,
        regions,
        # Its folios are large: where content was left out they cannot be right.
        not left_out and any(name.endswith("kho_test") for name in blobs),
        complete=bool(data.get("content_complete")),
    )


def as_truth(expected: Expectation, producer: str) -> dict[str, Any]:
    """The expectation as a truth record, for an image that is to be broken afterwards."""
    return {
        "producer": producer,
        "sessions": [s.decode("utf-8", "surrogateescape") for s in expected.sessions],
        "files": [
            {
                "session": f.session.decode("utf-8", "surrogateescape"),
                "token": hex(f.token),
                "size": f.size,
                "pos": f.position,
                "seals": None if f.seals is None else hex(f.seals),
                "sha256": f.sha256,
            }
            for f in expected.files
        ],
        "reserve_mem": [
            {"name": r.name, "start": hex(r.start), "size": r.size, "sha256": r.sha256}
            for r in expected.regions
        ],
        "debugfs": {"out/sub_fdts/kho_test": ""} if expected.kho_test else {},
        # Said of what a kernel restores, and of content that was whole before the fault.
        "restored_seals": True,
        "content_complete": True,
    }


def from_image(path: str | Path) -> Expectation:
    """What the image itself says, decoded; content that it does not hold is not compared.

    Raises UnreadableError if it cannot be opened. A file that does not decode is still
    asked for, with nothing to compare.
    """
    from inspector import image as images

    with images.open(str(path)) as image:
        return of_image(image)


def of_image(image: Any) -> Expectation:
    """The expectation of a decoded image (:class:`inspector.image.Image`)."""
    from inspector.text import c_string
    from inspector.walk.memfd import Memfd

    expected = Expectation(kho_test=_has_kho_test(image), exposed=_exposed(image))
    for region in image.reserve_mem or ():
        name = region.name.decode("utf-8", "replace")
        sum_ = _region_sum(image, region.start, region.size)
        expected.regions.append(ExpectedRegion(name, region.start, region.size, sum_))
    for session in image.luo.sessions if image.luo is not None else ():
        name = c_string(session.name)
        expected.sessions.append(name)
        for file in session.files:
            state = file.state
            if not isinstance(state, Memfd):
                expected.files.append(ExpectedFile(name, file.token))
                continue
            seals = None if state.seals is None else restored_seals(state.seals)
            sum_ = _content_sum(image, state)
            expected.files.append(
                ExpectedFile(name, file.token, state.size, state.pos, seals, sum_)
            )
    return expected


def _exposed(image: Any) -> list[int]:
    """Pages that are preserved and lie in scratch, at most 4096."""
    pages: list[int] = []
    if image.preserved is None or not image.scratch:
        return pages
    page = image.page_size
    starts, ends = image.preserved.intervals()
    for area in image.scratch:
        end = area.address + area.size
        for i in np.flatnonzero((starts < end) & (ends > area.address)).tolist():
            first, last = max(int(starts[i]), area.address), min(int(ends[i]), end)
            pages += range(first, min(last, first + (_MAX_EXPOSED - len(pages)) * page), page)
            if len(pages) >= _MAX_EXPOSED:
                return pages
    return pages


def _has_kho_test(image: Any) -> bool:
    """Whether the self test's data are wholly in the image."""
    from abi.kho_test import decode_folio

    if image.kho_test is None or image.kho_test.nr_folios != len(image.kho_test.folios):
        return False
    for item in image.kho_test.folios.tolist():
        address, order = decode_folio(item, image.page_size)
        if (
            order > _MAX_ORDER
            or image.memory.state(address, image.page_size << order) != PageState.PRESENT
        ):
            return False
    return True


def _content_sum(image: Any, memfd: Any) -> str | None:
    from inspector.walk.folio_file import content

    # Where the list of folios was not read, what is not there does not mean zeros.
    if memfd.size > _MAX_CONTENT or (memfd.nr_folios and not len(memfd.addresses)):
        return None
    sum_ = hashlib.sha256()
    for piece in content(image.survey, memfd):
        if piece.data is not None:
            sum_.update(piece.data)
        elif piece.missing is not None:
            return None
        else:
            for at in range(0, piece.size, len(_ZEROS)):
                sum_.update(_ZEROS[: piece.size - at])
    return sum_.hexdigest()


def _region_sum(image: Any, start: int, size: int) -> str | None:
    from inspector.memory.base import MemoryFault

    if size > _MAX_CONTENT:
        return None
    sum_ = hashlib.sha256()
    try:
        for at in range(0, size, 1 << 20):
            sum_.update(image.memory.read(start + at, min(1 << 20, size - at)))
    except MemoryFault:
        return None
    return sum_.hexdigest()


def truth_beside(image: Path) -> Path | None:
    """The truth file that lies beside an image, if one does."""
    name = image.name.removesuffix(".zst")
    for stem in (name, name.rpartition(".")[0]):
        candidate = image.with_name(f"{stem}.truth.json")
        if stem and candidate.exists():
            return candidate
    return None


def expect(image: Path, truth: Path | None = None) -> Expectation:
    """What to expect of an image: a truth file that is given or lies beside it, else itself.

    Content that the image does not hold (filtered, cut down) is not compared.
    """
    truth = truth or truth_beside(image)
    if truth is None:
        return from_image(image)
    expected = from_truth(truth)
    try:
        held = from_image(image)
    except KhoError:
        return expected
    expected.exposed = held.exposed
    if expected.complete:
        return expected
    whole = {(f.session, f.token) for f in held.files if f.sha256 is not None}
    known = {(f.session, f.token) for f in held.files}
    expected.files = [
        replace(f, sha256=None)
        if (f.session, f.token) in known and (f.session, f.token) not in whole
        else f
        for f in expected.files
    ]
    regions = {r.name: r.sha256 for r in held.regions}
    expected.regions = [
        replace(r, sha256=None) if r.name in regions and regions[r.name] is None else r
        for r in expected.regions
    ]
    expected.kho_test = expected.kho_test and held.kho_test
    return expected
