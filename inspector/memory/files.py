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

from abi.errors import UnreadableError
from inspector.text import display

_BLOCK = 1 << 16
_ZERO_BLOCK = bytes(_BLOCK)


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


class Spool:
    """An unnamed temporary file that is written once; blocks of zeros become holes."""

    def __init__(self, name: str) -> None:
        """``name`` is the input that is spooled, for messages."""
        self._name = name
        self._file = tempfile.TemporaryFile(prefix="kho-")  # noqa: SIM115
        self._pending = bytearray()
        self._position = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._position + len(self._pending)

    def write(self, data: bytes) -> None:
        """Append bytes. Raises UnreadableError if the file system is full."""
        self._pending += data
        if len(self._pending) >= 4 * _BLOCK:
            self._flush(len(self._pending) // _BLOCK * _BLOCK)

    def _flush(self, size: int) -> None:
        fd = self._file.fileno()
        try:
            with memoryview(self._pending)[:size] as view:
                begin = 0  # of blocks that are not zero and not written yet
                for at in range(0, size, _BLOCK):
                    block = bytes(view[at : at + _BLOCK])
                    if block == _ZERO_BLOCK[: len(block)]:
                        self._write(fd, view[begin:at], begin)
                        begin = at + len(block)
                self._write(fd, view[begin:], begin)
        except OSError as error:
            raise UnreadableError(
                f"{self._name}: cannot spool to {tempfile.gettempdir()}: "
                f"{error.strerror or error}; TMPDIR names another place"
            ) from None
        self._position += size
        del self._pending[:size]

    def _write(self, fd: int, data: memoryview, at: int) -> None:
        with data:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], self._position + at + done)

    def finish(self) -> ImageFile:
        """Map what was written."""
        self._flush(len(self._pending))
        try:
            self._file.truncate(self._position)
        except OSError as error:
            raise UnreadableError(f"{self._name}: {error.strerror or error}") from None
        return ImageFile(os.dup(self._file.fileno()), self._name)
