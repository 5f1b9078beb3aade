"""What a kernel makes of an image: reasons, and the outcome they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from inspector.findings import Outcome

#: Which outcome names the whole, the first that occurs. A definite trouble outranks what
#: cannot be told, and that outranks a success. See :func:`rank` for early boot.
PRECEDENCE = (
    Outcome.BOOT_FAILS,
    Outcome.KHO_REFUSED,
    Outcome.CORRUPTION,
    Outcome.LUO_UNUSABLE,
    Outcome.FILE_ERROR,
    Outcome.STATE_LOST,
    Outcome.CANNOT_TELL,
    Outcome.TAKEN_OVER_WITH_WARNINGS,
    Outcome.TAKEN_OVER,
)

#: Paths of what early boot looks at.
_EARLY = frozenset({"/", "/preserved", "/scratch"})
#: The mildest trouble that is one whether or not the rest of early boot can be told.
_EARLY_RANK = PRECEDENCE.index(Outcome.CORRUPTION) + 0.5

#: Exit status of the command line for each outcome (a bit mask, see ``kho --help``).
STATUS = {
    Outcome.TAKEN_OVER: 0,
    Outcome.TAKEN_OVER_WITH_WARNINGS: 1,
    Outcome.CANNOT_TELL: 16,
}
_INCOMPATIBLE = 4


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that decides an outcome.

    ``path`` is the object's path in the tree, ``address`` and ``data`` the offending bytes (at
    most 64 are kept), ``dmesg`` a part of the kernel's own message to look for, ``release`` the
    kernel that does so, ``errno`` what user space gets.
    """

    outcome: Outcome
    message: str
    path: str = ""
    address: int | None = None
    data: bytes = b""
    dmesg: str = ""
    release: str = ""
    errno: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{self.outcome}: {where}{self.message}"


@dataclass(slots=True)
class Reasons:
    """The reasons found so far, with a limit for each outcome: a hostile image has many."""

    release: str = ""
    limit: int = 256
    items: list[Reason] = field(default_factory=list)
    left_out: dict[Outcome, int] = field(default_factory=dict)
    _count: dict[Outcome, int] = field(default_factory=dict)

    def add(
        self,
        outcome: Outcome,
        message: str,
        *,
        path: str = "",
        address: int | None = None,
        data: bytes = b"",
        dmesg: str = "",
        errno: str = "",
    ) -> Reason:
        """Record one reason; beyond the limit it is only counted."""
        reason = Reason(
            outcome, message, path, address, bytes(data[:64]), dmesg, self.release, errno
        )
        seen = self._count[outcome] = self._count.get(outcome, 0) + 1
        if seen <= self.limit:
            self.items.append(reason)
        else:
            self.left_out[outcome] = self.left_out.get(outcome, 0) + 1
        return reason

    @property
    def ranked(self) -> list[Reason]:
        """The reasons, those that name the outcome first."""
        return sorted(self.items, key=rank)

    @property
    def outcome(self) -> Outcome:
        """What the reasons add up to."""
        return worst(self._count, self.items)

    @property
    def status(self) -> int:
        """The exit status of the command line."""
        return status(self._count)


@dataclass(slots=True)
class Notes:
    """What is worth knowing besides: each note once, and no more than ``limit`` of them."""

    limit: int = 256
    items: dict[str, None] = field(default_factory=dict)
    more: int = 0

    def append(self, note: str) -> None:
        """Keep a note; beyond the limit it is only counted."""
        if note in self.items:
            return
        if len(self.items) < self.limit:
            self.items[note] = None
        else:
            self.more += 1

    def __iter__(self) -> Iterator[str]:
        yield from self.items
        if self.more:
            yield f"{self.more} more notes"


def rank(reason: Reason) -> float:
    """Where a reason stands among others: the lowest names the whole.

    What becomes of sessions and files hardly matters as long as it cannot be told whether the
    kernel comes up.
    """
    if reason.outcome is Outcome.CANNOT_TELL and reason.path in _EARLY:
        return _EARLY_RANK
    return PRECEDENCE.index(reason.outcome)


def worst(outcomes: Iterable[Outcome], reasons: Iterable[Reason] = ()) -> Outcome:
    """The outcome that names the whole; taken-over if there are none."""
    ranked = [(float(PRECEDENCE.index(outcome)), outcome) for outcome in outcomes]
    ranked += [(rank(reason), reason.outcome) for reason in reasons]
    return min(ranked, default=(0.0, Outcome.TAKEN_OVER))[1]


def status(outcomes: Iterable[Outcome]) -> int:
    """Exit status: 1 warnings, 4 anything incompatible, 16 what cannot be told."""
    found = 0
    for outcome in outcomes:
        found |= STATUS.get(outcome, _INCOMPATIBLE)
    return found
