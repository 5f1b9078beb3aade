"""Whole images through the inspector and through the Kaitai reader: the same objects.

Captures of real kernels, and images of the simulated producer for every release.
"""

from __future__ import annotations

from typing import Any

import pytest
from kaitai_support import CORPUS, number
from test_kaitai_images import BEFORE_BOOT, IOMMU_IMAGES, LAYOUTS

import kho
from inspector import blocks
from inspector.kernel import scenario
from inspector.kernel.profile import RELEASES
from specs.handlers import FolioFile
from specs.reader import Image, ImageReader, Layouts, LuoState

SCENARIO = """
kernel = "linux-{release}"
seed = {seed}
live_updates = 2
[machine]
ram = ["{ram}"]
architecture = "{architecture}"
page_size = "{page_size}"
[kho_test]
pages = 48
[[reserve_mem]]
name = "trace"
size = "1M"
"""
SESSIONS = """
[[session]]
name = "vm"
[[session.file]]
token = 0xfedcba9876543210
size = "192K"
pos = 4097
[[session.file]]
token = 0x2000
size = "4K"
count = 70
[[session]]
name = "empty-{i}"
count = 60
"""


def same_blocks(mine: ImageReader, image: Image, theirs: Any) -> None:
    found = sorted(mine.blocks(image))
    listed: list[tuple[int, int]] = []
    for addresses, orders in blocks.blocks(theirs.preserved):
        listed += zip(addresses.tolist(), orders.tolist(), strict=True)
    assert found == sorted(listed)


def same_luo(mine: LuoState, theirs: dict[str, Any]) -> int:
    """Compare sessions, files and FLBs; returns the number of files."""
    compared = 0
    assert mine.liveupdate_num == theirs["liveupdate_number"]
    assert mine.pa == number(theirs["address"])
    for session, other in zip(mine.sessions, theirs["sessions"], strict=True):
        assert session.name.decode() == other["name"]
        assert (session.pa, session.count) == (number(other["address"]), other["count"])
        for file, entry in zip(session.files, other["files"], strict=True):
            assert file.handler.decode() == entry["compatible"]
            assert [file.pa, file.data, file.token] == [
                number(entry[k]) for k in ("address", "data", "token")
            ]
            if isinstance(file.body, FolioFile):
                ser, memfd = file.body.ser, entry["memfd"]
                assert [ser.size, ser.pos, ser.nr_folios] == [
                    memfd[k] for k in ("size", "pos", "nr_folios")
                ]
                if hasattr(ser, "seals"):
                    assert ser.seals == number(memfd["seals"])
            compared += 1
    for flb, other in zip(mine.flbs, theirs["flbs"], strict=True):
        assert flb.name.decode() == other["name"]
        assert [flb.pa, flb.data, flb.count] == [
            number(other[k]) for k in ("address", "data", "count")
        ]
    return compared


@pytest.mark.parametrize("name", BEFORE_BOOT)
def test_captures(name: str) -> None:
    with kho.open(CORPUS / f"{name}.elf.zst") as theirs:
        document = kho.document(theirs)
        reader = ImageReader(theirs.memory, theirs.page_size, LAYOUTS.get(name))
        mine = reader.image(theirs.root.address)
        assert reader.follower.problems == []
        assert mine.compatible == document["root"]["compatible"]
        assert {n.decode(): pa for n, (pa, _) in mine.blobs.items()} == {
            b["name"]: number(b["address"]) for b in document["blobs"]
        }
        same_blocks(reader, mine, theirs)
        if document["luo"] is None:
            assert mine.luo is None
        else:
            assert mine.luo is not None
            assert same_luo(mine.luo, document["luo"]) >= (11 if name in IOMMU_IMAGES else 81)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("architecture", "page_size", "ram"),
    [("x86_64", 4096, "256M"), ("aarch64", 16384, "1G"), ("aarch64", 65536, "4G")],
)
def test_simulated(release: str, architecture: str, page_size: int, ram: str) -> None:
    has_luo = release not in ("6.16", "6.17", "6.18")
    text = SCENARIO.format(
        release=release, seed=11, ram=ram, architecture=architecture, page_size=page_size
    ) + (SESSIONS if has_luo else "")
    image = scenario.parse(text).run()
    layouts = Layouts(bitmap_size=512 if release in ("6.16", "6.17") else None)
    reader = ImageReader(image.memory, page_size, layouts)
    mine = reader.image(image.root)
    assert [(r.name, r.size) for r in mine.reserve_mem] == [(b"trace", 1 << 20)]
    assert mine.kho_test is not None
    preserved = sorted(reader.blocks(mine))
    assert set(mine.kho_test.folios) <= set(preserved)
    theirs = kho.open(image.memory, root=image.root, page_size=page_size)
    same_blocks(reader, mine, theirs)
    if has_luo:
        assert mine.luo is not None
        assert len(mine.luo.sessions) == 61
        assert same_luo(mine.luo, kho.document(theirs)["luo"]) == 71
    assert reader.follower.problems == []
