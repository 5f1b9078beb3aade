"""``kho cpr``: streams of real QEMUs, streams beside captures, and bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from abi import qemu_cpr
from abi.qemu_cpr import CprEarlyState, CprFd, CprMemory, CprState, CprVfioDevice, FdForm, Framing
from inspector import cpr, image, text
from tests.cli.conftest import CORPUS, Run

DATA = Path(__file__).parents[1] / "data" / "qemu_cpr"
STREAMS = sorted(DATA.glob("*.bin"))
CAPTURES = ["iommu-vw-small_legacy-handoff", "iommu-v3-small_scalable-handoff"]


def written(tmp_path: Path, state: CprState | CprEarlyState) -> Path:
    early = isinstance(state, CprEarlyState)
    path = tmp_path / "cpr"
    path.write_bytes(qemu_cpr.build_early(state) if early else qemu_cpr.build(state))
    return path


def capture(name: str) -> Path:
    return CORPUS / f"{name}.elf.zst"


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
def test_streams_of_real_qemus(kho: Run, path: Path) -> None:
    state = qemu_cpr.decode(path.read_bytes())
    result = kho("cpr", path, "--format", "json")
    assert result.status == 0
    document = json.loads(result.text)
    assert document["form"] == "version-1"
    assert document["unverified"] == []
    assert document["image"] is None
    assert document["fds"] == [
        {"name": fd.name.decode(), "id": fd.id, "fd": fd.fd} for fd in state.fds
    ]
    assert document["vfio_devices"] == (None if state.vfio_devices is None else [])
    text = kho("cpr", path).text
    assert "6 descriptors" in text
    assert "unverified" not in text
    assert all(fd.name.decode() in text for fd in state.fds)


def test_standard_input() -> None:
    command = [sys.executable, "-m", "inspector.cli.app", "cpr", "-"]
    data = STREAMS[0].read_bytes()
    piped = subprocess.run(command, input=data, capture_output=True, check=True)
    assert b"ram0" in piped.stdout


def test_devices_as_text(kho: Run, tmp_path: Path) -> None:
    state = CprState((CprFd(b"ram0"),), (CprVfioDevice(b"net\x1b[2J", -1, 4, 10),))
    result = kho("cpr", written(tmp_path, state))
    assert result.status == 0
    assert "net\\x1b[2J  devid -1  ioas_id 4  hwpt_id 10\n" in result.text
    assert "\x1b" not in result.text
    assert "unverified: VFIO devices" in result.text


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (CprState((CprFd(b"a"),), framing=Framing.TABLE), "hash table"),
        (CprState((CprFd(b"a"), CprFd(b"b")), fd_form=FdForm.BARE), "nothing stands"),
        (CprEarlyState(2, (CprFd(b"a", 0, 5),), ()), "headerless"),
    ],
)
def test_what_is_unverified_is_said(
    kho: Run, tmp_path: Path, state: CprState | CprEarlyState, words: str
) -> None:
    path = written(tmp_path, state)
    assert words in kho("cpr", path).text
    said = json.loads(kho("cpr", path, "-f", "json").text)["unverified"]
    assert len(said) == 1
    assert words in said[0]


@pytest.mark.parametrize("name", CAPTURES)
def test_addresses_lead_to_tokens(kho: Run, tmp_path: Path, name: str) -> None:
    """What is lined up equals what the machine itself recorded."""
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    devices = expected(truth)
    assert len(devices) == 4
    listed = tuple(
        CprVfioDevice(address.encode(), i, 2, ids(token)) for i, (address, (_, token)) in
        enumerate(devices.items())
    )  # fmt: skip
    stream = written(tmp_path, CprState((CprFd(b"ram0"),), listed))
    result = kho("cpr", stream, "--image", capture(name), "-f", "json")
    assert result.status == 0, result.err
    found = json.loads(result.text)["image"]
    assert found["differences"] == []
    for one in found["devices"]:
        session, token = devices[one["address"]]
        assert {file["session"] for file in one["vfio_files"]} == {session}
        assert [(h["session"], int(h["token"], 0)) for h in one["hwpts"]] == [(session, token)]
    assert found["sessions"] == sorted({session for session, _ in devices.values()})


def ids(token: int) -> int:
    """A small id for each token, as an iommufd would have given."""
    return 3 + token % 97


def expected(truth: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """PCI address -> (session, token of the HWPT), by the truth file."""
    owners = {c["domain"]: (c["session"], int(c["hwpt_token"], 0)) for c in truth["mapping_check"]}
    return {d["bdf_str"]: owners[d["domain_phys"]] for d in truth["iommu_flb"]["devices"]}


def test_differences_are_told(kho: Run, tmp_path: Path) -> None:
    listed = (
        CprVfioDevice(b"0000:00:03.0", 1, 2, 3),
        CprVfioDevice(b"00:05.0", 2, 2, 3),
        CprVfioDevice(b"0000:00:1f.0", 3, 2, 3),
    )
    stream = written(tmp_path, CprState((), listed))
    result = kho("cpr", stream, "--image", capture(CAPTURES[0]))
    assert result.status == 1
    differences = [line for line in result.text.splitlines() if line.startswith("  differs: ")]
    assert [line.removeprefix("  differs: ") for line in differences] == [
        "hwpt_id 3 goes with HWPT 0x789012, but for 00:05.0 with HWPT 0xfedcba9876543210 of the"
        " same iommufd",
        "0000:00:1f.0 is not in the image",
        "0000:00:04.0 is in session vm-a, not in the stream",
    ]
    assert "ids of the old iommufd" in result.text


def test_equal_numbers_are_guesses(kho: Run, tmp_path: Path) -> None:
    listed = (CprVfioDevice(b"net0", 1, 0x2010, 0x789012), CprVfioDevice(b"net1", 1, 5, 6))
    stream = written(tmp_path, CprState((), listed))
    result = kho("cpr", stream, "--image", capture(CAPTURES[0]), "-f", "json")
    assert result.status == 0
    found = json.loads(result.text)["image"]
    assert found["sessions"] == []
    assert all(not d["found"] and d["address"] is None for d in found["devices"])
    assert {(g["subject"], g["path"]) for g in found["guesses"]} == {
        ("ioas_id 8208", "/LUO/sessions/vm-b/files/0x2010"),
        ("hwpt_id 7901202", "/LUO/sessions/vm-a/files/0x1000000100000010/hwpts/0"),
    }
    text = kho("cpr", stream, "--image", capture(CAPTURES[0])).text
    assert text.count("  guess: ") == 2


def test_numbers_and_sizes_of_the_early_form(kho: Run, tmp_path: Path) -> None:
    with image.open(capture(CAPTURES[0])) as opened:
        size = {path.rpartition("/")[2]: memfd.size for path, memfd in opened.memfds()}["0x1002"]
    state = CprEarlyState(
        2, (CprFd(b"vfio", 0, 0xD1),), (CprMemory(b"pc.ram", 0, size, size, 0x1000),)
    )
    stream = written(tmp_path, state)
    result = kho("cpr", stream, "--image", capture(CAPTURES[0]), "-f", "json")
    found = json.loads(result.text)["image"]
    assert {(g["subject"], g["path"].rpartition("/")[2]) for g in found["guesses"]} == {
        ("memory pc.ram", "0x1002"),
        ("descriptor vfio", "0xd1"),
    }


def test_an_image_without_devices(kho: Run, tmp_path: Path, handoff: Path) -> None:
    stream = written(tmp_path, CprState((), (CprVfioDevice(b"0000:00:03.0", 1, 2, 3),)))
    result = kho("cpr", stream, "--image", handoff)
    assert result.status == 1
    assert "no session is sure" in result.text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"0000:00:03.0", (0, 0x18)),
        (b"0a:1f.7", (0, 0xAFF)),
        (b"10000:E1:00.1", (0x10000, 0xE101)),
        (b"00:20.0", None),
        (b"00:03.8", None),
        (b"0000:00:03.0\n", None),
        (b"net0", None),
        (b"", None),
    ],
)
def test_addresses_in_names(name: bytes, key: tuple[int, int] | None) -> None:
    assert cpr.address_of(name) == key


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"QCPR", "ends inside the version"),
        (b"QCPR\0\0\0\2\0", "version 2 is not known"),
        (b"QCPR\0\0\0\1\2", "instead of 0 or 1"),
        (b"QCPR\0\0\0\1\1\xff\xff\xff\xff", "at byte"),
        (bytes(6), "no CPR state"),
        (bytes(4096), "no CPR state"),
        (b"\0\0\0\7\1\0\0\0\2a\0\0\0\0\0\0\0\0\5\0\0", "no CPR state"),
        (b"\x7fELF" + bytes(100), "no CPR state"),
        (STREAMS[0].read_bytes()[:-3], "at byte"),
        (STREAMS[0].read_bytes() + b"\1", "at byte"),
    ],
)
def test_bad_streams(kho: Run, tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    result = kho("cpr", path)
    assert result.status == 8
    assert result.out == b""
    assert result.err.startswith("kho: ")
    assert result.err.count("\n") == 1
    assert words in result.err


@pytest.mark.parametrize("size", [qemu_cpr.MAX_NAME, qemu_cpr.MAX_NAME + 1, 1 << 20])
def test_names_have_a_limit(kho: Run, tmp_path: Path, size: int) -> None:
    path = written(tmp_path, CprState((CprFd(b"\x1b" * size),)))
    result = kho("cpr", path)
    if size == qemu_cpr.MAX_NAME:
        assert result.status == 0
        assert result.text.count("\\x1b") == size
    else:
        assert result.status == 8
        assert result.err.count("\n") == 1
        assert len(result.err) < 400
        assert f"a name of {size} bytes; no more than" in result.err


@pytest.mark.parametrize("raw", ["a", b"a", "\x1b", b"\x1b", b"\xff", "\u202e"])
def test_what_is_shown_of_a_name_has_a_limit(raw: str | bytes) -> None:
    whole, more = text.display(raw * text.MAX_SHOWN), text.display(raw * (text.MAX_SHOWN + 1000))
    assert "..." not in whole
    assert more.startswith(whole)
    unit = "bytes" if isinstance(raw, bytes) else "characters"
    assert more[len(whole) :] == f"... and 1,000 {unit}"


def test_too_large(kho: Run, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(cpr.MAX_SIZE + 1)
    result = kho("cpr", path)
    assert result.status == 8
    assert "too many" in result.err


def test_bad_image(kho: Run, tmp_path: Path) -> None:
    result = kho("cpr", STREAMS[0], "--image", tmp_path / "absent")
    assert result.status == 8
    assert result.out == b""
