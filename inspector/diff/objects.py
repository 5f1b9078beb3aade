"""Documents of two images, compared object by object.

Objects are matched by what they are called (names, tokens, device ids, hardware tokens), never
by where they lie; that the same object lies elsewhere is a *move*. Sessions, files and FLBs have
the paths that ``kho dump`` takes; what a file's handler keeps are fields of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from inspector.diff.changes import Change, Diff, Kind
from inspector.document import file as file_entry
from inspector.image import Image, Moment
from inspector.text import name_bytes, path_component
from inspector.walk.luo import File

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
#: Parts of the document that have another name in paths.
_LABELS = {"luo": "LUO"}
#: The path of a file.
_FILE = re.compile(r"^/LUO/sessions/[^/]+/files/[^/]+$")
#: Fields that only a consumer writes, with what it means.
CONSUMER_WRITES = {
    "restored_domain": "the consumer has restored the domain and keeps its pointer here",
    "restored": "the consumer has taken the tables over",
    "reclaimed": "user space has claimed the HWPT",
    "flags": "the consumer marks what it has restored INCOMING",
    "incoming": "the consumer marks what it has restored INCOMING",
}


class Later(dict[str, Any]):
    """A file of which no more is there than what it is called, until it is compared.

    Files can have so many parts that those of two images do not fit into memory at once.
    """

    def __init__(self, one: File) -> None:
        super().__init__(token=hex(one.token))
        self.file = one

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None


class Comparison:
    """The recursive comparison of two documents."""

    def __init__(self, found: Diff, before: Image, after: Image, addresses: bool) -> None:
        self.found = found
        self.addresses = addresses
        self.jumped = before.moment is Moment.OUTGOING and after.moment is not Moment.OUTGOING
        self.booted = before.moment is not Moment.INCOMING and after.moment is Moment.INCOMING

    def objects(
        self, one: dict[str, Any], other: dict[str, Any], path: str, prefix: str = ""
    ) -> None:
        """Compare the fields of an object; ``prefix`` goes before their names."""
        for key in dict.fromkeys((*one, *other)):
            if key not in _IGNORED:
                self.values(one.get(key), other.get(key), path, prefix, key)

    def values(self, one: Any, other: Any, path: str, prefix: str, key: str) -> None:
        """Compare one field of the object at ``path``."""
        if one == other:
            return
        own, field = f"{path}/{_LABELS.get(key, key)}", prefix + key
        if isinstance(one, dict) and isinstance(other, dict):
            if _FILE.search(path):
                self.objects(one, other, path, f"{field}.")
            else:
                self.objects(one, other, own)
        elif _are_objects(one) and _are_objects(other) and (one or other):
            self.lists(one, other, own)
        elif _ADDRESS.search(key) and _are_addresses(one, other):
            if self.addresses and not path.endswith("/preserved"):
                self.found.add(Change(Kind.MOVED, path or "/", field, one, other))
        elif key in ("blocks", "pages") and path.endswith("/preserved"):
            if self.addresses:
                self.add(Kind.CHANGED, path, field, one, other)
        else:
            self.add(Kind.CHANGED, path or "/", field, one, other)

    def lists(self, one: list[dict[str, Any]], other: list[dict[str, Any]], path: str) -> None:
        left, right = _by_identity(one), _by_identity(other)
        for name in dict.fromkeys((*left, *right)):
            if name not in right:
                self.add(Kind.REMOVED, path, name, _short(_whole(left[name])), None)
            elif name not in left:
                self.add(Kind.ADDED, path, name, None, _short(_whole(right[name])))
            else:
                mine, its = _whole(left[name]), _whole(right[name])
                if mine != its:
                    self.objects(mine, its, f"{path}/{_component(name)}")

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
        if what in ("liveupdate_number", "generation") and path == "/LUO":
            return "the page of struct luo_ser is freed early and reused"
        if (path.startswith("/LUO") and after is None) or what in ("sessions", "flbs"):
            return "memory that LUO has read is freed and reused"
        if path == "/kho_test" or what == "kho_test":
            return "the self test of the booted kernel has freed it"
        if what.rpartition(".")[2] in CONSUMER_WRITES:
            return CONSUMER_WRITES[what.rpartition(".")[2]]
        if path == "/scratch" and before is not None:
            return "the rest of the page of the array is reused"
        return ""


def _whole(item: dict[str, Any]) -> dict[str, Any]:
    return file_entry(item.file) if isinstance(item, Later) else item


def _component(name: str) -> str:
    return path_component(name_bytes(name))


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


def handover(found: Diff, before: Image, after: Image) -> None:
    """What is handed over besides addresses, where both images have it."""
    one, other = (image.root.candidate.handover for image in (before, after))
    for name in ("fdt_size", "scratch_size") if one is not None and other is not None else ():
        old, new = getattr(one, name), getattr(other, name)
        if old != new:
            found.add(Change(Kind.CHANGED, "/", f"hand-over {name}", old, new))
