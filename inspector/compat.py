"""What would this kernel do with that image? Verdicts for images, pairs of kernels, matrices.

A verdict comes from bytes: the consumer of :mod:`inspector.kernel.incoming.consumer` takes the
image over as the kernel would. For a pair of kernels the image is one that the simulated producer
makes: a small machine with every kind of state that the producer knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from abi import registry
from abi.errors import KhoError, UsageError
from abi.registry import Generation
from abi.schema import resolve
from inspector.findings import Outcome
from inspector.kernel.incoming.consumer import Result, consume
from inspector.kernel.incoming.early_scratch import INITRD_SIZE, KERNEL_SIZE
from inspector.kernel.machine.hardware import Hardware
from inspector.kernel.outcome import Reason, status, worst
from inspector.kernel.outgoing.kernel import Image
from inspector.kernel.profile import KernelProfile, released
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.profile_file import Target
from inspector.memory.base import PhysicalMemory

if TYPE_CHECKING:
    from inspector.image import Image as Decoded

#: Layers whose postings have a matrix of their own.
LAYERS = ("iommu", "iommufd", "vfio-pci", "pci", "kvm")
#: Those whose state is about devices of a machine.
_DEVICES = ("iommu", "iommufd", "vfio-pci", "pci")
#: What those matrices vary the layers of.
BASE = "linux-7.3+iommu-vw"


@dataclass(frozen=True, slots=True)
class Options:
    """What decides besides image and kernel; sizes in bytes."""

    root: int | None = None
    kernel_size: int = KERNEL_SIZE
    initrd_size: int = INITRD_SIZE
    page_size: int | None = None


@dataclass(slots=True)
class Verdict:
    """What one kernel makes of one image. ``producer`` is a kernel's name or the image's."""

    producer: str
    consumer: str
    outcomes: tuple[Outcome, ...]
    reasons: list[Reason] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The overall outcome."""
        return worst(self.outcomes, self.reasons)

    @property
    def status(self) -> int:
        """Exit status: 0, 1 warnings, 4 incompatible, 16 cannot tell."""
        return status(self.outcomes)


def judge(
    memory: PhysicalMemory,
    target: Target,
    options: Options = Options(),
    *,
    producer: str = "image",
    hardware: Hardware | None = None,
) -> Verdict:
    """What ``target`` makes of an image. ``hardware``: None takes what the image speaks of."""
    result = consume(
        memory,
        target.kernel,
        root=options.root,
        hardware=hardware,
        kernel_size=options.kernel_size,
        initrd_size=options.initrd_size,
        page_size=options.page_size or target.page_size,
        behaviours=target.behaviours,
    )
    return _verdict(result, producer, str(target))


def consumed(
    image: Decoded, target: Target, overrides: Mapping[str, Generation] = MappingProxyType({})
) -> tuple[Decoded, Verdict]:
    """``image`` as a simulated kernel leaves it, and what that kernel made of it.

    The kernel has retrieved every file and not finished the sessions. It frees nothing that a
    dump would show reused, so that all differences are what it wrote.
    """
    from inspector import image as images
    from inspector.moment import MOMENT_NOTE

    result = consume(
        image.memory,
        target.kernel,
        root=image.root.address,
        page_size=target.page_size or image.page_size,
        behaviours=target.behaviours,
        finish=False,
    )
    memory = result.consumer.memory
    if result.consumer.booted:
        memory.notes[MOMENT_NOTE] = str(images.Moment.INCOMING)
    left = images.open(
        memory, overrides=overrides, root=image.root.address, page_size=image.page_size
    )
    return left, _verdict(result, "image", str(target))


def _verdict(result: Result, producer: str, consumer: str) -> Verdict:
    reasons = result.reasons
    outcomes = tuple(dict.fromkeys(r.outcome for r in reasons))
    return Verdict(producer, consumer, outcomes, reasons, result.notes)


def rules(memory: PhysicalMemory, options: Options = Options()) -> dict[str, Any] | None:
    """How often the rules of ``kho check`` are broken, by code; None if nothing is decodable."""
    from inspector import check, image
    from inspector.findings import Severity

    try:
        decoded = image.open(memory, root=options.root)
    except KhoError:
        return None
    report = check.check(decoded, at_least=Severity.WARNING)
    broken: dict[str, int] = {}
    for finding in report.findings:
        broken[finding.code] = broken.get(finding.code, 0) + 1
    return {"broken": dict(sorted(broken.items()))}


