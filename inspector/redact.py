"""Take out of an image what its owner will not show.

:func:`scrub` writes into an overlay: bytes of structural pages that no structure uses
become zero (they may be remnants of anything), random seeds go, and with ``names`` every
session name, region name and token is replaced, each by the same pseudonym wherever it
occurs, so that references still hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from abi import boot, fdt
from inspector.image import Image
from inspector.memory.base import MemoryFault, PageState
from inspector.memory.sparse import SparseMemory
from inspector.walk.fdt import MAX_SIZE, try_tree

#: Kinds of claims whose every byte is structure, and which have their pages to themselves.
_WHOLE = frozenset({"vmalloc-chunk", "vmalloc-data", "page-table", "device-table", "device-tree"})
#: Kinds of claims whose every byte is structure, whatever else lies in the same page: the small
#: bitmaps of a map are objects of a slab, between other objects of the kernel.
_PARTS = frozenset({"map-node", "struct", "blob", "scratch-array", "handover"})
_CONTENT = frozenset({"folio", "guest-state", "reserve-mem", "dma-memory"})
#: Fields that hold a LUO token, by name; hardware tokens (register bases) are none.
_TOKENS = ("token", "vm_token", "dma_owner_token", "iommufd_token")
_NOT_TOKENS = frozenset({"iommu_hw_ser"})
_SECRET_PROPERTIES = (b"rng-seed", b"kaslr-seed")
_TEXT_PROPERTIES = (b"bootargs",)


def scrub(image: Image, overlay: SparseMemory, *, names: bool) -> None:
    """Write what :mod:`inspector.redact` promises into ``overlay``, a copy of the image."""
    _zero_slack(image, overlay)
    _seeds(image, overlay, names)
    if names:
        Pseudonyms(image, overlay).apply()


def _zero_slack(image: Image, overlay: SparseMemory) -> None:
    page = image.page_size
    keep: dict[int, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}

    def mark(start: int, size: int) -> None:
        end = start + size
        while start < end:
            base = start - start % page
            used = keep.get(base)
            stop = min(end, base + page)
            if used is not None:
                used[start - base : stop - base] = True
            start = stop

    whole: set[int] = set()
    for claim in image.survey.claims:
        if claim.kind in _CONTENT:
            continue
        first = (claim.starts - claim.starts % np.uint64(page)).tolist()
        if claim.kind in _WHOLE or (claim.kind == "map-node" and (claim.sizes == page).all()):
            whole.update(first)
            continue
        for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True):
            for base in range(start - start % page, start + size, page):
                keep.setdefault(base, np.zeros(page, np.bool_))
    for base in whole:
        keep.pop(base, None)
    for placed in image.survey.placed:
        size = placed.struct.size
        for pa in placed.addresses.tolist():
            mark(pa, size)
    for claim in image.survey.claims:
        if claim.kind in _PARTS:
            for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True):
                mark(start, size)
    mark(image.root.address, image.root.tree.header.totalsize)
    for claim in image.survey.claims:
        if claim.kind == "boot-params":
            _mark_boot_params(overlay, int(claim.starts[0]), mark)
    for base, used in keep.items():
        if used.all() or overlay.state(base, page) is not PageState.PRESENT:
            continue
        data = np.frombuffer(overlay.read(base, page), np.uint8).copy()
        data[~used] = 0
        overlay.write(base, data.tobytes())


def _mark_boot_params(overlay: SparseMemory, params: int, mark: Callable[[int, int], None]) -> None:
    """What leads to the hand-over record, and the map of RAM; no names are in either."""
    mark(params + boot.HDRS_OFFSET, len(boot.HDRS_MAGIC))
    mark(params + boot.SETUP_DATA_OFFSET, 8)
    mark(params + boot.E820_COUNT_OFFSET, 1)
    if overlay.state(params, 0x1000) is PageState.PRESENT:
        count = min(overlay.read(params + boot.E820_COUNT_OFFSET, 1)[0], boot.E820_MAX)
        mark(params + boot.E820_TABLE_OFFSET, 20 * count)


def _seeds(image: Image, overlay: SparseMemory, names: bool) -> None:
    """Random seeds for the next kernel; with ``names`` also its command line."""
    for node in image.location.setup_data:
        kind = int.from_bytes(overlay.read(node + 8, 4), "little")
        size = int.from_bytes(overlay.read(node + 12, 4), "little")
        if kind == 9 and size <= 4096:
            overlay.write(node + boot.setup_data_hdr.size, bytes(size))
    for address in image.location.device_trees:
        tree = try_tree(overlay, address)
        if tree is None:
            continue
        tokens = []
        for token in tree.tokens():
            value = token.value
            name = tree.strings[token.name_offset :].partition(b"\0")[0] if value else b""
            if name in _SECRET_PROPERTIES:
                token = token._replace(value=bytes(len(value)))
            elif names and name in _TEXT_PROPERTIES:
                token = token._replace(value=b"x" * (len(value) - 1) + b"\0")
            tokens.append(token)
        _rewrite(overlay, address, tree, tokens)


def _rewrite(overlay: SparseMemory, address: int, tree: fdt.Fdt, tokens: list[fdt.Token]) -> None:
    overlay.write(address, tree.with_tokens(tokens).build()[: tree.header.totalsize])


class Pseudonyms:
    """Names and tokens of one image, and what stands for each."""

    def __init__(self, image: Image, overlay: SparseMemory) -> None:
        self.image = image
        self.overlay = overlay
        self.names: dict[bytes, bytes] = {}
        self.tokens: dict[int, int] = {}
        #: What stands for the first token with these low 32 bits.
        self._low: dict[int, int] = {}

    def apply(self) -> None:
        """Replace them all in the overlay."""
        luo = self.image.luo
        for session in luo.sessions if luo is not None else ():
            self._name(session.name, b"session-%d")
            for file in session.files:
                self._token(file.token)
        for placed in self.image.survey.placed:
            tokens = [
                f for f in placed.struct.flat_fields()
                if f.name.rpartition(".")[2] in _TOKENS
                and placed.struct.cname not in _NOT_TOKENS
                and f.size in (4, 8)
            ]  # fmt: skip
            named = placed.struct.cname == "luo_session_ser"
            if not tokens and not named:
                continue
            for pa in placed.addresses.tolist():
                for field in tokens:
                    raw = self.overlay.read(pa + field.offset, field.size)
                    new = self._token(int.from_bytes(raw, "little"), field.size)
                    self.overlay.write(pa + field.offset, new.to_bytes(field.size, "little"))
                if named:
                    raw = self.overlay.read(pa, 64)
                    new_name = self._name(raw.partition(b"\0")[0], b"session-%d")
                    self.overlay.write(pa, new_name.ljust(64, b"\0"))
        self._regions()

    def _name(self, name: bytes, pattern: bytes) -> bytes:
        if name not in self.names:
            self.names[name] = pattern % (len(self.names) + 1)
        return self.names[name]

    def _token(self, token: int, size: int = 8) -> int:
        if size == 4 and token not in self.tokens:
            # A 32-bit copy of a longer token keeps pointing to the same file.
            known = self._low.get(token)
            if known is not None:
                return known
        new = self.tokens.setdefault(token, len(self.tokens) + 1)
        self._low.setdefault(token & 0xFFFF_FFFF, new)
        return new

    def _regions(self) -> None:
        """reserve_mem: node names of the same length, so that the blob keeps its size."""
        blob = next((b for b in self.image.blobs if b.name == b"memblock"), None)
        header = None if blob is None else self._header(blob.address)
        if blob is None or header is None:
            return
        tree = try_tree(self.overlay, blob.address)
        if tree is None:
            # Names may lie anywhere in it: no more is kept than makes it a tree that is damaged.
            self.overlay.write(
                blob.address + header.length, bytes(header.totalsize - header.length)
            )
            return
        tokens: list[fdt.Token] = []
        number = 0
        for token in tree.tokens():
            if token.tag == fdt.Tag.BEGIN_NODE and token.name:
                token = token._replace(name=_same_length(token.name, number))
                number += 1
            tokens.append(token)
        empty = tuple((at, bytes(len(data))) for at, data in tree.gaps)
        _rewrite(self.overlay, blob.address, replace(tree, gaps=empty), tokens)

    def _header(self, address: int) -> fdt.FdtHeader | None:
        try:
            header = fdt.peek(self.overlay.read(address, fdt.HEADER_SIZE))
        except MemoryFault:
            return None
        if header is None or header.totalsize > MAX_SIZE:
            return None
        if self.overlay.state(address, header.totalsize) is not PageState.PRESENT:
            return None
        return header


def _same_length(name: bytes, number: int) -> bytes:
    """A name of the same length, different for each number while there is room."""
    digits = bytearray(b"a" * len(name))
    for place in range(len(name) - 1, -1, -1):
        digits[place] = ord("a") + number % 26
        number //= 26
    return bytes(digits)
