"""Kernels to judge for: a profile by name, with layers changed, or from a TOML file.

::

    name = "our-kernel"
    kernel = "linux-7.3+iommu-vw"     # what it is based on
    page_size = "4K"                  # optional: else that of the image

    [layers]
    memfd = "memfd-v1"                # another form of a layer
    vfio-pci = "none"                 # the layer is not there

    [behaviour]
    luo-mismatch = "ignore"           # or "panic", as released kernels do
    iommu-mismatch = "panic"          # or "ignore"
    unknown-handler = "errno"         # or "ignore": the file is left out
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from abi import registry
from abi.errors import UsageError
from inspector.kernel.profile import KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.kernel.toml_file import Document, ScenarioError, read_text

#: What a kernel does about state it cannot read, by situation; the first is what released
#: kernels and the posted series do.
BEHAVIOURS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "luo-mismatch": ("panic", "ignore"),
        "iommu-mismatch": ("panic", "ignore"),
        "unknown-handler": ("errno", "ignore"),
    }
)
_NONE = "none"
#: What the names of arm64 kernels end in.
_PAGES = re.compile(r"-(4|16|64)k$")


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel to judge for. ``page_size`` None: that of the image."""

    kernel: KernelProfile
    page_size: int | None = None
    behaviours: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        size = f" ({self.page_size >> 10}K pages)" if self.page_size else ""
        return f"{self.kernel}{size}"


def find(name: str, layers: Sequence[str] = ()) -> Target:
    """A kernel by name or by file, with ``LAYER=ID`` changes. Raises UsageError.

    A name may say which pages the kernel has: ``linux-7.3-4k``, ``linux-7.3-arm64-64k+iommu-v2``.
    """
    target = _load(Path(name)) if name.endswith(".toml") else _named(name)
    kernel = target.kernel
    for spec in layers:
        layer, sign, generation = spec.partition("=")
        if not sign:
            raise UsageError(f"expected LAYER=ID, got {spec!r}; see 'kho abi list'")
        kernel = _with_layer(kernel, layer, generation)
    return replace(target, kernel=kernel)


def _named(name: str) -> Target:
    """A kernel by name; the size of its pages is no part of the profile."""
    kernel = find_profile(name)
    pages = _PAGES.search(name.partition("+")[0].lower())
    return Target(kernel, int(pages[1]) << 10 if pages else None)


def _with_layer(kernel: KernelProfile, layer: str, generation: str) -> KernelProfile:
    if generation != _NONE:
        return kernel.with_layers(**{layer: generation})
    registry.generations(layer)
    rest = {k: v for k, v in kernel.generations.items() if k != layer}
    name = f"{kernel.name}+{layer}={_NONE}"
    return replace(kernel, name=name, generations=MappingProxyType(rest))


def _load(path: Path) -> Target:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    return parse(text, str(path))


def parse(text: str, name: str = "profile") -> Target:
    """A kernel from TOML. Raises ScenarioError: line, key, reason."""
    root = Document(text, name).root
    try:
        kernel = find_profile(root.text("kernel"))
    except ScenarioError:
        raise
    except UsageError as error:
        raise root.error("kernel", str(error)) from None
    layers = root.table("layers")
    for layer in registry.LAYERS:
        generation = layers.text(layer, None)
        if generation is not None:
            try:
                kernel = _with_layer(kernel, layer, generation)
            except UsageError as error:
                raise layers.error(layer, str(error)) from None
    layers.done()
    behaviour = root.table("behaviour")
    chosen = {
        key: behaviour.choice(key, allowed, allowed[0]) for key, allowed in BEHAVIOURS.items()
    }
    behaviour.done()
    kernel = replace(kernel, name=root.text("name", kernel.name))
    page_size = root.size("page_size", None)
    if page_size not in (None, 0x1000, 0x4000, 0x10000):
        raise root.error("page_size", "is not 4K, 16K or 64K")
    root.done()
    return Target(kernel, page_size, chosen)
