"""Which posting wrote the PCI state and the VFIO files: see :mod:`.detect_iommu`.

Their strings say even less: ``pci-v1`` names five layouts, ``vfio-pci-v1`` four. What
tells them apart is the devices themselves: a device of the IOMMU state has to be in the
list, and a VFIO file has to name one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from abi import registry
from abi.iommu import IommuGeneration
from abi.pci import FLB_VERSIONS, ArrayForm, PciGeneration
from abi.registry import Generation
from abi.vfio_pci import VfioPciGeneration
from inspector.detect import Verdict, decide
from inspector.evidence import Evidence, Plausibility, order
from inspector.memory.base import PageState
from inspector.passthrough import Key
from inspector.passthrough.detect_iommu import trial_survey
from inspector.survey import Survey
from inspector.walk.pci import PciState, walk_pci
from inspector.walk.vfio_pci import VfioDevice, walk_vfio_pci

#: For each form of VFIO files, the devices that they name.
Readings = Sequence[frozenset[Key]]


def detect_pci(
    survey: Survey,
    likely: Plausibility,
    string: str,
    address: int,
    expected: frozenset[Key] = frozenset(),
    override: Generation | None = None,
    readings: Sequence[Readings] = (),
) -> Verdict:
    """The verdict on the PCI state at ``address``; ``expected`` devices must be in it.

    ``readings`` are the devices that VFIO files may name: the reading of the list that has
    more of them is right.
    """
    tried: list[tuple[Generation, Evidence, int]] = []
    named: list[int] = []
    for rank, generation in enumerate(registry.named("pci", string)):
        generation = cast("PciGeneration", generation)
        evidence, keys = _judge_pci(survey, likely, generation, string, address, expected)
        tried.append((generation, evidence, rank))
        named.append(sum(max((len(keys & one) for one in files), default=0) for files in readings))
    for (_, evidence, _), count in zip(tried, named, strict=True):
        if max(named):
            evidence.constraint(
                "VFIO files name devices of the list", count == max(named),
                lacking=evidence.lacking > 0,
            )  # fmt: skip
    return decide("pci", order(tried), override)


def vfio_readings(survey: Survey, string: str, addresses: Sequence[int]) -> Readings:
    """The devices that VFIO files of one string name, for each form that the string may mean.

    Forms without a segment mean segment 0.
    """
    found = []
    for generation in cast("Iterable[VfioPciGeneration]", registry.named("vfio-pci", string)):
        trial = trial_survey(survey)
        read = [walk_vfio_pci(trial, generation, address, "/trial") for address in addresses]
        found.append(frozenset((d.domain or 0, d.bdf) for d in read if d is not None))
    return found


def _judge_pci(
    survey: Survey,
    likely: Plausibility,
    generation: PciGeneration,
    string: str,
    address: int,
    expected: frozenset[Key],
) -> tuple[Evidence, frozenset[Key]]:
    """The evidence, and the devices that the list has when it is read so."""
    evidence = Evidence()
    trial = trial_survey(survey)
    state = walk_pci(trial, generation, address, "/trial")
    lacking = trial.left_out > 0
    evidence.constraint("the root can be read", state is not None, lacking=lacking)
    if state is None:
        return evidence, frozenset()
    root = generation.root.unpack(survey.memory.read(address, generation.root.size))
    if state.version is not None:
        evidence.constraint("the version is known", state.version in FLB_VERSIONS)
    if generation.form is ArrayForm.BLOCKS:
        block = np.array([root["devices"]], np.uint64)
        good = likely.aligned(block) & (likely.known(block) | (block == 0))
        evidence.constraint("the list of devices is in memory", good)
    padding = [v for k, v in root.items() if k.startswith("_pad")]
    if padding:
        evidence.constraint("padding of the root is 0", not any(b"".join(padding)))
    if state.maximum is not None:
        evidence.constraint("no more devices than slots", state.nr_devices <= state.maximum)
    evidence.constraint("every slot can be read", state.complete, lacking=lacking)
    _judge_slots(evidence, generation, string, state)
    keys = frozenset(state.keys)
    evidence.constraint("no device twice", len(keys) == len(state.keys))
    if expected:
        present = np.array([key in keys for key in sorted(expected)])
        evidence.constraint("every device of the IOMMU state is listed", present, lacking=lacking)
    return evidence, keys


def _judge_slots(
    evidence: Evidence, generation: PciGeneration, string: str, state: PciState
) -> None:
    used, columns = state.used, state.columns
    evidence.constraint("no more slots in use than counted", len(state.keys) <= state.nr_devices)
    if "refcount" not in columns or not columns["refcount"].any():
        evidence.constraint("slots that are counted hold devices", used[: state.nr_devices])
    if "reserved" in columns:
        evidence.constraint("reserved words are 0", columns["reserved"] == 0)
    if generation.has_refcount and (generation.count_bits == 64 or string != "pci-v1"):
        evidence.constraint("devices are counted in use", columns["refcount"][used] != 0)
    if state.maximum is not None and len(state.records) > state.nr_devices:
        spare = state.records[state.nr_devices :].tobytes()
        evidence.hint("slots behind the count are empty", not spare.strip(b"\0"))
    for name, column in columns.items():
        if name.startswith("_pad"):
            evidence.constraint("padding of devices is 0", (column[used] == 0).all(axis=1))
    if "driver_name" in columns:
        names = [bytes(row) for row in columns["driver_name"][used]]
        sane = [_is_text(name) for name in names]
        evidence.constraint("driver names are text", np.array(sane, np.bool_))
    if generation.form is ArrayForm.COUNTED and generation.count == "nr_devices":
        evidence.constraint("devices ascend", state.keys == sorted(state.keys))


def _is_text(name: bytes) -> bool:
    text, end, _ = name.partition(b"\0")
    return bool(text and end) and text.isascii() and text.decode().isprintable()


# -- VFIO files ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VfioFile:
    """What the verdict on VFIO files needs: where one lies, and its session's iommufd tokens."""

    address: int
    iommufd_tokens: tuple[int, ...]
    #: Whether all files of the session are known.
    complete: bool = True


