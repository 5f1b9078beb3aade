"""What handles a kind of file, and the data that lives as long as such files are preserved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from abi import luo as abi_luo

if TYPE_CHECKING:
    from inspector.kernel.outgoing.luo import Session


class Flb(ABC):
    """File-lifecycle-bound data: ``preserve`` runs for the first file, ``unpreserve`` for the last.

    ``count`` are the preserved files that depend on it, and kernel users from 7.2 on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.data = 0

    @abstractmethod
    def preserve(self) -> int:
        """Make the data; what the entry's ``data`` will say. Raises KernelErrno."""

    @abstractmethod
    def unpreserve(self, data: int) -> None:
        """Undo it."""

    def get(self) -> None:
        """One more user."""
        if self.count == 0:
            self.data = self.preserve()
        self.count += 1

    def put(self) -> None:
        """One user less."""
        self.count -= 1
        if self.count == 0:
            self.unpreserve(self.data)
            self.data = 0


class ConstantFlb(Flb):
    """The test FLBs of the kernel's self test: a number, no memory."""

    def __init__(self, number: int) -> None:
        super().__init__(f"liveupdate-test-flb-v{number}")
        self._value = abi_luo.LIVEUPDATE_TEST_FLB_MAGIC + number

    def preserve(self) -> int:
        """The constant."""
        return self._value

    def unpreserve(self, data: int) -> None:
        """Nothing to undo."""


class FileHandler(ABC):
    """How one kind of file is preserved."""

    compatible: str
    flbs: tuple[Flb, ...] = ()

    @abstractmethod
    def can_preserve(self, file: Any) -> bool:
        """Whether the file is of this kind."""

    @abstractmethod
    def preserve(self, file: Any, session: Session, token: int) -> int:
        """Preserve it; what the entry's ``data`` will say. Raises KernelErrno."""

    @abstractmethod
    def unpreserve(self, file: Any, data: int) -> None:
        """Undo it."""

    def freeze(self, file: Any, data: int) -> int:
        """Last changes in the reboot path; the final ``data``. Raises KernelErrno."""
        return data

    def unfreeze(self, file: Any, data: int) -> None:
        """Undo :meth:`freeze` because the reboot was given up."""
