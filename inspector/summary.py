"""What an image is, on one screen (``kho info``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from inspector.document import generations
from inspector.findings import Severity
from inspector.image import Image
from inspector.text import display, name_text, plural, size_text
from inspector.walk.folio_file import FolioFile


def summarise(image: Image) -> dict[str, Any]:
    """The facts, as JSON."""
    memory = image.memory
    present = memory.regions.present.bytes
    luo = image.luo
    handlers = Counter(f.compatible for _, f in luo.files()) if luo is not None else Counter()
    severities = Counter(f.severity for f in image.findings)
    root = image.root
    meta = image.kexec_metadata
    return {
        "container": {
            "kind": memory.kind,
            "machine": memory.machine,
            "present": present,
            "regions": len(memory.regions),
            "release": memory.notes.get("OSRELEASE"),
        },
        "page_size": image.page_size,
        "page_size_reasons": list(image.root.verdict.page_size_reasons),
        "moment": str(image.moment),
        "moment_reasons": image.moment_reasons,
        "root": {
            "address": hex(root.address),
            "compatible": name_text(root.compatible[0]) if root.compatible else None,
            "found": str(root.candidate.how),
        },
        "candidates": len(image.location.candidates),
        "unsearched": image.location.unsearched,
        "generations": generations(image),
        "map": str(image.map_state),
        "preserved": None
        if image.preserved is None
        else {
            "blocks": image.preserved.block_count,
            "pages": image.preserved.page_count,
            "bytes": image.preserved.page_count * image.page_size,
        },
        "previous_release": None
        if meta is None or meta.previous_release is None
        else name_text(meta.previous_release),
        "kexec_count": None if meta is None else meta.kexec_count,
        "liveupdate_number": None if luo is None else luo.number,
        "sessions": None if luo is None else len(luo.sessions),
        "files": None if luo is None else {name_text(k): v for k, v in handlers.items()},
        "file_bytes": None
        if luo is None
        else sum(f.state.size for _, f in luo.files() if isinstance(f.state, FolioFile)),
        "lost": image.lost,
        "findings": {s.name.lower(): severities.get(s, 0) for s in Severity},
    }


def lines(facts: dict[str, Any], *, colour: bool = False) -> Iterator[str]:
    """The facts for a person."""

    def line(label: str, value: str) -> str:
        name = f"{label:<13}"
        return f"\x1b[2m{name}\x1b[0m {display(value)}" if colour else f"{name} {display(value)}"

    box = facts["container"]
    machine = f", {box['machine']}" if box["machine"] else ""
    yield line(
        "container",
        f"{box['kind']}{machine}, {size_text(box['present'])} present in "
        f"{plural(box['regions'], 'region')}",
    )
    if box["release"]:
        yield line("kernel", box["release"])
    if facts["previous_release"]:
        count = facts["kexec_count"]
        yield line("written by", f"Linux {facts['previous_release']}, kexec number {count}")
    root = facts["root"]
    yield line("root", f"{root['address']}  {root['compatible']}  ({root['found']})")
    if facts["candidates"] > 1:
        yield line("", f"{facts['candidates'] - 1} more in the image: see 'kho dump'")
    for what in facts["unsearched"]:
        yield line("not searched", what)
    yield line("moment", f"{facts['moment']}: {'; '.join(facts['moment_reasons'])}")
    yield line(
        "page size", f"{size_text(facts['page_size'])}: {'; '.join(facts['page_size_reasons'])}"
    )
    preserved = facts["preserved"]
    if preserved is None:
        yield line("preserved", f"the map is {facts['map']}")
    else:
        more = "" if facts["map"] == "intact" else f" ({facts['map']})"
        yield line(
            "preserved",
            f"{size_text(preserved['bytes'])} in {plural(preserved['blocks'], 'block')}{more}",
        )
    if facts["sessions"] is not None:
        number = facts["liveupdate_number"]
        update = "" if number is None else f", live update number {number}"
        yield line("LUO", plural(facts["sessions"], "session") + update)
        for handler, count in facts["files"].items():
            yield line("", f"{plural(count, 'file')} of {handler}")
        if facts["file_bytes"]:
            yield line("", f"{size_text(facts['file_bytes'])} in memory files")
    for layer, verdict in facts["generations"].items():
        tie = f" (or {', '.join(verdict['tied'])})" if verdict["tied"] else ""
        yield line(layer, f"{verdict['id'] or 'unknown'}{tie}, by {verdict['how']}")
    for lost in facts["lost"]:
        yield line("lost", lost)
    counted = [f"{n} {s}" for s, n in facts["findings"].items() if n]
    yield line("findings", ", ".join(counted) if counted else "none")
