"""What the lab leaves behind: nothing."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import host
from lab.host import LabError, MissingTool

ROOT = Path(__file__).resolve().parents[2]


def alive(pid):
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_child_that_never_ends_is_killed_with_its_children(tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(LabError, match="sleepy: gave up after 1 s"):
        host.run(["sh", "-c", f"sleep 100 & echo $! > {pids}; wait"], "sleepy", timeout=1)
    wait_until(lambda: not alive(int(pids.read_text())))


def test_a_failure_says_why_in_one_line():
    with pytest.raises(LabError) as caught:
        host.run(
            ["sh", "-c", "echo noise; echo 'cc: error: bad flag'; echo tail; exit 3"], "compile"
        )
    assert str(caught.value) == "compile: cc: error: bad flag"


def test_a_full_disk_is_named():
    with pytest.raises(LabError, match="No space left"):
        host.run(["sh", "-c", "echo 'ld: No space left on device'; echo error: x; exit 1"], "link")
    with pytest.raises(LabError, match="copy: no space left"), host.os_errors("copy"):
        raise OSError(errno.ENOSPC, "whatever")


def test_a_missing_tool_names_its_package():
    with pytest.raises(MissingTool, match=r"no-such-tool is not installed.*Debian: some-package"):
        host.tool("no-such-tool", "some-package", "this")


def test_work_areas_go_even_after_errors(tmp_path):
    with pytest.raises(IsADirectoryError), host.work_area(tmp_path) as area:
        area.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_work_areas_of_killed_labs_are_swept(tmp_path):
    code = (
        "import os, sys; from lab import host; from pathlib import Path\n"
        f"with host.work_area(Path({str(tmp_path)!r})) as area: os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with host.work_area(tmp_path) as area:
        assert list(tmp_path.iterdir()) == [area]


def half(path):
    path.write_text("half")
    raise TypeError


def test_a_new_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(TypeError), host.new_file(target) as path:
        half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "old"
    with host.new_file(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"


def test_children_die_with_a_killed_lab(tmp_path):
    code = (
        "import time; from lab import host\n"
        "child = host.start(['sleep', '100']); print(child.pid, flush=True); time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stdout is not None
        pid = int(lab.stdout.readline())
        assert alive(pid)
        lab.kill()
    wait_until(lambda: not alive(pid))


def test_an_unwritable_cache_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="lock the cache"), host.locked(tmp_path / "file/lock"):
        pass


def test_the_cache_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.setenv("KHO_LAB_CACHE", "/somewhere")
    assert host.cache_directory() == Path("/somewhere")
    monkeypatch.delenv("KHO_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert host.cache_directory() == Path("/xdg/kho-lab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert host.cache_directory() == Path.home() / ".cache/kho-lab"
    assert os.environ.get("KHO_LAB_CACHE") is None
