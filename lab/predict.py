"""What the inspector predicts, for comparison with what a kernel does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from inspector.findings import Outcome
from lab.build import Kernel
from lab.host import LabError


def predict(image: Path, kernel: Kernel) -> tuple[Outcome, list[str]]:
    """The outcome that ``kho compat`` predicts for an image and a kernel, and why.

    Raises LabError if this checkout cannot predict.
    """
    raise LabError("this checkout cannot predict outcomes")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LabError(f"this checkout has no {error.name}") from None
