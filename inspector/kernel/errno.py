"""Errors as the kernel returns them.

A simulated operation that the kernel would refuse raises :class:`KernelErrno`; the state
is then what the kernel leaves behind. Internal inconsistencies of the simulation itself
(a page freed twice) are plain ``AssertionError`` and always a bug here.
"""

from __future__ import annotations

import errno as _errno

from abi.errors import KhoError

#: Numbers that Linux has and this platform's C library may not.
_LINUX = {"ENOTSUPP": 524}
_NUMBERS = {name: number for number, name in _errno.errorcode.items()} | _LINUX
_NUMBERS["EOPNOTSUPP"] = _errno.EOPNOTSUPP
_NAMES = {number: name for name, number in _NUMBERS.items()} | {_errno.EOPNOTSUPP: "EOPNOTSUPP"}


class KernelErrno(KhoError):
    """An operation failed as it fails in the kernel.

    ``name`` is the symbolic error (``"EINVAL"``), ``errno`` its positive number,
    ``reason`` the rule that was broken, in words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"-{name}: {reason}")
        self.name = name
        self.errno = number(name)
        self.reason = reason


def number(name: str) -> int:
    """The positive number of an error name. Raises KeyError."""
    return _NUMBERS[name]


def name_of(value: int) -> str:
    """The name of an error number, either sign; its digits if it has none."""
    return _NAMES.get(abs(value), str(abs(value)))
