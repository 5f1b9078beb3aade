"""Outcomes and reasons as text and as JSON: shared by ``kho consume`` and ``kho compat``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from inspector.findings import Finding, Outcome
from inspector.kernel.incoming.consumer import Result
from inspector.kernel.incoming.luo import FileEntry, SessionEntry
from inspector.kernel.incoming.memory_file import RestoredFolios, RestoredMemfd
from inspector.kernel.outcome import Reason
from inspector.text import display, name_text, plural

#: What an outcome means, in a line.
MEANING = {
    Outcome.TAKEN_OVER: "everything is taken over",
    Outcome.TAKEN_OVER_WITH_WARNINGS: "everything is taken over, with warnings",
    Outcome.STATE_LOST: "boots, but some state is gone without a word",
    Outcome.FILE_ERROR: "some files cannot be retrieved",
    Outcome.LUO_UNUSABLE: "boots, but the control device cannot be opened",
    Outcome.KHO_REFUSED: "boots without KHO: all that was handed over is lost",
    Outcome.BOOT_FAILS: "does not come up",
    Outcome.CORRUPTION: "comes up, but memory is wrong or unprotected",
    Outcome.CANNOT_TELL: "cannot be told from this image",
}
#: Reasons shown as text.
SHOWN = 12
_COLOURS = {
    Outcome.TAKEN_OVER: "32",
    Outcome.TAKEN_OVER_WITH_WARNINGS: "33",
    Outcome.CANNOT_TELL: "35",
}


def coloured(outcome: Outcome, colour: bool, width: int = 0) -> str:
    """An outcome's name, padded, in colour where that is wanted."""
    text = f"{outcome:<{width}}"
    return f"\x1b[{_COLOURS.get(outcome, '31')}m{text}\x1b[0m" if colour else text


def reason_document(reason: Reason) -> dict[str, Any]:
    """A reason as JSON; keys that say nothing are left out."""
    found: dict[str, Any] = {"outcome": str(reason.outcome), "message": reason.message}
    if reason.path:
        found["path"] = reason.path
    if reason.address is not None:
        found["address"] = f"{reason.address:#x}"
    if reason.data:
        found["bytes"] = reason.data.hex()
    if reason.errno:
        found["errno"] = reason.errno
    if reason.dmesg:
        found["dmesg"] = reason.dmesg
    found["kernel"] = reason.release
    return found


def reason_lines(reasons: Iterable[Reason], limit: int = SHOWN) -> Iterator[str]:
    """Reasons as text, indented, at most ``limit`` of them."""
    reasons = list(reasons)
    for reason in reasons[:limit]:
        yield f"  {reason.outcome}: {display(reason.path) or '/'}: {display(reason.message)}"
        where = []
        if reason.address is not None:
            where.append(f"at {reason.address:#x}")
        if reason.data:
            shown = reason.data[:32].hex(" ", -4)
            where.append(f"bytes {shown}{' ...' if len(reason.data) > 32 else ''}")
        if where:
            yield f"      {', '.join(where)}"
        if reason.dmesg:
            yield f"      dmesg: {display(reason.dmesg)}"
    if len(reasons) > limit:
        yield f"  ... and {len(reasons) - limit} more"


def consumed_document(result: Result, *, digests: bool = False) -> dict[str, Any]:
    """What a kernel made of an image, as JSON."""
    consumer = result.consumer
    clients = consumer.clients
    found: dict[str, Any] = {
        "kernel": str(consumer.kernel),
        "outcome": str(result.outcome),
        "meaning": MEANING[result.outcome],
        "page_size": consumer.page_size,
        "root": f"{consumer.root:#x}",
        "reasons": [reason_document(r) for r in result.reasons],
        "notes": result.notes,
        "findings": [_finding(f) for f in consumer.findings],
        "scratch": [{"address": f"{a:#x}", "size": s} for a, s in consumer.scratch],
        "reserve_mem": [
            {"name": name, "address": f"{a:#x}", "size": s}
            for name, (a, s) in clients.reserve_mem.items()
        ],
        "previous_release": clients.previous_release,
        "kexec_count": clients.kexec_count,
        "kho_test": clients.kho_test,
        "finished": result.finished,
    }
    if consumer.luo is not None:
        found["liveupdate_number"] = consumer.luo.number
        found["sessions"] = [_session(s, digests) for s in consumer.luo.sessions]
    return found


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity.name.lower(),
        "message": finding.message,
        "path": finding.path,
    }


def _session(session: SessionEntry, digests: bool) -> dict[str, Any]:
    return {
        "name": name_text(session.name),
        "path": session.path,
        "retrieved": session.retrieved,
        "finished": session.finished,
        "files": [_file(f, digests) for f in session.files],
    }


def _file(file: FileEntry, digests: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "token": f"{file.token:#x}",
        "handler": name_text(file.compatible),
        "path": file.path,
        "result": _result(file),
    }
    if file.error is not None:
        found["errno"] = file.error.name
        found["message"] = file.error.reason
    if isinstance(file.file, RestoredMemfd):
        found |= {
            "size": file.file.size,
            "pos": file.file.pos,
            "seals": f"{file.file.seals:#x}" if file.file.seals_known else None,
            "seals_after_retrieve": f"{file.file.seals_now:#x}",
            "folios": len(file.file.frames),
        }
    elif file.file is not None and hasattr(file.file, "document"):
        found |= file.file.document()
    if digests and isinstance(file.file, RestoredFolios):
        found["sha256"] = file.file.sha256()
    return found


def _result(file: FileEntry) -> str:
    if file.error is not None:
        return "failed"
    if file.file is not None:
        return "retrieved"
    return "discarded" if file.finished else "waiting"


def consumed_lines(result: Result, *, colour: bool, digests: bool = False) -> Iterator[str]:
    """What a kernel made of an image, as text."""
    consumer = result.consumer
    yield f"{consumer.kernel}: {coloured(result.outcome, colour)} ({MEANING[result.outcome]})"
    yield from reason_lines(result.reasons)
    notes = consumer.notes
    for note in islice(notes.items, SHOWN):
        yield f"  note: {display(note)}"
    if len(notes.items) + notes.more > SHOWN:
        yield f"  ... and {len(notes.items) + notes.more - SHOWN} more notes"
    for name, (address, size) in consumer.clients.reserve_mem.items():
        yield f"reserve_mem {display(name)}: {size:#x} bytes at {address:#x}"
    if consumer.luo is None:
        return
    yield f"live update {consumer.luo.number}"
    for session in consumer.luo.sessions:
        state = "finished" if session.finished else "retrieved" if session.retrieved else "waiting"
        yield f"session {display(session.name)}: {plural(len(session.files), 'file')}, {state}"
        for file in session.files:
            yield f"  {file.token:#x} {display(file.compatible)}: {_text(file, digests)}"


def _text(file: FileEntry, digests: bool) -> str:
    if file.error is not None:
        return f"failed, -{file.error.name}: {display(file.error.reason)}"
    if isinstance(file.file, RestoredMemfd):
        memfd = file.file
        text = f"{memfd.size:,} bytes in {plural(len(memfd.frames), 'folio')}, position {memfd.pos}"
        if memfd.seals_known:
            text += f", seals {memfd.seals:#x}"
    elif file.file is not None:
        text = str(file.file)
    else:
        return _result(file)
    if digests and isinstance(file.file, RestoredFolios):
        text += f", sha256 {file.file.sha256() or 'unknown: content is not in the image'}"
    return text
