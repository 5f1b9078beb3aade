"""Kernel sources: a tree that the user has, or the distribution's package for a release.

A release comes from ``linux-source-X.Y`` or from the upstream tarball of the source
package ``linux``. The system's own apt configuration is asked first; then, in a private apt
state below the cache, every suite of the same mirror. The system's configuration is not
changed and nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from abi.errors import UsageError
from lab.host import LabError, cache_directory, locked, os_errors, run, tool, work_area

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES = ("stable-backports", "testing", "unstable", "experimental")
_DOWNLOAD_SECONDS = 600.0
_INDEX_SECONDS = 86400.0
#: An archive's index may name files that its mirror has dropped; give up after so many.
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """An upstream release. ``candidate`` is the number of an -rc, or a large number."""

    major: int
    minor: int
    patch: int = 0
    candidate: int = 1 << 30

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """``7.3``, ``7.3.4``, ``7.3~rc7-1~exp1``, ``7.3.4-1~bpo13+1``: the upstream part."""
        m = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[~-]rc(\d+))?", text)
        if m is None:
            return None
        major, minor, patch, rc = m.groups()
        return cls(int(major), int(minor), int(patch or 0), int(rc) if rc else 1 << 30)

    @property
    def series(self) -> tuple[int, int]:
        """Major and minor number."""
        return self.major, self.minor

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}"
        if self.patch:
            text += f".{self.patch}"
        return text if self.candidate == 1 << 30 else f"{text}-rc{self.candidate}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A package that holds the source of one release. ``apt`` is the configuration to use."""

    version: Version
    package: str
    package_version: str
    is_source: bool
    apt: Path | None


def is_release(spec: str) -> bool:
    """Whether ``spec`` looks like ``7.3`` or ``7.3.4``, not like a path."""
    return re.fullmatch(r"\d+\.\d+(\.\d+)?(-rc\d+)?", spec) is not None


def check_tree(path: Path) -> Path:
    """The tree's absolute path. Raises UsageError unless a kernel can be built out of it."""
    try:
        if not path.is_dir():
            raise UsageError(f"{path} is neither a directory nor a release such as 7.3")
        for part in ("Makefile", "Kconfig", "arch/x86"):
            if not (path / part).exists():
                raise UsageError(f"{path} is not a Linux source tree: no {part}")
        with open(path / "Makefile", "rb"):
            pass
        if (path / ".config").exists() or (path / "include/config").exists():
            raise LabError(
                f"{path} has been built in place; run 'make mrproper' there, "
                "or give its bzImage with --kernel"
            )
    except PermissionError as error:
        raise LabError(f"cannot read {error.filename}: permission denied") from None
    return path.resolve()


def _apt_environment(configuration: Path | None) -> dict[str, str]:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if configuration is not None:
        env["APT_CONFIG"] = str(configuration)
    return env


