"""Sessions, files, FLBs and memory files on the producer's side."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from inspector import image as decoded_image
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import GiB, small_machine
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.memfd import SEAL_GROW, SEAL_SHRINK, Memfd, pattern_bytes

RELEASES = ("6.19", "7.0", "7.1", "7.2", "7.3")
DEVELOPMENT = (
    "linux-7.1+luo=luo-v2",
    "linux-7.2+luo=luo-v3",
    "linux-7.2+luo=luo-v4",
    "linux-7.2+luo=luo-v3-kho-block-v1",
    "linux-7.2+luo=luo-v4-kho-block-v1",
    "linux-7.2+luo=luo-v5-block-v1",
    "linux-7.3+luo=luo-features+memfd=memfd-features",
    "linux-7.1+memfd=memfd-v2-early",
)


def kernel(name: str = "linux-7.3", **more: object) -> Kernel:
    name = name if name.startswith("linux") else f"linux-{name}"
    return Kernel(name, small_machine(), **more)  # type: ignore[arg-type]


def whole(found: decoded_image.Image, state: Any) -> bytes:
    """All bytes of a decoded file."""
    out = bytearray(state.size)
    for pa, size, index in zip(state.addresses, state.sizes, state.folios.index, strict=True):
        at = int(index) * found.page_size
        length = min(int(size), state.size - at)
        out[at : at + length] = found.memory.read(int(pa), length)
    return bytes(out)


def memfd(producer: Kernel, content: bytes = b"x", name: str = "m") -> Memfd:
    file = producer.memfd(name)
    file.write(0, content)
    return file


@pytest.mark.parametrize("name", [*RELEASES, *DEVELOPMENT])
def test_sessions_and_files_are_decoded_as_meant(name: str) -> None:
    producer = kernel(name, test_flbs=True)
    meant: dict[tuple[bytes, int], Memfd] = {}
    for s in range(60):
        session = producer.luo.create_session(f"vm-{s}")
        for i in range(s % 3 if s else 70):
            file = memfd(producer, pattern_bytes(i, 0, 100 + 4000 * (i % 4)))
            file.seek(i)
            session.preserve(file, i << 40 | 7)
            meant[f"vm-{s}".encode(), i << 40 | 7] = file
    image = producer.kexec()
    with decoded_image.open(image.memory) as found:
        assert not found.findings
        assert found.luo is not None
        assert found.luo.number == 1
        assert [s.name for s in found.luo.sessions] == [b"vm-%d" % s for s in range(60)]
        seen = {(s.name, f.token): f.state for s, f in found.luo.files()}
        assert set(seen) == set(meant)
        for key, file in meant.items():
            assert seen[key].size == file.size
            assert seen[key].pos == file.pos
        flbs = {f.name: (f.data, f.count) for f in found.luo.flbs}
        if producer.profile["luo"].flb:  # type: ignore[attr-defined]
            magic = 0xFEEDF00DCAFEBEE0
            assert flbs == {
                b"liveupdate-test-flb-v%d" % i: (magic + i, len(meant)) for i in range(3)
            }


def test_errors_of_sessions() -> None:
    producer = kernel("6.19")
    luo = producer.luo
    for bad in ("", "x" * 64, "a\0b"):
        with pytest.raises(KernelErrno, match="EINVAL"):
            luo.create_session(bad)
    session = luo.create_session("x" * 63)
    with pytest.raises(KernelErrno, match="EEXIST"):
        luo.create_session("x" * 63)
    file = memfd(producer)
    session.preserve(file, 1)
    with pytest.raises(KernelErrno, match="EEXIST"):
        session.preserve(memfd(producer), 1)
    with pytest.raises(KernelErrno, match="EBUSY"):
        session.preserve(file, 2)
    with pytest.raises(KernelErrno, match="ENOENT"):
        session.preserve(object(), 3)
    with pytest.raises(KernelErrno, match="EBADF"):
        session.preserve(None, 4)
    for i in range(127):
        session.preserve(memfd(producer), 100 + i)
    with pytest.raises(KernelErrno, match="ENOSPC"):
        session.preserve(memfd(producer), 999)
    session.close()
    with pytest.raises(KernelErrno, match="EBADF"):
        session.close()
    with pytest.raises(KernelErrno, match="EOPNOTSUPP"):
        kernel("6.18").luo  # noqa: B018


def test_819_sessions_and_no_more() -> None:
    producer = kernel("7.1")
    for i in range(819):
        producer.luo.create_session(f"s{i}")
    with pytest.raises(KernelErrno, match="ENOSPC"):
        producer.luo.create_session("one too many")
    with decoded_image.open(producer.kexec().memory) as found:
        assert found.luo is not None
        assert len(found.luo.sessions) == 819


class Stubborn(FileHandler):
    compatible = "stubborn-v1"
    refuse = True
    unfrozen = 0

    def can_preserve(self, file: object) -> bool:
        return file == "stubborn"

    def preserve(self, file: object, session: Session, token: int) -> int:
        return 1

    def unpreserve(self, file: object, data: int) -> None:
        pass

    def freeze(self, file: object, data: int) -> int:
        if self.refuse:
            raise KernelErrno("EIO", "no")
        return 2


def test_a_failed_freeze_gives_up_the_reboot() -> None:
    producer = kernel("7.3")
    handler = Stubborn()
    producer.luo.register(handler)
    session = producer.luo.create_session("a")
    session.preserve(memfd(producer), 1)
    session.preserve("stubborn", 2)
    with pytest.raises(KernelErrno, match="EIO"):
        producer.kexec()
    assert not producer.gone
    session.preserve(memfd(producer), 3)
    handler.refuse = False
    with decoded_image.open(producer.kexec().memory) as found:
        assert found.luo is not None
        assert [(f.token, f.data) for _, f in found.luo.files() if f.token == 2] == [(2, 2)]


def test_closing_a_session_leaves_nothing() -> None:
    for name in (*RELEASES, *DEVELOPMENT):
        producer = kernel(name, test_flbs=True)
        before = {(int(f), o) for o, fs in producer.kho.map.blocks() for f in fs}
        pages = producer.machine.pages_out - len(producer.kho.map.nodes)
        files = [memfd(producer, b"y" * n) for n in (1, 5000, 40000)]
        session = producer.luo.create_session("a")
        for i, file in enumerate(files):
            session.preserve(file, i)
        session.close()
        for file in files:
            file.close()
        producer.luo.freeze()
        after = {(int(f), o) for o, fs in producer.kho.map.blocks() for f in fs}
        assert after == before
        assert producer.machine.pages_out - len(producer.kho.map.nodes) == pages
        assert all(not f.count for f in producer.luo.flbs)


def test_preserving_fills_holes_and_freezes() -> None:
    producer = kernel()
    file = producer.memfd()
    file.truncate(10 * 4096)
    file.write(5 * 4096 + 10, b"hello")
    session = producer.luo.create_session("a")
    session.preserve(file, 1)
    assert sum(len(e.frames) for e in file.extents) == 10
    for change in (lambda: file.truncate(4096), lambda: file.write(10 * 4096, b"x")):
        with pytest.raises(KernelErrno, match="EPERM"):
            change()
    file.write(0, b"content may change")
    file.seek(77)
    with decoded_image.open(producer.kexec().memory) as found:
        assert found.luo is not None
        ((_, entry),) = found.luo.files()
        assert entry.state.pos == 77
        content = whole(found, entry.state)
        assert content[:18] == b"content may change"
        assert content[5 * 4096 + 10 :][:5] == b"hello"
        assert len(content) == 10 * 4096


def test_huge_folios() -> None:
    producer = kernel()
    file = producer.memfd(huge=True)
    file.truncate(5 * 1024 * 1024)
    file.write(3 * 1024 * 1024, b"in the second huge page")
    file.populate()
    assert [(e.index, len(e.frames), e.order) for e in file.extents] == [
        (0, 1, 9), (512, 1, 9), (1024, 256, 0),
    ]  # fmt: skip
    assert file.read(3 * 1024 * 1024, 23) == b"in the second huge page"


def test_seals() -> None:
    file = memfd(kernel(), b"abc")
    file.add_seals(SEAL_GROW | SEAL_SHRINK)
    for change in (
        lambda: file.truncate(1),
        lambda: file.truncate(10),
        lambda: file.write(2, b"zz"),
    ):
        with pytest.raises(KernelErrno, match="EPERM"):
            change()
    file.write(0, b"xyz")
    file.add_seals(1 | 8)
    with pytest.raises(KernelErrno, match="EPERM"):
        file.write(0, b"n")
    with pytest.raises(KernelErrno, match="EPERM"):
        file.add_seals(2)
    assert file.read(0, 100) == b"xyz"


def test_unknown_seals_are_refused_where_the_format_has_seals() -> None:
    for name, refused in (("6.19", False), ("7.1", True)):
        producer = kernel(name)
        file = memfd(producer)
        file.seals = 0x40
        session = producer.luo.create_session("a")
        if refused:
            with pytest.raises(KernelErrno, match="EOPNOTSUPP"):
                session.preserve(file, 1)
            assert not session.files
        else:
            session.preserve(file, 1)


def test_pattern() -> None:
    """A file of the captures, token 0x1000, 20000 bytes."""
    whole = pattern_bytes(5, 0, 4096)
    assert pattern_bytes(5, 13, 100) == whole[13:113]
    assert pattern_bytes(6, 0, 64) != whole[:64]
    digest = hashlib.sha256(pattern_bytes(0x1000, 0, 20000)).hexdigest()
    assert digest == "4046b18b52bc18d064d9efd3fa7d88579db55671649f6191dd2716318066c695"


class Life(RuleBasedStateMachine):
    """Random operations on one kernel; at the end, what was decoded is what is there."""

    files = Bundle("files")
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel("linux-7.3", small_machine(GiB, shuffle=True, seed=3))
        self.content: dict[Memfd, bytearray] = {}

    @rule(target=files, huge=st.booleans())
    def open(self, huge: bool) -> Memfd:
        file = self.kernel.memfd(huge=huge)
        self.content[file] = bytearray()
        return file

    @rule(target=sessions, name=st.sampled_from("abcdef"))
    def create(self, name: str) -> object:
        try:
            return self.kernel.luo.create_session(name)
        except KernelErrno as error:
            assert error.name == "EEXIST"
            return multiple()

    @rule(file=files, offset=st.integers(0, 5_000_000), data=st.binary(min_size=1, max_size=9000))
    def write(self, file: Memfd, offset: int, data: bytes) -> None:
        model = self.content[file]
        try:
            file.write(offset, data)
        except KernelErrno as error:
            assert error.name == "EPERM"
            assert file.frozen
            return
        model.extend(bytes(max(0, offset + len(data) - len(model))))
        model[offset : offset + len(data)] = data

    @rule(file=files, size=st.integers(0, 5_000_000))
    def truncate(self, file: Memfd, size: int) -> None:
        model = self.content[file]
        try:
            file.truncate(size)
        except KernelErrno as error:
            assert error.name == "EPERM"
            assert file.frozen
            return
        del model[size:]
        model.extend(bytes(size - len(model)))

    @rule(session=sessions, file=files, token=st.integers(0, 3))
    def preserve(self, session: Session, file: Memfd, token: int) -> None:
        try:
            session.preserve(file, token)
        except KernelErrno as error:
            assert error.name in {"EEXIST", "EBUSY", "EBADF"}

    @rule(session=sessions)
    def close(self, session: Session) -> None:
        try:
            session.close()
        except KernelErrno as error:
            assert error.name == "EBADF"

    @invariant()
    def same_bytes(self) -> None:
        for file, model in self.content.items():
            assert file.size == len(model)
            for at in range(0, len(model), 1_000_003):
                assert file.read(at, 64) == bytes(model[at : at + 64])

    def teardown(self) -> None:
        meant = {
            (s.name.encode(), t): self.content[e.file]
            for s in self.kernel.luo.sessions
            for t, e in s.files.items()
        }
        image = self.kernel.kexec()
        with decoded_image.open(image.memory) as found:
            assert found.luo is not None
            assert not found.findings
            seen = {(s.name, f.token): whole(found, f.state) for s, f in found.luo.files()}
        assert seen == {k: bytes(v) for k, v in meant.items()}


Life.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestLife = Life.TestCase
