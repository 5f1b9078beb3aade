"""Bad input gives one clear line and the documented status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.cli.conftest import CORPUS, Run

ROOT = CORPUS.parent


def one_line(err: str) -> bool:
    return err.count("\n") == 1 and err.startswith("kho: ") and "Traceback" not in err


def plain(path: Path) -> bytes:
    with zstandard.open(path, "rb") as stream:
        return stream.read()


@pytest.mark.parametrize("verb", ["info", "dump", "preserved", "check"])
def test_not_there(kho: Run, tmp_path: Path, verb: str) -> None:
    result = kho(verb, tmp_path / "absent")
    assert result.status == 8
    assert one_line(result.err)


def test_empty(kho: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    result = kho("dump", path)
    assert result.status == 8
    assert one_line(result.err)


def test_directory(kho: Run, tmp_path: Path) -> None:
    result = kho("dump", tmp_path)
    assert result.status == 8
    assert one_line(result.err)


def test_no_kho_in_it(kho: Run, tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(1 << 20))
    result = kho("dump", path)
    assert result.status == 4
    assert "no KHO root" in result.err
    assert one_line(result.err)


def test_rootless_capture_points_to_pagetable(kho: Run) -> None:
    result = kho("dump", CORPUS / "vtd-legacy.elf.zst")
    assert result.status == 4
    assert "kho pagetable --root" in result.err


@pytest.mark.parametrize("keep", [1, 40, 64, 100, 1000, 5000, 100000])
def test_truncated_elf(kho: Run, handoff: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.elf"
    path.write_bytes(plain(handoff)[:keep])
    result = kho("dump", path)
    assert result.status in (4, 8)
    assert one_line(result.err)


@pytest.mark.parametrize("keep", [3, 10, 1000, 100000])
def test_truncated_zstd(kho: Run, handoff: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.elf.zst"
    path.write_bytes(handoff.read_bytes()[:keep])
    result = kho("dump", path)
    assert result.status in (4, 8)
    assert one_line(result.err)


def test_wrong_root(kho: Run, handoff: Path) -> None:
    assert kho("dump", handoff, "--root", "0x1000").status == 2
    assert kho("dump", handoff, "--root", "pumpkin").status == 2
    assert kho("dump", handoff, "--page-size", "5K").status == 2


def test_standard_input(kho: Run, handoff: Path) -> None:
    command = [sys.executable, "-m", "inspector.cli.app", "preserved", "-"]
    with handoff.open("rb") as stream:
        piped = subprocess.run(command, stdin=stream, capture_output=True, check=True)
    assert piped.stdout == kho("preserved", handoff).out


def patched(tmp_path: Path, handoff: Path, edits: dict[int, bytes]) -> Path:
    """The capture with bytes replaced at physical addresses."""
    from inspector import memory

    data = bytearray(plain(handoff))
    with memory.open(handoff) as opened:
        for pa, new in edits.items():
            old = opened.read(pa - pa % 4096, 4096)
            at = data.find(old)
            assert at >= 0
            data[at + pa % 4096 : at + pa % 4096 + len(new)] = new
    path = tmp_path / "patched.elf"
    path.write_bytes(data)
    return path


ROOT_PA = 0x424000


def address_of(handoff: Path, what: str) -> int:
    import kho

    with kho.open(handoff) as image:
        luo = image.luo
        return {
            "luo": luo.address,
            "sessions": luo.sessions_address,
            "files": luo.sessions[0].files_address,
            "memfd": luo.sessions[0].files[1].data,
            "map": image.root.map_address,
        }[what]


@pytest.mark.parametrize("what", ["luo", "sessions", "files", "memfd", "map"])
@pytest.mark.parametrize(
    "junk", [b"\xff" * 64, bytes(64), b"\x01" * 64, (1 << 63).to_bytes(8, "little") * 8]
)
def test_hostile_structures(
    kho: Run, handoff: Path, tmp_path: Path, what: str, junk: bytes
) -> None:
    path = patched(tmp_path, handoff, {address_of(handoff, what): junk})
    for verb in ("dump", "info", "check"):
        result = kho(verb, path)
        assert "Traceback" not in result.err
        assert result.status in (0, 1, 4, 5, 16, 17, 20, 21)


def test_cyclic_lists_end(kho: Run, handoff: Path, tmp_path: Path) -> None:
    sessions = address_of(handoff, "sessions")
    path = patched(tmp_path, handoff, {sessions: sessions.to_bytes(8, "little")})
    result = kho("check", path)
    assert result.status & 4
    assert "cycle" in result.text


def test_unknown_root_is_decoded_as_far_as_it_goes(kho: Run, handoff: Path, tmp_path: Path) -> None:
    from inspector import memory

    with memory.open(handoff) as opened:
        page = opened.read(ROOT_PA, 4096)
    at = page.find(b"kho-v4\0")
    path = patched(tmp_path, handoff, {ROOT_PA + at: b"kho-v9\0"})
    result = kho("dump", path)
    assert result.status & 4
    assert "kho-v9" in result.text
    assert "labtrace" in result.text


@pytest.mark.parametrize("name", [b"\x1b[2J", b"a/b", b"new\nline", b"\xff\xfe", b"x" * 64, b""])
def test_names_are_data(kho: Run, handoff: Path, tmp_path: Path, name: bytes) -> None:
    sessions = address_of(handoff, "sessions")
    path = patched(tmp_path, handoff, {sessions + 16: name.ljust(64, b"\0")})
    result = kho("dump", path)
    assert b"\x1b" not in result.out
    assert "Traceback" not in result.err
    import json

    from inspector.text import component_bytes, name_bytes

    document = json.loads(kho("dump", path, "-f", "json").text)
    session = document["luo"]["sessions"][0]
    assert name_bytes(session["name"]) == name
    if name not in (b"",):
        assert component_bytes(session["path"].rpartition("/")[2]) == name
        assert kho("dump", path, session["path"]).status in (0, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "IMAGE", "-o", "out.elf"],
        ["extract", "IMAGE", "-o", "out.elf.zst"],
        ["simulate", "linux-7.3", "-o", "out.elf"],
        ["report", "IMAGE", "-o", "out.html"],
    ],
    ids=lambda arguments: " ".join((arguments[0], arguments[-1])),
)
def test_no_room_for_the_output(arguments: list[str], tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    image, room = tmp_path / "in.elf", tmp_path / "room"
    image.write_bytes(plain(CORPUS / "linux-6.17.8-handoff.elf.zst"))
    room.mkdir()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    code = f"{limit}import sys; sys.argv[0] = 'kho'; from inspector.cli.app import main; main()"
    done = subprocess.run(
        # -B: bytecode that is cut off by the limit would stay behind.
        [sys.executable, "-B", "-c", code, *(str(image) if a == "IMAGE" else a for a in arguments)],
        cwd=room,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 8
    assert one_line(done.stderr)
    assert arguments[-1] in done.stderr
    assert not list(room.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmup"], "did you mean 'dump'"),
        (["dump"], "missing argument 'IMAGE'"),
        (["dump", "IMAGE", "--fromat", "json"], "--format"),
        (["dump", "IMAGE", "--format", "yaml"], "'text', 'json'"),
        (["diff", "IMAGE"], "second image or --consumed-by"),
        (["compat", "IMAGE", "--to", "linux-9.9"], "linux-6.16, linux-6.17"),
        (["consume", "IMAGE", "--as", "7.3", "--session", "nope"], "/LUO/sessions"),
        (["check", "IMAGE", "--rule", "nope"], "kho explain"),
        (["simulate", "nope", "-o", "OUT"], "kho simulate --list"),
        (["simulate", "linux-7.3", "-o", "OUT", "--fault", "zz"], "kho simulate --faults"),
        (["dump", "IMAGE", "--root", "0x1000"], "without --root"),
        (["dump", "IMAGE", "--abi", "luo-v5"], "kho abi list"),
    ],
)
def test_wrong_calls_say_what_to_do_next(
    kho: Run, handoff: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    places = {"IMAGE": str(handoff), "OUT": str(tmp_path / "out.elf")}
    result = kho(*(places.get(word, word) for word in words))
    assert result.status == 2
    assert one_line(result.err)
    assert said.lower() in result.err.lower()


@pytest.mark.parametrize("words", [[], ["abi"]])
def test_nothing_asked_shows_the_help(kho: Run, words: list[str]) -> None:
    result = kho(*words)
    assert result.status == 2
    assert "Commands:" in result.err


def test_output_that_cannot_be_written(kho: Run, handoff: Path, tmp_path: Path) -> None:
    result = kho("extract", handoff, "-o", tmp_path / "absent" / "out.elf")
    assert result.status == 8
    assert one_line(result.err)


def test_a_reader_that_goes_away_is_no_difference() -> None:
    """Status 1 would say that something differs."""
    command = [sys.executable, "-m", "inspector.cli.app", "abi", "list", "--format", "json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert not err


@pytest.mark.parametrize("verb", ["cat", "extract"])
def test_sizes_of_thousands_of_digits(kho: Run, handoff: Path, tmp_path: Path, verb: str) -> None:
    number = "9" * 5000
    words = ["/scratch/0", "--max-size", number]
    if verb == "extract":
        words = ["-o", str(tmp_path / "out.elf"), "--max-file", number]
    result = kho(verb, handoff, *words)
    assert result.status == 2
    assert one_line(result.err)


def test_a_case_that_is_none(kho: Run, handoff: Path) -> None:
    result = kho("fuzz", "--replay", handoff)
    assert result.status == 8
    assert one_line(result.err)
    assert len(result.err) < 200
