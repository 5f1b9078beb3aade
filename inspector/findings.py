"""What is wrong with an image, said in one vocabulary.

Walkers and checks never raise for what an image contains; they append a
:class:`Finding`. Codes are stable: ``KHO-<LAYER>-<NNN>``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field


class Severity(enum.IntEnum):
    """How bad a finding is. Ordered, so that ``>=`` filters."""

    INFO = 0
    WARNING = 1
    ERROR = 2


class Outcome(enum.StrEnum):
    """What a kernel does with an image: the one vocabulary of the project."""

    TAKEN_OVER = "taken-over"
    TAKEN_OVER_WITH_WARNINGS = "taken-over-with-warnings"
    STATE_LOST = "state-lost"
    FILE_ERROR = "file-error"
    LUO_UNUSABLE = "luo-unusable"
    KHO_REFUSED = "kho-refused"
    BOOT_FAILS = "boot-fails"
    CORRUPTION = "corruption"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One anomaly.

    ``path`` is the object's path in the tree (``/LUO/sessions/vm0``), ``address`` the
    physical address of the offending bytes, ``data`` those bytes (at most 64 are kept).
    """

    code: str
    severity: Severity
    message: str
    path: str = ""
    address: int | None = None
    data: bytes = b""


def exit_status(findings: Iterable[Finding], *, complete: bool = True) -> int:
    """Exit status of what was found: 1 warnings, 4 errors, 16 not all could be read."""
    status = 0 if complete else 16
    for severity in {finding.severity for finding in findings}:
        status |= {Severity.ERROR: 4, Severity.WARNING: 1}.get(severity, 0)
    return status


@dataclass(slots=True)
class Findings:
    """An append-only list with a limit, so that a hostile image cannot fill memory.

    ``suppressed`` counts the findings of each code beyond ``per_code``.
    """

    per_code: int = 256
    items: list[Finding] = field(default_factory=list)
    suppressed: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        code: str,
        severity: Severity,
        message: str,
        *,
        path: str = "",
        address: int | None = None,
        data: bytes = b"",
    ) -> None:
        """Record one finding, or count it when its code has been seen often enough."""
        n = self._seen.get(code, 0)
        self._seen[code] = n + 1
        if n >= self.per_code:
            self.suppressed[code] = self.suppressed.get(code, 0) + 1
            return
        self.items.append(Finding(code, severity, message, path, address, bytes(data[:64])))

    def extend(self, other: Findings) -> None:
        """Record what another list holds, after what is here."""
        for one in other.items:
            self.add(
                one.code, one.severity, one.message,
                path=one.path, address=one.address, data=one.data,
            )  # fmt: skip
        for code, count in other.suppressed.items():
            self.suppress(code, count)

    def room(self, code: str) -> int:
        """How many more findings of ``code`` will be kept; for callers that have columns."""
        return max(0, self.per_code - self._seen.get(code, 0))

    def suppress(self, code: str, count: int) -> None:
        """Count ``count`` findings of ``code`` that were not worth describing."""
        if count:
            self._seen[code] = self._seen.get(code, 0) + count
            self.suppressed[code] = self.suppressed.get(code, 0) + count

    def info(self, code: str, message: str, **where: object) -> None:
        """Record at :attr:`Severity.INFO`."""
        self.add(code, Severity.INFO, message, **where)  # type: ignore[arg-type]

    def warning(self, code: str, message: str, **where: object) -> None:
        """Record at :attr:`Severity.WARNING`."""
        self.add(code, Severity.WARNING, message, **where)  # type: ignore[arg-type]

    def error(self, code: str, message: str, **where: object) -> None:
        """Record at :attr:`Severity.ERROR`."""
        self.add(code, Severity.ERROR, message, **where)  # type: ignore[arg-type]
