"""The parsers of other languages read the same as the Python ones.

Every struct that is met while the captures are read, and a pattern of every struct of
``layouts.json``, goes through the JavaScript parsers on Node and the C++ parsers. What each
field and instance holds, and what is refused, must be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kaitai_patterns import CASES, params_for, pattern
from kaitai_support import ROOT, Type, all_types, c_structs, core
from test_kaitai_images import IOMMU_IMAGES, LAYOUTS, MEMORY_IMAGES, root_address, truth

from specs import PARSE_ERRORS, parse
from specs.follow import Follower
from specs.generate import ToolchainMissingError, compile_specs, node_modules
from specs.iommu import vtd_context, vtd_pasid
from specs.reader import ImageReader

HERE = Path(__file__).parent / "targets"
#: Buffers of one type that are kept of one image; the rest is more of the same.
PER_TYPE = 12

Request = tuple[str, tuple[int, ...], bytes]


class Recorder(Follower):
    """Remembers what it parses."""

    seen: dict[str, list[Request]]

    def parse(self, where: str, pa: int, data: bytes, parser: Any, *params: Any) -> Any:
        name = names()[parser]
        kept = self.seen.setdefault(name, [])
        if len(kept) < PER_TYPE and any(data):
            kept.append((name, params, data))
        return super().parse(where, pa, data, parser, *params)


@cache
def names() -> dict[Any, str]:
    return {t.parser: t.name for t in all_types().values()}


@cache
def requests() -> list[Request]:
    """What is sent to every target: captures, patterns, and both of them cut short."""
    found: dict[Request, None] = {}
    for image in MEMORY_IMAGES + IOMMU_IMAGES:
        reader = ImageReader(core(image), truth(image).get("page_size", 4096), LAYOUTS.get(image))
        recorder = Recorder(core(image), reader.page_size)
        recorder.seen = {}
        reader.follower = recorder
        read = reader.image(root_address(image))
        for _, _ in zip(range(3), reader.blocks(read), strict=False):
            pass
        if image in IOMMU_IMAGES and read.luo is not None:
            state = next(f.body for f in read.luo.flbs if b"iommu" in f.name)
            scalable = truth(image)["mode"] == "scalable"
            root = state.hw[0][1].intel.root_table
            for _, device in state.devices[:4]:
                entry = vtd_context(recorder, root, device.devid, scalable=scalable)
                if scalable and entry:
                    vtd_pasid(recorder, entry[1].pasid_dir, 0, device.intel.max_pasid)
        found.update(dict.fromkeys(r for kept in recorder.seen.values() for r in kept))
    for generation, name, entry in CASES:
        data = pattern(generation, name, entry, "4K", 1)
        params = params_for(entry, c_structs()[generation, name], "4K")
        found[entry.name, tuple(params), data] = None
    # Tables of hardware are no C structs; they get arbitrary bytes.
    for entry in all_types().values():
        if entry.module in ("vtd_tables", "smmuv3_tables", "amd_iommu_tables"):
            noise = hashlib.shake_256(entry.name.encode()).digest(4096)
            found[entry.name, (3,) * len(entry.params), noise] = None
    for path in sorted((ROOT / "tests/data/qemu_cpr").glob("*.bin")):
        found["qemu_cpr", (2 if "exec" in path.name else 1,), path.read_bytes()] = None
    whole = list(found)
    short = [(n, p, d[:cut]) for n, p, d in whole for cut in (len(d) // 2, len(d) - 1)]
    return list(dict.fromkeys(whole + short))


def show(value: Any) -> Any:
    """What a parsed object holds, in the form that the dumpers of the targets print."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return value.encode().hex()
    if isinstance(value, bool | IntEnum):
        return int(value)
    if isinstance(value, list):
        return [show(v) for v in value]
    if isinstance(value, int):
        return value
    entry = all_types()[names()[type(value)]]
    members = [a["id"] for a in entry.spec.get("seq", [])] + list(entry.spec.get("instances", {}))
    held = {m: getattr(value, m, None) for m in members}
    return {m: show(v) for m, v in held.items() if v is not None}


@cache
def expected() -> list[Any]:
    answers: list[Any] = []
    for name, params, data in requests():
        try:
            answers.append(show(parse(all_types()[name].parser, data, *params)))
        except PARSE_ERRORS:
            answers.append(None)
    return answers


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def differences(python: Any, other: Any, rename: Any, exact: bool, where: str = "") -> list[str]:
    """Where two dumps differ; ``exact`` is False for numbers of 53 bits (JavaScript)."""
    if isinstance(python, dict):
        if not isinstance(other, dict) or "error" in other:
            return [f"{where}: {other!r}"]
        found = []
        for key, value in python.items():
            if rename(key) not in other:
                found.append(f"{where}.{key} is missing")
            else:
                place = f"{where}.{key}"
                found += differences(value, other[rename(key)], rename, exact, place)
        return found
    if isinstance(python, list):
        if not isinstance(other, list) or len(python) != len(other):
            return [f"{where}: lengths differ"]
        pairs = enumerate(zip(python, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, rename, exact, f"{where}[{i}]")]
    if isinstance(python, int) and not exact:
        same = isinstance(other, int | float) and float(python) == float(other)
    else:
        same = python == other
    return [] if same else [f"{where}: {python!r} and {other!r}"]


