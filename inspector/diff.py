"""What differs between two images: objects by identity, large parts by columns.

Objects are matched by what they are called (names, tokens, device ids, hardware tokens),
never by where they lie; that the same object lies elsewhere is a *move*. Preserved blocks,
folios and mappings are compared as columns. Where the second image is of the consumer,
differences that a consumer always makes carry the reason.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inspector.document import document
from inspector.image import Image, Moment
from inspector.memory.base import U64Array
from inspector.text import plural, size_text
from inspector.walk.folio_file import FolioFile, content
from inspector.walk.preserved import PreservedMap


class Kind(enum.StrEnum):
    """What happened to an object or a field."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``before`` or ``after`` is None where there is none.

    ``why`` explains what a kernel always does between the two moments, else it is empty.
    """

    kind: Kind
    path: str
    what: str
    before: Any = None
    after: Any = None
    why: str = ""


@dataclass(slots=True)
class Diff:
    """All differences; ``truncated`` counts those beyond the limit, by kind."""

    changes: list[Change] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    limit: int = 10000

    def add(self, change: Change) -> None:
        """Record a change, or count it once there are too many."""
        if len(self.changes) < self.limit:
            self.changes.append(change)
        else:
            self.truncated[change.kind] += 1

    def counts(self) -> Counter[str]:
        """How many of each kind."""
        total = Counter(self.truncated)
        total.update(str(c.kind) for c in self.changes)
        return total

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not self.changes and not self.truncated


#: What identifies an object of a list: the first of these whose keys it has.
IDENTITIES: tuple[tuple[str, ...], ...] = (
    ("pci_domain_nr", "devid"),
    ("domain", "bdf"),
    ("identity",),
    ("token",),
    ("name",),
)
#: Parts of the document that say how it was decoded, not what it says.
_IGNORED = frozenset(
    {"findings", "candidates", "generations", "moment_reasons", "lost", "path", "recovered",
     "complete", "scratch_note", "identity", "violations", "map", "reasons"}
)  # fmt: skip
_ADDRESS = re.compile(
    r"address$|_phys$|_pa$|^data$|^start$|pasid_table$|root_table$|_address$|^arch_state$|folios$"
)
#: Fields that only a consumer writes, with what it means.
CONSUMER_WRITES = {
    "restored_domain": "the consumer has restored the domain and keeps its pointer here",
    "restored": "the consumer has taken the tables over",
    "reclaimed": "user space has claimed the HWPT",
    "flags": "the consumer marks what it has restored INCOMING",
    "incoming": "the consumer marks what it has restored INCOMING",
}


def diff(
    before: Image,
    after: Image,
    *,
    addresses: bool = True,
    contents: bool = False,
    limit: int = 10000,
) -> Diff:
    """Compare two images.

    ``addresses`` False leaves out moves, ``contents`` True compares what memory files hold
    too (where both images have the pages).
    """
    found = Diff(limit=limit)
    comparison = _Comparison(found, before, after, addresses)
    comparison.objects(document(before), document(after), "")
    if addresses:
        _blocks(found, before, after)
    files = _files(before), _files(after)
    for path in sorted(files[0].keys() & files[1].keys()):
        one, other = files[0][path], files[1][path]
        if addresses:
            _folios(found, path, one, other)
        if contents:
            _contents(found, path, (before, one), (after, other))
    from inspector.passthrough import mappings

    mappings.compare(found, before, after, addresses)
    return found


class _Comparison:
    """The recursive comparison of two documents."""

    def __init__(self, found: Diff, before: Image, after: Image, addresses: bool) -> None:
        self.found = found
        self.addresses = addresses
        self.jumped = before.moment is Moment.OUTGOING and after.moment is not Moment.OUTGOING
        self.booted = before.moment is not Moment.INCOMING and after.moment is Moment.INCOMING

    def objects(self, one: dict[str, Any], other: dict[str, Any], path: str) -> None:
        for key in dict.fromkeys((*one, *other)):
            if key in _IGNORED:
                continue
            self.values(one.get(key), other.get(key), path, key)

    def values(self, one: Any, other: Any, path: str, key: str) -> None:
        if one == other:
            return
        own = f"{path}/{key}"
        if isinstance(one, dict) and isinstance(other, dict):
            self.objects(one, other, own)
        elif _are_objects(one) and _are_objects(other) and (one or other):
            self.lists(one, other, own)
        elif _ADDRESS.search(key) and _are_addresses(one, other):
            if self.addresses and not path.endswith("/preserved"):
                self.found.add(Change(Kind.MOVED, path or "/", key, one, other))
        elif key in ("blocks", "pages") and path.endswith("/preserved"):
            if self.addresses:
                self.add(Kind.CHANGED, path, key, one, other)
        else:
            self.add(Kind.CHANGED, path or "/", key, one, other)

    def lists(self, one: list[dict[str, Any]], other: list[dict[str, Any]], path: str) -> None:
        left, right = _by_identity(one), _by_identity(other)
        for name in dict.fromkeys((*left, *right)):
            if name not in right:
                self.add(Kind.REMOVED, path, name, _short(left[name]), None)
            elif name not in left:
                self.add(Kind.ADDED, path, name, None, _short(right[name]))
            else:
                self.objects(left[name], right[name], f"{path}/{name}")

    def add(self, kind: Kind, path: str, what: str, before: Any, after: Any) -> None:
        why = self.reason(path, what, before, after)
        self.found.add(Change(kind, path, what, before, after, why))

    def reason(self, path: str, what: str, before: Any, after: Any) -> str:
        """Why a kernel always makes this difference between these two moments."""
        if what == "moment":
            return "the images are of different moments"
        if (self.jumped or self.booted) and what == "scratch" and before is None:
            return "the scratch array is copied to its place at the jump"
        if not self.booted:
            return ""
        if what in ("preserved", "blocks", "pages") and after is None:
            return "the map's nodes are reused once the next kernel has read them"
        if what in ("liveupdate_number", "generation") and path == "/luo":
            return "the page of struct luo_ser is freed early and reused"
        if (path.startswith("/luo") and after is None) or what in ("sessions", "flbs"):
            return "memory that LUO has read is freed and reused"
        if path == "/kho_test" or what == "kho_test":
            return "the self test of the booted kernel has freed it"
        if what.rpartition(".")[2] in CONSUMER_WRITES:
            return CONSUMER_WRITES[what.rpartition(".")[2]]
        if path == "/scratch" and before is not None:
            return "the rest of the page of the array is reused"
        return ""


def _are_addresses(one: Any, other: Any) -> bool:
    """Whether two values, or two lists of as many, can be addresses: numbers count something."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(isinstance(a, str) for a in (*one, *other))
    return isinstance(one, str) and isinstance(other, str)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _by_identity(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Objects by name; the second of the same name gets ``#2``."""
    named: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for position, item in enumerate(items):
        keys = next((k for k in IDENTITIES if all(item.get(n) is not None for n in k)), ())
        name = ":".join(str(item[k]) for k in keys) if keys else str(position)
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}#{seen[name]}"] = item
    return named


