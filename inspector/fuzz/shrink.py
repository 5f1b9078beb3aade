"""Make a failing case small: few edits, few bytes, few pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from inspector.fuzz.base import Base
from inspector.fuzz.cases import EMBED, Case
from inspector.fuzz.edit import Edit
from inspector.fuzz.guard import Guard, Outcome
from inspector.fuzz.memory import PatchedMemory
from inspector.fuzz.run import attempt
from inspector.fuzz.target import Target

T = TypeVar("T")


def minimise(items: Sequence[T], fails: Callable[[list[T]], bool], deadline: float) -> list[T]:
    """A subset of ``items`` that still fails and of which no single item can be left out.

    ``fails`` must hold for all of them. At ``deadline`` (monotonic) what is reached so far
    is returned.
    """
    kept = list(items)
    size = max(len(kept) // 2, 1)
    while kept and time.monotonic() < deadline:
        smaller = False
        at = 0
        while at < len(kept) and time.monotonic() < deadline:
            rest = kept[:at] + kept[at + size :]
            if fails(rest):
                kept, smaller = rest, True
            else:
                at += size
        if size == 1 and not smaller:
            break
        if not smaller or size > len(kept):
            size = max(size // 2, 1)
    return kept


def shrink(
    target: Target, base: Base, edits: tuple[Edit, ...], wanted: Outcome, *, seconds: float = 20.0
) -> tuple[tuple[Edit, ...], PatchedMemory | None]:
    """Fewer and shorter edits that fail like ``wanted``, and a minimal image that does.

    The image is None where the case does not fail again, or not without its base.
    """
    deadline = time.monotonic() + seconds
    with Guard() as guard:

        def same(subject: Base, chosen: Sequence[Edit]) -> bool:
            again = attempt(target, subject, tuple(chosen), guard)
            return (again.kind, again.key) == (wanted.kind, wanted.key)

        if not same(base, edits):
            return edits, None
        few = minimise(edits, lambda chosen: same(base, chosen), deadline)
        few = minimise(_pieces(base, few), lambda chosen: same(base, chosen), deadline)
        kept = tuple(_joined(few))
        return kept, _fewest_pages(base, kept, same, deadline)


def _pieces(base: Base, edits: Sequence[Edit]) -> list[Edit]:
    """Edits cut into words, without those that change nothing."""
    pieces: list[Edit] = []
    for edit in edits:
        if edit.data is None:
            pieces.append(edit)
            continue
        width = 8 if len(edit.data) <= 4096 else 64
        for at in range(0, len(edit.data), width):
            piece = edit.data[at : at + width]
            if piece != base.memory.peek(edit.address + at, len(piece)) or len(edits) > 1:
                pieces.append(replace(edit, address=edit.address + at, data=piece))
    return pieces


def _joined(edits: Sequence[Edit]) -> list[Edit]:
    """Neighbouring pieces of the same edit as one again."""
    out: list[Edit] = []
    for edit in edits:
        last = out[-1] if out else None
        if (
            last is not None
            and last.data is not None
            and edit.data is not None
            and last.note == edit.note
            and last.address + len(last.data) == edit.address
        ):
            out[-1] = replace(last, data=last.data + edit.data)
        else:
            out.append(edit)
    return out


def _fewest_pages(
    base: Base,
    edits: tuple[Edit, ...],
    same: Callable[[Base, Sequence[Edit]], bool],
    deadline: float,
) -> PatchedMemory | None:
    """The edited image without the pages that do not matter."""
    base.memory.apply(edits)
    pages = base.memory.pages()
    base.memory.reset()

    def image(chosen: Sequence[int]) -> Base:
        memory = base.memory.like({pa: pages[pa] for pa in chosen})
        return replace(base, memory=memory)

    if not same(image(list(pages)), ()):
        return None
    kept = minimise(list(pages), lambda chosen: same(image(chosen), ()), deadline)
    return image(kept).memory


def case_of(
    target: Target,
    seed: int,
    number: int,
    base: Base,
    edits: tuple[Edit, ...],
    outcome: Outcome,
    memory: PatchedMemory | None = None,
) -> Case:
    """A case to store; ``memory`` is the minimal image, kept in it if it is small."""
    case = Case(
        target.name, dict(base.origin), base.digest, edits, str(outcome.kind), outcome.key,
        outcome.detail, seed, number, base.root, base.page_size,
    )  # fmt: skip
    if memory is not None:
        pages = memory.pages()
        if len(pages) * 4096 <= EMBED:
            case.pages = pages
            case.ram = tuple(memory.ram)
            case.machine, case.notes = memory.machine, dict(memory.notes)
            case.container_page_size = memory.page_size
    return case
