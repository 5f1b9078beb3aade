"""What the inspector predicts, for comparison with what a kernel does."""

from __future__ import annotations

from pathlib import Path

from inspector import compat, memory
from inspector.findings import Outcome
from inspector.kernel.profile import profile
from inspector.kernel.profile_file import Target
from inspector.memory.base import PhysicalMemory
from lab.build import Kernel
from lab.host import os_errors


def predict(image: Path | PhysicalMemory, kernel: Kernel) -> tuple[Outcome, list[str]]:
    """The outcome that ``kho compat`` predicts for an image and a kernel, and why.

    The image is opened here, if it is a path. Raises UsageError if no profile of the
    kernel's series is known.
    """
    target = Target(profile("linux-{}.{}".format(*kernel.version.series)))
    options = compat.Options(kernel_size=_size(kernel))
    if isinstance(image, PhysicalMemory):
        verdict = compat.judge(image, target, options)
    else:
        with memory.open(str(image)) as opened:
            verdict = compat.judge(opened, target, options)
    return verdict.outcome, [str(reason) for reason in verdict.reasons]


def _size(kernel: Kernel) -> int:
    """Of the bzImage: what has to fit into scratch beside everything else."""
    with os_errors("read the kernel"):
        return kernel.bzimage.stat().st_size
