"""Decode IOMMU, iommufd, VFIO and PCI state, and join them up.

The four layers are decoded together, because each is evidence for the layout of the
others. What comes of it is one picture: device -> hardware unit, domain, page table;
domain -> HWPT (token) -> iommufd file -> session; device -> VFIO file -> session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from abi import registry
from abi.iommu import Header, IommuGeneration
from abi.iommufd import IommufdGeneration
from abi.pci import PciGeneration
from abi.registry import Generation
from abi.vfio_pci import VfioPciGeneration
from inspector.detect import note
from inspector.evidence import Plausibility
from inspector.findings import Severity
from inspector.memory.base import U64Array
from inspector.passthrough import (
    iommu_devices,
    iommu_state,
    iommufds,
    known_devices,
    pci_state,
    vfio_devices,
)
from inspector.passthrough.detect_iommu import detect_iommu, detect_iommufd, domain_data_readings
from inspector.passthrough.detect_pci import VfioFile, detect_pci, detect_vfio_pci, vfio_readings
from inspector.walk.iommu import IommuState, Objects, walk_iommu
from inspector.walk.iommufd import walk_iommufd
from inspector.walk.luo import File, Flb, Session
from inspector.walk.pci import walk_pci
from inspector.walk.vfio_pci import walk_vfio_pci

if TYPE_CHECKING:
    from inspector.image import Image

Overrides = Mapping[str, Generation]
#: Objects of one kind that are listed one by one where something is wrong with them.
_SHOWN: Final = 1024
#: Files of one handler that are looked at, at most twice this, to tell their layout.
_SAMPLE: Final = 512


def decode(image: Image, overrides: Overrides) -> None:
    """Decode the state of every iommufd and VFIO file and of the IOMMU and PCI FLBs."""
    if image.luo is None:
        return
    likely = Plausibility(image.memory, image.page_size, image.preserved)
    files = list(image.luo.files())
    iommufds = [f for _, f in files if _is(f.compatible, "iommufd") and f.data]
    _iommu(image, likely, iommufds, overrides)
    iommu = iommu_state(image)
    if iommufds:
        verdict = detect_iommufd(
            image.survey,
            likely,
            _text(iommufds[0].compatible),
            _sample(iommufds),
            iommu,
            overrides.get("iommufd"),
        )
        note(image, "iommufd", verdict)
        for file in iommufds:
            generation = cast("IommufdGeneration | None", verdict.generation)
            if generation is not None:
                file.state = walk_iommufd(
                    image.survey, generation, file.data, file.path, image.preserved
                )
    _pci(image, likely, files, overrides)
    _vfio(image, files, overrides)
    _check(image)


@lru_cache(256)
def _is(string: bytes, layer: str) -> bool:
    return bool(registry.named(layer, _text(string)))


def _sample(files: list[File]) -> list[int]:
    """Addresses of enough of them to tell their layout."""
    return [f.data for f in files[:: len(files) // _SAMPLE + 1]]


def _text(string: bytes) -> str:
    return string.decode("utf-8", "replace")


def _flbs(image: Image, layer: str) -> Iterator[Flb]:
    assert image.luo is not None
    return (f for f in image.luo.flbs if f.data and _is(f.name, layer))


def _iommu(image: Image, likely: Plausibility, iommufds: list[File], overrides: Overrides) -> None:
    for flb in _flbs(image, "iommu"):
        anchors = domain_data_readings(image.survey, _sample(iommufds))
        verdict = detect_iommu(
            image.survey, likely, _text(flb.name), flb.data, anchors, overrides.get("iommu")
        )
        note(image, "iommu", verdict)
        generation = cast("IommuGeneration | None", verdict.generation)
        if generation is not None:
            flb.state = walk_iommu(image.survey, generation, flb.data, flb.path)


def _pci(
    image: Image, likely: Plausibility, files: list[tuple[Session, File]], overrides: Overrides
) -> None:
    expected = iommu_devices(iommu_state(image))
    by_string: dict[str, list[int]] = {}
    for _, file in files:
        if file.data and _is(file.compatible, "vfio-pci"):
            by_string.setdefault(_text(file.compatible), []).append(file.data)
    readings = [
        vfio_readings(image.survey, string, found[:: len(found) // _SAMPLE + 1])
        for string, found in by_string.items()
    ]
    for flb in _flbs(image, "pci"):
        verdict = detect_pci(
            image.survey, likely, _text(flb.name), flb.data, expected, overrides.get("pci"),
            readings,
        )  # fmt: skip
        note(image, "pci", verdict)
        generation = cast("PciGeneration | None", verdict.generation)
        if generation is not None:
            certain = verdict.certain or not image.survey.left_out
            flb.state = walk_pci(image.survey, generation, flb.data, flb.path, certain=certain)


def _vfio(image: Image, files: list[tuple[Session, File]], overrides: Overrides) -> None:
    devices = known_devices(image)
    iommu = iommu_state(image)
    by_string: dict[str, list[tuple[Session, File]]] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    for session, file in files:
        if file.data and _is(file.compatible, "vfio-pci"):
            by_string.setdefault(_text(file.compatible), []).append((session, file))
            if session.path not in tokens:
                tokens[session.path] = _iommufd_tokens(session)
    for string, found in by_string.items():
        verdict = detect_vfio_pci(
            image.survey,
            string,
            [
                VfioFile(f.data, tokens[s.path], s.complete)
                for s, f in found[:: len(found) // _SAMPLE + 1]
            ],
            devices,
            iommu.generation if iommu else None,
            overrides.get("vfio-pci"),
            all_devices=_all_devices(image),
        )
        note(image, "vfio-pci", verdict)
        generation = cast("VfioPciGeneration | None", verdict.generation)
        if generation is not None:
            for _, file in found:
                file.state = walk_vfio_pci(
                    image.survey, generation, file.data, file.path, image.preserved
                )


def _iommufd_tokens(session: Session) -> tuple[int, ...]:
    return tuple(f.token for f in session.files if _is(f.compatible, "iommufd"))


def _all_devices(image: Image) -> bool:
    """Whether :func:`known_devices` can have them all: none were left out of the dump."""
    pci, iommu = pci_state(image), iommu_state(image)
    if not image.survey.left_out:
        return True
    if pci is not None:
        return pci.complete
    whole = iommu is None or not iommu.devices.array.cut
    return whole and not any(True for _ in _flbs(image, "pci"))


# -- joints that do not fit -----------------------------------------------------------------------


def _check(image: Image) -> None:
    """Findings where layers contradict each other: ``KHO-IOM-01x``, ``KHO-IFD-01x``."""
    iommu = iommu_state(image)
    findings = image.survey.findings
    if iommu is not None:
        _check_iommu(image, iommu)
        for _, _, state in iommufds(image):
            if not state.complete:
                continue  # what a wrong count takes for HWPTs
            for index, gone in _astray(iommu.domains, state.domain_data):
                if not gone and iommu.domains.array.cut:
                    image.survey.cannot_tell("KHO-IFD-010", "domains were left out of the image")
                    continue
                hwpt = state.hwpt(index)
                what = "a deleted domain" if gone else "no domain object"
                findings.error(
                    "KHO-IFD-010",
                    f"HWPT {hwpt.token:#x} names {what} at {hwpt.domain_data:#x}",
                    path=hwpt.path,
                    address=hwpt.address,
                )
    pci = pci_state(image)
    known = known_devices(image) if pci is None or not pci.complete else frozenset(pci.keys)
    bdfs = {bdf for _, bdf in known}
    for _, file, device in vfio_devices(image):
        # The first postings tell devices apart by their BDF alone.
        listed = (
            device.bdf in bdfs if device.domain is None else (device.domain, device.bdf) in known
        )
        if listed:
            continue
        if not _all_devices(image):
            image.survey.cannot_tell("KHO-VFI-010", "PCI devices were left out of the image")
        elif known or pci is not None:
            findings.error(
                "KHO-VFI-010",
                f"{device.name} is not among the preserved PCI devices",
                path=file.path,
                address=device.address,
            )


def _astray(objects: Objects[Any], pointers: U64Array) -> Iterator[tuple[int, bool]]:
    """(position, whether the object is deleted) of pointers that hit no live object."""
    at = objects.array.find(pointers)
    deleted = (at >= 0) & objects.deleted[at] if len(objects) else np.zeros(len(at), np.bool_)
    for index in np.flatnonzero((at < 0) | deleted)[:_SHOWN].tolist():
        yield index, bool(deleted[index])


def _check_iommu(image: Image, iommu: IommuState) -> None:
    # Up to the second posting a device stayed unmarked when its domain was deleted.
    marks_devices = iommu.generation.header is Header.FLAGS
    live = np.flatnonzero(~iommu.devices.deleted)
    for what, name, objects in (
        ("domain", "domain_phys", iommu.domains),
        ("unit", "iommu_phys", iommu.units),
    ):
        pointers = iommu.devices.column(name)[live].astype(np.uint64)
        for index, gone in _astray(objects, pointers):
            device = iommu.devices[int(live[index])]
            if not gone and not objects.array.complete:
                if objects.array.cut:
                    image.survey.cannot_tell("KHO-IOM-010", f"{what}s were left out of the image")
                continue  # it may be what is missing
            wrong = "is deleted" if gone else "points to no object"
            image.survey.findings.add(
                "KHO-IOM-010",
                Severity.INFO if gone and not marks_devices else Severity.ERROR,
                f"{device.name}: its {what}, {int(pointers[index]):#x}, {wrong}",
                path=device.path,
                address=device.address,
            )
