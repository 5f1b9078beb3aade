"""Fuzz any program: each case becomes an image file, the command line names it by ``@@``.

Such a program may be another decoder, or a script that boots a real kernel on the image and
prints its console.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from abi.errors import UsageError
from inspector.fuzz.base import Base
from inspector.fuzz.edit import Edit
from inspector.fuzz.guard import Failure, Kind
from inspector.fuzz.mutate import Mutator

MARK = "@@"
#: Bytes of output that are looked at.
_OUTPUT = 4 << 20


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and how its end is judged.

    ``accept`` are exit statuses that are no finding, None accepts all below 128 (from 128 on
    shells report signals). ``pattern`` in the output is a crash whatever the status.
    """

    line: str
    timeout: float = 10.0
    accept: frozenset[int] | None = None
    pattern: str = ""

    def words(self) -> list[str]:
        """The command line split as a shell does. Raises UsageError."""
        try:
            words = shlex.split(self.line)
        except ValueError as error:
            raise UsageError(f"--exec: {error}") from None
        if not words or not any(MARK in word for word in words):
            raise UsageError(f"--exec: the command line must name the image by {MARK}")
        return words


class ExternalTarget:
    """Run a command on each mutated image."""

    name = "exec"
    slow = True

    def __init__(self, bases: Sequence[Base], command: Command) -> None:
        self.mutator = Mutator(bases)
        self.command = command
        self._words = command.words()
        try:
            self._pattern = re.compile(command.pattern.encode()) if command.pattern else None
        except re.error as error:
            raise UsageError(f"--crash-pattern: {error}") from None

    def pick(self, rng: random.Random) -> tuple[Base, tuple[Edit, ...]]:
        """A case."""
        return self.mutator.pick(rng)

    def run(self, base: Base) -> None:
        """Write the image, run the command, judge its end."""
        from inspector.memory.elfcore import write_core

        with tempfile.TemporaryDirectory(prefix="kho-fuzz-") as folder:
            image = os.path.join(folder, "image.elf")
            write_core(image, base.memory, base.memory.machine or "x86_64")
            self._judge([word.replace(MARK, image) for word in self._words])

    def _judge(self, words: list[str]) -> None:
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise UsageError(f"--exec: {words[0]}: {error.strerror}") from None
            try:
                status = process.wait(self.command.timeout)
            except subprocess.TimeoutExpired:
                raise Failure(
                    Kind.TIMEOUT, "timeout", f"still ran after {self.command.timeout:g} s"
                ) from None
            finally:
                # What it started dies with it, also where it is done itself.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0, os.SEEK_END)
            output.seek(max(output.tell() - _OUTPUT, 0))
            said = output.read(_OUTPUT)
        self._classify(status, said)

    def _classify(self, status: int, said: bytes) -> None:
        tail = said[-800:].decode("utf-8", "replace")
        if status < 0 or (status > 128 and self.command.accept is None):
            number = -status if status < 0 else status - 128
            raise Failure(Kind.CRASH, f"signal {number}", tail)
        match = self._pattern.search(said) if self._pattern else None
        if match:
            key = match.group().decode("utf-8", "replace")[:80]
            raise Failure(Kind.CRASH, f"output {key}", tail)
        accept = self.command.accept
        if accept is not None and status not in accept:
            raise Failure(Kind.STATUS, f"exit status {status}", tail)
