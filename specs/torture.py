"""Mutated buffers through every generated parser: nothing but the expected errors.

    python -m specs.torture --count 1000000 --seed 1

Buffers begin as zeros, noise, or a well-formed shape (counts, strings and magics in
place, a device tree, a CPR stream) and are then damaged: bits flipped, words replaced by
extreme values, cut short, pieces copied over others. Every field is read and every
instance is computed. A finding is an exception outside ``specs.PARSE_ERRORS``, a parse
that takes longer than a second, or an object larger than the buffer explains. Buffer n of
a seed is always the same, so ``--only N`` repeats one.
"""

from __future__ import annotations

import argparse
import inspect
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from kaitaistruct import KaitaiStruct

from . import PARSE_ERRORS, PARSERS, parse

#: Seconds of processor time that one buffer may take; a busy machine is no finding.
PATIENCE = 1.0
#: Objects that one byte of input may become, at most, and objects that any input may become.
OBJECTS_PER_BYTE, OBJECTS_BASE = 4, 200

_WORDS = (0, 1, 2, 7, 0x7F, 0xFF, 0x1000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 52, 1 << 63)
_EXTREMES = tuple(w.to_bytes(8, "little") for w in (*_WORDS, (1 << 64) - 1, (1 << 64) - 4096))
_STRINGS = (b"luo-v5\0\0", b"luo-v5;block-v1\0", b"kho-v4\0", b"memfd-v2\0", b"QCPR\0\0\0\1")


