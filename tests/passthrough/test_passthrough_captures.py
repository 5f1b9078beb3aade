"""IOMMU, iommufd, VFIO and PCI state of real kernels: every object and field is the truth's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kho
from inspector import passthrough
from inspector.document import document
from inspector.findings import Severity
from inspector.image import Image

CORPUS = Path(__file__).parents[2] / "corpus"
GENERATIONS = {
    "iommu-vw-small_legacy-handoff": ("iommu-v4-version-field", "pci-flb-version2-2026"),
    "iommu-vw-legacy-handoff": ("iommu-v4-version-field", "pci-flb-version2-2026"),
    "iommu-vw-legacy-incoming": ("iommu-v4-version-field", "pci-flb-version2-2026"),
    "iommu-v3-small_scalable-handoff": ("iommu-v3-2026-06", "pci-v2-u64-2026-04"),
}
#: Truth keys that are no members of the struct itself.
DERIVED = {
    "pa", "bits", "bdf_str", "tables", "tables_not_preserved", "table_pages", "leaf_count",
    "leaf_by_size", "raw_leaf_high_bits", "leaf_low_bits", "leaves",
}  # fmt: skip


def number(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 16)


@pytest.fixture(scope="module", params=GENERATIONS)
def capture(request: pytest.FixtureRequest) -> Iterator[tuple[str, Image, dict[str, Any], Any]]:
    name = request.param
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        yield name, image, truth, document(image)


Capture = tuple[str, Image, dict[str, Any], dict[str, Any]]


def test_generations_are_found_without_a_hint(capture: Capture) -> None:
    name, image, _, out = capture
    iommu, pci = GENERATIONS[name]
    found = {layer: image.verdicts[layer] for layer in ("iommu", "iommufd", "pci", "vfio-pci")}
    assert {layer: v.generation.id for layer, v in found.items() if v.generation} == {
        "iommu": iommu,
        "iommufd": "iommufd-24",
        "pci": pci,
        "vfio-pci": "vfio-pci-v2",
    }
    for layer, verdict in found.items():
        assert verdict.certain, layer
        assert verdict.candidates[0].fits, layer
        assert verdict.candidates[0].reasons, layer
        assert all(not c.fits for c in verdict.candidates[1:]), layer
    assert out["iommu"]["generation"] == iommu
    assert out["pci"]["generation"] == pci


def consumer_wrote(name: str, kind: str, member: str, got: int, want: int) -> bool:
    """Whether a difference is what the booted kernel writes (the truth is as of hand-over)."""
    if "incoming" not in name:
        return False
    if member == "flags" and kind in ("domains", "devices"):
        return got == want | 2
    if member == "restored_domain":
        return want == 0 and got >> 48 == 0xFFFF
    return member.endswith("restored") and (got, want) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "key"), [("units", "hw"), ("domains", "domains"), ("devices", "devices")]
)
def test_every_object_and_field(capture: Capture, kind: str, key: str) -> None:
    name, _, truth, out = capture
    objects, wanted = out["iommu"][kind], truth["iommu_flb"][key]
    assert len(objects) == len(wanted)
    written = 0
    for got, want in zip(objects, wanted, strict=True):
        assert got["address"] == want["pa"]
        assert got["deleted"] == bool(number(want["flags"]) & 1)
        for member in want.keys() - DERIVED:
            mine, theirs = number(got[member.removeprefix("intel.")]), number(want[member])
            if mine != theirs:
                assert consumer_wrote(name, kind, member, mine, theirs), (kind, member, got, want)
                written += 1
        assert got["incoming"] == bool(number(got["flags"]) & 2)
    if "incoming" in name:
        # The old kernel had 4 devices; two of them were probed before the capture.
        assert written > 0 or kind == "devices"
    else:
        assert written == 0
        assert not any(o["incoming"] for o in objects)


def test_array_pages(capture: Capture) -> None:
    _, image, truth, _ = capture
    state = passthrough.iommu_state(image)
    assert state is not None
    assert state.complete
    assert hex(state.address) == truth["iommu_flb"]["pa"]
    for objects, key in (
        (state.units, "hw_pages"),
        (state.domains, "domain_pages"),
        (state.devices, "device_pages"),
    ):
        pages = truth["iommu_flb"][key]
        assert [hex(p) for p in objects.array.pages.tolist()] == [p["pa"] for p in pages]
        assert objects.array.counts.tolist() == [p["nr_objects"] for p in pages]
        assert {objects.array.capacity} == {p["max"] for p in pages}


def test_context_table_bitmap(capture: Capture) -> None:
    _, image, truth, _ = capture
    state = passthrough.iommu_state(image)
    assert state is not None
    for unit, want in zip(state.units, truth["iommu_flb"]["hw"], strict=True):
        assert sorted(unit.context_tables or ()) == want["bits"]


def test_files(capture: Capture) -> None:
    _, _, truth, out = capture
    seen = {"iommufd": 0, "vfio_pci": 0}
    for session, want_session in zip(out["luo"]["sessions"], truth["sessions"], strict=True):
        for file, want in zip(session["files"], want_session["files"], strict=True):
            assert (file["token"], file["data"]) == (want["token"], want["data"])
            if want["handler"].startswith("iommufd"):
                seen["iommufd"] += 1
                state = file["iommufd"]
                assert state["nr_hwpts"] == want["nr_hwpts"]
                assert state["complete"]
                assert [
                    (h["address"], h["token"], h["domain_data"], h["reclaimed"])
                    for h in state["hwpts"]
                ] == [
                    (h["pa"], h["token"], h["domain_data"], h["reclaimed"]) for h in want["hwpts"]
                ]
            elif want["handler"].startswith("vfio"):
                seen["vfio_pci"] += 1
                state = file["vfio_pci"]
                ser = want["ser"]
                assert (state["domain"], state["bdf"], state["reset_works"], state["name"]) == (
                    ser["domain"],
                    ser["bdf"],
                    ser["reset_works"],
                    ser["bdf_str"],
                )
            else:
                assert (file["iommufd"], file["vfio_pci"]) == (None, None)
    assert seen == {"iommufd": 3, "vfio_pci": 4}


def test_pci(capture: Capture) -> None:
    _, _, truth, out = capture
    want, got = truth["pci"], out["pci"]
    assert got["address"] == want["pa"]
    assert got["nr_devices"] == want["nr_devices"]
    assert got["max_nr_devices"] == want.get("max_nr_devices")
    assert got["version"] == want.get("version")
    assert [(d["address"], d["domain"], d["bdf"], d["refcount"]) for d in got["devices"]] == [
        (e["pa"], e["domain"], e["bdf"], e["refcount"]) for e in want["entries"]
    ]
    assert [d["free"] for d in got["devices"]] == [e["refcount"] == 0 for e in want["entries"]]


def test_the_picture_is_connected(capture: Capture) -> None:
    _, image, truth, _ = capture
    domains = {d["pa"]: d for d in truth["iommu_flb"]["domains"]}
    pictures = passthrough.devices(image)
    assert [p.name for p in pictures] == [f"0000:{k}" for k in sorted(truth["context"])]
    hwpts = {
        h["domain_data"]: (s["name"], f["token"], h["token"])
        for s in truth["sessions"]
        for f in s["files"]
        for h in f.get("hwpts", ())
    }
    for picture in pictures:
        assert picture.device is not None
        assert picture.unit is not None
        assert picture.domain is not None
        assert picture.pci is not None
        assert len(picture.vfio) == 1
        want = truth["context"][picture.name.removeprefix("0000:")]
        assert picture.device.attachment_id == want["did"]
        assert hex(picture.domain.top_table_phys) == want["slptptr"]
        assert domains[hex(picture.domain.address)]["top_table_phys"] == want["slptptr"]
        [use] = picture.hwpts
        session, file, token = hwpts[hex(picture.domain.address)]
        assert (use.session.name.decode(), hex(use.file.token), hex(use.hwpt.token)) == (
            session,
            file,
            token,
        )
        assert picture.vfio[0][0] is use.session


def test_nothing_is_wrong(capture: Capture) -> None:
    name, image, _, _ = capture
    worst = Severity.WARNING if "incoming" in name else Severity.INFO
    assert [f for f in image.findings if f.severity > worst] == []
    assert not [f for f in image.findings if f.code.startswith(("KHO-ABI", "KHO-IOM", "KHO-IFD"))]


def test_objects_have_paths(capture: Capture) -> None:
    _, image, truth, _ = capture
    flb = truth["flbs"][0]["name"]
    node = image.find(f"/LUO/flbs/{flb}/domains/1")
    assert hex(node.address) == truth["iommu_flb"]["domains"][1]["pa"]
    node = image.find("/LUO/sessions/vm-a/files/0x1000000100000010/hwpts/1")
    assert hex(node.object.token) == "0xfedcba9876543210"
    assert (
        image.find(f"/LUO/flbs/{truth['flbs'][1]['name']}/devices/0").object.name == "0000:00:03.0"
    )


def test_one_object_as_json(capture: Capture) -> None:
    from inspector.document import part

    _, image, truth, out = capture
    path = f"/LUO/flbs/{truth['flbs'][0]['name']}/devices/1"
    assert part(image, image.find(path), path)["object"] == out["iommu"]["devices"][1]
