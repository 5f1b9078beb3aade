"""What a target is, and how it says that two readers disagree."""

from __future__ import annotations

import random
from typing import Protocol

from inspector.fuzz.base import Base
from inspector.fuzz.edit import Edit


class Mismatch(Exception):
    """Two readers that are both content with an image say different things about it."""


class Target(Protocol):
    """A consumer of mutated input. A ``slow`` one is asked for the time after each case."""

    name: str
    slow: bool

    def pick(self, rng: random.Random) -> tuple[Base, tuple[Edit, ...]]:
        """A case."""

    def run(self, base: Base) -> None:
        """Consume ``base``, whose memory has the edits of the case applied."""