@dataclass(frozen=True, slots=True)
class Target:
    """A parser and the names of its parameters."""

    name: str
    parser: Any
    params: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What a run saw. ``findings`` are lines; an empty list is success."""

    buffers: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    findings: list[str] = field(default_factory=list)


def _subparsers(parser: Any) -> Iterator[Any]:
    yield parser
    for _, inner in inspect.getmembers(parser, inspect.isclass):
        if issubclass(inner, KaitaiStruct) and inner.__qualname__.startswith(parser.__qualname__):
            yield from _subparsers(inner)


def targets() -> list[Target]:
    """Every type of every specification, by name."""
    found = []
    for name, module in PARSERS.items():
        top = getattr(import_module(f"specs.generated.{module}"), name)
        for parser in _subparsers(top):
            names = list(inspect.signature(parser.__init__).parameters)
            params = tuple(names[1 : names.index("_io")])
            # Tokens and elements that only make sense inside their file's top-level type.
            if parser.__qualname__ not in ("Fdt.Token", "Fdt.StructBlock"):
                found.append(Target(parser.__qualname__, parser, params))
    return sorted(found, key=lambda t: t.name)


def _tree(rng: random.Random) -> bytes:
    """A small device tree, sound but for what the generator of tokens happens to do."""
    names = b"compatible\0preserved-data\0blob-size\0"
    body = bytearray()
    for _ in range(rng.randrange(1, 12)):
        kind = rng.choice((1, 2, 3, 3, 3, 4))
        body += kind.to_bytes(4, "big")
        if kind == 1:
            body += rng.choice((b"\0\0\0\0", b"LUO\0", b"memblock\0\0\0\0"))
        elif kind == 3:
            value = rng.randbytes(rng.choice((0, 4, 7, 8)))
            body += len(value).to_bytes(4, "big") + rng.choice((0, 11, 26, 90)).to_bytes(4, "big")
            body += value + bytes(-len(value) % 4)
    body += (9).to_bytes(4, "big")
    head = (0xD00DFEED, 56 + len(body) + len(names), 56, 56 + len(body), 40, 17, 16, 0)
    words = (*head, len(names), len(body))
    return b"".join(w.to_bytes(4, "big") for w in words) + bytes(16) + bytes(body) + names


def _stream(rng: random.Random) -> bytes:
    """A CPR stream."""
    parts = [b"QCPR\0\0\0\1"]
    carrier = rng.choice((b"", b" ", b"\0\0\0\7"))
    for i in range(rng.randrange(4)):
        parts += [b"\1\0\0\0\5ram0\0", i.to_bytes(4, "big"), carrier]
    parts.append(b"\0")
    if rng.random() < 0.7:
        section = b"CprState/vfio devices"
        parts.append(bytes([5, len(section)]) + section + b"\0\0\0\1")
        parts.append(b"\1\0\0\0\3v0\0" + bytes(12) + b"\0")
    return b"".join(parts)


def _linked_page(rng: random.Random) -> bytes:
    """Header {next, count} and entries, as blocks and array pages have them."""
    count = rng.choice((0, 1, 3, 20, 51, 63, 200))
    first = rng.choice((0, 0x1000)).to_bytes(8, "little")
    return first + count.to_bytes(8, "little") + rng.randbytes(rng.choice((64, 512, 4080)))


def _counted(rng: random.Random) -> bytes:
    """One or two counts and an array."""
    count = rng.randrange(20)
    width = rng.choice((4, 8))
    return count.to_bytes(width, "little") * rng.choice((1, 2)) + rng.randbytes(400)


_SHAPES: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: bytes(rng.choice((16, 64, 128, 512, 4096))),
    lambda rng: rng.randbytes(rng.choice((8, 32, 64, 200, 512))),
    lambda rng: rng.choice(_STRINGS) + rng.randbytes(160),
    _linked_page,
    _counted,
)


def seed_buffer(target: Target, rng: random.Random) -> bytes:
    """A buffer before it is damaged."""
    if target.name == "Fdt" and rng.random() < 0.9:
        return _tree(rng)
    if target.name.startswith("QemuCpr") and rng.random() < 0.8:
        data = _stream(rng)
        return data if target.name == "QemuCpr" else data[rng.randrange(len(data)) :]
    if target.name == "KhoBoot" and rng.random() < 0.8:
        return bytes(8) + b"\x0a\0\0\0\x20\0\0\0" + rng.randbytes(32)
    return rng.choice(_SHAPES)(rng)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a buffer in 0 to 5 places."""
    buffer = bytearray(data)
    for _ in range(rng.randrange(6)):
        if not buffer:
            return b""
        at = rng.randrange(len(buffer))
        what = rng.randrange(6)
        if what == 0:
            buffer[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            word = rng.choice(_EXTREMES)[: rng.choice((1, 2, 4, 8))]
            buffer[at & ~7 : (at & ~7) + len(word)] = word
        elif what == 2:
            del buffer[at:]
        elif what == 3:
            length = rng.randrange(1, 33)
            piece = buffer[at : at + length]
            to = rng.randrange(len(buffer))
            buffer[to : to + len(piece)] = piece
        elif what == 4:
            buffer[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            word = rng.choice(_EXTREMES)[:4]
            buffer[at & ~3 : (at & ~3) + 4] = word[::-1]
    return bytes(buffer)


def parameters(target: Target, rng: random.Random) -> list[int]:
    """Parameters as a caller might give them, counts out of an image included."""
    page_size = rng.choice((4096, 4096, 16384, 65536))
    counts = (0, 1, 2, 8, 63, 1000, 1 << 32, (1 << 64) - 1)
    values = {
        "page_size": page_size,
        "capacity": rng.choice((0, 1, 51, 255, 4095)),
        "len_entry": rng.choice((8, 64, 80)),
        "len_compatible": rng.choice((8, 16)),
        "len_bitmap": rng.choice((512, page_size)),
        "form": rng.choice((0, 1, 2)),
        "num_address_cells": rng.choice((0, 1, 2, 3, 1000)),
        "num_size_cells": rng.choice((0, 1, 2, 3, 1000)),
    }
    return [values[p] if p in values else rng.choice(counts) for p in target.params]


_known_instances: dict[Any, tuple[str, ...]] = {}


def _instances(kind: Any) -> tuple[str, ...]:
    """Names of the instances of a generated class."""
    if kind not in _known_instances:
        _known_instances[kind] = tuple(
            name
            for name, member in inspect.getmembers_static(kind)
            if isinstance(member, property) and not name.startswith("_")
        )
    return _known_instances[kind]


def objects(value: Any) -> int:
    """Read every field and instance; how many objects and list elements there are."""
    todo, seen = [value], 0
    while todo:
        item = todo.pop()
        seen += 1
        if isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, KaitaiStruct):
            for name in _instances(type(item)):
                getattr(item, name)
            todo.extend(
                v
                for k, v in vars(item).items()
                if isinstance(v, (list, KaitaiStruct)) and k not in ("_parent", "_root")
            )
    return seen


def one(target_list: list[Target], seed: int, number: int, report: Report) -> None:
    """Make buffer ``number`` of ``seed``, parse it, and record what happened."""
    rng = random.Random(seed << 40 | number)
    target = target_list[number % len(target_list)]
    data = mutate(seed_buffer(target, rng), rng)
    params = parameters(target, rng)
    begin = time.process_time()
    where = f"{target.name}{tuple(params)}, buffer {number} of seed {seed}"
    try:
        size = objects(parse(target.parser, data, *params))
        report.accepted += 1
        report.largest = max(report.largest, size)
        if size > OBJECTS_BASE + OBJECTS_PER_BYTE * len(data):
            report.findings.append(f"{where}: {size} objects from {len(data)} bytes")
    except PARSE_ERRORS as error:
        report.refused[type(error).__name__] += 1
    except Exception as error:
        report.findings.append(f"{where}: {type(error).__name__}: {error}")
    taken = time.process_time() - begin
    report.slowest = max(report.slowest, taken)
    report.buffers += 1
    if taken > PATIENCE:
        report.findings.append(f"{where}: took {taken:.1f} s")


def run(count: int, seed: int, start: int = 0) -> Report:
    """Parse ``count`` buffers of ``seed``, from number ``start`` on."""
    report, target_list = Report(), targets()
    for number in range(start, start + count):
        one(target_list, seed, number, report)
        if len(report.findings) >= 100:
            break
    return report


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m specs.torture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=100_000, help="buffers (default 100000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="N", help="buffer N alone")
    options = parser.parse_args(argv)
    begin = time.perf_counter()
    if options.only is not None:
        report = run(1, options.seed, options.only)
    else:
        report = run(options.count, options.seed)
    taken = time.perf_counter() - begin
    print(f"{report.buffers} buffers through {len(targets())} parsers in {taken:.0f} s")
    print(f"accepted {report.accepted}, refused {report.refused.total()}:")
    for name, number in report.refused.most_common():
        print(f"  {name} {number}")
    print(f"slowest {report.slowest * 1000:.1f} ms, largest object tree {report.largest}")
    for line in report.findings:
        print(f"FOUND {line}")
    print(f"{len(report.findings)} findings")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
