"""Evidence for and against a generation: constraints that its reading of an image must meet.

A constraint is tried on everything it applies to. Broken once, it becomes a violation with
the count and an example; met, a reason; not applicable, nothing. What merely makes a
reading likelier is a hint: it orders candidates that fit equally well, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.registry import Generation
from inspector.detect import Candidate
from inspector.memory.base import PageState, PhysicalMemory, U64Array
from inspector.walk.preserved import PreservedMap

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Evidence:
    """What one candidate's trial showed; ``lean`` grows with hints that speak for it.

    ``met`` counts the constraints that hold, ``broken`` adds up of the others which part of
    what they were tried on does not meet them. ``lacking`` counts the violations that pages
    which the dump left out can be the reason of.
    """

    reasons: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lean: int = 0
    met: int = 0
    broken: float = 0.0
    lacking: int = 0

    def constraint(
        self,
        name: str,
        met: Mask | bool,
        example: Callable[[int], Any] | None = None,
        *,
        lacking: bool = False,
    ) -> None:
        """A hard constraint, tried on each element of ``met``; ``example`` names one by index.

        ``lacking`` says that pages were left out of the dump, without which it may not be met.
        """
        met = np.atleast_1d(np.asarray(met, np.bool_))
        if not len(met):
            return
        broken = np.flatnonzero(~met)
        if not len(broken):
            self.met += 1
            self.reasons.append(name if len(met) == 1 else f"{name}: all {len(met)}")
            return
        text = f"{name}: not so" if len(met) == 1 else f"{name}: not {len(broken)} of {len(met)}"
        if example is not None:
            text += f", such as {example(int(broken[0]))}"
        self.violation(text, len(broken) / len(met), lacking=lacking)

    def violation(self, text: str, part: float = 1.0, *, lacking: bool = False) -> None:
        """A hard constraint does not hold for a part of what it is about."""
        self.violations.append(text)
        self.broken += part
        self.lacking += lacking

    def hint(self, name: str, speaks_for: bool | None) -> None:
        """Something that makes the reading likelier, or less; None: it says nothing."""
        if speaks_for is None:
            return
        self.lean += 1 if speaks_for else -1
        self.reasons.append(f"{'for' if speaks_for else 'against'} it, but no proof: {name}")

    def candidate(self, generation: Generation) -> Candidate:
        """The candidate this evidence makes."""
        asked = self.met + len(self.violations)
        return Candidate(
            generation,
            0,
            tuple(self.reasons),
            tuple(self.violations),
            self.broken / asked if asked else 0.0,
            self.lacking,
        )


@dataclass(frozen=True, slots=True)
class Plausibility:
    """Whether addresses may be pointers: in the preserved map, or at least in the image."""

    memory: PhysicalMemory
    page_size: int
    preserved: PreservedMap | None

    def known(self, addresses: U64Array) -> Mask:
        """Whether the page of each address is preserved, present, or left out of the dump."""
        pages = addresses - addresses % np.uint64(self.page_size)
        known: Mask = self.memory.states(pages, self.page_size) != PageState.OUTSIDE
        if self.preserved is not None:
            known = known | self.preserved.covers(pages, self.page_size)
        return known

    def aligned(self, addresses: U64Array) -> Mask:
        """Whether each address starts a page."""
        aligned: Mask = addresses % np.uint64(self.page_size) == 0
        return aligned


def order(evidence: list[tuple[Generation, Evidence, int]]) -> list[Candidate]:
    """Candidates, the ones to prefer among equals last (see :func:`inspector.detect.decide`).

    The third item of each is a rank among generations that the evidence leaves equal.
    """
    ranked = sorted(evidence, key=lambda item: (item[1].lean, item[2]))
    return [found.candidate(generation) for generation, found, _ in ranked]
