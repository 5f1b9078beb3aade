"""Scenario files: what they make, what they refuse, the shipped ones, chains, the verb."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abi.errors import UsageError
from inspector import image as decoded_image
from inspector.findings import Severity
from inspector.kernel import profile_file, scenario, toml_file
from inspector.kernel import room as rooms
from inspector.kernel.outgoing import memfd
from inspector.kernel.scenario import hardware_file
from inspector.kernel.toml_file import Document, ScenarioError, parse_size

#: Too large to run with every other test.
LARGE = {"memfds-10000", "devices-100000"}

HEAD = 'kernel = "linux-7.3"\n'


def run(text: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (cwd / "s.toml").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "inspector.cli.app", "simulate", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(set(scenario.shipped()) - LARGE))
def test_shipped_scenarios_are_decoded_without_a_complaint(name: str) -> None:
    chosen = scenario.load(name)
    image = chosen.run()
    overrides = {
        layer: chosen.kernel[layer]
        for layer in ("pci", "vfio-pci", "iommu", "iommufd")
        if chosen.kernel.has(layer)
    }
    with decoded_image.open(image.memory, overrides=overrides) as found:
        assert [f for f in found.findings if f.severity >= Severity.WARNING] == []
        assert found.root is not None
        assert found.root.address == image.root
        luo = image.kernel.luo_or_none
        if luo is not None:
            assert found.luo is not None
            assert [s.name.decode() for s in found.luo.sessions] == [s.name for s in luo.sessions]
            for seen, meant in zip(found.luo.sessions, luo.sessions, strict=True):
                assert [f.token for f in seen.files] == list(meant.files)


@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_scenarios_are_sound(name: str) -> None:
    chosen = scenario.load(name)
    assert chosen.title
    assert len(chosen.steps) >= 10000


def digest(image_of: scenario.Scenario, seed: int | None) -> str:
    image = image_of.run(seed=seed)
    found = hashlib.sha256()
    for start, piece in image.memory.extents():
        found.update(start.to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


def test_a_seed_determines_the_image() -> None:
    text = HEAD + (
        '[machine]\nshuffle = true\nfragmentation = 0.4\n[[session]]\nname = "a"\n'
        '[[session.file]]\ntoken = 1\nsize = "300K"\n[kho_test]\n'
    )
    chosen = scenario.parse(text)
    assert digest(chosen, 5) == digest(scenario.parse(text), 5)
    assert digest(chosen, 5) != digest(chosen, 6)


@pytest.mark.parametrize(
    ("text", "line", "key", "reason"),
    [
        ("x = 1", 1, "kernel", "is missing"),
        ('kernel = "linux-9"', 1, "kernel", "no kernel 'linux-9'"),
        ("kernel = 5", 1, "kernel", "is not a string"),
        (HEAD + "kernels = 5", 2, "kernels", "did you mean 'kernel'?"),
        (HEAD + 'seed = "x"', 2, "seed", "is no number"),
        (HEAD + "seed = -1", 2, "seed", "does not fit in 64 bits"),
        (HEAD + '[machine]\nram = ["12X"]', 3, "machine.ram", "no memory like"),
        (HEAD + '[machine]\nram = ["1M", "2M@node1", "0+1M"]', 2, "machine", "overlaps"),
        (HEAD + '[machine]\npage_size = "16K"', 2, "machine", "x86_64 has pages of 4096"),
        (HEAD + 'moment = "later"', 2, "moment", "there are: outgoing, handoff"),
        (HEAD + "[[session]]\n", 2, "session[0].name", "is missing"),
        (HEAD + '[[session]]\nname = "a"\ncount = 2', 3, "session[0].name", "needs {i}"),
        (HEAD + '[[session]]\nname = "a"\n[[session.file]]\n', 4, "token", "is missing"),
        (
            HEAD + '[[session]]\nname = "a"\n[[session.file]]\ntoken = 1\nsiz = 3\nsize = 4',
            6, "session[0].file[0].siz", "did you mean 'size'?",
        ),
        (
            HEAD + '# comment\n[[session]]\nname = "a"\n[[session]]\nname = "a"',
            6, "session[1].name", "-EEXIST",
        ),
        (
            HEAD + '[[session]]\nname = "a"\n[[step]]\ndo = "close"\nsession = "b"',
            6, "step[0].session", "there is no session 'b'",
        ),
        (HEAD + '[[step]]\ndo = "clsoe"', 3, "step[0].do", "did you mean 'close'?"),
        (
            HEAD + '[[session]]\nname = "a"\n[[step]]\ndo = "close"\nsession = "a"\n'
            'expect = "EBUSY"', 7, "step[0].expect", "succeeded, not -EBUSY",
        ),
        (HEAD + '[[step]]\ndo = "finalize"\nexpect = "EFUNNY"', 4, "expect", "no error like"),
        (HEAD + "[[fault]]\nname = 'session-cylce'\n", 3, "fault[0].name", "session-cycle"),
        (HEAD + "[[fault]]\nname = 'session-cycle'\n", 3, "fault[0].name", "needs 1"),
        ('kernel = "linux-6.17"\n[[session]]\nname = "a"', 2, "session[0]", "has no sessions"),
        (HEAD + "[[reserve_mem]]\nname = 'a'\nsize = 0", 4, "reserve_mem[0].size", "is 0"),
        (HEAD + "[machine]\ndevice = [\n { bdf = '00:99.0' },\n]", 3, "bdf", "no PCI address"),
        (HEAD + '[[update]]\nkernel = "linux-6.17"', 2, "update[0]", "kho-refused"),
        (
            HEAD + '[[session]]\nname = "a"\n[[session.file]]\ncount = 2\n'
            'token = "0xffffffffffffffff"', 6, "session[0].file[0].token", "2 tokens from",
        ),
        (
            'kernel = "linux-7.3+kvm-caretaker"\n[[session]]\nname = "a"\n[[session.file]]\n'
            'type = "kvm-vcpu"\ntoken = 1\nvm = "x"\nstate = "1T"', 8, "file[0].state", "more than",
        ),
        (
            'kernel = "linux-7.3+kvm-caretaker"\n[[session]]\nname = "a"\n[[session.file]]\n'
            'type = "kvm-vm"\nid = "m"\ntoken = 1\n[[session.file]]\ntype = "kvm-vcpu"\n'
            'token = 2\nvm = "m"\nvcpu = 9\n[[session.file]]\ntype = "kvm-vcpu"\ntoken = 3\n'
            'vm = "m"\nvcpu = 9', 17, "session[0].file[2].vcpu", "-EEXIST",
        ),
        (HEAD + '[[session]]\nname = ""', 3, "session[0].name", "-EINVAL"),
        (
            'kernel = "linux-7.3+iommu-vw"\n[[machine.iommu]]\nbase = 1\n[[session]]\nname = "a"\n'
            '[[session.file]]\ntype = "iommufd"\ntoken = 1\n[[session.file.hwpt]]\nname = "h"\n'
            'ioas = "x"', 11, "session[0].file[0].hwpt[0].ioas", "there is no ioas 'x'",
        ),
        (HEAD + "[[reserve_mem]]\nname = 'a/b'\nsize = 1", 3, "reserve_mem[0].name", "no name"),
        (HEAD + "[[reserve_mem]]\nname = 'a'\nsize = '1T'", 4, "reserve_mem[0].size", "no room"),
        (HEAD + "[machine]\nram = ['1M']", 2, "machine", "no room for a scratch area"),
        (
            HEAD + '[[session]]\nname = "a"\n[[session.file]]\ntoken = 7\nsize = "1T"',
            6, "session[0].file[0].size", "-ENOMEM",
        ),
        (
            HEAD + '[[session]]\nname = "a"\n[[session.file]]\ntoken = 7\nsize = '
            '"0xffffffffffffffff"\nfill = "zero"', 6, "session[0].file[0].size", "-EINVAL",
        ),
        (
            HEAD + '[[session]]\nname = "a"\n[[session.file]]\ntoken = 7\n[[session.file]]\n'
            "token = 7\nid = 'x'", 7, "session[0].file[1].token", "-EEXIST",
        ),
        (
            'kernel = "linux-7.3+iommu-vw"\n[[machine.device]]\nbdf = "00:03.0"\n'
            '[[session]]\nname = "a"\n[[session.file]]\ntype = "vfio-pci"\ntoken = 1\n'
            'bdf = "00:03.0"\nirqs = true',
            1, "scenario", "the kernel refuses to reboot: -EINVAL",
        ),
    ],
)  # fmt: skip
def test_bad_scenarios_name_line_key_and_reason(
    text: str, line: int, key: str, reason: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.parse(text, "s.toml").run()
    message = str(caught.value)
    assert message.startswith(f"s.toml:{line}: ")
    assert key in message
    assert reason in message
    assert "\n" not in message
    assert caught.value.exit_status == 2


SESSION = '[[session]]\nname = "{i}"\ncount = 2\n[[session.file]]\ntoken = 1\n'


@pytest.mark.parametrize(
    ("text", "line", "key", "asked", "hint"),
    [
        (SESSION + 'size = "3M"', 7, "session[0].file[0].size", "6 MiB", "sparse"),
        (SESSION + 'count = 3\nsize = "1M"', 8, "session[0].file[0].size", "6 MiB", "sparse"),
        (
            SESSION + 'count = 3\nsize = "2M"\nfill = "every-other"',
            8, "session[0].file[0].size", "6 MiB", "sparse",
        ),
        (
            SESSION + '[[update]]\n[[update.file]]\nsize = "2M"\n'
            '[[update]]\n[[update.file]]\nsize = "3M"',
            12, "update[1].file[0].size", "5 MiB", "sparse",
        ),
        (
            '[[file]]\nid = "f"\nsize = "1M"\n[[step]]\ndo = "write"\nfile = "f"\nsize = "4M"',
            8, "step[0].size", "5 MiB", "for 4 MiB\n",
        ),
        (
            "[[reserve_mem]]\nname = 'a'\nsize = '256M'\n"
            "[[reserve_mem]]\nname = 'b'\nsize = '5M'\npattern = 1",
            7, "reserve_mem[1].size", "5 MiB", "without a pattern",
        ),
        ("[kho_test]\npages = 2048", 3, "kho_test.pages", "8 MiB", "for 4 MiB\n"),
    ],
)  # fmt: skip
def test_more_content_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch, text: str, line: int, key: str, asked: str, hint: str
) -> None:
    monkeypatch.setattr(scenario, "room", lambda: 4 << 20)
    with pytest.raises(ScenarioError) as caught:
        scenario.parse(HEAD + text, "s").run()
    message = str(caught.value)
    wanted = f"s:{line}: {key}: the scenario asks for {asked} of content in all, and there is"
    assert message.startswith(f"{wanted} memory for 4 MiB")
    assert hint in message + "\n"
    monkeypatch.setattr(scenario, "room", lambda: 8 << 20)
    scenario.parse(HEAD + text, "s").run()


@pytest.mark.parametrize("fill", ["head", "tail", "zero"])
def test_sparse_files_take_no_room(monkeypatch: pytest.MonkeyPatch, fill: str) -> None:
    monkeypatch.setattr(scenario, "room", lambda: 1)
    scenario.parse(HEAD + SESSION + f'size = "64M"\nfill = "{fill}"').run()


def test_more_folios_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'kernel = "linux-7.3"\n[machine]\nram = ["16G"]\n' + SESSION
    text += 'size = "7G"\nfill = "zero"\n'
    monkeypatch.setattr(memfd, "room", lambda: 64 << 20)
    with pytest.raises(ScenarioError, match=r"1835008 folios take 112 MiB .* huge = true makes"):
        scenario.parse(text).run()
    scenario.parse(text + "huge = true").run()


def test_content_beyond_measure_is_one_line(tmp_path: Path) -> None:
    text = 'kernel = "linux-7.3"\n[machine]\nram = ["15T"]\n' + SESSION + 'size = "10T"'
    result = run(text, "s.toml", "-o", "out.elf", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the scenario asks for 20 TiB of content in all" in result.stderr
    assert not (tmp_path / "out.elf").exists()


def test_room_is_what_the_machine_or_a_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LEAST", 0)
    left = rooms.room()
    assert left > 0
    soft = {rooms.resource.RLIMIT_AS: 1 << 60, rooms.resource.RLIMIT_DATA: 1 << 60}
    monkeypatch.setattr(rooms.resource, "getrlimit", lambda limit: (soft[limit], 1 << 60))
    soft[rooms.resource.RLIMIT_DATA] = 1
    assert rooms.room() == 0
    monkeypatch.setattr(rooms, "LEAST", 5)
    assert rooms.room() == 5


def test_a_long_write_is_that_of_its_pieces() -> None:
    text = HEAD + '[[file]]\nid = "f"\nsize = "1M"\nfill = "zero"\n[[step]]\ndo = "write"\n'
    made = scenario.parse(text + 'file = "f"\noffset = 4099\nsize = "3M"\npattern = 5')
    kernel = made.boot()
    file = made.perform(kernel).memfd("f")
    assert file.read(0, file.size) == bytes(4099) + memfd.pattern_bytes(5, 4099, 3 << 20)
    # Its pages are taken all at once, as of any write.
    assert [(extent.index, len(extent.frames)) for extent in file.extents] == [(1, 769)]


def test_broken_toml() -> None:
    with pytest.raises(ScenarioError, match=r"^s.toml:2: "):
        scenario.parse('kernel = "linux-7.3"\n[machine\n', "s.toml")


def test_lines_of_keys() -> None:
    text = (
        'a = """\n[not.a.table]\nb = 1\n"""\nc = [\n 1, # ]\n 2,\n]\n[t]\n"q d" = 1\n'
        "[[t.list]]\nx = 1\n[[t.list]]\nx = { y = 1 }\n[t.list.sub]\nz.w = 1\n"
    )
    lines = Document(text, "x").lines
    assert lines[("c",)] == 5
    assert lines[("t",)] == 9
    assert lines[("t", "q d")] == 10
    assert lines[("t", "list", 0, "x")] == 12
    assert lines[("t", "list", 1, "x")] == 14
    assert lines[("t", "list", 1, "sub", "z", "w")] == 16
    assert ("b",) not in lines


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4K", 4096), ("1GiB", 1 << 30), ("0x1000", 4096), ("2 M", 2 << 20), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "4X", "-1", "1.5M", -1, True])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'linux-7\.3'"):
        scenario.load("linux-7-3")
    with pytest.raises(UsageError, match="no such file"):
        scenario.load("./none.toml")


def test_chain_of_three_updates() -> None:
    image = scenario.load("chain").run()
    with decoded_image.open(image.memory) as found:
        assert found.findings == []
        assert found.luo is not None
        assert found.luo.number == 4
        assert found.kexec_metadata is not None
        assert found.kexec_metadata.kexec_count == 4
        files = {(s.name, f.token): f.state for s, f in found.luo.files()}
        assert files[b"vm", 1].size == 4 << 20
        assert files[b"vm", 2].pos == 200
        assert (b"second", 1) in files
    from inspector.kernel.outgoing.memfd import pattern_bytes

    for session in image.kernel.luo.sessions:
        for token, entry in session.files.items():
            content = entry.file.read(0, entry.file.size)
            assert content == pattern_bytes(token, 0, entry.file.size)


def test_the_verb(tmp_path: Path) -> None:
    good = HEAD + '[[session]]\nname = "a"\n[[session.file]]\ntoken = 1\ntext = "hello"\n'
    done = run(good, "s.toml", "-o", "out.elf.zst", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with decoded_image.open(str(tmp_path / "out.elf.zst")) as found:
        assert found.luo is not None
        assert found.luo.sessions[0].name == b"a"
    again = run(good, "s.toml", "-o", "out.elf.zst", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert run(good, "s.toml", "-o", "out.elf.zst", "--force", cwd=tmp_path).returncode == 0

    bad = run(HEAD + "seeed = 1\n", "s.toml", "-o", "bad.elf", cwd=tmp_path)
    assert bad.returncode == 2
    assert bad.stderr == "kho: s.toml:2: seeed: no such key 'seeed'; did you mean 'seed'?\n"
    assert not (tmp_path / "bad.elf").exists()

    broken = run(good, "s.toml", "-o", "x.elf", "--fault", "session-cycle", cwd=tmp_path)
    assert broken.returncode == 0
    listed = run(good, "--list", cwd=tmp_path)
    assert "linux-7.3 " in listed.stdout
    assert "session-cycle" in run(good, "--faults", cwd=tmp_path).stdout
    unmeasured = run('kernel = "linux-7.0"', "s.toml", "-o", "y.elf", cwd=tmp_path)
    assert "no real one was measured" in unmeasured.stderr


def test_present_zero_pages_take_no_room(tmp_path: Path) -> None:
    text = HEAD + (
        '[[session]]\nname = "a"\n[[session.file]]\ntoken = 1\nsize = "64M"\nfill = "head"\n'
    )
    assert run(text, "s.toml", "-o", "z.elf", cwd=tmp_path).returncode == 0
    assert (tmp_path / "z.elf").stat().st_size < 2 << 20
    with decoded_image.open(str(tmp_path / "z.elf")) as found:
        assert found.luo is not None
        ((_, file),) = found.luo.files()
        for pa in file.state.addresses.tolist()[1:50]:
            assert found.memory.read(pa, 4096) == bytes(4096)


def test_the_examples_of_the_manual() -> None:
    manual = (Path(__file__).parent.parent.parent / "docs" / "scenarios.md").read_text()
    first, second, third, fourth = re.findall(r"```toml\n(.*?)```", manual, re.DOTALL)
    assert scenario.parse(first).run().root
    again = scenario.parse(first + fourth).run().kernel
    assert again.live_updates == 1
    assert again.luo.sessions[0].files[0x1001].file.pos == 200
    made = scenario.parse(second).run().kernel
    assert made.iommu is not None
    assert list(made.luo.sessions[0].files) == [0x1001, 0x10, 0xD0]
    made = scenario.parse(third).run().kernel
    assert list(made.luo.sessions[0].files) == [0x10, 0x11, 0x20, 0x21, 0x30, 0x40]


def test_the_manual_lists_the_shipped_scenarios() -> None:
    manual = (Path(__file__).parent.parent.parent / "docs" / "scenarios.md").read_text()
    part = manual.split("## Shipped scenarios")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `([a-z0-9.-]+)` \| (.*) \|$", part, re.MULTILINE))
    assert listed == scenario.shipped()


def test_every_step() -> None:
    text = """
