"""Sources and kernels: what is accepted, and how a refusal reads."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from abi.errors import KhoError, UnreadableError, UsageError
from lab import build, sources
from lab.host import LabError, MissingTool
from lab.sources import Version

ROOT = Path(__file__).resolve().parents[2]


def bzimage(path, release="9.9.9-test", protocol=0x20F, flags=1):
    data = bytearray(0x1000)
    data[0x1F1] = 7
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    struct.pack_into("<H", data, 0x20E, 0x500)
    struct.pack_into("<H", data, 0x236, flags)
    data[0x700 : 0x700 + len(release) + 1] = release.encode() + b"\0"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7.3", (7, 3, 0)),
        ("7.3.4-1~bpo13+1", (7, 3, 4)),
        ("6.19.11", (6, 19, 11)),
        ("7.3.4-rc1-dirty", (7, 3, 4)),
    ],
)
def test_versions(text, want):
    version = Version.parse(text)
    assert (version.major, version.minor, version.patch) == want


def test_candidates_come_before_their_release():
    assert Version.parse("7.3~rc7-1~exp1") < Version.parse("7.3") < Version.parse("7.3.1")
    assert str(Version.parse("7.3~rc7-1~exp1")) == "7.3-rc7"
    assert Version.parse("linux") is None


def test_a_bzimage_tells_its_release(tmp_path):
    kernel = build.find(str(bzimage(tmp_path / "bzImage")))
    assert (kernel.release, kernel.version) == ("9.9.9-test", Version(9, 9, 9))
    assert kernel.vmlinux is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a bzImage"), (b"\x7fELF" * 1000, "not a bzImage"), (None, "No such file")],
)
def test_what_is_no_bzimage(tmp_path, content, message):
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableError, match=message):
        build.find(str(path))


def test_a_kernel_without_a_64_bit_entry(tmp_path):
    with pytest.raises(UnreadableError, match="64-bit entry"):
        build.from_bzimage(bzimage(tmp_path / "k", flags=0))


def test_unknown_kernels_name_what_there_is(cache):
    with pytest.raises(UsageError, match=r"no kernel 4\.4: .*not in the cache \(none\)"):
        build.find("4.4")


def test_cached_kernels_are_found_by_name_release_and_series(cache):
    for name in ("7.3.3", "7.3.4", "7.3.4-iommu"):
        directory = cache / "kernels" / name
        directory.mkdir(parents=True)
        bzimage(directory / "bzImage", name)
        release = name.removesuffix("-iommu")
        (directory / "build.json").write_text(json.dumps({"name": name, "release": release}))
    assert build.find("7.3").name == "7.3.4"
    assert build.find("7.3.3").name == "7.3.3"
    assert build.find("7.3.4-iommu").name == "7.3.4-iommu"


def test_trees_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="neither a directory nor a release"):
        build.build(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="no Makefile"):
        build.build(str(tmp_path))


def tree(path):
    (path / "arch/x86").mkdir(parents=True)
    (path / "Kconfig").write_text("")
    (path / "Makefile").write_text("%:\n\t@echo 'error: no rule here' >&2; exit 2\n")
    return path


def test_a_tree_that_was_built_in_place(tmp_path):
    (tree(tmp_path) / ".config").write_text("")
    with pytest.raises(LabError, match="mrproper"):
        build.build(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_tree(tmp_path):
    (tree(tmp_path) / "Makefile").chmod(0)
    with pytest.raises(LabError, match="permission denied"):
        build.build(str(tmp_path))


def test_no_compiler(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="make is not installed"):
        build.build(str(tree(tmp_path / "linux")))


def test_no_room(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(build, "_check_tools", lambda: None)
    monkeypatch.setattr(build.sources, "fetch", lambda spec: pytest.fail("downloads"))
    usage = build.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    for source in (str(tree(tmp_path / "linux")), "7.3"):
        with pytest.raises(LabError, match=r"a build needs .* GB, .* has 0\.0 GB left"):
            build.build(source)


def test_a_release_is_not_downloaded_without_a_compiler(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(build.sources, "fetch", lambda spec: pytest.fail("downloads"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="make is not installed"):
        build.build("7.3")


def test_a_build_that_fails_leaves_no_kernel(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(build, "_check_tools", lambda: None)
    with pytest.raises(LabError, match=r"build .*error: no rule here"):
        build.build(str(tree(tmp_path / "linux")))
    assert [p for p in (cache / "kernels").iterdir() if p.is_dir()] == []


def test_releases_and_paths_are_told_apart():
    assert sources.is_release("7.3")
    assert sources.is_release("7.3.4")
    assert not sources.is_release("linux-7.3")
    assert not sources.is_release("./7.3")
    assert not sources.is_release("7")


@pytest.mark.parametrize("iommu", [False, True])
def test_the_configuration_is_well_formed(iommu):
    lines = [line for line in build.configuration(iommu).splitlines() if line]
    for line in lines:
        assert line.startswith(("CONFIG_", "#")), line
    names = [line.split("=")[0] for line in lines if line.startswith("CONFIG_")]
    assert len(names) == len(set(names))
    assert ("CONFIG_IOMMUFD" in names) is iommu


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["build"], 2, "either --source TREE|RELEASE or --kernel"),
        (["build", "--source", "/nonexistent"], 2, "neither a directory nor a release"),
        (["boot", "/nonexistent", "-k", "/nonexistent/bzImage"], 8, "No such file"),
        (["capture", "-o", "x", "-k", "0.0", "--moments", "noon"], 2, "unknown moment 'noon'"),
        (["capture", "-o", "x", "-k", "0.0", "--formats", "tar"], 2, "unknown format 'tar'"),
        (["matrix"], 2, "no kernels in the cache"),
    ],
)
def test_bad_use_is_one_line(tmp_path, arguments, status, message):
    done = run(*arguments, KHO_LAB_CACHE=str(tmp_path))
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert issubclass(KhoError, Exception)
