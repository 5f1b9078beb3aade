"""Predictions against what real kernels do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abi.errors import KhoError, UnreadableError
from inspector.findings import Outcome
from lab.boot import boot
from lab.build import Kernel
from lab.expectation import expect
from lab.host import os_errors
from lab.predict import predict
from lab.qemu import Patience

_SUFFIXES = (".raw", ".elf", ".kdump", ".filtered", ".img", ".zst")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Prediction and fact for one image. ``why`` and ``reasons`` say what each rests on."""

    image: str
    kernel: str
    predicted: Outcome
    actual: Outcome
    why: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    stopped: str = ""
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether the prediction came true."""
        return self.predicted is self.actual

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def images(directory: Path) -> list[Path]:
    """The images of a directory, by name."""
    if not directory.is_dir():
        raise UnreadableError(f"{directory} is not a directory")
    found = sorted(p for p in directory.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if not found:
        raise UnreadableError(f"{directory} holds no image ({' '.join(_SUFFIXES)})")
    return found


def one(
    image: Path, kernel: Kernel, *, accel: str = "auto", patience: Patience | None = None
) -> Verdict:
    """Predict, boot and compare one image."""
    predicted, why = predict(image, kernel)
    try:
        report = boot(image, kernel, expect(image), accel=accel, patience=patience)
    except KhoError as error:
        return Verdict(
            image.name, kernel.name, predicted, Outcome.CANNOT_TELL, tuple(why), (str(error),)
        )
    return Verdict(
        image.name,
        kernel.name,
        predicted,
        report.outcome,
        tuple(why[:10]),
        tuple(report.reasons[:10]),
        str(report.stopped),
        report.seconds,
    )


def run(
    directory: Path,
    kernel: Kernel,
    *,
    results: Path | None = None,
    accel: str = "auto",
    patience: Patience | None = None,
    progress: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Judge every image of a directory; ``results`` keeps what is done, line by line."""
    done = _load(results) if results is not None else {}
    verdicts = []
    for image in images(directory):
        verdict = done.get((image.name, kernel.name))
        if verdict is None:
            verdict = one(image, kernel, accel=accel, patience=patience)
            if results is not None:
                with os_errors(f"write {results}"), open(results, "a") as f:
                    f.write(json.dumps(verdict.as_json()) + "\n")
        verdicts.append(verdict)
        progress(verdict)
    return verdicts


def _load(path: Path) -> dict[tuple[str, str], Verdict]:
    if not path.exists():
        return {}
    done = {}
    try:
        for line in path.read_text().splitlines():
            data = json.loads(line)
            data["predicted"], data["actual"] = Outcome(data["predicted"]), Outcome(data["actual"])
            data["why"], data["reasons"] = tuple(data["why"]), tuple(data["reasons"])
            verdict = Verdict(**data)
            done[verdict.image, verdict.kernel] = verdict
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"{path} is not a file of results: {error}") from None
    return done


def confusion(verdicts: Sequence[Verdict]) -> str:
    """The confusion matrix as text: rows predicted, columns what the kernel did."""
    counts = Counter((v.predicted, v.actual) for v in verdicts)
    used = [o for o in Outcome if any(o in pair for pair in counts)]
    width = max([len(o) for o in used], default=0)
    head = " ".join(f"{o:>{max(len(o), 4)}}" for o in used)
    lines = [f"{'predicted | actual':<{max(width, 18)}} {head}"]
    for row in used:
        cells = " ".join(f"{counts[row, column]:>{max(len(column), 4)}}" for column in used)
        lines.append(f"{row:<{max(width, 18)}} {cells}")
    agree = sum(v.agrees for v in verdicts)
    lines.append(f"{agree} of {len(verdicts)} as predicted")
    return "\n".join(lines)
