"""Page tables that real kernels built, against what the machine said about them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inspector.memory
from abi.pagetable import FORMATS, Permission
from inspector.memory import PhysicalMemory
from inspector.pagetable import Walk, format_leaves, walk

CORPUS = Path(__file__).parents[2] / "corpus"


def domains(name: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(device, its truth, arguments of walk)."""
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    for device, said in truth["devices"].items():
        if name == "vtd-legacy":
            where = {"format": "vtdss", "root": said["page_table_root"], "levels": said["levels"]}
        elif "amdv1" in name:
            where = {"format": "amdv1", "root": said["root"], "levels": said["mode"]}
        else:
            where = {
                "format": "lpae" + name.partition("smmuv3")[2],
                "root": said.get("ttb0") or said["s2ttb"],
                "levels": 4 - said["start_level"],
                "vasz": 64 - said["t0sz"],
            }
        where["root"] = int(where["root"], 16)
        yield device, {**said, "mappings": truth["mappings"], "unmapped": truth["unmapped"]}, where


CASES = [
    pytest.param(name, said, where, id=f"{name}-{device}")
    for name in (
        "vtd-legacy",
        "linux-7.3.4-amdv1",
        "linux-7.3.4-smmuv3-s1-4k",
        "linux-7.3.4-smmuv3-s2-64k",
    )
    for device, said, where in domains(name)
]


@functools.cache
def image(name: str) -> PhysicalMemory:
    return inspector.memory.open(CORPUS / f"{name}.elf.zst")


def walked(name: str, where: dict[str, Any], **more: Any) -> Walk:
    return walk(image(name), **where, **more)


def lines_of_runs(said: dict[str, Any], name: str) -> list[tuple[int, int, int, int]]:
    """The truth's runs of leaves, leaf by leaf."""
    out = []
    for run in said["leaf_runs"]:
        iova, pa, size = (int(value, 16) for value in run[:3])
        for n in range(run[3]):
            entry = int(run[4], 16) | pa + n * size
            if name == "amdv1" and run[5] > 1:
                entry |= (size // 2 - 1) & ~0xFFF
            out.append((iova + n * size, pa + n * size, size, entry))
    return sorted(out)


@pytest.mark.parametrize(("name", "said", "where"), CASES)
def test_leaves(name: str, said: dict[str, Any], where: dict[str, Any]) -> None:
    tree = walked(name, where)
    rows = [row for chunk in tree.leaves() for row in chunk]
    if "leaves" in said:
        expected = [tuple(int(value, 16) for value in leaf) for leaf in said["leaves"]]
    else:
        expected = lines_of_runs(said, where["format"])
    assert rows == expected
    assert len(rows) == said["leaf_entries"]
    assert tree.stats.leaves_by_size == {
        int(size, 16): count for size, count in sorted_sizes(said["leaf_by_size"])
    }
    lines = b"".join(map(format_leaves, tree.leaves())).decode().splitlines()
    if where["format"] == "amdv1":
        grouped = [row[3] >> 9 & 7 == 7 for row in rows]
        level_size = [max(s for s in (1 << 12, 1 << 21, 1 << 30) if s <= row[2]) for row in rows]
        lines = [
            f"{line} {row[2] // step if group else 1}"
            for line, row, step, group in zip(lines, rows, level_size, grouped, strict=True)
        ]
    digest = hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()
    assert digest == said["leaves_sha256"]


def sorted_sizes(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: int(item[0], 16))


@pytest.mark.parametrize(("name", "said", "where"), CASES)
def test_ranges(name: str, said: dict[str, Any], where: dict[str, Any]) -> None:
    """Granule by granule, the ranges are the mappings that user space asked for."""
    tree = walked(name, where)
    ranges = [row for chunk in tree.ranges() for row in chunk]
    for before, after in itertools.pairwise(ranges):
        assert before[0] + before[2] <= after[0]
        assert (before[0] + before[2], before[1] + before[2], before[3]) != (
            after[0],
            after[1],
            after[3],
        )
    asked = [
        (int(m["iova"], 16), int(m["pa"], 16), int(m["len"], 16))
        for m in said["mappings"]
        if m["ioas"] == said["ioas"]
    ]
    gone = said["unmapped"]
    if gone["ioas"] == said["ioas"]:
        asked = [m for m in asked if m[0] != int(gone["iova"], 16)]
    assert union([row[:3] for row in ranges]) == union(asked)
    assert tree.findings.items == []
    assert tree.stats.complete


def union(pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Pieces of (iova, pa, size), those that continue each other joined."""
    out: list[tuple[int, int, int]] = []
    for iova, pa, size in sorted(pieces):
        if out and (out[-1][0] + out[-1][2], out[-1][1] + out[-1][2]) == (iova, pa):
            out[-1] = (*out[-1][:2], out[-1][2] + size)
        else:
            out.append((iova, pa, size))
    return out


@pytest.mark.parametrize(("name", "said", "where"), CASES)
def test_permissions(name: str, said: dict[str, Any], where: dict[str, Any]) -> None:
    tree = walked(name, where)
    wanted = [m for m in said["mappings"] if m["ioas"] == said["ioas"]]
    found = tree.translate([int(m["iova"], 16) for m in wanted])
    rights = {"r": Permission.READ, "w": Permission.WRITE, "rw": 3}
    for mapping, state, got in zip(wanted, found.state, found.permissions, strict=True):
        if mapping["iova"] == "0x10019000" or mapping["iova"] == "0x10190000":
            continue  # unmapped again
        expected = rights[mapping["flags"]]
        if where["format"].startswith("lpae-s1"):
            expected |= Permission.READ  # stage 1 cannot forbid reading
        assert state == 1
        assert got & 3 == expected


@pytest.mark.parametrize(("name", "said", "where"), CASES)
def test_tables(name: str, said: dict[str, Any], where: dict[str, Any]) -> None:
    tree = walked(name, where)
    if "tables" in said:
        assert tree.table_pages.tolist() == sorted(int(t[0], 16) for t in said["tables"])
    if "tables_by_level" in said:
        levels = {int(level): count for level, count in said["tables_by_level"].items()}
        if where["format"].startswith("lpae"):
            levels = {3 - level: count for level, count in levels.items()}
        assert dict(tree.stats.tables) == levels
    everything = tree.table_pages

    def preserved(pas: np.ndarray) -> np.ndarray:
        return np.isin(pas, everything)

    assert walked(name, where, preserved=preserved).findings.items == []
    less = everything[everything != everything[len(everything) // 2]]
    broken = walked(name, where, preserved=lambda pas: np.isin(pas, less))
    assert [finding.code for finding in broken.findings.items] == ["KHO-PT-006"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_round_trip(name: str) -> None:
    from reference import SHAPES

    assert name in SHAPES
