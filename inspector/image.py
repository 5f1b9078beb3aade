"""An image, decoded: the object graph that every verb works on.

:func:`open` opens, locates, detects and walks; :class:`Image` holds what came of it.
Large parts are decoded on demand only where that cannot change what the graph says.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from abi import fdt, registry
from abi.errors import KhoError
from abi.kho import KhoGeneration
from abi.registry import Generation
from inspector import memory
from inspector.detect import KhoVerdict, Verdict
from inspector.findings import Finding
from inspector.locate import Candidate, Location
from inspector.memory.base import PhysicalMemory, Region
from inspector.survey import Survey
from inspector.walk.clients import Blob, KexecMetadata, KhoTest, ReserveMem
from inspector.walk.luo import Luo
from inspector.walk.preserved import PreservedMap


class Moment(enum.StrEnum):
    """When in a live update the image was taken."""

    OUTGOING = "outgoing"
    HANDED_OVER = "handed-over"
    INCOMING = "incoming"


class MapState(enum.StrEnum):
    """How much of the preserved-memory map the image still has.

    A map with a fault or two is intact; of an incomplete one the image lacks nodes, of a damaged
    one some have been reused, of a lost one most.
    """

    INTACT = "intact"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"
    LOST = "lost"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Scratch:
    """One scratch area, bytes."""

    address: int
    size: int


@dataclass(slots=True)
class Root:
    """The root FDT and what was concluded from it."""

    address: int
    compatible: tuple[bytes, ...]
    candidate: Candidate
    tree: fdt.Fdt
    verdict: KhoVerdict
    map_address: int | None

    @property
    def generation(self) -> KhoGeneration | None:
        """Its generation, None if the string is unknown."""
        return cast("KhoGeneration | None", self.verdict.verdict.generation)


@dataclass(slots=True)
class Image:
    """Everything an image says.

    ``preserved`` is None where the map is lost; ``scratch`` is None where the array is
    unknown or not copied yet (``scratch_note`` says which). ``verdicts`` holds what each
    layer was decoded as. ``lost`` names, for people, what the image no longer holds.
    """

    memory: PhysicalMemory
    location: Location
    root: Root
    survey: Survey
    moment: Moment = Moment.HANDED_OVER
    moment_reasons: list[str] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    scratch: list[Scratch] | None = None
    scratch_note: str = ""
    preserved: PreservedMap | None = None
    map_state: MapState = MapState.ABSENT
    blobs: list[Blob] = field(default_factory=list)
    reserve_mem: list[ReserveMem] | None = None
    kexec_metadata: KexecMetadata | None = None
    kho_test: KhoTest | None = None
    luo: Luo | None = None
    ram: tuple[Region, ...] | None = None
    lost: list[str] = field(default_factory=list)
    #: How much of that is in pages that the dump left out: the machine may have it.
    left_out: int = 0

    @property
    def page_size(self) -> int:
        """Page size of the kernel that wrote the image."""
        return self.survey.page_size

    @property
    def findings(self) -> list[Finding]:
        """What the decoding noticed."""
        return self.survey.findings.items

    @property
    def incomplete(self) -> bool:
        """Whether something that was looked for is not in the image, or was not read."""
        return bool(self.survey.holes or self.lost or self.survey.given_up)

    def generation(self, layer: str) -> Generation | None:
        """What a layer was decoded as."""
        verdict = self.verdicts.get(layer)
        return verdict.generation if verdict else None

    def find(self, path: str) -> Any:
        """The object at ``path`` (see :mod:`inspector.tree`). Raises UsageError."""
        from inspector import tree

        return tree.find(self, path)

    def folio_files(self) -> Iterator[tuple[str, Any]]:
        """(path, :class:`inspector.walk.folio_file.FolioFile`) of every file that has content."""
        from inspector.walk.folio_file import FolioFile

        return self._files_with(FolioFile)

    def memfds(self) -> Iterator[tuple[str, Any]]:
        """(path, :class:`inspector.walk.memfd.Memfd`) of every plain memory file."""
        from inspector.walk.memfd import Memfd

        return self._files_with(Memfd)

    def _files_with(self, kind: type) -> Iterator[tuple[str, Any]]:
        if self.luo is not None:
            for _, file in self.luo.files():
                if isinstance(file.state, kind):
                    yield file.path, file.state

    def close(self) -> None:
        """Release the memory image."""
        self.memory.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoRootError(KhoError):
    """The memory holds no KHO root."""


def open(
    source: Any,
    *,
    overrides: list[str] | Mapping[str, Generation] = (),  # type: ignore[assignment]
    root: int | None = None,
    page_size: int | None = None,
    region_map: str | None = None,
) -> Image:
    """Open and decode an image.

    ``source`` is what :func:`inspector.memory.open` takes, or a PhysicalMemory.
    ``overrides`` forces generations (``["memfd=memfd-v2"]``), ``root`` the address of the
    root FDT, ``page_size`` the producer's. Raises UnreadableError, NoRootError, UsageError.
    """
    from inspector.decode import decode

    chosen = (
        dict(overrides)
        if isinstance(overrides, Mapping)
        else registry.parse_overrides(list(overrides))
    )
    opened = (
        source if isinstance(source, PhysicalMemory) else memory.open(source, region_map=region_map)
    )
    try:
        return decode(opened, overrides=chosen, root=root, page_size=page_size)
    except BaseException:
        if opened is not source:
            opened.close()
        raise
