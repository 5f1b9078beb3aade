"""Kernels to run: built and cached, or brought along as a bzImage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abi.errors import UnreadableError, UsageError
from lab import sources
from lab.host import LabError, cache_directory, locked, os_errors, run, tool, work_area
from lab.sources import Version

_CONFIG = Path(__file__).parent / "config"
#: What a build takes for as long as it lasts, in bytes: objects with debug information; for a
#: release its source, too, packed and unpacked, and the indexes of its archive.
_TREE_ROOM = 900 << 20
_RELEASE_ROOM = 2800 << 20
#: Without these a kernel is of no use here.
_REQUIRED = ("CONFIG_KEXEC_HANDOVER", "CONFIG_KEXEC_FILE", "CONFIG_BLK_DEV_INITRD")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable x86-64 kernel. ``vmlinux`` is None for a bzImage that was brought along."""

    name: str
    bzimage: Path
    release: str
    vmlinux: Path | None = None

    @property
    def version(self) -> Version:
        """The release as numbers."""
        version = Version.parse(self.release)
        if version is None:
            raise UnreadableError(f"{self.bzimage}: cannot make out the release {self.release!r}")
        return version


def kernels_directory() -> Path:
    """Where built kernels are kept, one directory each."""
    return cache_directory() / "kernels"


def from_bzimage(path: Path) -> Kernel:
    """A kernel out of a bzImage file; its release is read from the setup header."""
    try:
        with open(path, "rb") as f:
            head = f.read(1 << 16)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    if len(head) < 0x268 or head[0x202:0x206] != b"HdrS":
        raise UnreadableError(f"{path} is not a bzImage (no HdrS at 0x202)")
    (protocol,) = struct.unpack_from("<H", head, 0x206)
    (loadflags,) = struct.unpack_from("<H", head, 0x236)
    if protocol < 0x20C or not loadflags & 1:
        raise UnreadableError(f"{path} has no 64-bit entry point")
    at = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    text = head[at : head.find(b"\0", at)].decode("ascii", "replace")
    release = text.split()[0] if text.split() else "unknown"
    return Kernel(path.stem if path.stem != "bzImage" else release, path.resolve(), release)


def cached() -> list[Kernel]:
    """Kernels in the cache, oldest release first."""
    found = []
    for directory in kernels_directory().glob("*"):
        if not (directory / "bzImage").exists() or not (directory / "build.json").exists():
            continue
        record = json.loads((directory / "build.json").read_text())
        vmlinux = directory / "vmlinux"
        found.append(
            Kernel(
                record["name"],
                directory / "bzImage",
                record["release"],
                vmlinux if vmlinux.exists() else None,
            )
        )
    return sorted(found, key=lambda k: (k.version, k.name))


def find(spec: str) -> Kernel:
    """A kernel by the path of its bzImage, or by name, release or series out of the cache."""
    path = Path(spec)
    if path.is_dir() and (path / "arch/x86/boot/bzImage").exists():
        path = path / "arch/x86/boot/bzImage"
    if path.is_file() or "/" in spec:
        return from_bzimage(path)
    have = cached()
    matches = [k for k in have if spec in (k.name, k.release)]
    if not matches and sources.is_release(spec) and spec.count(".") == 1:
        matches = [
            k
            for k in have
            if ".".join(map(str, k.version.series)) == spec and "-iommu" not in k.name
        ]
    if matches:
        return matches[-1]
    names = ", ".join(k.name for k in have) or "none"
    raise UsageError(
        f"no kernel {spec}: not a bzImage, and not in the cache ({names}); "
        "see 'kho-lab build --source RELEASE'"
    )


def configuration(iommu: bool) -> str:
    """The configuration fragment that goes on top of tinyconfig."""
    names = ["base.config", *(["iommu.config"] if iommu else [])]
    return "".join((_CONFIG / name).read_text() for name in names)


def _check_tools() -> None:
    purpose = "building a kernel"
    for name, package in (
        ("make", "make"),
        ("gcc", "gcc"),
        ("ld", "binutils"),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
    ):
        tool(name, package, purpose)
    for header, package in (("libelf.h", "libelf-dev"), ("openssl/ssl.h", "libssl-dev")):
        if not any(
            (Path(root) / header).exists() for root in ("/usr/include", "/usr/local/include")
        ):
            raise LabError(f"{header} is not installed; {purpose} needs it (Debian: {package})")


def _check_room(need: int) -> None:
    """LabError if the cache's file system has not so many bytes left."""
    cache = cache_directory()
    with os_errors("prepare the cache"):
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    if free < need:
        raise LabError(
            f"a build needs {need / 1e9:.1f} GB, {cache} has {free / 1e9:.1f} GB left"
            " (KHO_LAB_CACHE names another place)"
        )