def _short(item: dict[str, Any]) -> dict[str, Any]:
    """The scalar fields of an object: enough to recognise it."""
    return {k: v for k, v in item.items() if not isinstance(v, (dict, list)) and v is not None}


# -- columns ------------------------------------------------------------------------------------


def _blocks(found: Diff, before: Image, after: Image) -> None:
    """Preserved blocks added, removed or of another order, as ranges."""
    one, other = before.preserved, after.preserved
    if one is None or other is None:
        return
    for kind, start, size, old, new in changed_blocks(one, other):
        found.add(
            Change(
                kind,
                "/preserved",
                f"{start:#x}",
                None if old is None else {"size": size, "order": old},
                None if new is None else {"size": size, "order": new},
            )
        )


def changed_blocks(
    one: PreservedMap, other: PreservedMap
) -> Iterator[tuple[Kind, int, int, int | None, int | None]]:
    """(kind, start, size, old order, new order) of each range of blocks that differs."""
    edges = np.sort(np.concatenate((one.starts, one.ends, other.starts, other.ends)))
    if len(edges) == 0:
        return
    edges = edges[np.concatenate(([True], edges[1:] != edges[:-1]))]
    left, right = edges[:-1], edges[1:]
    old, had = _order_of(one, left)
    new, has = _order_of(other, left)
    differs = (had != has) | (had & has & (old != new))
    left, right = left[differs], right[differs]
    old, had, new, has = old[differs], had[differs], new[differs], has[differs]
    if len(left) == 0:
        return
    fresh = np.concatenate(
        ([True], (left[1:] != right[:-1]) | (old[1:] != old[:-1]) | (new[1:] != new[:-1])
         | (had[1:] != had[:-1]) | (has[1:] != has[:-1]))
    )  # fmt: skip
    first = np.flatnonzero(fresh)
    last = np.append(first[1:] - 1, len(left) - 1)
    for i, j in zip(first.tolist(), last.tolist(), strict=True):
        kind = Kind.CHANGED if had[i] and has[i] else Kind.REMOVED if had[i] else Kind.ADDED
        yield (
            kind,
            int(left[i]),
            int(right[j] - left[i]),
            int(old[i]) if had[i] else None,
            int(new[i]) if has[i] else None,
        )


def _order_of(preserved: PreservedMap, at: U64Array) -> tuple[Any, Any]:
    return preserved.orders_at(at)


