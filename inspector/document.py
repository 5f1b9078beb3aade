"""The JSON document of an image: the fixed points that other programs rely on.

Addresses, tokens, flags and seals are hex strings, sizes and counts integers; an absent
part is null, never missing. Names are spelled as :func:`inspector.text.name_text` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from inspector import views
from inspector.findings import Finding
from inspector.image import Image
from inspector.text import name_text
from inspector.tree import Node
from inspector.walk.luo import File, Flb, Session
from inspector.walk.memfd import Memfd


def document(
    image: Image,
    *,
    devices: bool = True,
    encode: Callable[[File], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole image, without the ``schema_version``; ``devices`` False: nor IOMMU nor PCI.

    ``encode`` makes the entry of a file, if it is not :func:`file` that does.
    """
    root = image.root
    return {
        "root": {
            "address": hex(root.address),
            "compatible": name_text(root.compatible[0]) if root.compatible else None,
            "generation": root.generation.id if root.generation else None,
            "moment": str(image.moment),
            "moment_reasons": image.moment_reasons,
            "page_size": image.page_size,
        },
        "candidates": [
            {
                "address": hex(c.address),
                "compatible": name_text(c.compatible[0]) if c.compatible else None,
                "how": str(c.how),
                "score": c.score,
                "reasons": list(c.reasons),
            }
            for c in image.location.candidates
        ],
        "generations": generations(image),
        "scratch": None
        if image.scratch is None
        else [{"address": hex(a.address), "size": a.size} for a in image.scratch],
        "scratch_note": image.scratch_note or None,
        "preserved": None
        if image.preserved is None
        else {"blocks": image.preserved.block_count, "pages": image.preserved.page_count},
        "map": str(image.map_state),
        "reserve_mem": None
        if image.reserve_mem is None
        else [
            {"name": name_text(r.name), "start": hex(r.start), "size": r.size}
            for r in image.reserve_mem
        ],
        "kexec_metadata": _metadata(image),
        "kho_test": None
        if image.kho_test is None
        else {
            "address": hex(image.kho_test.address),
            "nr_folios": image.kho_test.nr_folios,
            "csum": None if image.kho_test.csum is None else hex(image.kho_test.csum),
        },
        "blobs": [
            {"name": name_text(b.name), "address": hex(b.address), "size": b.size}
            for b in image.blobs
        ],
        "luo": _luo(image, encode or file),
        **(_passed_through(image) if devices else {}),
        "lost": image.lost,
        "findings": [finding(f) for f in image.findings],
    }


def part(image: Image, node: Node, path: str) -> dict[str, Any]:
    """One object of the tree: its entry, or its facts where it has none."""
    entry: dict[str, Any] = {
        "path": path,
        "address": None if node.address is None else hex(node.address),
        "size": node.size,
    }
    for kind, encode in _encoders(image):
        if isinstance(node.object, kind):
            return {**entry, "object": encode(node.object)}
    key = path.strip("/").replace("-", "_").lower()
    whole = document(image)
    if key in whole:
        return {**entry, "object": whole[key]}
    return {
        **entry,
        "object": dict(node.facts),
        "children": [child.name for child in node.children()],
    }


def _encoders(image: Image) -> Iterator[tuple[type, Callable[[Any], dict[str, Any]]]]:
    yield Session, session
    yield File, file
    yield Flb, flb
    if _is_passed_through(image):
        from inspector.passthrough import view
        from inspector.walk.iommu import IommuObject

        yield IommuObject, view.iommu_object


def _is_passed_through(image: Image) -> bool:
    flbs = image.luo.flbs if image.luo is not None else ()
    return any(views.name(flb.state) == views.PASSTHROUGH for flb in flbs)


def _passed_through(image: Image) -> dict[str, Any]:
    # Imported where there is such state: most images have none, and it takes its time.
    if not _is_passed_through(image):
        return {"iommu": None, "pci": None}
    from inspector.passthrough import view

    return {"iommu": view.iommu(image), "pci": view.pci(image)}


def generations(image: Image) -> dict[str, Any]:
    """What each layer was decoded as, how sure that is, and why."""
    return {
        layer: {
            "id": verdict.generation.id if verdict.generation else None,
            "how": verdict.how,
            "tied": [g.id for g in verdict.tied],
            "candidates": [
                {
                    "id": c.generation.id,
                    "score": c.score,
                    "reasons": list(c.reasons),
                    "violations": list(c.violations),
                }
                for c in verdict.candidates
            ],
        }
        for layer, verdict in image.verdicts.items()
    }


def _metadata(image: Image) -> dict[str, Any] | None:
    meta = image.kexec_metadata
    if meta is None:
        return None
    release = meta.previous_release
    return {
        "address": hex(meta.address),
        "version": meta.version,
        "previous_release": None if release is None else name_text(release),
        "kexec_count": meta.kexec_count,
    }


def _luo(image: Image, encode: Callable[[File], dict[str, Any]]) -> dict[str, Any] | None:
    luo = image.luo
    if luo is None:
        return None
    return {
        "address": hex(luo.address),
        "generation": luo.generation.id,
        "recovered": luo.recovered,
        "liveupdate_number": luo.number,
        "sessions": [session(s, encode) for s in luo.sessions],
        "flbs": [flb(f) for f in luo.flbs],
    }


def session(one: Session, encode: Callable[[File], dict[str, Any]] | None = None) -> dict[str, Any]:
    """A session; ``encode`` makes the entry of a file."""
    return {
        "name": name_text(one.name),
        "path": one.path,
        "address": hex(one.address),
        "count": one.count,
        "complete": one.complete,
        "files": [(encode or file)(f) for f in one.files],
    }


def file(one: File) -> dict[str, Any]:
    """A file; exactly one of the state keys is not null, if its handler is known."""
    entry: dict[str, Any] = {
        "token": hex(one.token),
        "path": one.path,
        "address": hex(one.address),
        "compatible": name_text(one.compatible),
        "data": hex(one.data),
        "memfd": None,
        "iommufd": None,
        "vfio_pci": None,
        "guest_memfd": None,
        "huge_memfd": None,
        "kvm_vm": None,
        "kvm_vcpu": None,
        "tmpfs_mount": None,
    }
    if isinstance(one.state, Memfd):
        entry["memfd"] = memfd(one.state)
    elif one.state is not None:
        entry |= views.of(one.state).file_state(one.state)
    return entry


def memfd(state: Memfd) -> dict[str, Any]:
    """A memory file."""
    return {
        "generation": state.generation.id,
        "address": hex(state.address),
        "size": state.size,
        "pos": state.pos,
        "seals": None if state.seals is None else hex(state.seals),
        "flags": None if state.flags is None else hex(state.flags),
        "nr_folios": state.nr_folios,
        "complete": state.folios.complete,
    }


def flb(one: Flb) -> dict[str, Any]:
    """An FLB entry; the state of IOMMU and PCI has keys of its own at the top."""
    entry: dict[str, Any] = {
        "name": name_text(one.name),
        "address": hex(one.address),
        "data": hex(one.data),
        "count": one.count,
        "hugetlb": None,
    }
    if one.state is not None:
        entry |= views.of(one.state).flb_state(one.state)
    return entry


def finding(one: Finding) -> dict[str, Any]:
    """A finding."""
    return {
        "code": one.code,
        "severity": one.severity.name.lower(),
        "message": one.message,
        "path": one.path or None,
        "address": None if one.address is None else hex(one.address),
        "data": one.data.hex() or None,
    }
