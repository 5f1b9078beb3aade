"""Workloads: content, sizes, what is refused."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from abi.errors import KhoError, UsageError
from lab.workload import SEALS, FileSpec, Workload, mix, size_of

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def truth_files():
    record = json.loads((CORPUS / "linux-7.3.4-handoff.truth.json").read_text())
    return [f for f in record["files"] if f["kind"] in ("full", "thp", "mmapped", "fallocate")]


@pytest.mark.parametrize("file", truth_files()[::5], ids=lambda f: f["token"])
def test_content_is_that_of_the_corpus(file):
    """Two programs, one definition: what real captures hold is what this one generates."""
    token = int(file["token"], 0)
    content = "none" if file["kind"] == "fallocate" else "full"
    spec = FileSpec("s", token, token, file["size"], content=content)
    assert spec.sha256() == file["sha256"]


@pytest.mark.parametrize("content", ["full", "sparse", "tail", "none"])
@pytest.mark.parametrize("size", [0, 1, 7, 4096, 4097, (1 << 20) + 5, 3 << 20])
def test_content_by_the_definition(content, size):
    spec = FileSpec("s", 0x1234, 0x77, size, content=content)
    data = b"".join(spec.chunks())
    assert len(data) == size
    assert hashlib.sha256(data).hexdigest() == spec.sha256()
    written = {p for first, count in spec.runs for p in range(first, first + count)}
    for at in {0, 8, 4096, 8192, size // 2 & ~7, max(size - 8, 0) & ~7}:
        if at + 8 > size:
            continue
        want = mix((mix(0x77) + at // 8) & (2**64 - 1)) if at // 4096 in written else 0
        assert int.from_bytes(data[at : at + 8], "little") == want


def test_one_seed_one_workload():
    assert Workload.default(5) == Workload.default(5)
    assert Workload.default(5) != Workload.default(6)
    assert {f.sha256() for f in Workload.default(5).files if f.size > 100}.isdisjoint(
        f.sha256() for f in Workload.default(6).files if f.size > 100 and f.content != "none"
    )


def test_default_covers_every_shape():
    files = Workload.default(1).files
    assert {f.content for f in files} == {"full", "sparse", "tail", "none"}
    assert any(f.huge for f in files)
    assert any(f.method == "mmap" for f in files)
    assert {s for f in files for s in SEALS.values() if f.seals & s} == set(SEALS.values())
    assert any(f.token == 0 for f in files)
    assert any(f.token == 2**64 - 1 for f in files)
    assert any(len(name) == 63 for name in Workload.default(1).sessions)


def test_commands_are_what_init_reads():
    command = FileSpec("s", 1, 2, 8192, 5, 0x26, huge=False).command()
    assert re.fullmatch(r"memfd 0x1 0x2 8192 5 6 11 write 0\+2", command)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1\nsesion = []", "unknown key 'sesion'"),
        ('[[session]]\nname = ""', "session name"),
        (f'[[session]]\nname = "{"x" * 64}"', "session name"),
        ('[[session]]\nname = "a"\n[[session]]\nname = "a"', "each once"),
        ('[[session]]\nname = "a"\nfile = [{ size = "3Q" }]', "not a size"),
        ('[[session]]\nname = "a"\nfile = [{ seals = ["wax"] }]', "unknown seal"),
        ('[[session]]\nname = "a"\nfile = [{ token = 1 }, { token = 1 }]', "twice"),
        ('[[session]]\nname = "a"\nfile = [{ content = "odd" }]', "content is one of"),
        ('ram = "1M"', "multiple of 2M"),
        ('reserve_mem = [{ name = "a b" }]', "reserve_mem name"),
        ("seed = ", "workload.toml"),
    ],
)
def test_bad_workloads_are_one_clear_line(tmp_path, text, message):
    path = tmp_path / "workload.toml"
    path.write_text(text)
    with pytest.raises(KhoError, match=re.escape(message)) as caught:
        Workload.load(path)
    assert "\n" not in str(caught.value)


def test_json_and_toml_agree(tmp_path):
    toml, data = tmp_path / "w.toml", tmp_path / "w.json"
    toml.write_text('seed = 3\n[[session]]\nname = "a"\n[[session.file]]\nsize = "1M"\ncount = 2\n')
    data.write_text('{"seed": 3, "session": [{"name": "a", "file": [{"size": "1M", "count": 2}]}]}')
    assert Workload.load(toml) == Workload.load(data)
    assert len(Workload.load(toml).files) == 2


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), (7, 7), ("0x1000", 4096), ("4K", 4096), ("1G", 1 << 30)]
)
def test_sizes(text, value):
    assert size_of(text) == value


@pytest.mark.parametrize("text", ["", "-1", "4KB", "1.5M", "0x"])
def test_no_sizes(text):
    with pytest.raises(UsageError):
        size_of(text)
