"""What is fuzzed: a target takes a case and must come back, or raise a KhoError.

Any other exception, a second of processor time, memory beyond the budget or a dead process is
a finding (:mod:`inspector.fuzz.guard`, :mod:`inspector.fuzz.run`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from abi.errors import UsageError
from inspector.fuzz.base import Base
from inspector.fuzz.mutate import Mutator
from inspector.fuzz.target import Mismatch, Target

if TYPE_CHECKING:
    from inspector.image import Image


class ImageTarget:
    """Whole images, mutated by meaning, through ``consume``."""

    slow = False

    def __init__(self, name: str, bases: Sequence[Base], consume: Callable[[Base], None]) -> None:
        self.name = name
        self.mutator = Mutator(bases)
        self.pick = self.mutator.pick
        self.run = consume


def _decoded(base: Base) -> Image:
    from inspector.decode import decode

    return decode(base.memory)


def decode_only(base: Base) -> None:
    """Locate, detect and walk everything."""
    _decoded(base)


def dump(base: Base) -> None:
    """What ``kho dump`` does: decode, the document as JSON, the tree as text."""
    import json

    from inspector import tree
    from inspector.document import document

    image = _decoded(base)
    json.dumps(document(image))
    for line in tree.render(tree.build(image)):
        if not line.isprintable():
            raise Mismatch(f"a line would send control characters to a terminal: {line!r}")


def check(base: Base) -> None:
    """What ``kho check`` does."""
    from inspector import check as checks
    from inspector.check import present

    report = checks.check(_decoded(base))
    present.document(report)
    for line in present.lines(report):
        if not line.isprintable():
            raise Mismatch(f"a line would send control characters to a terminal: {line!r}")


class _Diff:
    """Compare a mutated image with the one it was made of."""

    def __init__(self, bases: Sequence[Base]) -> None:
        from inspector.decode import decode

        self.before = {base.name: decode(base.memory.copy()) for base in bases}

    def __call__(self, base: Base) -> None:
        from inspector import diff
        from inspector.diff import present

        before = self.before.get(base.name) or next(iter(self.before.values()))
        found = diff.diff(before, _decoded(base), contents=True)
        present.document(found)
        for _ in present.lines(found):
            pass


def extract(base: Base) -> None:
    """What ``kho extract`` does, with and without redaction."""
    from inspector import extract as extracts

    image = _decoded(base)
    with tempfile.TemporaryDirectory(prefix="kho-fuzz-") as folder:
        extracts.extract(image, os.path.join(folder, "a.elf"))
        extracts.extract(image, os.path.join(folder, "b.elf"), redact=True)


def compat(base: Base) -> None:
    """The simulated consumers of three releases boot the image."""
    from inspector.kernel.incoming.consumer import consume

    for kernel in ("linux-7.3", "linux-7.1", "linux-6.18"):
        consume(base.memory, kernel, root=base.root)


def devices(base: Base) -> None:
    """What ``kho devices`` does: device tables and every page table."""
    from inspector.passthrough.reach import devices as reach_of

    reach_of(_decoded(base))


def report(base: Base) -> None:
    """What ``kho report`` does."""
    from inspector.report import render

    render(_decoded(base))


def kaitai(base: Base) -> None:
    """The reader over the Kaitai parsers."""
    from itertools import islice

    from specs.reader import ImageReader

    reader = ImageReader(base.memory, base.page_size)
    image = reader.image(base.root)
    for _ in islice(reader.blocks(image), 1 << 16):
        pass


def differential(base: Base) -> None:
    """Decoder and Kaitai reader on the same image; see :mod:`inspector.fuzz.differential`."""
    from inspector.fuzz.differential import compare

    compare(base)


#: Name -> what it does with an image.
IMAGE_TARGETS: dict[str, Callable[[Base], None]] = {
    "decode": decode_only,
    "dump": dump,
    "check": check,
    "extract": extract,
    "compat": compat,
    "devices": devices,
    "report": report,
    "kaitai": kaitai,
    "differential": differential,
}


def names() -> tuple[str, ...]:
    """Every target."""
    from inspector.fuzz.buffers import BUFFER_TARGETS

    return (*IMAGE_TARGETS, "diff", *BUFFER_TARGETS)


def make(name: str, bases: Sequence[Base]) -> Target:
    """The target called ``name``. Raises UsageError."""
    from inspector.fuzz.buffers import BUFFER_TARGETS

    if name in BUFFER_TARGETS:
        return BUFFER_TARGETS[name](bases)
    if name == "diff":
        return ImageTarget(name, bases, _Diff(bases))
    if name not in IMAGE_TARGETS:
        raise UsageError(f"no target {name!r}; there are: {', '.join(names())}")
    return ImageTarget(name, bases, IMAGE_TARGETS[name])
