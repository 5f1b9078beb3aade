"""QEMU's CPR state: streams of real QEMUs, both ways, and bad ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import qemu_cpr
from abi.qemu_cpr import (
    CprEarlyState,
    CprError,
    CprFd,
    CprMemory,
    CprState,
    CprVfioDevice,
    FdForm,
    Framing,
)

DATA = Path(__file__).parent.parent / "data" / "qemu_cpr"
NAMES = {
    b"/rom@etc/acpi/rsdp",
    b"/rom@etc/acpi/tables",
    b"/rom@etc/table-loader",
    b"pc.bios",
    b"pc.rom",
    b"ram0",
}


@pytest.mark.parametrize(
    ("name", "form", "devices"),
    [
        ("qemu-10.0.13-transfer.bin", FdForm.SOCKET, None),
        ("qemu-11.1.3-transfer.bin", FdForm.SOCKET, ()),
        ("qemu-11.1.3-exec.bin", FdForm.NUMBER, ()),
    ],
)
def test_streams_of_real_qemus(
    name: str, form: FdForm, devices: tuple[CprVfioDevice, ...] | None
) -> None:
    data = (DATA / name).read_bytes()
    state = qemu_cpr.decode(data)
    assert state.fd_form is form
    assert state.framing is Framing.LIST
    assert {fd.name for fd in state.fds} == NAMES
    assert {fd.id for fd in state.fds} == {0}
    assert state.vfio_devices == devices
    assert qemu_cpr.build(state) == data
    ram = state.fd(b"ram0")
    assert ram is not None
    # The number that the new process found open, in mode cpr-exec.
    assert ram.fd == (10 if form is FdForm.NUMBER else None)
    assert state.fd(b"ram0", 1) is None


def test_vfio_devices_by_hand() -> None:
    """The bytes that QEMU 11.1.3 loaded field by field."""
    data = (
        b"QCPR\0\0\0\1"
        + b"\1\0\0\0\5ram0\0\0\0\0\0 \0"
        + b"\5\x15CprState/vfio devices\0\0\0\1"
        + b"\1\0\0\0\6vfio0\0\0\0\0\7\0\0\0\3\0\0\0\x09"
        + b"\1\0\0\0\x0d0000:01:00.0\0\xff\xff\xff\xff\0\0\0\4\0\0\0\x0a"
        + b"\0"
    )
    state = qemu_cpr.decode(data)
    assert state == CprState(
        (CprFd(b"ram0"),),
        (CprVfioDevice(b"vfio0", 7, 3, 9), CprVfioDevice(b"0000:01:00.0", -1, 4, 10)),
    )
    assert qemu_cpr.build(state) == data


def test_descriptors_taken_out() -> None:
    data = b"QCPR\0\0\0\1" + b"\1\0\0\0\5ram0\0\0\0\0\2" + b"\1\0\0\0\2a\0\0\0\0\0" + b"\0"
    state = qemu_cpr.decode(data)
    assert state.fd_form is FdForm.BARE
    assert state.fds == (CprFd(b"ram0", 2), CprFd(b"a"))


@pytest.mark.parametrize(
    ("data", "says", "offset"),
    [
        (b"", "inside the magic", 0),
        (b"QEVM\0\0\0\3", "magic is 0x5145564d", 0),
        (b"QCPR\0\0\0\2\0", "version 2", 4),
        (b"QCPR\0\0\0\1", "inside a list", 8),
        (b"QCPR\0\0\0\1\2", "goes on with 0x02", 8),
        (b"QCPR\0\0\0\1\1\0\0\0\0", "name of 0 bytes", 9),
        (b"QCPR\0\0\0\1\1\xff\xff\xff\xff", "does not fit", 9),
        (b"QCPR\0\0\0\1\1\0\0\0\2ab\0\0\0\0 \0", "not terminated", 13),
        (b"QCPR\0\0\0\1\1\0\0\0\3a\0\0\0\0\0\0 \0", "not terminated", 13),
        (b"QCPR\0\0\0\1\0\7", "byte 0x07", 9),
        (b"QCPR\0\0\0\1\0\5\3abc\0\0\0\1\0", "unknown subsection b'abc'", 9),
        (b"QCPR\0\0\0\1\0\5\x15CprState/vfio devices\0\0\0\2\0", "version 2", 32),
        (b"QCPR\0\0\0\1\0\5\x15CprState/vfio devices\0\0\0\1\1", "length of a name", 37),
        (b"QCPR\0\0\0\1\0\5\x15CprState/vfio devices\0\0\0\1\0x", "1 bytes follow", 37),
    ],
)
def test_bad_streams(data: bytes, says: str, offset: int) -> None:
    with pytest.raises(CprError, match=says) as caught:
        qemu_cpr.decode(data, framing=Framing.LIST)
    assert caught.value.offset == offset
    with pytest.raises(CprError):
        qemu_cpr.decode(data)


@pytest.mark.parametrize(
    ("data", "says", "offset"),
    [
        # The first byte begins a list: its name is not half a count and half a name.
        (b"\1\x03\xc0\0\1" + b"\x1b" * 0x3C00000 + b"\0", "name of 62914560 bytes", 9),
        (b"\2\0\0\0\1\0\0\0\2ab", "goes on with 0x02", 8),
        # It does not: a count may stand there.
        (b"\0\0\0\1\1\0\0\0\2ab", "not terminated", 17),
        (b"\0\0\0\2\1\0\0\0\2a\0\0\0\0\0 \7", "goes on with 0x07", 24),
    ],
)
def test_the_error_is_that_of_the_form_that_fits_best(data: bytes, says: str, offset: int) -> None:
    with pytest.raises(CprError, match=says) as caught:
        qemu_cpr.decode(b"QCPR\0\0\0\1" + data)
    assert caught.value.offset == offset


def test_entries_are_limited() -> None:
    entry = b"\1\0\0\0\2a\0\0\0\0\0 "
    data = b"QCPR\0\0\0\1" + entry * (qemu_cpr.MAX_ENTRIES + 1) + b"\0"
    with pytest.raises(CprError, match="more than 65536"):
        qemu_cpr.decode(data)


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir()))
def test_cut_short_anywhere(name: str) -> None:
    data = (DATA / name).read_bytes()
    whole = qemu_cpr.decode(data)
    for length in range(len(data)):
        try:
            state = qemu_cpr.decode(data[:length], fd_form=whole.fd_form, framing=Framing.LIST)
        except CprError:
            continue
        # Without the subsection the stream is that of QEMU 10.0.
        assert state.fds == whole.fds
        assert state.vfio_devices is None


NAME = st.binary(max_size=20).filter(lambda b: b"\0" not in b)
S32, U32, U64 = (
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
DEVICES = st.lists(st.builds(CprVfioDevice, NAME, S32, U32, U32), max_size=4).map(tuple)


@st.composite
def states(draw: st.DrawFn) -> CprState:
    form = draw(st.sampled_from(FdForm))
    number = S32 if form is FdForm.NUMBER else st.none()
    fds = draw(st.lists(st.builds(CprFd, NAME, S32, number), max_size=5).map(tuple))
    devices = draw(st.none() | DEVICES)
    return CprState(fds, devices, form, draw(st.sampled_from(Framing)))


@settings(max_examples=200, deadline=None)
@given(states())
def test_round_trip(state: CprState) -> None:
    data = qemu_cpr.build(state)
    assert qemu_cpr.decode(data, fd_form=state.fd_form, framing=state.framing) == state
    # Guessing gives a reading of the same bytes, or none if the numbers are absurd.
    try:
        guess = qemu_cpr.decode(data)
    except CprError:
        assert any(fd.fd is not None and not 0 <= fd.fd < 1 << 24 for fd in state.fds)
    else:
        assert qemu_cpr.build(guess) == data


def test_guesses_are_right_for_plausible_numbers() -> None:
    for form in FdForm:
        for framing in Framing:
            for count in range(1, 4):
                number = 17 if form is FdForm.NUMBER else None
                fds = tuple(CprFd(b"name", index, number) for index in range(count))
                for devices in (None, (), (CprVfioDevice(b"vfio0", 1, 2, 3),)):
                    state = CprState(fds, devices, form, framing)
                    assert qemu_cpr.decode(qemu_cpr.build(state)) == state


@settings(max_examples=100, deadline=None)
@given(
    U32,
    st.lists(st.builds(CprFd, NAME, S32, S32), max_size=4).map(tuple),
    st.lists(st.builds(CprMemory, NAME, S32, U64, U64, U64), max_size=4).map(tuple),
)
def test_early_round_trip(mode: int, fds: tuple[CprFd, ...], memory: tuple[CprMemory, ...]) -> None:
    state = CprEarlyState(mode, fds, memory)
    data = qemu_cpr.build_early(state)
    assert qemu_cpr.decode_early(data) == state
    with pytest.raises(CprError):
        qemu_cpr.decode_early(data + b"\0")
    with pytest.raises(CprError):
        qemu_cpr.decode_early(data[:-1])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(DATA.iterdir())),
    st.lists(st.tuples(st.integers(0, 196), st.integers(0, 255)), max_size=6),
)
def test_mutated_streams(path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        state = qemu_cpr.decode(data)
    except CprError as error:
        problem: CprError | None = error
    else:
        problem = None
        assert qemu_cpr.build(state) == data
    assert problem is None or 0 <= problem.offset <= len(data)


def test_what_cannot_be_built() -> None:
    with pytest.raises(CprError, match="NUL"):
        qemu_cpr.build(CprState((CprFd(b"a\0b"),)))
    with pytest.raises(CprError, match="no number"):
        qemu_cpr.build(CprState((CprFd(b"a"),), fd_form=FdForm.NUMBER))
    assert struct.unpack(">II", qemu_cpr.build(CprState())[:8]) == (
        qemu_cpr.MAGIC,
        qemu_cpr.VERSION,
    )
