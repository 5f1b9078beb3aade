"""Randomly mutated images for a judge: whole machines, in which nothing is left open.

Unlike the cases of ``kho fuzz`` an image holds all of RAM (zero where nothing was written), so
that a prediction and a boot see the same bytes wherever a pointer leads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from abi.errors import KhoError
from inspector import image as images
from inspector.fuzz.base import Base, make_base
from inspector.fuzz.edit import Edit
from inspector.fuzz.mutate import Mutator
from inspector.kernel import scenario
from inspector.kernel.faults import FAULTS
from inspector.kernel.profile import profile
from inspector.memory.base import PhysicalMemory
from inspector.memory.sparse import SparseMemory
from lab import broken
from lab.expectation import Expectation, as_truth, of_image
from lab.host import new_file

_PAGE = 4096

_MACHINE = """
kernel = "{kernel}"
seed = {seed}
test_flbs = true
command_line = "kho=on reserve_mem=64K:4096:trace reserve_mem=1M:1M:oops"
[machine]
ram = ["256M"]
"""
_REGIONS = """
[kho_test]
pages = 32
[[reserve_mem]]
name = "trace"
size = "64K"
pattern = {seed}
[[reserve_mem]]
name = "oops"
size = "1M"
align = "1M"
pattern = {seed}
"""
#: Small images that between them have every kind of state: a few files of every sort; lists of
#: several blocks; files whose arrays take several pages.
SCENARIOS = {
    "files": _MACHINE
    + _REGIONS
    + """
[[session]]
name = "vm"
[[session.file]]
token = 1
size = "12K"
pos = 5
[[session.file]]
token = 2
size = "4M"
huge = true
[[session.file]]
token = 3
size = 12345
fill = "tail"
seals = ["seal", "shrink"]
[[session]]
name = "db"
[[session.file]]
token = 4
size = 0
[[session.file]]
token = "0xffffffffffffffff"
size = "256K"
fill = "every-other"
""",
    "lists": _MACHINE
    + """
[[session]]
name = "s-{{i}}"
count = 60
[[session]]
name = "many"
[[session.file]]
token = 0x100
size = 100
count = 70
""",
    "arrays": _MACHINE
    + _REGIONS
    + """
[[session]]
name = "big"
[[session.file]]
token = 7
size = "8M"
seals = ["seal", "grow", "write"]
[[session.file]]
token = 8
size = "2M"
fill = "every-other"
pos = 4096
""",
}


@dataclass(slots=True)
class _Whole:
    """An image before it is mutated."""

    name: str
    memory: SparseMemory
    expected: Expectation
    base: Base


def _text(name: str, kernel: str, seed: int) -> str:
    return SCENARIOS[name].format(kernel=kernel, seed=seed)


def _whole(name: str, kernel: str, seed: int) -> _Whole:
    text = _text(name, kernel, seed)
    made = scenario.parse(text, name).run()
    with images.open(made.memory) as decoded:
        return _Whole(
            name, made.memory, of_image(decoded), make_base(decoded, name, {"scenario": text})
        )


def cases(
    seed: int, count: int, kernel: str = "linux-7.3"
) -> Iterator[tuple[str, PhysicalMemory, Expectation, tuple[Edit, ...]]]:
    """``count`` mutated images: name, memory, what to expect of it, and the edits.

    The same for the same seed. What is expected are the sessions and files that the mutated
    image itself describes, and the regions and self test of the whole one.
    """
    wholes = [_whole(name, kernel, seed) for name in SCENARIOS]
    mutator = Mutator([w.base for w in wholes])
    number = done = 0
    while done < count:
        base, edits = mutator.case(seed, number)
        number += 1
        whole = next(w for w in wholes if w.base is base)
        # A machine has all of its pages.
        if not edits or any(e.data is None for e in edits):
            continue
        memory = _edited(whole, edits)
        if memory is None:
            continue
        yield f"{whole.name}-{seed}-{number - 1:04}", memory, _expected(whole, memory), edits
        done += 1


def _edited(whole: _Whole, edits: tuple[Edit, ...]) -> SparseMemory | None:
    """A copy with the edits; None if they change nothing. Writes outside RAM go nowhere."""
    memory = SparseMemory.over(whole.memory)
    ram = [(r.start, r.end) for r in whole.memory.regions]
    changed = False
    for edit in edits:
        at, data = edit.address, edit.data or b""
        while data:
            piece = data[: _PAGE - at % _PAGE]
            if any(low <= at < high for low, high in ram):
                page = at - at % _PAGE
                held = whole.memory.state(page, _PAGE) == 2
                old = whole.memory.read(at, len(piece)) if held else bytes(len(piece))
                changed |= old != piece
                if not held and memory.state(page, _PAGE) != 2:
                    memory.mark_zero(page, _PAGE)
                memory.write(at, piece)
            at, data = at + len(piece), data[len(piece) :]
    return memory if changed else None


def _expected(whole: _Whole, memory: PhysicalMemory) -> Expectation:
    try:
        with images.open(memory) as decoded:
            own = of_image(decoded)
    except KhoError:
        return whole.expected
    return replace(own, regions=whole.expected.regions, kho_test=whole.expected.kho_test)


def make(directory: Path, seed: int, count: int, kernel: str = "linux-7.3") -> int:
    """Write ``count`` mutated images, each with its truth; how many were written.

    ``NAME.edits.json`` says what was changed. Raises LabError if they cannot be written.
    """
    written = 0
    for name, memory, expected, edits in cases(seed, count, kernel):
        broken.write(directory / name, memory, as_truth(expected, profile(kernel).release))
        with new_file(directory / f"{name}.edits.json") as path:
            path.write_text(json.dumps([_readable(e) for e in edits], indent=1) + "\n")
        written += 1
    return written


def faulty(directory: Path, seed: int, kernel: str = "linux-7.3") -> int:
    """Write an image for each fault of the library that fits one of the scenarios.

    Returns how many were written.
    """
    left = list(FAULTS)
    for name in SCENARIOS:
        base = scenario.parse(_text(name, kernel, seed), name)
        left = list(broken.make(directory, f"{name}-{seed}", base, left))
    return len(FAULTS) - len(left)


def _readable(edit: Edit) -> dict[str, str]:
    return {
        "address": hex(edit.address),
        "data": (edit.data or b"").hex(),
        "note": edit.note,
    }
