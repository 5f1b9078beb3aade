"""Which kernel: the generation of every layer, and the rules that differ between releases.

A profile is named ``linux-7.3``, with layers replaced or added after ``+``: either one
``LAYER=ID`` of the registry, or a posted series that brings several layers::

    linux-7.3
    linux-7.3+iommu-vw
    linux-6.19+pci=pci-v1-b-2026-01+vfio-pci=vfio-pci-v1-reset

A stable release (``7.3.4``) is the profile of its line.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType

from abi import registry
from abi.errors import UsageError
from abi.registry import Generation

#: Released kernels that have KHO, oldest first.
RELEASES = ("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3")
#: Released kernels whose behaviour was never observed, only read or inferred.
UNMEASURED = frozenset({"6.16", "7.0"})

#: Out-of-tree series: layer -> census id of the form the series carries.
SERIES: Mapping[str, Mapping[str, str]] = {
    "iommu-rfc-v2": {
        "iommu": "iommu-rfc-v2-2025-12",
        "iommufd": "iommu-rfc-v2-2025-12",
        "pci": "pci-v1-a-2025-11",
        "vfio-pci": "vfio-pci-v1-reset",
    },
    "iommu-v1": {
        "iommu": "iommu-v1-2026-02",
        "iommufd": "iommu-v1-2026-02",
        "pci": "pci-v1-b-2026-01",
        "vfio-pci": "vfio-pci-v1-iommufd",
    },
    "iommu-v2": {
        "iommu": "iommu-v2-2026-04-base",
        "iommufd": "iommu-v3-2026-06",
        "pci": "pci-v2-u64-2026-04",
        "vfio-pci": "vfio-pci-v2",
    },
    "iommu-v3": {
        "iommu": "iommu-v3-2026-06",
        "iommufd": "iommu-v3-2026-06",
        "pci": "pci-v2-u32-2026-05:pci-v1",
        "vfio-pci": "vfio-pci-v2",
    },
    "iommu-smmuv3": {
        "iommu": "iommu-smmuv3-2026a",
        "iommufd": "iommu-v3-2026-06",
        "pci": "pci-v2-u32-2026-05",
        "vfio-pci": "vfio-pci-v2",
        "dma-alloc": "dma-alloc-a",
    },
    "iommu-vw": {
        "iommu": "iommu-v4-version-field",
        "iommufd": "iommu-v3-2026-06",
        "pci": "pci-flb-version2-2026@1",
        "vfio-pci": "vfio-pci-v2",
        "dma-alloc": "dma-alloc-b",
    },
    "vfio-rfc-v1": {"pci": "pci-luo-rfc-2025", "vfio-pci": "vfio-pci-rfc-v1"},
    "vfio-backport": {"vfio-pci": "vfio-pci-v2-iommufd"},
    "guest-memfd": {"kvm": "kvm-guest-memfd-v1", "guest-memfd": "kvm-guest-memfd-v1"},
    "kvm-caretaker": {"kvm": "kvm-caretaker", "guest-memfd": "kvm-caretaker"},
    "hugetlb": {"hugetlb": "hugetlb-v1"},
    "tmpfs": {"tmpfs": "tmpfs-mnt-v1"},
}


class Finalize(enum.Enum):
    """When the root FDT becomes complete."""

    #: ``kho/out/finalize`` in debugfs, by hand, before the kexec image is loaded.
    DEBUGFS = "debugfs"
    #: By LUO in the reboot path.
    REBOOT = "reboot"
    #: Never: the map is always current.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """One kernel. ``generations`` maps layer names to what this kernel writes and reads."""

    name: str
    release: str
    generations: Mapping[str, Generation] = field(repr=False)

    @property
    def _age(self) -> int:
        return RELEASES.index(self.release)

    def since(self, release: str) -> bool:
        """Whether the kernel is of this release or a later one."""
        return self._age >= RELEASES.index(release)

    @property
    def measured(self) -> bool:
        """Whether real kernels of this release were observed."""
        return self.release not in UNMEASURED

    @property
    def finalize(self) -> Finalize:
        """How the root is completed."""
        if not self.since("6.19"):
            return Finalize.DEBUGFS
        return Finalize.NONE if self.since("7.1") else Finalize.REBOOT

    @property
    def bitmap_bytes(self) -> int | None:
        """Bytes of one v1 bitmap; 0 means a page, None that the map is a radix tree."""
        if self.since("7.1"):
            return None
        return 0 if self.since("6.18") else 512

    @property
    def map_required(self) -> bool:
        """Whether a root without a memory map is refused (else: nothing preserved)."""
        return self.since("6.19")

    @property
    def blocks_stay_on_node(self) -> bool:
        """Whether a preserved range is also cut at NUMA node borders."""
        return self.since("7.1")

    @property
    def restores_large_orders(self) -> bool:
        """Whether a block above the buddy maximum can be restored (6.19.11 refuses it)."""
        return self.since("7.0")

    @property
    def forgets_folio_errors(self) -> bool:
        """Whether a memory file is handed out although a folio but the first was not restored."""
        return not self.since("7.1")

    @property
    def tails_lose_marks(self) -> bool:
        """Whether making a folio clears ``private`` of its tail pages, marks included."""
        return not self.since("7.3")

    @property
    def scratch_overlap_checked(self) -> bool:
        """Whether preserving scratch memory fails without a debug option."""
        return not self.since("7.3")

    @property
    def checks_direction(self) -> bool:
        """Whether an operation on the wrong direction of session gives -EINVAL."""
        return self.since("7.1")

    def has(self, layer: str) -> bool:
        """Whether this kernel knows the layer at all."""
        return layer in self.generations

    def __getitem__(self, layer: str) -> Generation:
        return self.generations[layer]

    def get(self, layer: str) -> Generation | None:
        """The generation of a layer, or None."""
        return self.generations.get(layer)

    def with_layers(self, **layers: str) -> KernelProfile:
        """A copy with layers replaced by registry ids (underscores stand for dashes)."""
        name, chosen = self.name, dict(self.generations)
        for key, generation in layers.items():
            layer = key.replace("_", "-")
            chosen[layer] = _find(layer, generation)
            name += f"+{layer}={generation}"
        return replace(self, name=name, generations=MappingProxyType(chosen))

    def __str__(self) -> str:
        return self.name


@cache
def profile(name: str) -> KernelProfile:
    """A kernel by name. Raises UsageError, naming what is near."""
    base, *additions = name.strip().split("+")
    release = _release(base)
    chosen = {
        layer: found
        for layer in registry.LAYERS
        if (found := registry.of_kernel(layer, release)) is not None
    }
    for addition in additions:
        layer, is_pair, generation = addition.partition("=")
        if is_pair:
            chosen[layer] = _find(layer, generation)
        elif addition in SERIES:
            for series_layer, census in SERIES[addition].items():
                chosen[series_layer] = _find(series_layer, census)
        else:
            raise UsageError(f"no series {addition!r}{_near(addition, SERIES)}")
    luo = chosen.get("luo")
    if luo is not None and not getattr(luo, "flb", True) and {"iommu", "pci"} & set(chosen):
        # A series that keeps global data brings LUO's support for it along.
        chosen["luo"] = _find("luo", "luo-v1-flb")
    canonical = "+".join([f"linux-{release}", *additions])
    return KernelProfile(canonical, release, MappingProxyType(chosen))


def released() -> Iterator[KernelProfile]:
    """The profiles of all released kernels, oldest first."""
    for release in RELEASES:
        yield profile(f"linux-{release}")


def _release(base: str) -> str:
    number = base.removeprefix("linux-").removeprefix("v")
    release = ".".join(number.split("-")[0].split(".")[:2])
    if release not in RELEASES:
        known = ", ".join(f"linux-{r}" for r in RELEASES)
        raise UsageError(f"no kernel {base!r}; there are: {known}")
    return release


@cache
def _find(layer: str, wanted: str) -> Generation:
    """A generation by its id or by a census id that it covers; the id wins.

    ``ID:STRING`` takes another of its strings, ``ID@VERSION`` another version word.
    """
    if ":" in wanted or "@" in wanted:
        return _variant(layer, wanted)
    candidates = registry.generations(layer)
    for generation in candidates:
        if generation.id == wanted:
            return generation
    for generation in candidates:
        if wanted in generation.census:
            return generation
    return registry.get(layer, wanted)


def _variant(layer: str, wanted: str) -> Generation:
    rest, _, version = wanted.partition("@")
    base, _, string = rest.partition(":")
    found = _find(layer, base)
    if string:
        if string not in found.strings:
            raise UsageError(
                f"{found} has no string {string!r}{_near(string, list(found.strings))}"
            )
        found = replace(found, strings=(string,))
    if version:
        words = [name for name in found.constants if name.endswith("FLB_VERSION")]
        if not words or not version.isdecimal():
            raise UsageError(f"{found} has no version word to set to {version!r}")
        found = replace(found, constants={**found.constants, words[0]: int(version)})
    return found


def _near(word: str, known: Mapping[str, object] | list[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
