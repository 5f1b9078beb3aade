"""Updates that begin where a real kernel left off: its hand-over is taken over, and handed on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import kho
from inspector.check import check
from inspector.decode import decode
from inspector.findings import Outcome, Severity
from inspector.image import Image
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.machine import MachineSpec, Ram
from inspector.kernel.outgoing.kernel import Kernel
from inspector.memory.sparse import SparseMemory
from inspector.walk.folio_file import read_content

CORPUS = Path(__file__).parents[2] / "corpus"


def content(image: Image) -> dict[str, tuple[int, int, str]]:
    """Size, missing pages (the captures lack those of the largest files) and digest of files."""
    found = {}
    for path, file in image.folio_files():
        data, missing = read_content(image.survey, file)
        found[path] = (file.size, len(missing), hashlib.sha256(data.tobytes()).hexdigest())
    return found


@pytest.mark.parametrize(
    ("capture", "release"), [("linux-7.3.4", "linux-7.3"), ("linux-6.19.11", "linux-6.19")]
)
def test_two_updates_behind_a_real_kernel(capture: str, release: str) -> None:
    with kho.open(CORPUS / f"{capture}-handoff.elf.zst") as image:
        assert image.ram is not None
        # Whole pages of it: the first area ends within one.
        ram = tuple(Ram(r.start, r.size & ~0xFFF) for r in image.ram)
        wanted, number = content(image), image.luo.number if image.luo else None
        assert sum(not missing for _, missing, _ in wanted.values()) > 40
        assert number is not None
        memory = SparseMemory([(r.start, r.size) for r in ram], machine="x86_64")
        for pa, piece in image.memory.extents():
            memory.write(pa, piece)
        memory.notes.update(image.memory.notes)
    for update in (1, 2):
        result = consume(memory, release)
        assert result.outcome is Outcome.TAKEN_OVER
        kernel = Kernel.after(result.consumer, MachineSpec(ram=ram))
        for name, files in kernel.take_over().items():
            session = kernel.luo.create_session(name)
            for token, file in files.items():
                session.preserve(file, token)
        memory = kernel.kexec().memory
        again = decode(memory)
        assert content(again) == wanted
        assert again.luo is not None
        assert again.luo.number == number + update
        assert not check(again, at_least=Severity.WARNING).findings
