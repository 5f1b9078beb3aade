"""Run ``kho`` in this process, as the shell would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "corpus"


@dataclass(frozen=True)
class Result:
    """What one command left behind."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Run = Callable[..., Result]


@pytest.fixture
def kho(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """``kho("dump", path)``: exit status, standard output and error of one command."""
    from inspector.cli.app import main

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["kho", *map(str, args)])
        monkeypatch.setenv("KHO_TRACEBACK", "1")
        status = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
            status = code if isinstance(code, int) else int(code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        captured = capfdbinary.readouterr()
        return Result(status, captured.out, captured.err.decode())

    return run


@pytest.fixture
def handoff() -> Path:
    return CORPUS / "linux-7.3.4-handoff.elf.zst"


@pytest.fixture
def incoming() -> Path:
    return CORPUS / "linux-7.3.4-incoming.elf.zst"
