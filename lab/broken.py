"""Broken images with the truth of the whole ones: what a judge has to be tried on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from abi.errors import KhoError
from inspector import image as images
from inspector.kernel import scenario
from inspector.memory.base import PhysicalMemory
from inspector.memory.elfcore import write_core
from lab.expectation import Expectation, as_truth, of_image
from lab.host import new_file


def make(
    directory: Path, scenario_name: str, faults: Sequence[str], *, seed: int | None = None
) -> dict[str, str]:
    """Write one ELF core for each fault, and beside it the truth of the image without it.

    Returns the faults that do not fit the scenario, with the reason.
    """
    base = scenario.load(scenario_name)
    with images.open(base.run(seed=seed).memory) as decoded:
        whole = of_image(decoded)
    misfits = {}
    for name in faults:
        try:
            made = replace(base, faults=(*base.faults, scenario.Fault(name))).run(seed=seed)
        except KhoError as error:
            misfits[name] = str(error)
            continue
        stem = f"{Path(scenario_name).name.removesuffix('.toml')}-{name}" + (
            f"-{seed}" if seed is not None else ""
        )
        with new_file(directory / f"{stem}.elf") as path:
            write_core(str(path), made.memory)
        with new_file(directory / f"{stem}.truth.json") as path:
            truth = as_truth(_renamed(whole, made.memory), base.kernel.release)
            path.write_text(json.dumps(truth, indent=1) + "\n")
    return misfits


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