def pair(producer: Target, consumer: Target, options: Options = Options()) -> Verdict:
    """What ``consumer`` makes of what ``producer`` hands over on a small machine."""
    names = str(producer), str(consumer)
    try:
        image = image_of(producer.kernel, producer.page_size or options.page_size or 0x1000)
    except KhoError as error:
        reason = Reason(Outcome.CANNOT_TELL, f"no such image can be made: {error}", "/")
        return Verdict(*names, (Outcome.CANNOT_TELL,), [reason])
    machine = image.kernel.machine.spec
    verdict = judge(image.memory, consumer, options, producer=names[0], hardware=machine.hardware)
    _compare_layouts(verdict, producer.kernel, consumer.kernel)
    if not producer.kernel.measured:
        release = producer.kernel.release
        verdict.notes.insert(0, f"linux-{release} is modelled, no real one was measured")
    return verdict


def _compare_layouts(verdict: Verdict, producer: KernelProfile, consumer: KernelProfile) -> None:
    """Say so where two layouts go by one string and only a part of them is the same.

    The consumer then takes bytes for members that the producer did not write, or passes over
    members that it did, even if nothing else goes wrong.
    """
    for layer in LAYERS:
        ours, theirs = consumer.get(layer), producer.get(layer)
        if ours is None or theirs is None or ours.id == theirs.id:
            continue
        if not set(ours.strings[:1]) & set(theirs.strings[:1]):
            continue
        wrote, reads = _members(theirs), _members(ours)
        if wrote == reads:
            continue
        missing = sorted(name for _, name, *_ in wrote - reads)
        added = sorted(name for _, name, *_ in reads - wrote)
        outcome = Outcome.STATE_LOST if missing else Outcome.TAKEN_OVER_WITH_WARNINGS
        parts = []
        if missing:
            parts.append(f"{', '.join(missing[:6])} not read as written")
        if added:
            parts.append(f"{', '.join(added[:6])} read but not written")
        reason = Reason(
            outcome,
            f"{theirs.id} and {ours.id} both say {ours.strings[0]!r} but differ:"
            f" {'; '.join(parts)}",
            f"/LUO ({layer})",
            release=str(consumer),
        )
        verdict.reasons.append(reason)
        verdict.outcomes = tuple(dict.fromkeys((*verdict.outcomes, outcome)))


def _members(generation: Generation) -> frozenset[tuple[str, str, int, int]]:
    """(struct, member, offset, size) of every member of every struct of a generation."""
    found = set()
    for layout in generation.layouts.values():
        struct = resolve(layout, 0x1000)
        for member in struct.flat_fields():
            found.add((struct.cname, member.name, member.offset, member.size))
    return frozenset(found)


def matrix(targets: Iterable[Target] | None = None) -> Iterator[Verdict]:
    """Every pair of kernels, released ones if none are given; the producer changes last."""
    chosen = list(targets) if targets is not None else [Target(k) for k in released()]
    for producer in chosen:
        for consumer in chosen:
            yield pair(producer, consumer)


def layer_targets(layer: str) -> list[Target]:
    """One kernel for each known form of a layer, all else equal. Raises UsageError."""
    if layer not in LAYERS:
        raise UsageError(f"no matrix of layer {layer!r}; there are: {', '.join(LAYERS)}")
    base = find_profile(BASE)
    return [
        Target(base.with_layers(**{layer: generation.id}))
        for generation in registry.generations(layer)
        if getattr(generation, "decodable", True)
    ]


# -- images -----------------------------------------------------------------------------------


_IMAGES: dict[tuple[str, ...], Image] = {}
_MOST_IMAGES = 64


def image_of(kernel: KernelProfile, page_size: int = 0x1000) -> Image:
    """A small image of a kernel: made once in a process. Raises KhoError if that fails."""
    from inspector.kernel import scenario

    layers = (f"{g} {' '.join(g.strings)}" for g in kernel.generations.values())
    key = (kernel.name, kernel.release, str(page_size), *layers)
    if key not in _IMAGES:
        if len(_IMAGES) >= _MOST_IMAGES:
            _IMAGES.clear()
        made = scenario.parse(_scenario(kernel, page_size), "compat")
        _IMAGES[key] = replace(made, kernel=kernel).run()
    return _IMAGES[key]


