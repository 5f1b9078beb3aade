"""The memory of a virtual machine, shared between the lab and QEMU."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from lab.host import LabError, os_errors


class Ram:
    """The guest's physical memory, as a memfd shared with QEMU.

    ``size`` bytes; above 3 GiB they go on at 4 GiB, as the i440fx machine has it.
    """

    LOW_LIMIT = 3 << 30

    def __init__(self, size: int) -> None:
        self.size = size
        self.low = size if size < 0xE0000000 else self.LOW_LIMIT
        with os_errors("allocate guest memory"):
            self.fd = os.memfd_create("kho-lab-ram", os.MFD_CLOEXEC)
            try:
                os.ftruncate(self.fd, size)
            except OSError:
                os.close(self.fd)
                raise

    def _offset(self, address: int, size: int) -> int | None:
        if address >= 0 and address + size <= self.low:
            return address
        high = address - (4 << 30)
        if high >= 0 and high + size <= self.size - self.low:
            return self.low + high
        return None

    def write(self, address: int, data: bytes | memoryview) -> bool:
        """Write at a physical address; False if there is no memory."""
        at = self._offset(address, len(data))
        if at is None:
            return False
        with os_errors("write guest memory"):
            view = memoryview(data)
            while view:
                n = os.pwrite(self.fd, view, at)
                view, at = view[n:], at + n
        return True

    def read(self, address: int, size: int) -> bytes:
        """Read physical memory. Raises LabError where there is none."""
        at = self._offset(address, size)
        if at is None:
            raise LabError(f"guest memory has nothing at {address:#x}")
        return os.pread(self.fd, size, at)

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """(physical address, offset, size) of what was ever written, ascending."""
        at = 0
        while at < self.size:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = min(os.lseek(self.fd, at, os.SEEK_HOLE), self.size)
            if at < self.low < end:
                end = self.low
            yield (at if at < self.low else at - self.low + (4 << 30)), at, end - at
            at = end

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)
