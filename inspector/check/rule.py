"""What a rule is, and what a rule's function gets to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inspector.findings import Finding, Findings, Severity
from inspector.image import MapState
from inspector.text import plural

if TYPE_CHECKING:
    from inspector.check.ownership import Ownership
    from inspector.device_tables.claims import WalkedTable
    from inspector.image import Image
    from inspector.walk.preserved import PreservedMap

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the catalogue.

    ``statement`` says in one sentence what is wrong where the rule fires. ``kernel`` is what
    the kernel does about it, with the release it was seen on or read in. ``look`` is how to
    look further. ``test`` checks the rule on a decoded image; rules without one are found
    while decoding.
    """

    code: str
    severity: Severity
    statement: str
    kernel: str
    look: str = "kho dump IMAGE PATH"
    test: Callable[[Context], None] | None = None


@dataclass(slots=True)
class Context:
    """The image under test and what was found so far."""

    image: Image
    ownership: Ownership
    findings: Findings = field(default_factory=Findings)
    undecided: dict[str, str] = field(default_factory=dict)
    rule: Rule | None = None
    #: Results that several rules share, by name.
    shared: dict[str, list[Finding]] = field(default_factory=dict)
    #: What several rules look at and only one has to work out.
    memo: dict[str, Any] = field(default_factory=dict)
    #: What passes over the page tables found, by domain address; some may be missing.
    walked: dict[int, WalkedTable] = field(default_factory=dict)

    def report(
        self, message: str, *, path: str = "", address: int | None = None, data: bytes = b""
    ) -> None:
        """The rule that is running fires."""
        assert self.rule is not None
        self.findings.add(
            self.rule.code, self.rule.severity, message, path=path, address=address, data=data
        )

    @property
    def room(self) -> int:
        """How many more findings of the rule that is running are worth describing."""
        assert self.rule is not None
        return self.findings.room(self.rule.code)

    def count(self, others: int) -> None:
        """The rule that is running fires so often besides."""
        assert self.rule is not None
        self.findings.suppress(self.rule.code, others)

    def undecidable(self, why: str) -> None:
        """The rule that is running cannot be decided."""
        assert self.rule is not None
        self.undecided[self.rule.code] = why

    def all_files(self) -> bool:
        """Whether every session and file could be read; else the rule cannot be decided."""
        luo = self.image.luo
        lost = luo is None or (luo.lost and not luo.sessions)
        cut = luo is not None and not all(session.complete for session in luo.sessions)
        if (
            lost
            or cut
            or any(path.startswith("/LUO/sessions") for _, path in self.image.survey.holes)
        ):
            self.undecidable("sessions or files are missing")
            return False
        return True

    def whole_map(self) -> PreservedMap | None:
        """The map, if what is not in it is not preserved; else the rule cannot be decided."""
        preserved = self.image.preserved
        if preserved is None:
            self.undecidable("the preserved-memory map is lost")
        elif preserved.missing and self.image.survey.given_up:
            self.undecidable("not all of the map is read")
        elif preserved.missing:
            self.undecidable(f"the image lacks {plural(preserved.missing, 'map node')}")
        elif self.image.map_state is not MapState.INTACT:
            self.undecidable(f"the preserved-memory map is {self.image.map_state}")
        else:
            return preserved
        return None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    ``undecided`` maps codes of rules to the reason why they could not be decided;
    ``suppressed`` counts findings beyond the limit of each code.
    """

    findings: tuple[Finding, ...]
    undecided: dict[str, str]
    suppressed: dict[str, int]
    ownership: Ownership

    @property
    def worst(self) -> Severity | None:
        """The highest severity found."""
        return max((f.severity for f in self.findings), default=None)
