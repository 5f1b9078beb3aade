"""What a producer is told to preserve, and what its content is to be.

A workload is a TOML or JSON file, or the built-in one; everything in it follows from the
seed, so that two captures with one seed hold the same content::

    seed = 7
    ram = "512M"
    reserve_mem = [{ name = "trace", size = "1M", align = "4K" }]

    [[session]]
    name = "vm-alpha"

    [[session.file]]
    size = "4M"           # bytes, or with K, M, G
    content = "full"      # full, sparse, tail or none (fallocated, never written)
    method = "write"      # or mmap
    huge = true           # huge folios
    seals = ["grow", "shrink"]
    position = 100
    count = 70            # so many such files
    token = "0x11"        # else it follows from the seed

Word i of a file with key k is ``mix(mix(k) + i)``, little endian, mix being the splitmix64
finalizer with its increment. With seed 0 the key is the token; else it is the token with
mix(seed) folded in.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.errors import UnreadableError, UsageError

_PAGE = 4096
_CHUNK = 1 << 20
_MASK = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15

SEALS = {"seal": 1, "shrink": 2, "grow": 4, "write": 8, "future-write": 16, "exec": 32}
_CONTENTS = ("full", "sparse", "tail", "none")
_METHODS = ("write", "mmap")
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 1, 2, 8


def mix(x: int) -> int:
    """The splitmix64 finalizer, with its increment, of one number."""
    x = (x + _INCREMENT) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _words(key: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Words ``first`` to ``first + count`` of the content with a key."""
    start = np.uint64((mix(key) + first + _INCREMENT) & _MASK)
    x = np.arange(count, dtype=np.uint64) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One memory file. ``runs`` are the written (first page, pages)."""

    session: str
    token: int
    key: int
    size: int
    position: int = 0
    seals: int = 0
    method: str = "write"
    huge: bool = False
    content: str = "full"

    @property
    def pages(self) -> int:
        """Pages of 4 KiB, the last one perhaps in part."""
        return -(-self.size // _PAGE)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Written pages, as (first, count); the rest reads as zeros."""
        n = self.pages
        if self.content == "full":
            return ((0, n),) if n else ()
        if self.content == "tail":
            return ((n - 1, 1),) if n else ()
        if self.content == "sparse":
            # Pages 1, 2, 5, 10, 11, ...: never all, never regular.
            return tuple((p, 1) for p in range(min(n, 4096)) if mix(self.key ^ p) % 3 == 0)
        return ()

    def chunks(self) -> Iterator[bytes]:
        """The file's content, at most 1 MiB at a time."""
        written = np.zeros(self.pages, np.bool_)
        for first, count in self.runs:
            written[first : first + count] = True
        for at in range(0, self.size, _CHUNK):
            n = min(_CHUNK, self.size - at)
            here = written[at // _PAGE : -(-(at + n) // _PAGE)]
            if not here.any():
                yield bytes(n)
                continue
            data = np.zeros(-(-n // _PAGE) * _PAGE, np.uint8)
            data.view(np.uint64)[:] = _words(self.key, at // 8, data.size // 8)
            data.reshape(-1, _PAGE)[~here] = 0
            yield data.tobytes()[:n]

    def sha256(self) -> str:
        """SHA-256 of the whole content."""
        sum_ = hashlib.sha256()
        for chunk in self.chunks():
            sum_.update(chunk)
        return sum_.hexdigest()

    def command(self) -> str:
        """The producer's command that makes and preserves the file."""
        flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
        if self.seals & SEALS["exec"]:
            flags |= _MFD_NOEXEC_SEAL  # the only way to that seal without an executable file
        method = "fallocate" if self.content == "none" and self.size else self.method
        runs = ",".join(f"{first}+{count}" for first, count in self.runs) or "-"
        return (
            f"memfd {self.token:#x} {self.key:#x} {self.size} {self.position} "
            f"{self.seals & ~SEALS['exec']} {flags} {method} {runs}"
        )


@dataclass(frozen=True, slots=True)
class ReserveMem:
    """One ``reserve_mem=`` region; the lab writes content with ``key`` into it."""

    name: str
    size: int
    align: int
    key: int

    def parameter(self) -> str:
        """The kernel's command line parameter."""
        return f"reserve_mem={self.size}:{self.align}:{self.name}"

    def content(self) -> bytes:
        """What the lab writes into the region before the jump."""
        return _words(self.key, 0, self.size // 8).tobytes()


@dataclass(frozen=True, slots=True)
class Workload:
    """Sessions, files and regions of one capture."""

    seed: int
    ram: int
    sessions: tuple[str, ...]
    files: tuple[FileSpec, ...]
    reserve_mem: tuple[ReserveMem, ...]

    @classmethod
    def load(cls, path: Path, seed: int | None = None) -> Workload:
        """Read a workload file. ``seed`` overrides the file's."""
        try:
            text = path.read_bytes()
            data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
        except OSError as error:
            raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise UnreadableError(f"{path}: {error}") from None
        if not isinstance(data, dict):
            raise UnreadableError(f"{path}: not a table")
        return cls.make(data, seed)

    @classmethod
    def make(cls, data: dict[str, Any], seed: int | None = None) -> Workload:
        """A workload out of its description. Raises UsageError for what is wrong in it."""
        known = {"seed", "ram", "reserve_mem", "session"}
        _only(data, known, "workload")
        seed = int(data.get("seed", 0)) if seed is None else seed
        sessions, files = [], []
        tokens: set[tuple[str, int]] = set()
        for i, session in enumerate(data.get("session", ())):
            _only(session, {"name", "file"}, f"session {i}")
            name = str(session.get("name", f"session-{i}"))
            if not 0 < len(name.encode()) < 64 or name in sessions:
                raise UsageError(f"session name {name!r}: 1 to 63 bytes, and each once")
            sessions.append(name)
            for j, spec in enumerate(session.get("file", ())):
                for k in range(int(spec.get("count", 1))):
                    file = _file(name, spec, seed, (i << 40) | (j << 20) | k, k)
                    if (name, file.token) in tokens:
                        raise UsageError(f"session {name!r}: token {file.token:#x} twice")
                    tokens.add((name, file.token))
                    files.append(file)
        regions = []
        for i, region in enumerate(data.get("reserve_mem", ())):
            _only(region, {"name", "size", "align"}, f"reserve_mem {i}")
            size, align = size_of(region.get("size", "1M")), size_of(region.get("align", "4K"))
            name = str(region.get("name", f"region{i}"))
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,14}", name):
                raise UsageError(f"reserve_mem name {name!r}: 1 to 15 letters, digits, - and _")
            regions.append(ReserveMem(name, size, align, _key(mix(0x5E5E + i), seed)))
        ram = size_of(data.get("ram", "512M"))
        if ram % (2 << 20):
            raise UsageError("ram: a multiple of 2M")
        return cls(seed, ram, tuple(sessions), tuple(files), tuple(regions))

    @classmethod
    def default(cls, seed: int = 1) -> Workload:
        """The built-in workload: every shape of file, varied by the seed."""
        return cls.make(_default(seed), seed)

    @classmethod
    def small(cls, seed: int = 1) -> Workload:
        """A few small files; enough to tell whether a kernel takes over."""
        shapes: list[dict[str, Any]] = [
            {"size": 0},
            {"size": 5000, "seals": ["grow", "shrink"], "position": 77},
            {"size": "64K", "content": "sparse"},
        ]
        return cls.make(
            {
                "ram": "256M",
                "session": [{"name": "one", "file": shapes}, {"name": "two"}],
                "reserve_mem": [{"name": "trace", "size": "1M"}],
            },
            seed,
        )


def _default(seed: int) -> dict[str, Any]:
    def pick(what: str, low: int, high: int) -> int:
        digest = hashlib.sha256(f"{seed}:{what}".encode()).digest()
        return low + int.from_bytes(digest[:8], "little") % (high - low + 1)

    long_name = f"{seed:x}-" + "long-session-name-" * 4
    all_seals = ["seal", "shrink", "grow", "write"]
    vm: list[dict[str, Any]] = [
        {"size": 0},
        {"size": _PAGE, "position": _PAGE},
        {"size": pick("tail", _PAGE + 1, 3 * _PAGE), "content": "tail"},
        {"size": "64K", "content": "sparse", "position": pick("position", 0, 65536)},
    ]
    cache: list[dict[str, Any]] = [
        {"size": pick("medium", 1 << 20, 4 << 20), "position": pick("medium position", 0, 1 << 20)},
        {"size": pick("large", 8 << 20, 16 << 20) & -_PAGE},
        {"size": pick("sealed", 1, 5 * _PAGE), "seals": all_seals, "position": 3},
        {"token": hex(_MASK), "size": 12345, "seals": ["future-write"]},
    ]
    mixed: list[dict[str, Any]] = [
        {"size": (4 << 20) + 8192, "huge": True, "position": (4 << 20) + 8192},
        {"token": 0, "size": "1M", "content": "none"},
        {"size": 6000, "seals": ["grow", "shrink"], "position": 100},
        {"size": 20000, "method": "mmap", "seals": ["exec"]},
    ]
    return {
        "ram": "512M",
        "reserve_mem": [
            {"name": "labtrace", "size": "1M", "align": "4K"},
            {"name": "laboops", "size": "4M", "align": "2M"},
        ],
        "session": [
            {"name": "vm-alpha", "file": vm},
            {"name": "db-cache", "file": cache},
            {"name": long_name[:63], "file": mixed},
            {"name": "many-files", "file": [{"size": 100, "grow": 97, "count": 70}]},
            {"name": "empty-session"},
        ],
    }


def _only(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: not a table")
    unknown = set(table) - known
    if unknown:
        raise UsageError(f"{where}: unknown key {sorted(unknown)[0]!r} (known: {sorted(known)})")


def _file(session: str, spec: Any, seed: int, number: int, copy: int) -> FileSpec:
    known = {"size", "content", "method", "huge", "seals", "position", "count", "token", "grow"}
    _only(spec, known, f"file of session {session!r}")
    token = spec.get("token")
    value = int(str(token), 0) + copy if token is not None else mix(mix(seed) ^ (number + 1))
    if not 0 <= value <= _MASK:
        raise UsageError(f"token {token}: 64 bits")
    size = size_of(spec.get("size", 0)) + copy * size_of(spec.get("grow", 0))
    seals = 0
    for seal in spec.get("seals", ()):
        if seal not in SEALS:
            raise UsageError(f"unknown seal {seal!r} (known: {', '.join(SEALS)})")
        seals |= SEALS[seal]
    content, method = spec.get("content", "full"), spec.get("method", "write")
    if content not in _CONTENTS or method not in _METHODS:
        raise UsageError(f"content is one of {_CONTENTS}, method one of {_METHODS}")
    return FileSpec(
        session,
        value,
        _key(value, seed),
        size,
        size_of(spec.get("position", 0)),
        seals,
        method,
        bool(spec.get("huge", False)),
        content,
    )


def _key(token: int, seed: int) -> int:
    return token ^ mix(seed) if seed else token


def size_of(value: int | str) -> int:
    """A number of bytes: ``4096``, ``"0x1000"``, ``"4K"``, ``"2M"``, ``"1G"``."""
    m = re.fullmatch(r"(0x[0-9a-fA-F]+|[0-9]+)([KMG]?)", str(value))
    if m is None:
        raise UsageError(f"{value!r} is not a size (4096, 0x1000, 4K, 2M, 1G)")
    return int(m[1], 0) << {"": 0, "K": 10, "M": 20, "G": 30}[m[2]]
