"""What can be wrong with a page table: codes, and findings made out of columns."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from abi.errors import UsageError
from abi.pagetable.format import U64
from inspector.findings import Finding, Findings, Severity

RESERVED: Final = "KHO-PT-001"
MISALIGNED: Final = "KHO-PT-002"
OUTSIDE: Final = "KHO-PT-003"
EXCLUDED: Final = "KHO-PT-004"
SHARED: Final = "KHO-PT-005"
UNPRESERVED: Final = "KHO-PT-006"
SKIPPED_LEVEL: Final = "KHO-PT-007"
BAD_TYPE: Final = "KHO-PT-008"
BROKEN_GROUP: Final = "KHO-PT-009"
NO_PERMISSION: Final = "KHO-PT-010"
BEYOND: Final = "KHO-PT-011"
BUDGET: Final = "KHO-PT-012"
BAD_SIZE: Final = "KHO-PT-013"
NOT_ACCESSED: Final = "KHO-PT-014"
ROOT_ALIGNMENT: Final = "KHO-PT-015"

#: Code -> (severity, what is said of an entry). The text is a sentence about "the entry".
CODES: Final = MappingProxyType(
    {
        RESERVED: (Severity.ERROR, "reserved bits are set"),
        MISALIGNED: (Severity.ERROR, "the leaf's address is not a multiple of its size"),
        OUTSIDE: (Severity.ERROR, "points to a table outside memory"),
        EXCLUDED: (Severity.WARNING, "points to a table that is not in the image"),
        SHARED: (Severity.ERROR, "points to a table that was met before"),
        UNPRESERVED: (Severity.ERROR, "points to a table in a page that is not preserved"),
        SKIPPED_LEVEL: (Severity.WARNING, "skips levels, which Linux does not do"),
        BAD_TYPE: (Severity.ERROR, "its type is invalid at this level"),
        BROKEN_GROUP: (Severity.ERROR, "begins a contiguous group that is not one"),
        NO_PERMISSION: (Severity.WARNING, "it is not zero, but grants nothing"),
        BEYOND: (Severity.ERROR, "it lies beyond the domain's address size"),
        BUDGET: (Severity.WARNING, "its table is not walked: the limit is reached"),
        BAD_SIZE: (Severity.ERROR, "it encodes a leaf size that does not exist"),
        NOT_ACCESSED: (Severity.WARNING, "its access flag is clear, so that each access faults"),
        ROOT_ALIGNMENT: (Severity.ERROR, "the start table is not aligned to its size"),
    }
)


def impossible(error: UsageError, path: str, address: int) -> Finding:
    """What to say of an object at ``address`` whose page table the format rules out."""
    return Finding(BAD_TYPE, CODES[BAD_TYPE][0], str(error), path, address)


class Reporter:
    """Turns columns of bad entries into findings, at a cost that does not grow with them."""

    __slots__ = ("findings", "path")

    def __init__(self, findings: Findings, path: str) -> None:
        self.findings = findings
        self.path = path

    def entries(
        self, code: str, level: int, iova: U64, address: U64, entry: U64, count: int | None = None
    ) -> None:
        """Report entries at physical ``address`` that translate ``iova`` at ``level``.

        ``count``: how many there are, if the columns hold only the first ones.
        """
        severity, text = CODES[code]
        count = len(entry) if count is None else count
        shown = min(self.findings.room(code), len(entry))
        for n in range(shown):
            word = int(entry[n])
            self.findings.add(
                code,
                severity,
                f"level {level} entry {word:#x} for IOVA {int(iova[n]):#x}: {text}",
                path=self.path,
                address=int(address[n]),
                data=word.to_bytes(8, "little"),
            )
        self.findings.suppress(code, count - shown)

    def root(self, code: str, root: int, text: str) -> None:
        """Report the start table itself."""
        self.findings.add(
            code, CODES[code][0], f"start table {root:#x}: {text}", path=self.path, address=root
        )
