"""Cut an image down to the pages that matter.

What the object graph reaches (claims of the decoding), the nodes of the map and what leads
to the root are kept; all other RAM is marked as left out. The result is an ELF core that
every other tool opens.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.errors import KhoError
from inspector import memory, passthrough
from inspector import redact as redaction
from inspector.device_tables.claims import DEVICE_TABLE, PAGE_TABLE, claim_tables
from inspector.image import Image
from inspector.memory.base import PhysicalMemory, U64Array
from inspector.memory.elfcore import Digest, is_direct, write_core
from inspector.memory.notes import KERNEL_ROOT, SCRATCH_AREAS, scratch_areas_note
from inspector.memory.ranges import complement, first_difference, intersect, merged, present
from inspector.memory.sparse import SparseMemory
from inspector.moment import MOMENT_NOTE, REASONS_NOTE, REASONS_SEPARATOR, SCRATCH_NOTE
from inspector.output import exists_already
from inspector.survey import Claim

#: Kinds of claims that hold what user space or drivers put there.
CONTENT = frozenset({"folio", "guest-state", "reserve-mem", "dma-memory"})
#: Kinds of claims that depend on what else the image holds: all boot parameters that there are.
_TOLD = frozenset({"handover", "boot-params", "device-tree"})
#: Kinds of claims that are made by walking tables, which decoding does not.
_TABLES = frozenset({PAGE_TABLE, DEVICE_TABLE, "struct"})
#: Rows of claims that are merged together.
_ROWS = 1 << 18


class ExtractError(KhoError):
    """The extract does not say what the image says."""


@dataclass(frozen=True, slots=True)
class Extract:
    """What was written: bytes kept, and bytes of content left out on purpose."""

    kept: int
    left_out: int
    ranges: tuple[tuple[int, int], ...]


def extract(
    image: Image,
    out: str | os.PathLike[str],
    *,
    content: bool = True,
    redact: bool = False,
    max_file: int | None = None,
    force: bool = False,
) -> Extract:
    """Write the pages of ``image`` that matter to ``out`` (``.zst`` compresses).

    ``content`` False leaves out what files and reserved regions hold, ``max_file`` only that
    of files larger than so many bytes. ``redact`` also replaces names and tokens, each by
    the same pseudonym everywhere, and implies leaving content out. The result is opened again
    and compared before it takes its name. Raises UsageError, OutputError, ExtractError.
    """
    if not force and os.path.lexists(out):
        raise exists_already(out)
    content = content and not redact
    chosen, left = _split(image, content, max_file)
    kept = list(_ranges(chosen, image.page_size))
    # What a form was told by is kept, so that it is told the same way again; and if nothing is to
    # be hidden, what shows that something is lost.
    told_by = image.survey.looked + (image.survey.remnants if content else [])
    if told_by:
        looked = merged(_ranges(told_by, image.page_size))
        left_out = merged(_ranges(left, image.page_size))
        kept += intersect(intersect(present(image.memory), looked), complement(left_out))
        kept = merged(kept)
    tail = _behind_root(image, kept)
    ranges = tuple(merged(kept + tail))
    source: PhysicalMemory = image.memory
    if not content:
        overlay = SparseMemory.over(image.memory)
        redaction.scrub(image, overlay, names=redact)
        for start, size in tail:  # whatever lies there, it is no tree
            overlay.mark_zero(start, size)
        source = overlay
    notes = _notes(image)
    # What has to be decoded is not decoded twice: digests tell what was read of it.
    digests: list[Digest] | None = None if is_direct(source) else []

    def verify(path: str) -> None:
        with memory.open(path) as written:
            _same_notes(notes, written)
            if digests is None:
                _same_bytes(source, written, ranges)
            else:
                _as_digested(digests, written)
            _same_document(image, written, names=not redact)

    write_core(
        out,
        source,
        image.memory.machine or _machine(image),
        ranges=ranges,
        notes=notes,
        force=force,
        digests=digests,
        verify=verify,
    )
    bytes_left = sum(int(claim.sizes.sum()) for claim in left)
    return Extract(sum(size for _, size in ranges), bytes_left, ranges)


def reached(image: Image) -> tuple[tuple[int, int], ...]:
    """(start, size) of what the object graph of an image leads to, content included, ascending."""
    return tuple(_ranges(_split(image, True, None)[0], image.page_size))


def _machine(image: Image) -> str:
    return "aarch64" if image.location.device_trees else "x86_64"


def _notes(image: Image) -> dict[str, str]:
    """What an extract must be told because the pages that told it are left out."""
    root, areas = image.root.address, image.memory.kernel_scratch
    side = image.memory.kernel_roots.get(root)
    return {
        **{k: v for k, v in image.memory.notes.items() if k not in ("nodename", "domainname")},
        "PAGESIZE": str(image.page_size),
        MOMENT_NOTE: str(image.moment),
        REASONS_NOTE: REASONS_SEPARATOR.join(image.moment_reasons),
        **({SCRATCH_NOTE: image.scratch_note} if image.scratch_note else {}),
        **({KERNEL_ROOT: f"{root:#x}:{side}"} if side else {}),
        **({SCRATCH_AREAS: scratch_areas_note(areas)} if areas else {}),
    }


def _split(image: Image, content: bool, max_file: int | None) -> tuple[list[Claim], list[Claim]]:
    """The claims to keep, and the others."""
    large = {
        path for path, file in image.folio_files() if max_file is not None and file.size > max_file
    }
    claim_tables(image)
    kept: list[Claim] = []
    left: list[Claim] = []
    for claim in image.survey.claims:
        if claim.kind in CONTENT and (not content or claim.owner in large):
            left.append(claim)
        else:
            kept.append(claim)
    return kept, left


def _behind_root(image: Image, kept: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pages that a root which says it is longer than a page needs to be read, if not kept."""
    page, root = image.page_size, image.root
    size = -(-root.tree.header.totalsize // page) * page - page
    if size <= 0:
        return []
    return intersect(present(image.memory, [(root.address + page, size)]), complement(kept))


def _ranges(claims: list[Claim], page: int) -> Iterator[tuple[int, int]]:
    """(start, size) of the pages of all claims, merged, ascending."""
    runs = [_pages(some, page) for some in _batches(claims)]
    if not runs:
        return
    starts, ends = (np.concatenate(column) for column in zip(*runs, strict=True))
    rank = np.argsort(starts, kind="stable")
    starts, reach = starts[rank], np.maximum.accumulate(ends[rank])
    first = np.flatnonzero(np.concatenate(([True], starts[1:] > reach[:-1])))
    last = reach[np.append(first[1:] - 1, len(reach) - 1)]
    for start, end in zip(starts[first].tolist(), last.tolist(), strict=True):
        yield start, end - start


def _batches(claims: list[Claim]) -> Iterator[list[Claim]]:
    """Claims with a bounded number of rows together, unless one has more."""
    some: list[Claim] = []
    rows = 0
    for claim in claims:
        if len(claim.starts):
            some.append(claim)
            rows += len(claim.starts)
        if rows >= _ROWS:
            yield some
            some, rows = [], 0
    if some:
        yield some


def _pages(claims: list[Claim], page: int) -> tuple[U64Array, U64Array]:
    """(starts, ends) of the pages of some claims; what goes on where the last ended is merged."""
    mask = np.uint64(page - 1)
    starts = np.concatenate([claim.starts for claim in claims])
    sizes = np.concatenate([claim.sizes for claim in claims])
    # Claims may be of any address and size; nothing is stored in the last page of all.
    whole = (np.minimum(sizes, np.uint64(1 << 63)) + (starts & mask) + mask) & ~mask
    starts &= ~mask
    ends = starts + np.minimum(whole, ~mask - starts)
    first = np.flatnonzero(np.concatenate(([True], starts[1:] != ends[:-1])))
    return starts[first], ends[np.append(first[1:] - 1, len(ends) - 1)]


# -- verification -----------------------------------------------------------------------------


def _same_notes(notes: dict[str, str], written: PhysicalMemory) -> None:
    """What the pages do not tell is in the extract's own notes."""
    for key, value in notes.items():
        if written.notes.get(key) != value:
            raise ExtractError(f"the note {key} of the extract is wrong: not written")


def _same_bytes(
    source: PhysicalMemory, written: PhysicalMemory, ranges: tuple[tuple[int, int], ...]
) -> None:
    """The extract holds what was to be kept, and nothing else."""
    wrong = first_difference(source, written, ranges)
    held = present(written)
    if wrong is None and held != intersect(held, merged(ranges)):
        wrong = intersect(held, complement(merged(ranges)))[0][0]
    if wrong is not None:
        raise ExtractError(f"the extract differs from the image at {wrong:#x}: not written")


def _as_digested(digests: list[Digest], written: PhysicalMemory) -> None:
    """The extract holds what was read of the image, and nothing else."""
    if present(written) != merged((start, size) for start, size, _ in digests):
        raise ExtractError("the extract does not hold the pages that were kept: not written")
    for start, size, digest in digests:
        data = written.read(start, size)
        same = not data.strip(b"\0") if digest is None else zlib.crc32(data) == digest
        if not same:
            raise ExtractError(f"the extract differs from the image at {start:#x}: not written")


def _same_document(image: Image, written: PhysicalMemory, *, names: bool) -> None:
    """Decoded again, the extract says what the image says."""
    from inspector import image as images

    again = images.open(written, root=image.root.address, page_size=image.page_size)
    before, after = _essence(image, names), _essence(again, names)
    for key, value in before.items():
        if after.get(key) != value:
            raise ExtractError(f"the extract differs from the image in {key}: not written")
    del before, after
    _same_claims(image, again)


def _same_claims(image: Image, again: Image) -> None:
    """What the document does not list is at the same places: folios, chunks, blocks, nodes."""
    one, other = (
        [c for c in i.survey.claims if c.kind not in _TOLD and len(c.starts)]
        for i in (image, again)
    )
    # The image's own claims are followed by those of its page tables.
    for mine, its in zip(_batches(one[: len(other)]), _batches(other), strict=False):
        if not _same_places(mine, its):
            pairs = zip(mine, its, strict=False)
            wrong = next((a for a, b in pairs if not _same_places([a], [b])), mine[-1])
            raise ExtractError(f"the extract differs from the image in {wrong.owner}: not written")
    more = next((c for c in one[len(other) :] if c.kind not in _TABLES), None)
    if more is not None or len(other) > len(one):
        owner = other[len(one)].owner if more is None else more.owner
        raise ExtractError(f"the extract differs from the image in {owner}: not written")


def _same_places(one: list[Claim], other: list[Claim]) -> bool:
    """Whether two lists of claims are of the same kinds and rows."""
    if [(c.kind, len(c.starts)) for c in one] != [(c.kind, len(c.starts)) for c in other]:
        return False
    starts = [np.concatenate([c.starts for c in side]) for side in (one, other)]
    sizes = [np.concatenate([c.sizes for c in side]) for side in (one, other)]
    return np.array_equal(starts[0], starts[1]) and np.array_equal(sizes[0], sizes[1])


def _essence(image: Image, names: bool) -> dict[str, Any]:
    """The parts of a document that an extract must not change."""
    from inspector.document import document

    whole = document(image, devices=not names)
    for key in ("candidates", "findings", "root", "generations", "lost", "scratch_note"):
        whole.pop(key, None)
    return whole | _devices(image) if names else {k: _shape(v) for k, v in whole.items()}


def _devices(image: Image) -> dict[str, Any]:
    """IOMMU and PCI state: as what it was decoded, and the bytes, which are many."""
    out: dict[str, Any] = {}
    state, pci = passthrough.iommu_state(image), passthrough.pci_state(image)
    if state is not None:
        out["iommu"] = [(state.generation.id, state.address, state.path, state.values)]
        out["iommu"].append((state.version, state.complete))
        for objects in (state.units, state.domains, state.devices):
            types = None if objects.types is None else objects.types.tobytes()
            out[objects.path] = (*_rows(objects.array.records, objects.addresses), types)
    if pci is not None:
        out["pci"] = [(pci.generation.id, pci.address, pci.path, pci.version, pci.complete)]
        out["pci"].append((pci.nr_devices, pci.maximum, *_rows(pci.records, pci.addresses)))
    return out


def _rows(records: npt.NDArray[Any], addresses: U64Array) -> tuple[bytes, bytes]:
    return np.ascontiguousarray(records).tobytes(), addresses.tobytes()


def _shape(value: Any) -> Any:
    """A document without what redaction changes: strings out, structure and numbers in."""
    if isinstance(value, dict):
        return {k: _shape(v) for k, v in value.items() if k not in ("name", "path", "token")}
    if isinstance(value, list):
        return [_shape(v) for v in value]
    return None if isinstance(value, str) else value
