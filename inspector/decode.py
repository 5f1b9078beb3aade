"""From physical memory to an :class:`inspector.image.Image`, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from abi import fdt
from abi.boot import KHO_SCRATCH_READ, kho_data, kho_scratch, setup_data_hdr
from abi.kho import KhoGeneration, MapKind
from abi.luo import LuoGeneration
from abi.registry import Generation
from inspector import detect, recover
from inspector.detect import Verdict
from inspector.findings import Severity
from inspector.image import Image, MapState, Moment, Scratch
from inspector.locate import How, locate, ram_of
from inspector.memory.base import PageState, PhysicalMemory
from inspector.moment import MOMENT_NOTE, tell_moment
from inspector.roots import chosen_root
from inspector.survey import Survey
from inspector.text import c_string
from inspector.walk import clients, files
from inspector.walk.clients import Blob, KhoTest
from inspector.walk.fdt import try_tree
from inspector.walk.luo import walk_luo
from inspector.walk.preserved import PreservedMap, walk_map

#: So many things that are wrong with a map are faults: what was reused is wrong all over.
_FAULTS = 2


def decode(
    opened: PhysicalMemory,
    *,
    overrides: Mapping[str, Generation] | None = None,
    root: int | None = None,
    page_size: int | None = None,
) -> Image:
    """Decode what ``opened`` holds: see :func:`inspector.image.open`."""
    overrides = overrides or {}
    location = locate(opened, root)
    opened.release()
    best = chosen_root(opened, location, overrides, page_size)
    location.candidates.sort(key=lambda c: c.address != best.address)
    survey = Survey(opened, best.verdict.page_size)
    image = Image(opened, location, best, survey)
    image.verdicts["kho"] = best.verdict.verdict
    image.ram = ram_of(opened, location)
    survey.claim("root", "/", best.address, survey.page_size)
    _handover(image)
    _note_anomalies(image)
    lost_map = _map(image)
    _scratch(image)
    tell_moment(image)
    _clients(image)
    _luo(image, overrides)
    if lost_map:
        _lost_map(image, lost_map)
    opened.release()
    return image


def _handover(image: Image) -> None:
    """Claim what leads to the root: boot_params and its setup_data, or the device tree."""
    survey, record = image.survey, image.root.candidate.handover
    if record is None:
        return
    if record.how is How.CHOSEN:
        tree = try_tree(image.memory, record.address)
        if tree is not None:
            survey.claim("device-tree", "/", record.address, tree.header.totalsize)
        return
    survey.place(kho_data, record.address, "/")
    survey.claim("handover", "/", record.address, kho_data.size)
    if record.parent is not None:
        survey.claim("boot-params", "/", record.parent, 0x1000)
        nodes = np.array(image.location.setup_data, np.uint64)
        survey.place(setup_data_hdr, nodes, "/")
        survey.claim("handover", "/", nodes, setup_data_hdr.size)


def _note_anomalies(image: Image) -> None:
    findings, root = image.survey.findings, image.root
    if root.generation is None:
        names = ", ".join(n.decode("utf-8", "backslashreplace") for n in root.compatible)
        findings.error(
            "KHO-ROOT-001",
            f"root says {names!r}, which no known kernel writes: only what no generation"
            " changes is decoded",
            path="/",
            address=root.address,
        )
    for anomaly in root.tree.anomalies:
        at = root.address + anomaly.offset
        if anomaly.kind is fdt.AnomalyKind.CUT_SHORT:
            findings.error(
                "KHO-ROOT-015", f"root FDT is read up to {at:#x} only: {anomaly.message}",
                path="/", address=at,
            )  # fmt: skip
        else:
            findings.warning("KHO-ROOT-016", f"root FDT: {anomaly.message}", path="/", address=at)
    if root.tree.header.totalsize > image.page_size:
        findings.error(
            "KHO-ROOT-002", f"root FDT has {root.tree.header.totalsize} bytes, more than a page",
            path="/", address=root.address,
        )  # fmt: skip
    if root.generation is not None and not root.map_address:
        name = root.generation.map_property
        if root.map_address == 0 and root.candidate.how is How.KHO_OUT:
            image.survey.cannot_tell(
                "KHO-ROOT-003", "up to 6.19 a kernel makes its map when it hands over"
            )
            return
        findings.error(
            "KHO-ROOT-003",
            f"{name} is 0" if root.map_address == 0 else f"root has no usable {name}",
            path="/", address=root.address,
        )  # fmt: skip


# -- the map and scratch ----------------------------------------------------------------------


def _map(image: Image) -> str:
    """Walk the map; what is wrong with it if it is lost, else nothing."""
    root, trial = image.root, image.root.verdict.trial
    generation = root.generation
    if generation is None or trial is None or not root.map_address:
        image.map_state = MapState.ABSENT
        return ""
    wrong = sum(trial.preserved.problems.values())
    gone = trial.anchors - trial.anchored
    told = image.memory.notes.get(MOMENT_NOTE)
    if trial.preserved.missing and not wrong and told != Moment.INCOMING:
        gone = 0  # the dump lacks nodes, not the machine
    # A kernel that says it has booted has freed all of it: one sign is enough.
    freed = _says_booted(image) and (wrong or gone or _reused_bitmaps(image, trial.preserved))
    if freed or gone * 2 > trial.anchors:
        image.map_state = MapState.LOST
        image.survey.remnants += trial.survey.claims
        nodes = trial.preserved.problems or {"nodes": 0}
        sign = (
            f"{gone} of {trial.anchors} blobs are not in it any more" if gone else "reused in part"
        )
        image.lost.append(f"the preserved-memory map ({sign})")
        return "; ".join(trial.candidate.violations[:4]) or str(nodes)
    if trial.cut_short or trial.dropped or trial.generation is not generation or image.survey.nodes:
        image.preserved = walk_map(image.survey, generation, root.map_address)
    else:  # the trial was this very walk
        image.preserved = trial.preserved
        image.survey.adopt(trial.survey)
    if wrong > _FAULTS or gone > _FAULTS or _reused_bitmaps(image, image.preserved):
        image.map_state = MapState.DAMAGED
    else:
        image.map_state = MapState.INCOMPLETE if trial.preserved.missing else MapState.INTACT
    return ""


def _lost_map(image: Image, why: str) -> None:
    """Normal once the next kernel has booted; it has if it says so, or more is gone than the map.

    What the dump left out is not gone.
    """
    findings, address = image.survey.findings, image.root.map_address
    if _says_booted(image) or len(image.lost) - image.left_out > 1:
        findings.info("KHO-MAP-010", f"the map is lost: {why}", path="/preserved", address=address)
        return
    findings.warning(
        "KHO-MAP-012",
        f"the map is lost, and nothing else tells that the next kernel has booted: {why}",
        path="/preserved",
        address=address,
    )


def _reused_bitmaps(image: Image, preserved: PreservedMap) -> bool:
    """Whether bitmaps hold something else by now: nothing in a list of chunks tells that.

    No kernel preserves pages twice on this scale, and memory that it does not have besides.
    """
    generation = image.root.generation
    if not isinstance(generation, KhoGeneration):
        return False
    if generation.map_kind not in (MapKind.BITMAP_512, MapKind.BITMAP_PAGE):
        return False
    ram = image.ram
    if not ram or len(preserved.starts) < 2:
        return False
    order = np.argsort(preserved.starts, kind="stable")
    starts, reach = preserved.starts[order], np.maximum.accumulate(preserved.ends[order])
    twice = int(np.count_nonzero(starts[1:] < reach[:-1]))
    beyond = int(reach[-1]) > max(r.end for r in ram)
    if _says_booted(image):
        return beyond or twice > 0
    return beyond and twice * 10 > len(starts)


def _says_booted(image: Image) -> bool:
    """Whether a running kernel names the root as what it was given: it has freed the map."""
    return image.root.candidate.how is How.KHO_IN


def _scratch(image: Image) -> None:
    handover = image.root.candidate.handover
    if handover is None and image.memory.kernel_scratch:
        image.scratch = [Scratch(*area) for area in image.memory.kernel_scratch]
        return
    if handover is None:
        image.scratch_note = "no hand-over record in the image"
        return
    count = min(handover.scratch_size // kho_scratch.size, KHO_SCRATCH_READ)
    size = count * kho_scratch.size
    data = image.survey.read(handover.scratch_address, size, "/scratch") if count else b""
    if data is None:
        image.scratch_note = "the page of the array is not in the image"
        return
    if count and not data.strip(b"\0"):
        image.scratch_note = "not copied yet"
        return
    image.survey.place_many(kho_scratch, handover.scratch_address, count, "/scratch")
    image.survey.claim("scratch-array", "/scratch", handover.scratch_address, max(size, 1))
    image.scratch = [
        Scratch(v["addr"], v["size"])
        for i in range(count)
        for v in [kho_scratch.unpack(data, i * kho_scratch.size)]
    ]


# -- clients ------------------------------------------------------------------------------------


def _clients(image: Image) -> None:
    survey = image.survey
    root = image.root
    image.blobs = clients.walk_blobs(survey, root.generation, root.tree.root, root.address)
    names: set[bytes] = set()
    for blob in image.blobs:
        if blob.name in names:
            survey.findings.warning(
                "KHO-ROOT-009",
                f"another blob has the name {blob.name!r}: only the first is decoded",
                path=blob.path,
                address=blob.address,
            )
            continue
        names.add(blob.name)
        if blob.name == b"memblock":
            data = clients.read_client(survey, blob)
            if data is not None:
                image.reserve_mem = clients.walk_reserve_mem(survey, blob, data)
                image.verdicts["memblock"] = detect.by_string("memblock", b"memblock-v1")
        elif blob.name == b"kexec-metadata":
            data = clients.read_client(survey, blob)
            if data is not None:
                image.kexec_metadata = clients.walk_metadata(survey, blob, data)
        elif blob.name == b"kho_test":
            data = clients.read_client(survey, blob)
            if data is not None:
                image.kho_test = _self_test(image, blob, data)
        elif blob.name != b"LUO":
            survey.findings.info(
                "KHO-ROOT-008",
                f"nothing is known of the blob {blob.name!r}",
                path=blob.path,
                address=blob.address,
            )
    plain = image.kho_test is not None and image.kho_test.vmalloc is None
    described = image.kho_test is not None and image.kho_test.vmalloc is not None
    has_luo = any(b.name == b"LUO" for b in image.blobs)
    if plain or described or has_luo:
        reason = (
            "kho_test has the plain array of 6.16 and 6.17"
            if plain
            else "there is a LUO blob or a vmalloc array: 6.18 or later"
        )
        wanted = "kho-v1-bitmap512" if plain else "kho-v1-bitmap-page"
        image.root.verdict = detect.prefer(
            image.root.verdict, reason, lambda g: g.id == wanted or "kho-v1" not in g.strings
        )
        image.verdicts["kho"] = image.root.verdict.verdict


def _self_test(image: Image, blob: Blob, data: bytes) -> KhoTest | None:
    """kho_test; what the booted kernel's own run of it has freed is lost, not wrong."""
    if image.moment is not Moment.INCOMING:
        return clients.walk_kho_test(image.survey, blob, data)
    trial = Survey(image.memory, image.page_size)
    found = clients.walk_kho_test(trial, blob, data)
    # Some of what it listed may be there still, and something else before it.
    sound = all(f.severity is Severity.INFO for f in trial.findings.items)
    if found is not None and (len(found.folios) != found.nr_folios or not sound):
        image.lost.append("the folios of kho_test (the booted kernel's self test freed them)")
        return found
    return clients.walk_kho_test(image.survey, blob, data)


