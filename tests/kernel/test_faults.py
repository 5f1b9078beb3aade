"""The fault library: every fault can be injected, and changes only what it says."""

from __future__ import annotations

from functools import cache

import pytest

from abi.errors import UsageError
from inspector.kernel import faults, scenario
from inspector.kernel.outgoing.kernel import Image

_LUO = (
    '[[session]]\nname = "s{i}"\ncount = 60\n[[session.file]]\ntoken = 1\nsize = "20K"\n'
    "[[session.file]]\ntoken = 2\nsize = 5000\n"
)
_MANY_DOMAINS = (
    'kernel = "linux-7.3+iommu-vw"\n[machine]\nram = ["1G"]\n[[machine.iommu]]\n'
    'base = 0xfed90000\n[[machine.device]]\nbdf = "00:03.0"\n[[session]]\nname = "s"\n'
    '[[session.file]]\ntype = "iommufd"\ntoken = 1\nid = "i"\n[[session.file.ioas]]\nname = "a"\n'
    '[[session.file.hwpt]]\nname = "h{i}"\nioas = "a"\ntoken = 1\ncount = 120\n'
    '[[session.file]]\ntype = "vfio-pci"\ntoken = 2\nbdf = "00:03.0"\niommufd = "i"\nhwpt = "h1"\n'
)

#: Images that together have everything a fault can break.
IMAGES = {
    "6.17": "linux-6.17",
    "6.18": "linux-6.18",
    "6.19": "linux-6.19",
    "7.1": "linux-7.1",
    "7.3": "linux-7.3",
    "many": f'kernel = "linux-7.3"\ntest_flbs = true\n{_LUO}',
    "version-word": "iommufd",
    "scalable": "iommu-v3-scalable",
    "bits": "iommu-v2",
    "index": "iommu-v1",
    "domains": _MANY_DOMAINS,
    "smmu": "smmuv3",
    "vfio-rfc": "vfio-rfc-v1",
    "guest": "guest-memfd",
    "caretaker": "kvm-caretaker",
}


def image(name: str) -> Image:
    text = IMAGES[name]
    chosen = scenario.parse(text) if "\n" in text else scenario.load(text)
    return chosen.run()


@cache
def pristine(name: str) -> Image:
    return image(name)


@cache
def where(fault: str) -> tuple[str, ...]:
    return tuple(name for name in IMAGES if faults.FAULTS[fault].applies(pristine(name)))


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_every_fault_can_be_injected(fault: str) -> None:
    names = where(fault)
    assert names, "no image has anything to break"
    for name in (names[0], names[-1]):
        before, broken = pristine(name), image(name)
        changes = faults.inject(broken, fault)
        assert changes
        touched = {c.address >> 12 for c in changes}
        touched |= {c.address + max(0, len(c.after) - 1) >> 12 for c in changes}
        differing = 0
        old = {start: bytes(piece) for start, piece in before.memory.extents()}
        for start, piece in old.items():
            new = broken.memory.read(start, len(piece))
            if new != piece:
                differing += 1
        assert differing or fault in ("map-overlap", "map-scratch", "map-order-impossible")


def test_applies_changes_nothing() -> None:
    one = pristine("many")
    before = [(start, bytes(piece)) for start, piece in one.memory.extents()]
    for fault in faults.FAULTS.values():
        fault.applies(one)
    assert [(start, bytes(piece)) for start, piece in one.memory.extents()] == before


def test_invariants_are_all_there() -> None:
    assert {f.invariant for f in faults.FAULTS.values()} == set(range(22))
    assert all(f.doc for f in faults.FAULTS.values())


def test_refusals() -> None:
    with pytest.raises(UsageError, match="did you mean 'session-cycle'"):
        faults.inject(pristine("6.17"), "session-cylce")
    with pytest.raises(faults.Inapplicable):
        faults.inject(pristine("6.17"), "session-cycle")
