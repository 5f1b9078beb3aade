"""Output files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from abi.errors import KhoError, UsageError
from inspector.text import display


class OutputError(KhoError):
    """An output file cannot be written."""

    exit_status = 8


@contextlib.contextmanager
def atomic_output(
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    verify: Callable[[str], None] | None = None,
) -> Iterator[int]:
    """A file descriptor to write to; the file takes its name when the block ends.

    The bytes go to a temporary file in the same directory, which is synced and renamed;
    on any error, or interruption, nothing is left. An existing file is replaced only with
    ``force``, a device or pipe never (UsageError). ``verify`` is called with the temporary
    file's path while that is synced; what it raises keeps it from being published. Raises
    OutputError, one line, for what the system refuses: no space, no permission, no such
    directory.
    """
    target = Path(path)
    name = display(str(target))
    if not force and os.path.lexists(target):
        raise exists_already(target)
    if target.is_dir():
        raise UsageError(f"{name}: is a directory")
    if target.exists() and not target.is_file():
        # A rename would take the place of the device itself.
        raise UsageError(f"{name}: is a device or pipe, which cannot be replaced by a file")
    temporary: str | None = None
    try:
        fd, temporary = tempfile.mkstemp(prefix=".kho-", dir=target.parent)
        try:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(fd, 0o666 & ~mask)
            yield fd
            with _synced(fd):
                if verify is not None:
                    verify(temporary)
        finally:
            os.close(fd)
        _publish(temporary, target, force)
        temporary = None
        _sync_directory(target.parent)
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def _synced(fd: int) -> Iterator[None]:
    """Bring a file to the disk while the block runs; the end of the block waits for it."""
    failed: list[OSError] = []

    def sync() -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            failed.append(error)

    syncing = threading.Thread(target=sync, name="sync")
    syncing.start()
    try:
        yield
    finally:
        syncing.join()
    if failed:
        raise failed[0]


def exists_already(path: str | os.PathLike[str]) -> UsageError:
    """What to raise where an existing file would be replaced."""
    return UsageError(f"{display(str(path))}: exists already; --force replaces it")


def _publish(temporary: str, target: Path, force: bool) -> None:
    if force:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, never replaces what came meanwhile
    except FileExistsError:
        raise exists_already(target) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise exists_already(target) from None
        os.rename(temporary, target)
        return
    os.unlink(temporary)


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
