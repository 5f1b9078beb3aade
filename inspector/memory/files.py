"""Input files: opened with clear errors, mapped read only, holes known.

Standard input, pipes and decompressed data are spooled to an unnamed temporary file in
which blocks of zeros become holes, so that an 8 GiB image that is mostly empty costs what
it really holds.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np

from abi.errors import UnreadableError
from inspector.text import display, size_text

_BLOCK = 1 << 16
#: Room that is left to others on the file system, if there is that much.
_SPARE = 1 << 30


class ImageFile:
    """A regular file or block device, mapped read only.

    ``name`` is what messages call it, ``size`` its length in bytes, ``data`` a read-only
    view of all of it. The view keeps the mapping alive after :meth:`close`.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Take over a file descriptor. Raises UnreadableError if it cannot be mapped."""
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._fd = fd
        self.name = name
        try:
            info = os.fstat(fd)
            self.size = os.lseek(fd, 0, os.SEEK_END)
            if self.size == 0:
                raise UnreadableError(f"{name}: the file is empty")
            mapping = mmap.mmap(fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:
            self.close()
            raise UnreadableError(f"{name}: {error.strerror or error}") from None
        except (ValueError, OverflowError):
            self.close()
            raise UnreadableError(f"{name}: too large to be mapped") from None
        except UnreadableError:
            self.close()
            raise
        self.data = memoryview(mapping)
        # A regular file with a block for every byte has no holes worth asking for.
        self._dense = stat.S_ISREG(info.st_mode) and info.st_blocks * 512 >= self.size

    def close(self) -> None:
        """Close the descriptor; data that was handed out stays readable."""
        self._finalizer()

    def release(self) -> None:
        """Unmap the file's pages; those that are read again come from the page cache."""
        mapping = self.data.obj
        if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)

    def duplicate(self) -> int:
        """A new descriptor of the file, the caller's to close."""
        return os.dup(self._fd)

    def data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of ``[offset, end)`` that are not holes, ascending."""
        if self._dense or not self._finalizer.alive:
            yield offset, end
            return
        while offset < end:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                stop = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind this offset
                    return
                yield offset, end  # a file system that does not know
                return
            if start >= end:
                return
            yield max(start, offset), min(stop, end)
            offset = stop


def open_file(path: str) -> ImageFile:
    """Open a path, or standard input if it is ``-``. Raises UnreadableError, one line."""
    name = "standard input" if path == "-" else display(path)
    try:
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableError(f"{name}: {reason}") from None
    spooled = False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableError(f"{name}: is a directory")
        if stat.S_ISCHR(mode):
            raise UnreadableError(f"{name}: is a device or terminal, not a memory image")
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            spooled = True
    except UnreadableError:
        os.close(fd)
        raise
    if not spooled:
        return ImageFile(fd, name)
    with os.fdopen(fd, "rb", buffering=0) as stream, Spool(name) as spool:
        try:
            while chunk := stream.read(1 << 20):
                spool.write(chunk)
        except OSError as error:
            raise UnreadableError(f"{name}: {error.strerror or error}") from None
        return spool.finish()


def cannot_spool(why: OSError | str) -> str:
    """What to say where a temporary file cannot be made or written."""
    reason = why if isinstance(why, str) else why.strerror or why
    return f"cannot spool to {tempfile.gettempdir()}: {reason}; TMPDIR names another place"


class Spool:
    """An unnamed temporary file that is written once; blocks of zeros become holes.

    It leaves some room on the file system for others.
    """

    def __init__(self, name: str) -> None:
        """``name`` is the input that is spooled, for messages."""
        self._name = name
        self._file = tempfile.TemporaryFile(prefix="kho-")  # noqa: SIM115
        self._pending = bytearray()  # less than a block
        self._position = 0
        self._written = self._checked = 0
        self._limit: tuple[int, str] | None = None
        free = self._free()
        self._spare = 0 if free is None else min(_SPARE, free // 8)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._position + len(self._pending)

    def limit(self, size: int, reason: str) -> None:
        """Refuse to write more than ``size`` bytes that are not holes, with this reason."""
        self._limit = size, reason

    def write(self, data: bytes) -> None:
        """Append bytes. Raises UnreadableError if there is no room for them."""
        rest = memoryview(data)
        if self._pending:
            missing = _BLOCK - len(self._pending)
            self._pending += rest[:missing]
            rest = rest[missing:]
            if len(self._pending) < _BLOCK:
                return
            self._flush()
        whole = len(rest) // _BLOCK * _BLOCK
        self._put(rest[:whole])
        self._pending += rest[whole:]

    def skip(self, size: int) -> None:
        """Append zeros, however many."""
        self._flush()
        self._position += size

    def _flush(self) -> None:
        """Write what is less than a block, or just one."""
        pending, self._pending = self._pending, bytearray()
        self._put(memoryview(pending))

    def _put(self, view: memoryview) -> None:
        """Write all but blocks of zeros, which are passed over."""
        whole = len(view) // _BLOCK * _BLOCK
        words = np.frombuffer(view[:whole], np.uint64).reshape(-1, _BLOCK // 8)
        used = np.bitwise_or.reduce(words, axis=1) != 0
        if bytes(view[whole:]).strip(b"\0"):
            used = np.append(used, True)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)) * _BLOCK
        try:
            for begin, end in edges.reshape(-1, 2).tolist():
                self._write(view[begin:end], begin)
        except OSError as error:
            raise self._no_room(error) from None
        self._position += len(view)

    def _write(self, data: memoryview, at: int) -> None:
        self._written += len(data)
        if self._limit is not None and self._written > self._limit[0]:
            raise UnreadableError(f"{self._name}: {self._limit[1]}")
        # Asking costs little, but not nothing.
        if self._written - self._checked > self._spare // 8:
            self._checked = self._written
            free = self._free()
            if free is not None and free - len(data) < self._spare:
                raise self._no_room(f"only {size_text(free)} are left there")
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], self._position + at + done)

    def _free(self) -> int | None:
        """Room on the file system; None if it does not tell."""
        try:
            found = os.fstatvfs(self._file.fileno())
        except OSError:
            return None
        return found.f_bavail * found.f_frsize if found.f_blocks else None

    def _no_room(self, why: OSError | str) -> UnreadableError:
        return UnreadableError(f"{self._name}: {cannot_spool(why)}")

    def finish(self) -> ImageFile:
        """Map what was written."""
        self._flush()
        try:
            self._file.truncate(self._position)
        except OSError as error:
            raise UnreadableError(f"{self._name}: {error.strerror or error}") from None
        return ImageFile(os.dup(self._file.fileno()), self._name)