kernel = "linux-7.3+iommu-vw"
[[machine.iommu]]
base = 0x1000
[[machine.device]]
bdf = "00:03.0"
[[file]]
id = "loose"
size = "1M"
seals = ["seal", "shrink", "grow"]
[[file]]
type = "iommufd"
id = "fd"
[[file.ioas]]
name = "space"
[[file.hwpt]]
name = "one"
ioas = "space"
[[file.hwpt]]
name = "two"
ioas = "space"
[[file]]
id = "gone"
size = "64K"
[[step]]
do = "create-session"
name = "s"
[[step]]
do = "preserve"
session = "s"
file = "loose"
token = 1
[[step]]
do = "write"
file = "loose"
offset = 100
text = "hello"
[[step]]
do = "truncate"
file = "loose"
size = 1
expect = "EPERM"
[[step]]
do = "truncate"
file = "gone"
size = "4K"
[[step]]
do = "fallocate"
file = "gone"
offset = 0
size = "8K"
[[step]]
do = "seal"
file = "gone"
seals = ["write"]
[[step]]
do = "seek"
file = "loose"
pos = 9
[[step]]
do = "drop"
file = "gone"
[[step]]
do = "map"
ioas = "space"
file = "loose"
iova = 0x10000
size = "64K"
[[step]]
do = "unmap"
ioas = "space"
iova = 0x10000
size = "64K"
[[step]]
do = "attach"
device = "00:03.0"
hwpt = "one"
[[step]]
do = "replace"
device = "00:03.0"
hwpt = "two"
[[step]]
do = "destroy"
object = "two"
expect = "EBUSY"
[[step]]
do = "destroy"
object = "one"
[[step]]
do = "mark"
hwpt = "two"
token = 5
[[step]]
do = "unmark"
hwpt = "two"
[[step]]
do = "detach"
device = "00:03.0"
iommufd = "fd"
[[step]]
do = "preserve"
session = "s"
file = "fd"
token = 2
[[step]]
do = "finalize"
expect = "EOPNOTSUPP"
"""
    image = scenario.parse(text).run()
    with decoded_image.open(image.memory) as found:
        assert found.luo is not None
        ((_, file), (_, fd)) = found.luo.files()
        assert (file.state.pos, file.state.size) == (9, 1 << 20)
        assert fd.state.nr_hwpts == 0
        assert found.memory.read(int(file.state.addresses[0]) + 100, 5) == b"hello"


@pytest.mark.parametrize("name", ["linux-6.17", "linux-7.3", "linux-7.3-arm64-16k"])
def test_outgoing_moment(name: str) -> None:
    """Before the jump the segments are empty; the root is found all the same."""
    image = scenario.load(name).run(moment="outgoing")
    memory = image.memory
    assert memory.read(image.segments.scratch_array, 64) == bytes(64)
    assert memory.read(image.segments.parameters, 4096) == bytes(4096)
    with decoded_image.open(memory) as found:
        assert found.root is not None
        assert found.root.address == image.root
        assert [f for f in found.findings if f.severity >= Severity.ERROR] == []


# -- texts that are hard to read ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a", '"b"', "'c'", '"\u2028"', r'"\""', "a ", '"#"'],
    ids=lambda name: name.encode().hex(),
)
@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "x = {{ {} = 1 }}"])
def test_keys_of_many_names(name: str, form: str) -> None:
    for many in (toml_file.MAX_NAMES + 1, 5000):
        with pytest.raises(ScenarioError, match=r"^s:2: a key of more than 32 names"):
            Document("\n" + form.format(".".join([name] * many)), "s")
    Document("\n" + form.format(".".join([name] * toml_file.MAX_NAMES)), "s")


def test_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml_file, "MAX_TEXT", 1 << 20)
    path = tmp_path / "s.toml"
    path.write_text("#" * (1 << 20))
    with pytest.raises(ScenarioError, match="kernel"):
        scenario.load(path)
    path.write_text("#" * ((1 << 20) + 1))
    for load in (scenario.load, hardware_file.load, profile_file.find):
        with pytest.raises(ScenarioError, match="more than 1 MiB"):
            load(str(path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seed = 0x" + "f" * 100_000, "s:2: seed: a number of 400000 bits does not fit"),
        ("seed = " + "9" * 5000, "s:1: Exceeds the limit"),
        ('seed = "' + "9" * 5000 + '"', "s:2: seed: .* is no number"),
        ("[[reserve_mem]]\nname='a'\nsize = 0x" + "f" * 5000, "a number of 20000 bits is no size"),
        ("[[reserve_mem]]\nname='a'\nsize = '99999999T'", "'99999999T' is no size"),
        ("[machine]\nfragmentation = 0x" + "f" * 5000, "a number of 20000 bits is too large"),
        ("[machine]\nfragmentation = nan", "fragmentation is at least 0"),
    ],
    ids=["hex", "decimal", "text", "size", "large size", "fraction", "nan"],
)
def test_numbers_of_any_length(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        scenario.parse(f'kernel = "linux-7.3"\n{line}\n', "s")
