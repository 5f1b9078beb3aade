"""Broken images with the truth of the whole ones: what a judge has to be tried on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from abi.errors import KhoError
from inspector import image as images
from inspector.kernel.scenario import Fault, Scenario
from inspector.memory.base import PhysicalMemory
from lab.expectation import Expectation, as_truth, of_image
from lab.host import new_file


def make(directory: Path, stem: str, base: Scenario, faults: Sequence[str]) -> dict[str, str]:
    """Write a raw image for each fault, and beside it the truth of the image without it.

    They are called ``STEM-FAULT``. Returns the faults that do not fit the scenario, with the
    reason.
    """
    with images.open(base.run().memory) as decoded:
        whole = of_image(decoded)
    misfits = {}
    for name in faults:
        try:
            made = replace(base, faults=(*base.faults, Fault(name))).run()
        except KhoError as error:
            misfits[name] = str(error)
            continue
        truth = as_truth(_renamed(whole, made.memory), base.kernel.release)
        write(directory / f"{stem}-{name}", made.memory, truth)
    return misfits


def write(stem: Path, memory: PhysicalMemory, truth: dict[str, Any]) -> None:
    """Write ``STEM.raw``, a sparse file with all of RAM, and ``STEM.truth.json``.

    What the image does not hold is zero in the file, so that a prediction and a boot see the
    same bytes wherever a pointer leads. Raises LabError.
    """
    with new_file(stem.with_name(f"{stem.name}.raw")) as path, open(path, "wb") as f:
        for start, view in memory.extents():
            os.pwrite(f.fileno(), view, start)
        f.truncate(max(r.end for r in memory.regions))
    with new_file(stem.with_name(f"{stem.name}.truth.json")) as path:
        path.write_text(json.dumps(truth, indent=1) + "\n")


def _renamed(whole: Expectation, broken: PhysicalMemory) -> Expectation:
    """What was preserved, asked for by the session names that the broken image has."""
    try:
        with images.open(broken) as decoded:
            names = of_image(decoded).sessions
    except KhoError:
        return whole
    if len(names) != len(whole.sessions) or len(set(names)) != len(names):
        return whole
    new = dict(zip(whole.sessions, names, strict=True))
    files = [replace(f, session=new[f.session]) for f in whole.files]
    return replace(whole, sessions=names, files=files)