_MACHINE = """
kernel = "{base}"
release = "{release}.0"
seed = 7
[machine]
ram = ["{ram}"]
architecture = "{architecture}"
page_size = "{page}K"
{hardware}
[kho_test]
pages = 128
max_order = {order}
[[reserve_mem]]
name = "trace"
size = "1M"
[[reserve_mem]]
name = "oops"
size = "4M"
align = "2M"
"""
_FILES = """
[[session]]
name = "vm"
[[session.file]]
token = 0x1001
id = "ram"
size = "192K"
pos = 4097
{seals}
[[session.file]]
token = 0x1002
size = "3M"
huge = true
"""
_SEALS = 'seals = ["seal", "shrink", "grow"]'
_HARDWARE = """
[[machine.iommu]]
base = 0xfed90000
[[machine.device]]
bdf = "0000:00:03.0"
[[machine.device]]
bdf = "0000:00:04.0"
[[machine.device]]
bdf = "{third}"
"""
_IOMMUFD = """
[[session.file]]
type = "iommufd"
id = "iommufd"
token = 0x2001
[[session.file.ioas]]
name = "ioas1"
map = [{{ file = "ram", size = "128K", iova = 0x10000000 }}]
[[session.file.ioas]]
name = "ioas2"
map = [{{ file = "ram", size = "64K", iova = 0x20000000 }}]
[[session.file.hwpt]]
name = "hwpt1"
ioas = "ioas1"
token = 0x11
[[session.file.hwpt]]
name = "hwpt2"
ioas = "ioas2"
token = 0x12
"""
_VFIO = """
[[session.file]]
type = "vfio-pci"
token = {token}
bdf = "{bdf}"
"""
_ATTACHED = """iommufd = "iommufd"
hwpt = "{hwpt}"
"""


_POOL = """
[[machine.hugetlb]]
size = "{size}K"
pages = 8
"""
_HUGE_MEMFD = """
[[session.file]]
type = "huge-memfd"
token = 0x4001
page = "{size}K"
size = "{total}K"
"""
_VM = """
[[session.file]]
type = "kvm-vm"
id = "machine"
token = 0x5001
machine_type = 1
attributes = [{ gfn = 0x100, frames = 70, value = 8 }]
folios = [{ count = 2 }]
"""
_VCPU = """
[[session.file]]
type = "kvm-vcpu"
token = 0x5101
vm = "machine"
caretaker = { state = "running", cpu = 1, telemetry = { total_runs = 5 } }
"""
_GUEST_MEMFD = """
[[session.file]]
type = "guest-memfd"
token = 0x5201
vm = "machine"
size = "1M"
"""
_TMPFS = """
[[session.file]]
type = "tmpfs-mount"
token = 0x6001
limit = "64M"
"""


def _guests(kernel: KernelProfile, page: int) -> str:
    """Files of virtual machines, huge pages and mounts, of what the kernel has."""
    text = ""
    hugetlb, kvm = kernel.get("hugetlb"), kernel.get("kvm")
    if hugetlb is not None and hugetlb.file_strings:
        text += _HUGE_MEMFD.format(size=32 * page, total=96 * page)
    if kvm is not None:
        text += _VM
        text += _VCPU if "kvm_vcpu_ser" in kvm.layouts else ""
        text += _GUEST_MEMFD if kernel.has("guest-memfd") else ""
    return text + (_TMPFS if kernel.has("tmpfs") else "")


def _scenario(kernel: KernelProfile, page_size: int) -> str:
    devices, page = any(kernel.has(layer) for layer in _DEVICES), page_size >> 10
    vfio = kernel.get("vfio-pci")
    # The first postings tell devices apart by their BDF alone.
    segments = vfio is None or any(name == "domain" for _, name, *_ in _members(vfio))
    third = "0001:00:05.0" if segments else "0000:00:05.0"
    text = _MACHINE.format(
        base=f"linux-{kernel.release}",
        release=kernel.release,
        ram="512M" if page == 4 else "4G",
        architecture="x86_64" if page == 4 else "aarch64",
        page=page,
        order=7 if page == 4 else 4,
        hardware=(_HARDWARE.format(third=third) if devices else "")
        + (_POOL.format(size=32 * page) if kernel.has("hugetlb") else ""),
    )
    if not kernel.has("memfd"):
        return text
    text += _FILES.format(seals=_SEALS)
    iommufd = kernel.get("iommufd")
    if iommufd is not None:
        text += _IOMMUFD.format()
    if vfio is not None:
        for i, bdf in enumerate(("0000:00:03.0", "0000:00:04.0", third)):
            text += _VFIO.format(token=0x3001 + i, bdf=bdf)
            if getattr(iommufd, "entry", None) is not None and kernel.has("iommu"):
                text += _ATTACHED.format(hwpt=f"hwpt{1 + i % 2}")
    return text + _guests(kernel, page)


def unique(targets: Sequence[Target]) -> list[Target]:
    """Targets without repetition, in order."""
    return list({str(t): t for t in targets}.values())
