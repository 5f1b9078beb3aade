"""Every real capture says what the machine that made it wrote down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import kho
from inspector.document import document
from inspector.image import Image, MapState, Moment
from inspector.walk.folio_file import read_content

CORPUS = Path(__file__).parents[2] / "corpus"
CAPTURES = sorted(p.name.removesuffix(".elf.zst") for p in CORPUS.glob("linux-*.elf.zst"))
ROOTLESS = ["linux-7.3.4-amdv1", "linux-7.3.4-smmuv3-s1-4k", "linux-7.3.4-smmuv3-s2-64k"]
KHO = [name for name in CAPTURES if name not in ROOTLESS]
GENERATIONS = {
    "6.17": ("kho-v1-bitmap512", None, None),
    "6.18": ("kho-v1-bitmap-page", None, None),
    "6.19": ("kho-v1-bitmap-page", "luo-v1", "memfd-v1"),
    "7.3": ("kho-v4", "luo-v5", "memfd-v2"),
}


def truth_of(name: str) -> dict[str, Any]:
    return json.loads((CORPUS / f"{name}.truth.json").read_text())


@pytest.fixture(params=KHO)
def capture(request: pytest.FixtureRequest) -> Any:
    name = request.param
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        yield name, image, truth_of(name), document(image)


def number(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 0)


def incoming(name: str) -> bool:
    return "incoming" in name


def retrieved(name: str) -> bool:
    """Its sessions were retrieved: the kernel has freed what they were read from."""
    return name.endswith("retrieved")


def test_root_and_generations(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    name, image, truth, document = capture
    release = name.split("-")[1].rpartition(".")[0]
    kho_id, luo_id, memfd_id = GENERATIONS[release]
    assert document["root"]["compatible"] == truth["root"]["compatible"]
    assert image.root.map_address == number(truth["root"]["preserved_memory_map"])
    if "setup_data_kho" in truth:
        assert image.root.address == number(truth["setup_data_kho"]["fdt_addr"])
    assert image.generation("kho").id == kho_id
    assert not image.verdicts["kho"].tied
    assert (image.generation("luo") and image.generation("luo").id) == luo_id
    if memfd_id is not None and not retrieved(name):
        assert image.generation("memfd").id == memfd_id
    assert {b.name.decode(): b.address for b in image.blobs} == {
        blob: number(value.get("preserved-data", value.get("fdt")))
        for blob, value in truth["root"]["subnodes"].items()
    }


def test_page_size_and_moment(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    name, image, _, document = capture
    sizes = {"16k": 0x4000, "64k": 0x10000}
    assert image.page_size == next((v for k, v in sizes.items() if k in name), 0x1000)
    expected = {
        "outgoing": Moment.OUTGOING,
        "handoff": Moment.HANDED_OVER,
        "incoming": Moment.INCOMING,
        "incoming_retrieved": Moment.INCOMING,
    }[name.rpartition("-")[2]]
    assert image.moment is expected
    assert document["root"]["moment"] == expected
    assert image.moment_reasons


def test_scratch(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    name, image, truth, document = capture
    if name.endswith("outgoing"):
        assert document["scratch"] is None
        assert image.scratch_note == "not copied yet"
        return
    assert document["scratch"] == [
        {"address": hex(number(a["addr"])), "size": number(a["size"])} for a in truth["scratch"]
    ]


def test_preserved(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    name, image, truth, document = capture
    if incoming(name):
        assert document["preserved"] is None
        assert image.map_state is MapState.LOST
        assert any("map" in lost for lost in image.lost)
        damaged = [f for f in image.findings if f.code == "KHO-MAP-010"]
        assert damaged
        assert "node" in damaged[0].message or "blobs" in damaged[0].message
        return
    assert document["preserved"] == {
        "blocks": truth["preserved"]["blocks"],
        "pages": truth["preserved"]["pages"],
    }
    digest = hashlib.sha256()
    last = -1
    for addresses, orders in image.preserved.blocks():
        for address, order in zip(addresses.tolist(), orders.tolist(), strict=True):
            assert address > last
            last = address
            digest.update(f"{address:#x} {order}\n".encode())
    assert digest.hexdigest() == truth["preserved"]["sha256_of_lines_pa_order"]


def test_reserve_mem_and_metadata(
    capture: tuple[str, Image, dict[str, Any], dict[str, Any]],
) -> None:
    name, image, truth, document = capture
    assert document["reserve_mem"] == [
        {"name": r["name"], "start": hex(number(r["start"])), "size": number(r["size"])}
        for r in truth["reserve_mem"]
    ]
    if "kexec-metadata" in truth["root"]["subnodes"]:
        assert document["kexec_metadata"]["previous_release"] == truth["producer"].partition("-")[0]
        assert document["kexec_metadata"]["kexec_count"] == 1
    else:
        assert document["kexec_metadata"] is None
    if incoming(name):
        assert any("kho_test" in lost for lost in image.lost)
    else:
        assert image.kho_test.nr_folios == len(image.kho_test.folios)


def test_sessions_and_files(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    name, image, truth, document = capture
    if not truth.get("sessions"):
        assert document["luo"] is None
        return
    if retrieved(name):
        # What was retrieved has been freed; it must not be shown as sessions.
        assert document["luo"]["sessions"] == []
        assert any("session" in lost for lost in image.lost)
        return
    found = document["luo"]["sessions"]
    assert [s["name"] for s in found] == truth["sessions"]
    lost_number = any("number" in lost for lost in image.lost)
    assert document["luo"]["liveupdate_number"] == (
        None if lost_number else number(truth["liveupdate_number_in"])
    )
    files = {(s["name"], int(f["token"], 0)): f for s in found for f in s["files"]}
    expected = {(f["session"], number(f["token"])): f for f in truth["files"]}
    assert files.keys() == expected.keys()
    carried = image.generation("memfd").id != "memfd-v1"
    for key, file in files.items():
        wanted = expected[key]
        assert file["memfd"]["size"] == number(wanted["size"])
        assert file["memfd"]["pos"] == number(wanted["pos"])
        seals = file["memfd"]["seals"]
        assert seals == (hex(number(wanted["seals"])) if carried else None)


def test_content(capture: tuple[str, Image, dict[str, Any], dict[str, Any]]) -> None:
    """Content hashes of every file whose pages are in the image."""
    name, image, truth, _ = capture
    if retrieved(name) or not truth.get("files"):
        return
    expected = {(f["session"], number(f["token"])): f for f in truth["files"]}
    compared = 0
    for session, file in image.luo.files():
        data, missing = read_content(image.survey, file.state)
        wanted = expected[session.name.decode(), file.token]
        if missing:
            assert number(wanted["size"]) > 65536
            continue
        assert hashlib.sha256(data).hexdigest() == wanted["sha256"]
        compared += 1
    assert compared >= len(expected) * 3 // 4


def test_nothing_false_is_reported(
    capture: tuple[str, Image, dict[str, Any], dict[str, Any]],
) -> None:
    name, image, _, _ = capture
    if not incoming(name):
        assert [f for f in image.findings if f.severity >= kho.Severity.WARNING] == []


@pytest.mark.parametrize("name", [*ROOTLESS, "vtd-legacy"])
def test_without_a_root(name: str) -> None:
    with pytest.raises(kho.KhoError, match=r"no KHO root.*kho pagetable --root"):
        kho.open(CORPUS / f"{name}.elf.zst")
