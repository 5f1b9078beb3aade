"""What a kernel ought to find in an image: sessions, files, regions.

Out of a truth file where there is one (written by the machine that made the image), else
out of the image itself, through the inspector.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abi.errors import UnreadableError


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
        return _from_record(data)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"{path} is not a truth file: {error!r}") from None


def _from_record(data: dict[str, Any]) -> Expectation:
    # memfd-v1 has no field for seals: what user space asked for is not what is handed over.
    keeps_seals = not str(data.get("producer", "")).startswith("6.")
    files = [
        ExpectedFile(
            file["session"].encode(),
            int(file["token"], 0),
            _number(file.get("size")),
            _number(file.get("pos")),
            _number(file.get("seals")) if keeps_seals else None,
            file.get("sha256"),
        )
        for file in data["files"]
        if not file.get("preserve_rc")
    ]
    regions = [
        ExpectedRegion(r["name"], int(r["start"], 0), int(r["size"]), r.get("sha256"))
        for r in data.get("reserve_mem", ())
    ]
    blobs = {*data.get("root", {}).get("subnodes", ()), *data.get("debugfs", ())}
    return Expectation(
        [s.encode() for s in data["sessions"]],
        files,
        regions,
        any(name.endswith("kho_test") for name in blobs),
    )


def truth_beside(image: Path) -> Path | None:
    """The truth file that lies beside an image, if one does."""
    name = image.name.removesuffix(".zst")
    for stem in (name, name.rpartition(".")[0]):
        candidate = image.with_name(f"{stem}.truth.json")
        if stem and candidate.exists():
            return candidate
    return None