def build(
    source: str, *, iommu: bool = False, jobs: int | None = None, timeout: float | None = None
) -> tuple[Kernel, bool]:
    """A kernel out of a tree or of a release's package.

    Returns it and whether it came from the cache. A release is built once; a tree is
    built again, incrementally, each time. Raises LabError within ``timeout`` seconds.
    """
    if sources.is_release(source):
        return _build_release(source, iommu, jobs, timeout)
    tree = sources.check_tree(Path(source))
    _check_tools()
    _check_room(_TREE_ROOM)
    digest = hashlib.sha256(str(tree).encode()).hexdigest()[:8]
    name = f"{tree.name}-{digest}" + ("-iommu" if iommu else "")
    objects = cache_directory() / "build" / name
    with locked(kernels_directory() / f".{name}.lock"):
        return _make(tree, objects, name, str(tree), iommu, jobs, timeout), False


def _build_release(
    spec: str, iommu: bool, jobs: int | None, timeout: float | None
) -> tuple[Kernel, bool]:
    began = time.monotonic()
    suffix = "-iommu" if iommu else ""
    fragment = hashlib.sha256(configuration(iommu).encode()).hexdigest()
    wanted = Version.parse(spec)
    with locked(kernels_directory() / f".{spec}{suffix}.lock"):
        for kernel in reversed(cached()):
            record = json.loads((kernel.bzimage.parent / "build.json").read_text())
            same = kernel.version == wanted or (
                spec.count(".") == 1 and wanted and kernel.version.series == wanted.series
            )
            if same and record["source"] == "package" and record["fragment"] == fragment:
                return kernel, True
        # What is bound to fail fails before anything is downloaded.
        _check_tools()
        _check_room(_RELEASE_ROOM)
        version, archive = sources.fetch(spec)
        left = None if timeout is None else max(1.0, timeout - (time.monotonic() - began))
        with work_area(cache_directory() / "tmp") as area:
            tree = sources.unpack(archive, area)
            name = f"{version}{suffix}"
            return _make(tree, area / "objects", name, "package", iommu, jobs, left), False


def _make(
    tree: Path,
    objects: Path,
    name: str,
    origin: str,
    iommu: bool,
    jobs: int | None,
    timeout: float | None,
) -> Kernel:
    began = time.monotonic()
    fragment = configuration(iommu)

    def make(*arguments: str) -> str:
        left = None if timeout is None else max(1.0, timeout - (time.monotonic() - began))
        command = ["make", "-s", "-C", str(tree), f"O={objects}", "ARCH=x86_64", *arguments]
        return run(command, f"build {name}", timeout=left, env=_environment(), log=log)

    with os_errors("prepare the build"):
        objects.mkdir(parents=True, exist_ok=True)
        log = objects / "kho-lab.log"
        stamp = objects / "kho-lab.fragment"
        fresh = not stamp.exists() or stamp.read_text() != fragment
    if fresh:
        make("tinyconfig")
        with os_errors("configure the kernel"), open(objects / ".config", "a") as f:
            f.write(fragment)
        make("olddefconfig")
        with os_errors("configure the kernel"):
            stamp.write_text(fragment)
    with os_errors("read the configuration"):
        chosen = (objects / ".config").read_text()
    for option in _REQUIRED:
        if f"\n{option}=y\n" not in chosen:
            raise LabError(f"{name} does not offer {option}: no Kexec HandOver in this kernel")
    make(f"-j{jobs or len(os.sched_getaffinity(0))}", "bzImage")
    release = make("kernelrelease").strip().splitlines()[-1]
    record: dict[str, Any] = {
        "name": name,
        "release": release,
        "source": origin,
        "iommu": iommu,
        "fragment": hashlib.sha256(fragment.encode()).hexdigest(),
        "not_offered": [
            line.split("=")[0]
            for line in fragment.splitlines()
            if line.endswith("=y") and f"\n{line}\n" not in chosen
        ],
        "seconds": round(time.monotonic() - began),
    }
    target = kernels_directory() / name
    with _replaced(target) as new:
        shutil.copy2(objects / "arch/x86/boot/bzImage", new / "bzImage")
        shutil.copy2(objects / "vmlinux", new / "vmlinux")
        shutil.copy2(objects / "System.map", new / "System.map")
        shutil.copy2(objects / ".config", new / "config")
        (new / "build.json").write_text(json.dumps(record, indent=1) + "\n")
    return Kernel(name, target / "bzImage", release, target / "vmlinux")


def _environment() -> dict[str, str]:
    """The environment without what would change a build's outcome."""
    drop = ("MAKEFLAGS", "KBUILD_OUTPUT", "KCONFIG_CONFIG", "KCONFIG_ALLCONFIG")
    return {k: v for k, v in os.environ.items() if k not in drop} | {"LC_ALL": "C"}


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A new directory that takes the place of ``target`` if the block succeeds."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        with os_errors(f"keep the kernel in {target}"):
            new.mkdir(parents=True)
            yield new
            if target.exists():
                target.rename(old)
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
