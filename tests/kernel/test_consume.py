"""The simulated consumer against real captures, real outcomes and the fault library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inspector import memory
from inspector.decode import decode
from inspector.findings import Outcome
from inspector.kernel import faults, scenario
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import boot, consume
from inspector.kernel.profile import RELEASES
from inspector.memory.sparse import SparseMemory

CORPUS = Path(__file__).parents[2] / "corpus"
PAIRS = json.loads((CORPUS / "matrix.json").read_text())["pairs"]
MEASURED = {
    (p["producer"].rpartition(".")[0], p["consumer"].rpartition(".")[0]): p["project_outcome"]
    for p in PAIRS
}
HANDOFFS = sorted(p.name.removesuffix(".elf.zst") for p in CORPUS.glob("linux-*-handoff.elf.zst"))

SCENARIO = """
kernel = "linux-{release}"
release = "{release}.4"
seed = 7
[machine]
ram = ["512M"]
[kho_test]
pages = 128
max_order = 7
[[reserve_mem]]
name = "labtrace"
size = "1M"
[[reserve_mem]]
name = "laboops"
size = "4M"
align = "2M"
"""
SESSIONS = """
[[session]]
name = "vm"
[[session.file]]
token = 0x1001
size = "64K"
pos = 4097
[[session.file]]
token = 0x1002
size = "3M"
huge = true
"""


def made(release: str) -> Any:
    """The image of a simulated kernel."""
    luo = release not in ("6.16", "6.17", "6.18")
    return scenario.parse(SCENARIO.format(release=release) + (SESSIONS if luo else "")).run()


@pytest.fixture(scope="module")
def images() -> dict[str, Any]:
    return {release: made(release) for release in RELEASES}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p['producer']}-{p['consumer']}")
def test_real_captures_meet_their_measured_outcome(pair: dict[str, str]) -> None:
    path = CORPUS / f"linux-{pair['producer']}-handoff.elf.zst"
    if not path.exists():
        pytest.skip("no capture of this kernel")
    with memory.open(path) as opened:
        assert consume(opened, f"linux-{pair['consumer']}").outcome == pair["project_outcome"]


@pytest.mark.parametrize("producer", RELEASES)
@pytest.mark.parametrize("consumer", RELEASES)
def test_simulated_pairs(images: dict[str, Any], producer: str, consumer: str) -> None:
    result = consume(images[producer].memory, f"linux-{consumer}")
    measured = MEASURED.get((producer, consumer))
    if measured is not None:
        assert result.outcome == measured, result.reasons[:3]
    told = any("no real one was measured" in note for note in result.notes)
    assert told == (consumer in ("6.16", "7.0"))


@pytest.mark.parametrize("name", HANDOFFS)
def test_files_of_real_captures(name: str) -> None:
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    with memory.open(CORPUS / f"{name}.elf.zst") as opened:
        result = consume(opened, "linux-" + ".".join(truth["producer"].split(".")[:2]))
        assert result.outcome is Outcome.TAKEN_OVER, result.reasons
        luo = result.consumer.luo
        found = {(s.name.decode(), f.token): f.file for s, f in (luo.files() if luo else ())}
        compared = 0
        for wanted in truth["files"]:
            file = found.pop((wanted["session"], int(wanted["token"], 16)))
            assert (file.size, file.pos) == (wanted["size"], wanted["pos"])
            if file.seals_known:
                assert file.seals == int(wanted["seals"], 16)
            if wanted.get("consumer_result"):
                assert f" seals={file.seals_now:#x} " in wanted["consumer_result"]
            digest = file.sha256()
            if digest is not None:
                assert digest == wanted["sha256"]
                compared += 1
        assert not found
        assert compared >= 0.9 * len(truth["files"])
        regions = result.consumer.clients.reserve_mem
        assert {n: a for n, (a, _) in regions.items()} == {
            r["name"]: int(r["start"], 16) for r in truth["reserve_mem"]
        }


@pytest.mark.parametrize("name", ["linux-7.3.4-incoming", "linux-6.19.11-incoming_retrieved"])
def test_an_image_of_a_booted_kernel_cannot_be_judged(name: str) -> None:
    with memory.open(CORPUS / f"{name}.elf.zst") as opened:
        assert consume(opened, "linux-7.3" if "7.3" in name else "linux-6.19").outcome is (
            Outcome.CANNOT_TELL
        )


#: What a real 7.3.4 did; a fault that is not here was not measured.
TABLE = {
    "handover-fdt-size-zero": Outcome.KHO_REFUSED,
    "handover-scratch-size-zero": Outcome.KHO_REFUSED,
    "handover-fdt-size-1024": Outcome.TAKEN_OVER,
    "map-scratch": Outcome.CORRUPTION,
    "map-block-beyond-memory": Outcome.BOOT_FAILS,
    "map-garbage": Outcome.BOOT_FAILS,
    "map-zeroed": Outcome.BOOT_FAILS,
    "memfd-folio-not-preserved": Outcome.FILE_ERROR,
    "root-not-preserved": Outcome.TAKEN_OVER,
    "session-count-zero": Outcome.BOOT_FAILS,
    "session-cycle": Outcome.BOOT_FAILS,
    "luo-blob-short": Outcome.BOOT_FAILS,
    "luo-compatible": Outcome.BOOT_FAILS,
    "session-name-duplicate": Outcome.LUO_UNUSABLE,
    "file-handler-unknown": Outcome.LUO_UNUSABLE,
    "vmalloc-total-pages": Outcome.FILE_ERROR,
    "memfd-seals": Outcome.FILE_ERROR,
    "vmalloc-flags": Outcome.TAKEN_OVER,
    "map-overlap": Outcome.TAKEN_OVER,
    "map-cycle": Outcome.BOOT_FAILS,
    "map-node-unaligned": Outcome.BOOT_FAILS,
    "map-node-beyond-memory": Outcome.BOOT_FAILS,
    "map-order-impossible": Outcome.BOOT_FAILS,
    "session-count-over": Outcome.BOOT_FAILS,
    "session-block-not-preserved": Outcome.BOOT_FAILS,
    "memfd-folio-count": Outcome.BOOT_FAILS,
    "scratch-unaligned": Outcome.BOOT_FAILS,
    "file-handler-unterminated": Outcome.LUO_UNUSABLE,
    "file-count-zero": Outcome.LUO_UNUSABLE,
    "file-count-mismatch": Outcome.LUO_UNUSABLE,
    "file-cycle": Outcome.LUO_UNUSABLE,
    "file-token-duplicate": Outcome.STATE_LOST,
    "vmalloc-entry-unaligned": Outcome.TAKEN_OVER,
    "metadata-version": Outcome.TAKEN_OVER_WITH_WARNINGS,
    "memfd-flags": Outcome.TAKEN_OVER,
    "map-key-too-wide": Outcome.TAKEN_OVER,
    "scratch-beyond-memory": Outcome.TAKEN_OVER,
}
ERRNO = {
    "memfd-folio-not-preserved": "EIO",
    "vmalloc-total-pages": "EINVAL",
    "memfd-seals": "EOPNOTSUPP",
}


@pytest.mark.parametrize("fault", sorted(TABLE))
def test_broken_images_do_what_a_real_kernel_did(fault: str) -> None:
    image = scenario.load("linux-7.3").run()
    faults.inject(image, fault)
    result = consume(image.memory, "linux-7.3")
    assert result.outcome is TABLE[fault], result.reasons[:3]
    if fault in ERRNO:
        assert {r.errno for r in result.reasons} == {ERRNO[fault]}
    if result.outcome is not Outcome.TAKEN_OVER:
        reason = result.reasons[0]
        assert reason.message
        assert reason.path
        assert reason.release == "linux-7.3"


def with_scratch(*areas: tuple[int, int]) -> SparseMemory:
    """A capture whose scratch array says something else."""
    with memory.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as opened:
        truth = json.loads((CORPUS / "linux-7.3.4-handoff.truth.json").read_text())
        view = SparseMemory.over(opened)
        array = np.zeros((3, 2), "<u8")
        array[: len(areas)] = areas
        view.write(int(truth["setup_data_kho"]["scratch_addr"], 16), array.tobytes())
        return view


@pytest.mark.parametrize(
    ("mib", "apart", "outcome"),
    [
        (16, False, Outcome.TAKEN_OVER),
        (14, False, Outcome.CANNOT_TELL),
        (12, False, Outcome.BOOT_FAILS),
        (8, True, Outcome.TAKEN_OVER),
        (6, True, Outcome.CANNOT_TELL),
        (4, True, Outcome.BOOT_FAILS),
    ],
)
def test_scratch_must_be_large_enough(mib: int, apart: bool, outcome: Outcome) -> None:
    view = with_scratch((0x1B801000, mib << 20))
    sizes = {"kernel_size": 0, "initrd_size": 0} if apart else {}
    assert consume(view, "linux-7.3", **sizes).outcome is outcome


def test_a_larger_kernel_needs_more_scratch() -> None:
    view = with_scratch((0x1B800000, 24 << 20))
    assert consume(view, "linux-7.3").outcome is Outcome.TAKEN_OVER
    assert consume(view, "linux-7.3", kernel_size=40 << 20).outcome is Outcome.BOOT_FAILS


@pytest.mark.parametrize("producer", [4, 16, 64])
@pytest.mark.parametrize("consumer", [4, 16, 64])
def test_a_kernel_of_another_page_size_dies(producer: int, consumer: int) -> None:
    image = scenario.parse(
        'kernel = "linux-7.3"\nseed = 3\n[machine]\narchitecture = "aarch64"\n'
        f'page_size = "{producer}K"\nram = ["4G"]\n' + SESSIONS
    ).run()
    result = consume(image.memory, "linux-7.3", page_size=consumer << 10)
    wanted = Outcome.TAKEN_OVER if producer == consumer else Outcome.BOOT_FAILS
    assert result.outcome is wanted, result.reasons[:3]


def test_sessions_as_user_space_sees_them(images: dict[str, Any]) -> None:
    consumer = boot(images["7.3"].memory, "linux-7.3")
    with pytest.raises(KernelErrno) as error:
        consumer.retrieve_session("nobody")
    assert error.value.name == "ENOENT"
    session = consumer.retrieve_session("vm")
    assert session.tokens == [0x1001, 0x1002]
    file = session.retrieve(0x1001)
    assert session.retrieve(0x1001) is file
    assert (file.size, file.pos) == (64 << 10, 4097)
    with pytest.raises(KernelErrno) as error:
        session.retrieve(5)
    assert error.value.name == "ENOENT"
    session.finish()
    with pytest.raises(KernelErrno):
        session.finish()
    assert consumer.liveupdate_num == 1


def test_a_failed_retrieve_sticks() -> None:
    image = scenario.parse(SCENARIO.format(release="7.3") + SESSIONS).run()
    faults.inject(image, "memfd-seals")
    consumer = boot(image.memory, "linux-7.3")
    session = consumer.retrieve_session("vm")
    errors, good = [], []
    for token in session.tokens * 2:
        try:
            good.append(session.retrieve(token))
        except KernelErrno as error:
            errors.append(error)
    assert len(errors) == 2
    assert errors[0] is errors[1]
    assert len(good) == 2
    assert good[0] is good[1]


def test_what_nobody_retrieves_is_freed(images: dict[str, Any]) -> None:
    kept, dropped = (boot(images["7.3"].memory, "linux-7.3") for _ in range(2))
    for consumer, retrieve in ((kept, True), (dropped, False)):
        session = consumer.retrieve_session("vm")
        if retrieve:
            for token in session.tokens:
                session.retrieve(token)
        session.finish()
    pages = (64 << 10 >> 12) + (3 << 20 >> 12)
    assert len(kept.retained) - len(dropped.retained) == pages


def test_the_image_is_not_changed(images: dict[str, Any]) -> None:
    source = images["7.2"].memory
    before = [(start, bytes(piece)) for start, piece in source.extents()]
    consume(source, "linux-7.2")
    assert before == [(start, bytes(piece)) for start, piece in source.extents()]


@pytest.mark.parametrize(
    ("behind", "count", "outcome"),
    [
        (0, 64, Outcome.LUO_UNUSABLE),
        # The list is followed to its end before the count of its first block is looked at.
        ((1 << 64) - 1, 64, Outcome.BOOT_FAILS),
        ((1 << 64) - 1, 1, Outcome.BOOT_FAILS),
    ],
)
def test_a_list_of_files_is_followed_before_it_is_counted(
    images: dict[str, Any], behind: int, count: int, outcome: Outcome
) -> None:
    broken = SparseMemory.over(images["7.3"].memory)
    image = decode(broken)
    block = next(c for c in image.survey.claims if c.kind == "file-block")
    broken.write(int(block.starts[0]), struct.pack("<QQ", behind, count))
    assert consume(broken, "linux-7.3").outcome == outcome
