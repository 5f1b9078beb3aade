"""Exceptions shared by every room.

An image that says something wrong is never an exception: that is a
:class:`inspector.findings.Finding`. Exceptions are for what cannot be opened and
for calls that make no sense. Each carries the exit status of the command line
(DESIGN: a bit mask).
"""

from __future__ import annotations


class KhoError(Exception):
    """Base of every error this project raises on purpose.

    ``str(error)`` is one line fit for a terminal.
    """

    exit_status = 4


class UsageError(KhoError):
    """The caller asked for something that does not exist or makes no sense."""

    exit_status = 2


class UnreadableError(KhoError):
    """The input cannot be opened, or is not what it claims to be."""

    exit_status = 8


class IncompleteError(KhoError):
    """What was asked for needs memory that the image does not hold."""

    exit_status = 16


class CodecError(UnreadableError):
    """Bytes do not parse.

    ``offset`` is the byte offset of the offending item inside the buffer.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset
