"""This Python, kho and all that it needs, as an initramfs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lab.guest import Archive
from lab.host import LabError

_CHECKOUT = Path(__file__).resolve().parents[2]
_OURS = ("abi", "inspector", "kho.py")
_LEFT_OUT = frozenset(
    name
    for names in (
        "test tests idlelib tkinter turtledemo ensurepip lib2to3 pydoc_data",
        "__pycache__ site-packages dist-packages",
    )
    for name in names.split()
)
#: Where what lies: the command line of the guest says so to its Python.
ENVIRONMENT = {"PYTHONHOME": "/usr", "PYTHONPATH": "/site", "PYTHONDONTWRITEBYTECODE": "1"}
INTERPRETER = "/bin/python3"


def archive(*distributions: str) -> Archive:
    """A root file system with this interpreter, kho, and some distributions with all they need.

    Raises LabError if one is not installed.
    """
    made = Archive()
    for directory in ("dev", "proc", "sys", "tmp"):
        made.directory(directory)
    made.entry("dev/console", 0o020600, device=(5, 1))
    executable = Path(os.path.realpath(sys.executable))
    binaries = [executable]
    made.file(INTERPRETER[1:], executable.read_bytes(), executable=True)
    library = Path(sysconfig.get_path("stdlib"))
    target = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    for source, path in [
        *_tree(library, target),
        *_packages(distributions),
        *(pair for name in _OURS for pair in _tree(_CHECKOUT / name, f"site/{name}")),
    ]:
        made.file(path, source.read_bytes(), executable=".so" in source.suffixes)
        if ".so" in source.suffixes:
            binaries.append(source)
    for shared in _shared_objects(binaries):
        made.file(str(shared)[1:], shared.read_bytes(), executable=True)
    return made


def _tree(source: Path, target: str) -> Iterator[tuple[Path, str]]:
    """(file, path in the guest) of a module or a package."""
    if source.is_file():
        yield source, target
        return
    for base, directories, files in os.walk(source):
        directories[:] = [d for d in directories if d not in _LEFT_OUT and "config-" not in d]
        inside = Path(base).relative_to(source)
        for name in files:
            if not name.endswith((".pyc", ".a")):
                yield Path(base) / name, str(Path(target) / inside / name)


def _packages(names: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    wanted, seen = [(name, True) for name in names], set[str]()
    while wanted:
        name, needed = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if needed:
                raise LabError(f"{name} is not installed") from None
            continue  # for other systems or other Pythons
        wanted += [
            (match[0], ";" not in line)
            for line in found.requires or ()
            if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))
        ]
        for file in found.files or ():
            parts = file.parts
            if parts[0] == ".." or _LEFT_OUT & set(parts) or file.suffix == ".pyc":
                continue
            yield Path(str(found.locate_file(file))), f"site/{file}"


def _shared_objects(binaries: list[Path]) -> Iterator[Path]:
    """The system's libraries that some binaries need; those of packages come with them."""
    words = ["ldd", *(str(path) for path in binaries)]
    text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    own = {str(path.parent) for path in binaries[1:]}
    found = {m[1] for m in re.finditer(r"^\s+(?:\S+ => )?(/\S+) \(0x", text, re.MULTILINE)}
    for path in sorted(found):
        if str(Path(path).parent) not in own:
            yield Path(path)