def detect_vfio_pci(
    survey: Survey,
    string: str,
    files: Sequence[VfioFile],
    devices: frozenset[Key],
    iommu: IommuGeneration | None = None,
    override: Generation | None = None,
    *,
    all_devices: bool = True,
) -> Verdict:
    """The verdict on all VFIO files of one string together; they name some of ``devices``.

    ``all_devices`` says that none of those are in pages that the dump left out.
    """
    tried: list[tuple[Generation, Evidence, int]] = []
    for generation in cast("Iterable[VfioPciGeneration]", registry.named("vfio-pci", string)):
        evidence = _judge_vfio(survey, generation, files, devices, all_devices)
        if iommu is not None:
            with_token = iommu.id.startswith("iommu-v1-")
            evidence.hint(f"it goes with {iommu.id}", not generation.has_iommufd or with_token)
        # Where bytes behind a struct are zero, a longer one would fit too: the shorter says
        # no more than is there.
        tried.append((generation, evidence, -generation.root.size))
    return decide("vfio-pci", order(tried), override)


def _judge_vfio(
    survey: Survey,
    generation: VfioPciGeneration,
    files: Sequence[VfioFile],
    devices: frozenset[Key],
    all_devices: bool,
) -> Evidence:
    evidence = Evidence()
    trial = trial_survey(survey)
    read = [(f, walk_vfio_pci(trial, generation, f.address, "/trial")) for f in files]
    found = [(f, d) for f, d in read if d is not None]
    evidence.constraint(
        "every struct can be read", len(found) == len(files), lacking=trial.left_out > 0
    )
    if not found:
        return evidence
    if devices:
        bdfs = {bdf for _, bdf in devices}
        known = [d.bdf in bdfs if d.domain is None else (d.domain, d.bdf) in devices
                 for _, d in found]  # fmt: skip
        evidence.constraint(
            "every file names a device of the other layers",
            np.array(known),
            lambda i: found[i][1].name,
            lacking=not all_devices,
        )
    resets = [d.reset_works <= 1 for _, d in found if d.reset_works is not None]
    evidence.constraint("reset_works is 0 or 1", np.array(resets, np.bool_))
    if generation.has_iommufd:
        token = [d.iommufd_token in {t & 0xFFFFFFFF for t in f.iommufd_tokens} for f, d in found]
        evidence.constraint(
            "the iommufd's token is one of the session", np.array(token),
            lacking=not all(f.complete for f, _ in found),
        )  # fmt: skip
    if generation.saved_state:
        sizes = [d.values["cfg_size"] in (256, 4096) for _, d in found]
        evidence.constraint("sizes of configuration space are 256 or 4096", np.array(sizes))
    rest = [spare for _, d in found if (spare := _rest(survey, d)) is not None]
    evidence.constraint(
        "nothing but zeros behind the struct",
        np.array([not r.strip(b"\0") for r in rest], np.bool_),
    )
    return evidence


def _rest(survey: Survey, device: VfioDevice) -> bytes | None:
    """What lies behind the struct in its last page."""
    end = device.address + device.generation.root.size
    size = -end % survey.page_size
    if survey.memory.state(end, max(size, 1)) is not PageState.PRESENT:
        return None
    return survey.memory.read(end, size)
