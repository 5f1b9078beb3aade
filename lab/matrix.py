"""All pairs of kernels, each handing over to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from abi.errors import KhoError
from inspector.findings import Outcome
from lab.build import Kernel
from lab.capture import capture
from lab.qemu import Patience
from lab.workload import Workload


@dataclass(frozen=True, slots=True)
class Pair:
    """What happened when one kernel handed over to another."""

    producer: str
    consumer: str
    outcome: Outcome
    reasons: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data, in the form of the corpus' matrix.json."""
        return {
            "producer": self.producer,
            "consumer": self.consumer,
            "project_outcome": str(self.outcome),
            "reasons": list(self.reasons),
            "seconds": self.seconds,
        }


def run(
    kernels: Sequence[Kernel],
    workload: Workload,
    *,
    accel: str = "auto",
    patience: Patience | None = None,
    progress: Callable[[Pair], None] = lambda pair: None,
) -> list[Pair]:
    """Let every kernel hand over to every kernel, itself included."""
    pairs = []
    for producer in kernels:
        for consumer in kernels:
            pair = _pair(producer, consumer, workload, accel, patience)
            pairs.append(pair)
            progress(pair)
    return pairs


def _pair(
    producer: Kernel, consumer: Kernel, workload: Workload, accel: str, patience: Patience | None
) -> Pair:
    names = producer.release, consumer.release
    try:
        result = capture(
            producer, consumer, workload, None, moments=(), accel=accel, patience=patience
        )
    except KhoError as error:
        return Pair(*names, Outcome.CANNOT_TELL, (str(error),), 0.0)
    assert result.report is not None
    report = result.report
    return Pair(*names, report.outcome, tuple(report.reasons[:5]), round(result.seconds, 1))
