"""Cases as files: what was changed in what, so that anyone can repeat it."""

from __future__ import annotations

import base64
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi.errors import KhoError, UnreadableError, UsageError
from inspector.fuzz.base import Base, load, simulated
from inspector.fuzz.edit import Edit
from inspector.fuzz.memory import PatchedMemory

if TYPE_CHECKING:
    from inspector.fuzz.guard import Outcome

VERSION = 1
#: A minimal image up to this size is kept in the case itself.
EMBED = 256 << 10
#: Largest file of a case: the image, twice as long in text, and edits.
MAX_FILE = 4 << 20
#: What making the base of a case again may take: seconds of processor time, bytes.
BASE_PATIENCE, BASE_ROOM = 30.0, 768 << 20


@dataclass(slots=True)
class Case:
    """One mutated input of one target, and what it did.

    ``base`` says where the unmutated image came from (``scenario``, ``scenario-name``,
    ``image`` or ``built``), ``digest`` which pages it had. ``pages`` is the whole image, edits
    made, if it is small; then the base is not needed to repeat the case.
    """

    target: str
    base: dict[str, str]
    digest: str
    edits: tuple[Edit, ...]
    kind: str = ""
    key: str = ""
    detail: str = ""
    seed: int | None = None
    number: int | None = None
    root: int = 0
    page_size: int = 4096
    machine: str | None = None
    container_page_size: int | None = None
    notes: dict[str, str] = field(default_factory=dict)
    pages: dict[int, bytes] | None = None
    ram: tuple[tuple[int, int], ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON: addresses in hex, bytes in hex, pages compressed in base64."""
        out: dict[str, Any] = {
            "schema_version": VERSION,
            "target": self.target,
            "kind": self.kind,
            "key": self.key,
            "detail": self.detail,
            "seed": self.seed,
            "number": self.number,
            "base": self.base,
            "base_sha256": self.digest,
            "root": hex(self.root),
            "page_size": self.page_size,
            "edits": [
                {
                    "address": hex(e.address),
                    "data": e.data.hex() if e.data is not None else None,
                    "note": e.note,
                }
                for e in self.edits
            ],
        }
        if self.pages is not None:
            out["image"] = {
                "machine": self.machine,
                "page_size": self.container_page_size,
                "notes": self.notes,
                "ram": [[hex(start), hex(size)] for start, size in self.ram],
                "pages": {hex(pa): _packed(data) for pa, data in sorted(self.pages.items())},
            }
        return out

    def memory(self) -> PatchedMemory | None:
        """The whole image, edits made, if the case carries it."""
        if self.pages is None:
            return None
        return PatchedMemory(
            self.pages, ram=self.ram, machine=self.machine,
            page_size=self.container_page_size, notes=self.notes,
        )  # fmt: skip


def save(case: Case, path: str | os.PathLike[str]) -> None:
    """Write a case; the file appears whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(case.document(), indent=1) + "\n", "utf-8")
    os.replace(temporary, target)


def read(path: str | os.PathLike[str]) -> Case:
    """A case from a file. Raises UnreadableError."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_FILE + 1)
        if len(text) > MAX_FILE:
            raise UnreadableError(f"{path}: no fuzz case: more than {MAX_FILE >> 20} MiB")
        raw = json.loads(text.decode("utf-8"))
        image = raw.get("image")
        case = Case(
            target=raw["target"],
            base=dict(raw["base"]),
            digest=raw["base_sha256"],
            edits=tuple(
                Edit(
                    int(e["address"], 16),
                    bytes.fromhex(e["data"]) if e["data"] is not None else None,
                    e.get("note", ""),
                )
                for e in raw["edits"]
            ),
            kind=raw["kind"],
            key=raw["key"],
            detail=raw.get("detail", ""),
            seed=raw.get("seed"),
            number=raw.get("number"),
            root=int(raw["root"], 16),
            page_size=raw["page_size"],
        )
        if image is not None:
            case.machine = image["machine"]
            case.container_page_size = image["page_size"]
            case.notes = dict(image["notes"])
            case.ram = tuple((int(s, 16), int(n, 16)) for s, n in image["ram"])
            if len(image["pages"]) * 4096 > EMBED:
                raise ValueError(f"an image of more than {EMBED >> 10} KiB")
            case.pages = {int(pa, 16): _unpacked(data) for pa, data in image["pages"].items()}
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UnreadableError(f"{path}: no fuzz case: not UTF-8 text") from None
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise UnreadableError(f"{path}: no fuzz case: {error!r}") from None
    return case


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def _unpacked(text: str) -> bytes:
    data = zlib.decompressobj().decompress(base64.b64decode(text), 1 << 16)
    if len(data) != 4096:
        raise ValueError("a page has 4096 bytes")
    return data


def subject(case: Case) -> Base:
    """What a case is run on, edits made. Raises UsageError where its base cannot be had."""
    memory = case.memory()
    if memory is not None:
        return Base(
            f"case {case.number}", memory, case.page_size, case.root, {**case.base},
            objects=sorted(case.pages or ()),
        )  # fmt: skip
    base = base_of(case)
    if base.digest != case.digest:
        raise UsageError("the image that this case was made from has changed: cannot repeat it")
    base.memory.apply(case.edits)
    return base


def base_of(case: Case) -> Base:
    """The unmutated image of a case."""
    origin = case.base
    if "scenario" in origin:
        return simulated(origin["scenario"], "scenario")
    if "built" in origin:
        from inspector.fuzz import buffers

        return buffers.built(origin["built"])
    return load(origin.get("image") or origin.get("scenario-name") or "")


def replay(case: Case) -> Outcome:
    """Run a stored case on the target it is of. Raises UsageError."""
    from inspector.fuzz import targets
    from inspector.fuzz.guard import Guard, bounded_memory

    with bounded_memory(BASE_ROOM):
        base, bases = _made(case)
        target = targets.make(case.target, bases)
        with Guard() as guard:
            return guard.run(lambda: target.run(base))


def _made(case: Case) -> tuple[Base, list[Base]]:
    """What a case is run on, and the bases of its target, made under guard.

    The case says how: a scenario of any size, any image.
    """
    from inspector.fuzz.guard import Guard

    found: list[tuple[Base, list[Base]]] = []
    refused: list[KhoError] = []

    def make() -> None:
        try:
            base = subject(case)
            found.append((base, [base_of(case)] if case.target == "diff" else [base]))
        except KhoError as error:
            refused.append(error)

    with Guard(BASE_PATIENCE, BASE_ROOM) as guard:
        outcome = guard.run(make)
    if refused:
        raise refused[0]
    if not found:
        raise UsageError(
            f"the image that this case was made from cannot be made: {outcome.kind} {outcome.key}"
        )
    return found[0]