def compare(answers: list[Any], rename: Any, exact: bool) -> None:
    assert len(answers) == len(requests())
    wrong = []
    accepted = 0
    for (name, _, data), mine, theirs in zip(requests(), expected(), answers, strict=True):
        refused = isinstance(theirs, dict) and "error" in theirs
        if mine is None or refused:
            if (mine is None) != refused:
                wrong.append(f"{name} ({len(data)} bytes): only one of the two refuses it")
            continue
        accepted += 1
        wrong += differences(mine, theirs, rename, exact, name)
    assert wrong[:20] == []
    assert accepted > 500


def compiled(language: str, output: Path) -> None:
    try:
        compile_specs(language, output)
    except ToolchainMissingError as error:
        pytest.skip(f"kaitai-struct-compiler: {error}")


def test_javascript(tmp_path: Path) -> None:
    compiled("javascript", tmp_path)
    lines = [
        json.dumps({"type": name, "params": params, "data": data.hex()})
        for name, params, data in requests()
    ]
    done = subprocess.run(
        ["node", str(HERE / "dump.js"), str(tmp_path)],
        input="\n".join(lines) + "\n",
        env=os.environ | {"NODE_PATH": str(node_modules())},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    compare(answers, camel, exact=False)


def cpp_class(entry: Type) -> str:
    return "::".join(f"{part}_t" for part in (entry.module, *entry.path))


def cpp_dumper(types: list[Type]) -> str:
    """Source of the functions that ``dump.h`` expects."""
    declared, defined, cases = [], [], []
    for entry in types:
        spec, lines = entry.spec, []
        optional = {a["id"] for a in spec.get("seq", []) if "if" in a}
        optional |= {i for i, a in spec.get("instances", {}).items() if "if" in a}
        for name in [*(a["id"] for a in spec.get("seq", [])), *spec.get("instances", {})]:
            line = f'out.key("\\"{name}\\":"); show(out, from->{name}());'
            if name in optional:
                # An instance is read by its accessor; only then is it known to be absent.
                line = f"from->{name}(); if (!from->_is_null_{name}()) {{ {line} }}"
            line = "    " + line
            lines.append(line)
        head = f"void fields(json& out, {cpp_class(entry)}* from)"
        declared.append(f"{head};")
        defined.append("\n".join([head + " {", "    (void)out; (void)from;", *lines, "}"]))
        given = "".join(
            f"({entry.module}_t::{param['enum']}_t)p[{i}], " if "enum" in param else f"p[{i}], "
            for i, param in enumerate(entry.spec.get("params", []))
        )
        cases.append(
            f"    case {len(cases)}: {{ {cpp_class(entry)} object({given}&io); "
            "show(out, &object); break; }"
        )
    return "\n".join(
        [
            *declared,
            *defined,
            "std::string parse(",
            "    unsigned type, const std::vector<uint64_t>& p, kaitai::kstream& io) {",
            "    json out;",
            "    (void)p;",
            "    switch (type) {",
            *cases,
            "    }",
            "    return out.text;",
            "}",
        ]
    )


def build_cpp(sources: Path, types: list[Type]) -> Path:
    """Compile everything as one translation unit; kept in .cache by its contents."""
    runtime = os.environ.get("KAITAI_CPP_RUNTIME")
    headers = sorted(p.name for p in sources.glob("*.h"))
    text = "\n".join(
        ["class json;", '#include "kaitai/kaitaistruct.h"']
        + [f'#include "{h}"' for h in headers]
        + [f"void fields(json& out, {cpp_class(t)}* from);" for t in types]
        + [(HERE / "dump.h").read_text("utf-8"), cpp_dumper(types)]
        + [p.read_text("utf-8") for p in sorted(sources.glob("*.cpp"))]
        + [p.read_text("utf-8") for p in sorted(sources.glob("*.h"))]
    )
    shim = "".join(p.read_text("utf-8") for p in sorted((HERE / "kaitai").glob("*.h")))
    digest = hashlib.sha256((text + shim + str(runtime)).encode()).hexdigest()[:16]
    program = ROOT / ".cache" / f"kaitai-cpp-{digest}"
    if program.exists():
        return program
    unit = "\n".join(
        ["class json;", '#include "kaitai/kaitaistruct.h"']
        + [f'#include "{h}"' for h in headers]
        + [f"void fields(json& out, {cpp_class(t)}* from);" for t in types]
        + [f'#include "{HERE / "dump.h"}"', cpp_dumper(types)]
        + [f'#include "{p.name}"' for p in sorted(sources.glob("*.cpp"))]
        + ([f'#include "{runtime}/kaitai/kaitaistream.cpp"'] if runtime else [])
    )
    (sources / "unit.cc").write_text(unit, "utf-8")
    program.parent.mkdir(exist_ok=True)
    built = sources / "dump"
    options = ["-std=c++11", "-O0", "-DKS_STR_ENCODING_NONE"]
    done = subprocess.run(
        ["g++", *options, f"-I{runtime or HERE}", f"-I{sources}", "-o", built, sources / "unit.cc"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shutil.move(built, program)
    return program


def test_cpp(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    compiled("cpp_stl", tmp_path)
    types = list(all_types().values())
    number = {t.name: i for i, t in enumerate(types)}
    program = build_cpp(tmp_path, types)
    stream = b"".join(
        struct.pack(f"<II{len(params)}QI", number[name], len(params), *params, len(data)) + data
        for name, params, data in requests()
    )
    done = subprocess.run([str(program)], input=stream, capture_output=True, timeout=120)
    assert done.returncode == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    compare(answers, str, exact=True)
