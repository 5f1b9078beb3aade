"""What the inspector predicts, for comparison with what a kernel does."""

from __future__ import annotations

from pathlib import Path

from inspector import compat, memory
from inspector.findings import Outcome
from inspector.kernel.profile import profile
from inspector.kernel.profile_file import Target
from inspector.memory.base import PhysicalMemory
from lab.build import Kernel


def predict(image: Path | PhysicalMemory, kernel: Kernel) -> tuple[Outcome, list[str]]:
    """The outcome that ``kho compat`` predicts for an image and a kernel, and why.

    The image is opened here, if it is a path. Raises UsageError if no profile of the
    kernel's series is known.
    """
    target = Target(profile("linux-{}.{}".format(*kernel.version.series)))
    if isinstance(image, PhysicalMemory):
        verdict = compat.judge(image, target)
    else:
        with memory.open(str(image)) as opened:
            verdict = compat.judge(opened, target)
    return verdict.outcome, [str(reason) for reason in verdict.reasons]