def _offers(configuration: Path | None) -> list[Offer]:
    """Every kernel source that an apt configuration knows."""
    env = _apt_environment(configuration)
    asked = subprocess.run(
        ["apt-cache", "search", "--names-only", r"^linux-source-[0-9]+\.[0-9]+$"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    packages = [line.split()[0] for line in asked.stdout.splitlines() if line.strip()]
    madison = subprocess.run(
        ["apt-cache", "madison", *packages, "linux"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    found = set()
    for line in madison.stdout.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 3:
            continue
        is_source = fields[2].endswith("Sources")
        if is_source != (fields[0] == "linux"):
            continue
        version = Version.parse(fields[1])
        if version is not None:
            found.add(Offer(version, fields[0], fields[1], is_source, configuration))
    # Newest first; of one release the binary package, which carries the needed patches.
    return sorted(found, key=lambda o: (o.version, not o.is_source, o.package_version))[::-1]


def _mirror() -> str:
    """The Debian mirror that this system uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for uri in listed.stdout.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise LabError("this system uses no Debian mirror; give a source tree or a bzImage")


def _private_apt() -> Path:
    """A private apt state that knows every suite of the mirror; indexes are fetched once a day."""
    base = cache_directory() / "apt"
    configuration = base / "apt.conf"
    stamp = base / "updated"
    with locked(base / "lab.lock"), os_errors("prepare a private apt state"):
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _INDEX_SECONDS:
            return configuration
        for part in ("lists/partial", "cache/archives/partial"):
            (base / part).mkdir(parents=True, exist_ok=True)
        configuration.write_text(
            f'Dir::Etc::SourceList "{base}/sources.list";\n'
            'Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{base}/lists";\n'
            f'Dir::Cache "{base}/cache";\n'
            'APT::Sandbox::User "";\n'
        )
        _update(configuration, _mirror(), _SUITES)
        # A mirror may keep the alias of a suite longer than its content: ask by codename.
        names = []
        for release in (base / "lists").glob(f"*_{_SUITES[0]}_InRelease"):
            m = re.search(r"^Codename: ([a-z-]+)$", release.read_text("utf-8", "replace"), re.M)
            names += [m[1]] if m else []
        if names:
            _update(configuration, _mirror(), (*names, *_SUITES[1:]))
        stamp.touch()
    return configuration


def _update(configuration: Path, mirror: str, suites: tuple[str, ...]) -> None:
    signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
    configuration.with_name("sources.list").write_text(
        "".join(
            f"{kind}{signed} {mirror} {suite} main\n"
            for suite in suites
            for kind in ("deb", "deb-src")
        )
    )
    run(
        ["apt-get", "update"],
        "fetch the package indexes",
        timeout=_DOWNLOAD_SECONDS,
        env=_apt_environment(configuration),
    )


def fetch(spec: str) -> tuple[Version, Path]:
    """Download the source of a release (``7.3.4``) or of the newest of a series (``7.3``).

    Returns its version and the file, kept in the cache. Raises LabError if no package
    holds it, with the series that can be had.
    """
    wanted = Version.parse(spec)
    assert wanted is not None
    exact = "rc" in spec or spec.count(".") == 2
    store = cache_directory() / "sources"
    kept = {
        version: path
        for path in sorted(store.glob("linux-*"))
        if (version := Version.parse(path.name.removeprefix("linux-"))) is not None
        and (version == wanted if exact else version.series == wanted.series)
    }
    if kept:
        newest = max(kept)
        return newest, kept[newest]
    tool("apt-get", "apt", "fetching a kernel source")
    seen: set[str] = set()
    tried = 0
    for configuration in (None, _private_apt):
        offers = _offers(configuration() if configuration else None)
        seen.update(".".join(map(str, o.version.series)) for o in offers)
        for offer in offers:
            fits = offer.version == wanted if exact else offer.version.series == wanted.series
            if not fits or tried >= _ATTEMPTS:
                continue
            tried += 1
            path = _download(offer, store)
            if path is not None:
                return offer.version, path
    have = ", ".join(sorted(seen, key=lambda s: [int(n) for n in s.split(".")])) or "none"
    why = "its packages cannot be downloaded" if tried else f"the archive offers: {have}"
    raise LabError(f"no source of Linux {spec} is to be had ({why})")


def _download(offer: Offer, store: Path) -> Path | None:
    """Fetch one package; None if the mirror does not have the file."""
    what = f"{offer.package}={offer.package_version}"
    if offer.is_source:
        command = ["apt-get", "source", "--download-only", "--tar-only", what]
    else:
        command = ["apt-get", "download", what]
    with locked(store / ".lock"), work_area(cache_directory() / "tmp") as area:
        try:
            run(
                command,
                f"download {what}",
                timeout=_DOWNLOAD_SECONDS,
                cwd=area,
                env=_apt_environment(offer.apt),
            )
        except LabError as error:
            if "No space left" in str(error):
                raise
            return None
        for path in area.iterdir():
            if path.suffix == ".deb" or ".orig.tar." in path.name:
                kind = ".deb" if path.suffix == ".deb" else ".tar" + path.suffix
                target = store / f"linux-{offer.version}{kind}"
                with os_errors("keep the kernel source"):
                    shutil.move(path, target)
                return target
    return None


def unpack(archive: Path, where: Path) -> Path:
    """Unpack a kernel source below ``where``; return the tree. About 1.6 GB, half a minute."""
    tree = where / "linux"
    with os_errors("unpack the kernel source"):
        tree.mkdir()
    tar = tool("tar", "tar", "unpacking a kernel source")
    tool("xz", "xz-utils", "unpacking a kernel source")
    if archive.suffix == ".deb":
        tool("dpkg-deb", "dpkg", "unpacking a kernel source package")
        run(["dpkg-deb", "-x", str(archive), str(where / "deb")], "unpack the source package")
        inner = sorted((where / "deb/usr/src").glob("linux-source-*.tar.*"))
        if not inner:
            raise LabError(f"{archive.name} holds no kernel source")
        archive = inner[0]
    run([tar, "-xf", str(archive), "--strip-components=1", "-C", str(tree)], "unpack the source")
    shutil.rmtree(where / "deb", ignore_errors=True)
    return tree
