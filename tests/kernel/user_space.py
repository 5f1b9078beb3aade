"""What the state machines of user space have in common."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis.stateful import RuleBasedStateMachine

from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.luo import Session


class UserSpace(RuleBasedStateMachine):
    """Somebody who uses one kernel, and after an update the next one."""

    kernel: Kernel

    def blocks(self) -> set[tuple[int, int]]:
        """(first frame, order) of everything that is preserved."""
        return {(int(f), o) for o, frames in self.kernel.kho.map.blocks() for f in frames.tolist()}

    def session(self, name: str) -> Session:
        """A session of this kernel, made if there is none of the name."""
        try:
            return self.kernel.luo.session(name)
        except KernelErrno:
            return self.kernel.luo.create_session(name)

    def attempt(self, change: Callable[[], object], *errors: str) -> bool:
        """Whether an operation succeeded; only the errors named are right."""
        try:
            change()
        except KernelErrno as error:
            assert error.name in errors, error
            return False
        return True
