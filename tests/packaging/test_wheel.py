"""What is installed is whole: a wheel is built, unpacked and run."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("abi", "inspector", "specs")
#: What a package may consist of; anything else in it is a mistake or a leftover.
SHIPPED = {".py", ".typed", ".ksy", ".j2", ".toml", ".js", ".json"}
LEFTOVERS = shutil.ignore_patterns("__pycache__", "node_modules", "*.pyc", ".*", "*.tmp")


def missing_backend() -> str | None:
    """Why no wheel can be built here without a network, or None."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        return "setuptools is not installed"
    if int(found.partition(".")[0]) < 77:
        return f"setuptools {found} is older than 77"
    try:
        version("pip")
    except PackageNotFoundError:
        return "pip is not installed"
    return None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree that is packaged, copied: a build leaves files behind."""
    tree = tmp_path_factory.mktemp("source") / "kho"
    tree.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=LEFTOVERS)
    for name in ("kho.py", "pyproject.toml", "README.md", "LICENSE", "docs/kho.1"):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    # What lies around in a checkout must not get in.
    for stray in ("tests", "lab", "benchmarks", "corpus"):
        (tree / stray).mkdir()
        (tree / stray / "__init__.py").write_text("")
    return tree


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = missing_backend()
    if reason:
        pytest.skip(f"cannot build a wheel: {reason}")
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def packaged(source: Path) -> Iterator[str]:
    """Every file of the rooms."""
    for room in ROOMS:
        for path in (source / room).rglob("*"):
            if path.is_file():
                assert path.suffix in SHIPPED, f"{path} is of no kind that is installed"
                yield path.relative_to(source).as_posix()


def test_every_file_is_in(source: Path, names: set[str]) -> None:
    files = set(packaged(source))
    assert {"abi/schema/struct.py", "inspector/cli/app.py", "specs/luo.ksy"} <= files
    assert not sorted(files - names)
    assert "kho.py" in names


def test_every_kind_is_in(names: set[str]) -> None:
    for suffix in (".ksy", ".j2", "/py.typed"):
        assert any(name.endswith(suffix) for name in names), suffix
    assert sum(n.startswith("inspector/kernel/scenario/shipped/") for n in names) >= 10
    assert {n for n in names if n.endswith("/py.typed")} == {f"{room}/py.typed" for room in ROOMS}
    assert any(n.endswith(".data/data/share/man/man1/kho.1") for n in names)


def test_nothing_else_is_in(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith((".dist-info", ".data"))} == {*ROOMS, "kho.py"}


def test_entry_point(wheel: Path, names: set[str]) -> None:
    (name,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    with ZipFile(wheel) as archive:
        points.read_string(archive.read(name).decode())
    assert points["console_scripts"]["kho"] == "inspector.cli.app:main"


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python far from the checkout, with the unpacked wheel ahead of it."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=site, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip


def test_every_module_is_importable(unpacked: Path, names: set[str]) -> None:
    modules = sorted(
        n.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for n in names
        if n.endswith(".py") and n.partition("/")[0] in (*ROOMS, "kho.py")
    )
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
    )
    done = run(unpacked, code, str(unpacked), *modules)
    assert done.returncode == 0, done.stderr


def test_it_runs(unpacked: Path) -> None:
    capture = ROOT / "corpus" / "linux-6.17.8-handoff.elf.zst"
    code = "from inspector.cli.app import main; main()"
    done = run(unpacked, code, "info", str(capture), "--format", "json")
    assert json.loads(done.stdout)["schema_version"] == 1, done.stderr
    scenario = unpacked / "inspector/kernel/scenario/shipped/linux-7.3.toml"
    made = run(unpacked, code, "simulate", str(scenario), "-o", str(unpacked / "made.elf"))
    assert made.returncode == 0, made.stderr
    report = run(unpacked, code, "report", str(unpacked / "made.elf"),
                 "-o", str(unpacked / "made.html"))  # fmt: skip
    assert (unpacked / "made.html").exists(), report.stderr
