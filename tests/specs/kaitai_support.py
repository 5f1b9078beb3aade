"""Helpers of the Kaitai tests: the specifications as data, the layouts, the corpus."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
import zstandard

from abi.errors import KhoError
from specs.generate import SPECS, spec_files

ROOT = SPECS.parent
CORPUS = ROOT / "corpus"
PAGE_SIZES = {"4K": 4096, "16K": 16384, "64K": 65536}


def camel(name: str) -> str:
    """``iommu_luo_rfc`` -> ``IommuLuoRfc``, as the compiler writes class names."""
    return "".join(part.capitalize() for part in name.split("_"))


@dataclass(frozen=True)
class Type:
    """One type of a specification."""

    module: str
    path: tuple[str, ...]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        """``memfd_luo::ser_v2``."""
        return "::".join((self.module, *self.path))

    @property
    def parser(self) -> Any:
        """The generated Python class."""
        found = getattr(import_module(f"specs.generated.{self.module}"), camel(self.module))
        for part in self.path:
            found = getattr(found, camel(part))
        return found

    @property
    def params(self) -> list[str]:
        """Names of the parameters, in order."""
        return [p["id"] for p in self.spec.get("params", [])]

    @property
    def c_structs(self) -> list[tuple[str, str]]:
        """(generation, struct name) of the kernel structs that the type describes."""
        origin = self.spec.get("-orig-id", [])
        origins = [origin] if isinstance(origin, str) else origin
        generations = self.spec.get("-generations", [])
        return [(g, o.removeprefix("struct ")) for g in generations for o in origins]

    @property
    def aliases(self) -> dict[str, str]:
        """Kernel's name of a member -> attribute."""
        return {a["-orig-id"]: a["id"] for a in self.spec.get("seq", []) if "-orig-id" in a}


@cache
def load_specs() -> dict[str, dict[str, Any]]:
    """Every specification by its id."""
    return {p.stem: yaml.safe_load(p.read_text("utf-8")) for p in spec_files()}


@cache
def all_types() -> dict[str, Type]:
    """Every type of every specification by its name."""
    found = {}

    def visit(module: str, path: tuple[str, ...], spec: dict[str, Any]) -> None:
        entry = Type(module, path, spec)
        found[entry.name] = entry
        for name, inner in spec.get("types", {}).items():
            visit(module, (*path, name), inner)

    for module, spec in load_specs().items():
        visit(module, (), spec)
    return found


@cache
def layouts() -> dict[str, dict[str, Any]]:
    """Generations of ``layouts.json`` by id."""
    data = json.loads((ROOT / "tests/data/abi/layouts.json").read_text("utf-8"))
    return {g["id"]: g for g in data["generations"]}


@cache
def c_structs() -> dict[tuple[str, str], dict[str, Any]]:
    """Structs of ``layouts.json`` by (generation, name)."""
    return {(g, s["name"]): s for g, entry in layouts().items() for s in entry["structs"]}


class Core:
    """Memory of an ELF core. An own reader, so that these tests depend on nothing else."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            data = zstandard.ZstdDecompressor().stream_reader(file).read()
        (table,) = struct.unpack_from("<Q", data, 32)
        size, number = struct.unpack_from("<HH", data, 54)
        self.segments = []
        for i in range(number):
            kind, _, offset, _, pa, length = struct.unpack_from("<IIQQQQ", data, table + i * size)
            if kind == 1:
                self.segments.append((pa, data[offset : offset + length]))
        self.segments.sort()

    def read(self, pa: int, size: int) -> bytes:
        """Bytes at ``pa``, across adjacent segments."""
        pieces = []
        for start, data in self.segments:
            if size and start <= pa < start + len(data):
                piece = data[pa - start : pa - start + size]
                pieces.append(piece)
                pa, size = pa + len(piece), size - len(piece)
        if size:
            raise KhoError(f"{pa:#x} is not in the image")
        return b"".join(pieces)


class Sparse:
    """Memory made of pieces, for built images."""

    def __init__(self, **_: int) -> None:
        self.pieces: dict[int, bytes] = {}

    def put(self, pa: int, data: bytes, size: int = 0) -> int:
        """Place ``data``, padded with zeros to ``size``; returns ``pa``."""
        self.pieces[pa] = data.ljust(size, b"\0")
        return pa

    def read(self, pa: int, size: int) -> bytes:
        """Bytes that lie within one piece."""
        for start, data in self.pieces.items():
            if start <= pa and pa + size <= start + len(data):
                return data[pa - start : pa - start + size]
        raise KhoError(f"{pa:#x} is not in the image")


def number(value: int | str | None) -> int:
    """Numbers of truth files, which are plain or hexadecimal text."""
    return int(value, 0) if isinstance(value, str) else int(value or 0)


@cache
def truth(name: str) -> dict[str, Any]:
    """Truth file of a capture."""
    data = json.loads((CORPUS / f"{name}.truth.json").read_text("utf-8"))
    assert isinstance(data, dict)
    return data


@cache
def core(name: str) -> Core:
    """Memory of a capture."""
    return Core(CORPUS / f"{name}.elf.zst")