def _files(image: Image) -> dict[str, FolioFile]:
    return dict(image.folio_files())


def _folios(found: Diff, path: str, one: FolioFile, other: FolioFile) -> None:
    """Folios of one file: moved, added, removed; runs of neighbours are one change."""
    a, b = one.folios, other.folios
    if len(a.pfn) == len(b.pfn) and (a.pfn == b.pfn).all() and (a.index == b.index).all():
        if not (a.flags == b.flags).all():
            found.add(Change(Kind.CHANGED, path, "folio flags", None, None))
        return
    left, right = np.argsort(a.index, kind="stable"), np.argsort(b.index, kind="stable")
    i, j = a.index[left], b.index[right]
    at = np.minimum(np.searchsorted(j, i), max(len(j) - 1, 0))
    both = (j[at] == i) if len(j) else np.zeros(len(i), np.bool_)
    moved = both & (a.pfn[left] != b.pfn[right][at] if len(j) else both)
    gone, come = i[~both], j[~np.isin(j, i)]
    if moved.any():
        old, new = a.pfn[left][moved], b.pfn[right][at][moved]
        found.add(
            Change(
                Kind.MOVED,
                path,
                f"{int(moved.sum())} folios",
                hex(int(old[0]) * one.page_size),
                hex(int(new[0]) * other.page_size),
            )
        )
    if len(gone):
        found.add(Change(Kind.REMOVED, path, f"{len(gone)} folios", hex(int(gone[0])), None))
    if len(come):
        found.add(Change(Kind.ADDED, path, f"{len(come)} folios", None, hex(int(come[0]))))


def _contents(
    found: Diff, path: str, one: tuple[Image, FolioFile], other: tuple[Image, FolioFile]
) -> None:
    """The first byte at which two files differ."""
    if one[1].size != other[1].size:
        return
    left, right = (content(image.survey, file) for image, file in (one, other))
    buffers = [b"", b""]
    at = 0
    sources = [left, right]
    while at < one[1].size:
        for side in (0, 1):
            if not buffers[side]:
                piece = next(sources[side], None)
                if piece is None or piece.missing is not None:
                    return
                buffers[side] = bytes(piece.data) if piece.data is not None else bytes(piece.size)
        n = min(len(buffers[0]), len(buffers[1]))
        if buffers[0][:n] != buffers[1][:n]:
            a, b = (np.frombuffer(x[:n], np.uint8) for x in buffers)
            where = at + int(np.flatnonzero(a != b)[0])
            found.add(Change(Kind.CHANGED, path, f"content from byte {where:#x} on"))
            return
        buffers = [x[n:] for x in buffers]
        at += n


# -- text ---------------------------------------------------------------------------------------

_SIGNS = {Kind.ADDED: "+", Kind.REMOVED: "-", Kind.CHANGED: "~", Kind.MOVED: ">"}
_COLOURS = {
    Kind.ADDED: "\x1b[32m", Kind.REMOVED: "\x1b[31m", Kind.CHANGED: "\x1b[33m",
    Kind.MOVED: "\x1b[36m",
}  # fmt: skip


def lines(found: Diff, *, colour: bool = False) -> Iterator[str]:
    """A summary, then a line for each change."""
    from inspector.text import display

    counts = found.counts()
    if found.empty:
        yield "no differences"
        return
    yield ", ".join(f"{counts[k]:,} {k}" for k in map(str, Kind) if counts[k])
    for change in found.changes:
        sign = _SIGNS[change.kind]
        head = f"{_COLOURS[change.kind]}{sign}\x1b[0m" if colour else sign
        what = display(change.what)
        values = ""
        if change.before is not None or change.after is not None:
            values = f": {display(_value(change.before))} -> {display(_value(change.after))}"
        if change.kind is Kind.ADDED:
            values = f": {display(_value(change.after))}"
        elif change.kind is Kind.REMOVED:
            values = f": {display(_value(change.before))}"
        why = f"  ({change.why})" if change.why else ""
        yield f"{head} {display(change.path)} {what}{values}{why}"
    if found.truncated:
        yield f"... and {plural(sum(found.truncated.values()), 'more change')}"


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        if value.keys() == {"size", "order"}:
            return f"{size_text(value['size'])} of order {value['order']}"
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, (dict, list)))
    if isinstance(value, list):
        return plural(len(value), "entry")
    return str(value)


def as_json(found: Diff) -> dict[str, Any]:
    """The diff as a document."""
    return {
        "summary": dict(found.counts()),
        "changes": [
            {
                "kind": str(c.kind),
                "path": c.path,
                "what": c.what,
                "before": c.before,
                "after": c.after,
                "why": c.why or None,
            }
            for c in found.changes
        ],
        "truncated": dict(found.truncated),
    }
