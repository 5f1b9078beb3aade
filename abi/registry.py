"""Generations: every known form of every layer of the ABI.

A compatible string is not a layout. A *generation* is: a layer, an id, the strings that
name it, the layouts it consists of, and where the knowledge comes from. Each layer's
module lists its own in ``GENERATIONS``; this module only gathers them.
"""

from __future__ import annotations

import difflib
import enum
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from abi.errors import UsageError
from abi.schema import Layout

#: Layer name -> module that declares it, in the order of the hand-over.
LAYERS: Mapping[str, str] = {
    "boot": "abi.boot",
    "kho": "abi.kho",
    "vmalloc": "abi.vmalloc",
    "block": "abi.block",
    "kexec-metadata": "abi.kexec_metadata",
    "memblock": "abi.memblock",
    "kho-test": "abi.kho_test",
    "luo": "abi.luo",
    "memfd": "abi.memfd",
    "hugetlb": "abi.hugetlb",
    "tmpfs": "abi.tmpfs",
    "kvm": "abi.kvm",
    "guest-memfd": "abi.guest_memfd",
    "xarray": "abi.xarray",
    "dma-alloc": "abi.dma_alloc",
    "pci": "abi.pci",
    "vfio-pci": "abi.vfio_pci",
    "iommufd": "abi.iommufd",
    "iommu": "abi.iommu",
}


class Source(enum.StrEnum):
    """How a layout is known."""

    #: Taken from the debug information of a compiled declaration.
    COMPILED = "compiled"
    #: Read from program text or prose; no size has been measured.
    READ = "read"
    #: Deduced from dates or neighbours.
    INFERRED = "inferred"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One form of one layer.

    ``strings`` are the compatible strings (or names) an image carries for it, ``layouts``
    the structs by C name, ``constants`` numbers by name (a mapping if the value depends
    on the page size). ``handlers`` are the strings of the file handlers that a kernel with it
    registers; None: the first of ``strings``. ``kernels`` are the releases that write it; empty
    for development forms. ``census`` are the ids of the measured layout census that it covers.
    """

    layer: str
    id: str
    strings: tuple[str, ...]
    layouts: Mapping[str, Layout]
    provenance: str
    source: Source = Source.COMPILED
    handlers: tuple[str, ...] | None = None
    kernels: tuple[str, ...] = ()
    date: str = ""
    constants: Mapping[str, int | Mapping[int, int]] = field(default_factory=dict)
    census: tuple[str, ...] = ()
    notes: str = ""

    @property
    def released(self) -> bool:
        """Whether a released kernel writes it."""
        return bool(self.kernels)

    @property
    def file_strings(self) -> tuple[str, ...]:
        """Strings of the file handlers that a kernel with this form registers."""
        return self.strings[:1] if self.handlers is None else self.handlers

    @property
    def measured(self) -> bool:
        """Whether its layouts were taken from a compiler."""
        return self.source is Source.COMPILED

    def constant(self, name: str, page_size: int) -> int:
        """A constant for one page size. Raises KeyError."""
        value = self.constants[name]
        return value if isinstance(value, int) else value[page_size]

    def __str__(self) -> str:
        return f"{self.layer}={self.id}"


@cache
def generations(layer: str) -> tuple[Generation, ...]:
    """All generations of a layer, oldest first. Raises UsageError for an unknown layer."""
    if layer not in LAYERS:
        raise UsageError(f"no layer {layer!r}{_nearest(layer, LAYERS)}")
    found: tuple[Generation, ...] = importlib.import_module(LAYERS[layer]).GENERATIONS
    return found


def every() -> Iterator[Generation]:
    """All generations of all layers."""
    for layer in LAYERS:
        yield from generations(layer)


def get(layer: str, generation: str) -> Generation:
    """One generation by layer and id. Raises UsageError, naming the nearest id."""
    known = {g.id: g for g in generations(layer)}
    if generation not in known:
        raise UsageError(f"layer {layer} has no generation {generation!r}"
                         f"{_nearest(generation, known)}")  # fmt: skip
    return known[generation]


def named(layer: str, string: str) -> tuple[Generation, ...]:
    """The generations of a layer that an image may mean by a string."""
    return tuple(g for g in generations(layer) if string in g.strings)


def of_kernel(layer: str, kernel: str) -> Generation | None:
    """The generation of a layer that a released kernel (``"7.1"``) writes."""
    return next((g for g in generations(layer) if kernel in g.kernels), None)


def parse_overrides(specs: list[str]) -> dict[str, Generation]:
    """``["LAYER=ID", ...]`` to generations by layer. Raises UsageError."""
    chosen: dict[str, Generation] = {}
    for spec in specs:
        layer, sep, generation = spec.partition("=")
        if not sep:
            raise UsageError(f"expected LAYER=ID, got {spec!r}; see 'kho abi list'")
        chosen[layer] = get(layer, generation)
    return chosen


def _nearest(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
