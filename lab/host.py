"""The machine that the lab runs on: errors, the cache, child processes.

Whatever happens - an error, a signal, a killed lab - no child process and no temporary
file is to survive: children die with their parent, and run in a session of their own that
is killed as a whole; work areas are removed on exit, and swept by the next run if their
owner was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from abi.errors import KhoError

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(KhoError):
    """The lab cannot do what was asked. ``str(error)`` is one line."""

    exit_status = 8


class MissingTool(LabError):
    """A program that the lab needs is not installed."""


def tool(name: str, package: str, purpose: str) -> str:
    """Path of a program, or a :class:`MissingTool` that says which package holds it."""
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"{name} is not installed; {purpose} needs it (Debian: {package})")
    return path


def cache_directory() -> Path:
    """Where kernels, sources and guest programs are kept: ``$KHO_LAB_CACHE`` or XDG's cache."""
    named = os.environ.get("KHO_LAB_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kho-lab"


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn an OSError into one line: what was being done, and why it failed."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LabError(f"{what}: no space left{where}") from None
        raise LabError(f"{what}: {error.strerror or error}{where}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two labs never build one thing at the same time."""
    with os_errors("lock the cache"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def work_area(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory that is gone afterwards."""
    base = parent or Path(tempfile.gettempdir())
    with os_errors("make a temporary directory"):
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        area = Path(tempfile.mkdtemp(prefix=f"kho-lab.{os.getpid()}.", dir=base))
    try:
        yield area
    finally:
        shutil.rmtree(area, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Remove work areas whose owner was killed."""
    for area in base.glob("kho-lab.*.*"):
        pid = area.name.split(".")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(area, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os_errors(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        # There may not even be a directory to hold it; that was told already.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdout: int | None = subprocess.DEVNULL,
    stderr: int | None = subprocess.PIPE,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own; end it with :func:`stop`."""
    with os_errors(f"start {command[0]}"):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
            # The lab starts no threads before its children.
            preexec_fn=_die_with_parent,
        )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and everything it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def run(
    command: Sequence[str],
    purpose: str,
    *,
    timeout: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> str:
    """Run a child to its end and return its output.

    Raises :class:`LabError` naming ``purpose`` and the last line said, if it fails or does
    not end within ``timeout`` seconds. With ``log`` the output goes to that file as well.
    """
    child = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    try:
        out, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise LabError(f"{purpose}: gave up after {timeout:.0f} s") from None
    finally:
        stop(child)
    text = out.decode("utf-8", "replace")
    if log is not None:
        with os_errors("write the log"):
            log.write_text(text)
    if child.returncode:
        raise LabError(f"{purpose}: {_reason(text) or f'exit status {child.returncode}'}")
    return text


def _reason(text: str) -> str:
    """The line of a failed program's output that most likely says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "No space left" in line:
            return line
    for line in lines:
        if "error" in line.lower() or line.startswith("E: "):
            return line
    return lines[-1] if lines else ""


def end_on_signals() -> None:
    """Make the signals that ask for an end unwind the stack, so that clean-up runs."""

    def leave(number: int, _frame: types.FrameType | None) -> None:
        # Removing an unpacked kernel takes its time: say that it is not stuck.
        with contextlib.suppress(OSError):
            os.write(2, f"kho-lab: {signal.Signals(number).name}, cleaning up\n".encode())
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