# -- LUO ------------------------------------------------------------------------------------------


def _luo(image: Image, overrides: Mapping[str, Generation]) -> None:
    blob = next((b for b in image.blobs if b.name == b"LUO"), None)
    if blob is None:
        return
    survey = image.survey
    raw = clients.read_client(survey, blob)
    verdict = (
        detect.detect_luo(raw, image.root.generation, image.page_size, overrides.get("luo"))
        if raw is not None
        else Verdict("luo", None, how="unknown")
    )
    if verdict.generation is None:
        verdict = _recover_luo(image, blob, raw, verdict)
    else:
        image.verdicts["luo"] = verdict
        generation = cast("LuoGeneration", verdict.generation)
        booted = image.moment is Moment.INCOMING
        image.luo = walk_luo(survey, generation, blob.address, cast("bytes", raw), booted=booted)
        image.lost += image.luo.lost
        image.left_out += image.luo.left_out
    if image.luo is not None:
        files.decode_states(image, overrides)


#: Size in bytes of the smallest struct that a blob of LUO starts with.
_SMALLEST_LUO = 32


def _strange_luo(image: Image, blob: Blob, raw: bytes) -> bool:
    """Report a blob that cannot be LUO's; True if it is one that nobody knows, not one reused."""
    findings = image.survey.findings
    if raw[:4] == fdt.MAGIC_BYTES:
        try:
            said = b", ".join(fdt.parse(raw).root.compatible)
        except fdt.FdtError as error:
            findings.error("KHO-LUO-001", f"LUO blob: {error}", path="/LUO", address=blob.address)
            image.lost.append(f"LUO device tree: {error}")
            return True
    else:
        said = c_string(raw[:32])
        if not said.startswith(b"luo-v"):
            if image.moment is Moment.INCOMING:
                return False  # after boot it is normal
            if len(raw) < _SMALLEST_LUO:
                findings.error(
                    "KHO-LUO-003",
                    f"LUO blob has {len(raw)} bytes, needs {_SMALLEST_LUO} at least: the kernel"
                    " panics",
                    path="/LUO", address=blob.address, data=raw[:32],
                )  # fmt: skip
                return False
    findings.error(
        "KHO-LUO-012",
        f"LUO says {said!r}, which no known kernel writes: the next kernel panics",
        path="/LUO", address=blob.address, data=raw[:32],
    )  # fmt: skip
    return raw[:4] == fdt.MAGIC_BYTES or said.startswith(b"luo-v")


