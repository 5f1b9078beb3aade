"""A smoke test of everything on one real kernel, within a time budget.

``python -m lab.smoke`` (or ``python lab/smoke.py``) builds or finds one current kernel;
then one capture must decode equal to its truth, one simulated image must be accepted with
all files right, and ten broken ones must end as predicted. What this machine cannot do is
SKIPPED with its reason and is no failure; anything wrong is FAILED and exit status 1.
``KHO_LAB_SMOKE_SECONDS`` is the budget (600), ``KHO_LAB_SMOKE_KERNEL`` the release or the
bzImage (7.3).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from abi.errors import KhoError
from inspector.findings import Outcome
from lab import sources
from lab.build import Kernel, build, find
from lab.host import LabError, cache_directory, end_on_signals, tool, work_area

_BUDGET = 600.0
#: After the kernel is there, this much is left for running it.
_RUNNING = 120.0
_CURRENT = "7.3"
_SCENARIO = "linux-7.3"

#: One of each kind of trouble: what a real kernel did with these is in docs/lab.md.
BROKEN = (
    "handover-fdt-size-zero",
    "root-compatible",
    "map-garbage",
    "luo-compatible",
    "session-count-zero",
    "session-name-duplicate",
    "file-handler-unknown",
    "vmalloc-total-pages",
    "memfd-seals",
    "memfd-folio-not-preserved",
)


class Failed(Exception):
    """Something that this machine can do came out wrong."""


def _kernel(budget: float) -> Kernel:
    spec = os.environ.get("KHO_LAB_SMOKE_KERNEL", _CURRENT)
    tool("qemu-system-x86_64", "qemu-system-x86", "running a kernel")
    tool("gcc", "gcc", "the guest's init")
    if not sources.is_release(spec):
        return find(spec)
    kernel, was_cached = build(spec, timeout=max(1.0, budget - _RUNNING))
    print(f"kernel {kernel.release} ({'cached' if was_cached else 'built'})", flush=True)
    return kernel


def _capture(kernel: Kernel) -> str:
    from lab.capture import capture
    from lab.compare import differences
    from lab.workload import Workload

    with work_area(cache_directory() / "tmp") as area:
        result = capture(
            kernel, kernel, Workload.small(7), area, prefix="smoke", moments=("handoff",)
        )
        image = result.images["handoff", "raw"]
        found = differences(image, area / "smoke-handoff.truth.json")
    if found:
        raise Failed(f"the decoded capture departs from its truth: {'; '.join(found[:3])}")
    report = result.report
    if report is None or report.outcome is not Outcome.TAKEN_OVER:
        raise Failed(f"the live update itself ended in {report and report.outcome}")
    return "one capture decoded equal to its truth"


def _simulated(kernel: Kernel) -> str:
    from inspector import image as images
    from inspector.kernel import scenario
    from lab.boot import boot
    from lab.expectation import of_image

    made = scenario.load(_SCENARIO).run().memory
    with images.open(made) as decoded:
        expected = of_image(decoded)
    report = boot(made, kernel, expected, poison=True)
    if report.outcome is not Outcome.TAKEN_OVER or len(report.files) != len(expected.files):
        raise Failed(f"simulated image: {report.outcome}: {'; '.join(report.reasons[:3])}")
    return f"one simulated image accepted, {len(report.files)} files right"


def _broken(kernel: Kernel) -> str:
    from inspector.kernel import scenario
    from lab import broken, judging

    with work_area(cache_directory() / "tmp") as area:
        misfits = broken.make(area, _SCENARIO, scenario.load(_SCENARIO), BROKEN)
        if misfits:
            raise Failed(f"faults that cannot be made: {', '.join(misfits)}")
        verdicts = judging.run(area, kernel)
    wrong = [v for v in verdicts if not v.agrees]
    if wrong:
        text = "; ".join(f"{v.image}: predicted {v.predicted}, was {v.actual}" for v in wrong)
        raise Failed(f"{len(wrong)} of {len(verdicts)} broken images: {text}")
    return f"{len(verdicts)} broken images ended as predicted"


def main() -> int:
    """Run the smoke test; the exit status."""
    end_on_signals()
    began = time.monotonic()
    budget = float(os.environ.get("KHO_LAB_SMOKE_SECONDS", _BUDGET))
    try:
        kernel = _kernel(budget)
    except KhoError as error:
        print(f"SKIPPED lab: {error}")
        return 0
    status = 0
    steps: tuple[tuple[str, Callable[[Kernel], str]], ...] = (
        ("capture", _capture),
        ("simulated image", _simulated),
        ("broken images", _broken),
    )
    for name, step in steps:
        if time.monotonic() - began > budget:
            print(f"SKIPPED {name}: the {budget:.0f} s are used up")
            continue
        try:
            print(f"ok: {step(kernel)}", flush=True)
        except Failed as error:
            print(f"FAILED {name}: {error}")
            status = 1
        except LabError as error:
            print(f"SKIPPED {name}: {error}")
        except KhoError as error:
            print(f"FAILED {name}: {error}")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
