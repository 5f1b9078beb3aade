"""What a difference is, and the list of them."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


class Kind(enum.StrEnum):
    """What happened to an object or a field."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``before`` or ``after`` is None where there is none.

    ``why`` explains what a kernel always does between the two moments, else it is empty.
    """

    kind: Kind
    path: str
    what: str
    before: Any = None
    after: Any = None
    why: str = ""


@dataclass(slots=True)
class Diff:
    """All differences; ``truncated`` counts those beyond the limit, by kind."""

    changes: list[Change] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    limit: int = 10000

    def add(self, change: Change) -> None:
        """Record a change, or count it once there are too many."""
        if len(self.changes) < self.limit:
            self.changes.append(change)
        else:
            self.truncated[change.kind] += 1

    def counts(self) -> Counter[str]:
        """How many of each kind."""
        total = Counter(self.truncated)
        total.update(str(c.kind) for c in self.changes)
        return total

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not self.changes and not self.truncated