def _recover_luo(image: Image, blob: Blob, raw: bytes | None, verdict: Verdict) -> Verdict:
    """The blob is unreadable: an unknown generation, or its page was reused after boot."""
    survey = image.survey
    if raw is not None and _strange_luo(image, blob, raw):
        return verdict
    found = recover.sessions_by_scan(image, blob)
    left_out = raw is None and image.memory.state(blob.address) is PageState.EXCLUDED
    image.left_out += left_out
    if found is None and left_out:
        survey.cannot_tell("KHO-LUO-013", "the LUO blob was left out of the image")
        image.lost.append("the LUO blob (its page was left out of the image)")
        return verdict
    if found is None:
        survey.findings.warning(
            "KHO-LUO-013",
            "the LUO blob is no LUO structure and no session was found by scanning",
            path="/LUO", address=blob.address, data=raw[:32] if raw else b"",
        )  # fmt: skip
        image.lost.append("the LUO structure at the root of all sessions")
        return verdict
    image.luo = found
    verdict = Verdict("luo", found.generation, how="evidence")
    image.verdicts["luo"] = verdict
    image.lost.append(
        (
            "struct luo_ser (its page was reused after boot)"
            if image.moment is Moment.INCOMING and not left_out
            else "struct luo_ser (its page was left out of the image)"
            if left_out
            else "struct luo_ser (what is there is none)"
        )
        + ": sessions and FLBs were found by scanning, the live update number is gone"
    )
    return verdict
