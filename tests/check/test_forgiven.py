"""What a real 7.3.4 forgives, or does not, of damaged images that it was booted with."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from inspector.check import check
from inspector.decode import decode
from inspector.findings import Outcome, Severity
from inspector.image import Image
from inspector.kernel import scenario
from inspector.kernel.incoming.consumer import consume
from inspector.memory.sparse import SparseMemory

TEXT = """
kernel = "linux-7.3"
[[session]]
name = "vm"
[[session.file]]
token = 1
size = "4K"
"""


def changed(change: Callable[[Image, SparseMemory], None]) -> SparseMemory:
    memory = scenario.parse(TEXT).run().memory
    change(decode(memory), memory)
    return memory


def found(memory: SparseMemory, least: Severity = Severity.WARNING) -> set[str]:
    return {finding.code for finding in check(decode(memory), at_least=least).findings}


def test_what_lies_behind_the_string_of_luo_does_not_count() -> None:
    def junk(image: Image, memory: SparseMemory) -> None:
        assert image.luo is not None
        assert memory.read(image.luo.address, 8) == b"luo-v5\0\0"
        memory.write(image.luo.address + 7, b"\x41")

    memory = changed(junk)
    image = decode(memory)
    assert image.luo is not None
    assert image.luo.generation.id == "luo-v5"
    assert [session.name for session in image.luo.sessions] == [b"vm"]
    assert found(memory) == set()
    assert consume(memory, "linux-7.3").outcome is Outcome.TAKEN_OVER


def test_a_blob_of_impossible_size_is_read_all_the_same() -> None:
    def enlarge(image: Image, memory: SparseMemory) -> None:
        root = memory.read(image.root.address, 4096)
        blob = next(b for b in image.blobs if b.name == b"kexec-metadata")
        at = root.index(struct.pack("<Q", blob.size))
        memory.write(image.root.address + at, struct.pack("<Q", 0xFF0_0000))

    memory = changed(enlarge)
    image = decode(memory)
    assert image.kexec_metadata is not None
    assert image.kexec_metadata.previous_release == b"7.3.0"
    assert found(memory) == {"KHO-ROOT-006"}


@pytest.mark.parametrize(("field", "what"), [(8, "root FDT"), (24, "scratch array")])
def test_sizes_that_cannot_be_mapped_early(field: int, what: str) -> None:
    def enlarge(image: Image, memory: SparseMemory) -> None:
        record = image.root.candidate.handover
        assert record is not None
        memory.write(record.address + field, struct.pack("<Q", 0x41_0000))

    memory = changed(enlarge)
    report = check(decode(memory), rules=["KHO-ROOT-014"])
    assert [what in finding.message for finding in report.findings] == [True]
    assert consume(memory, "linux-7.3").outcome is Outcome.KHO_REFUSED


def test_the_number_of_pages_of_the_flbs_is_not_looked_at() -> None:
    def count(image: Image, memory: SparseMemory) -> None:
        assert image.luo is not None
        memory.write(image.luo.flbs_address, struct.pack("<Q", 7))

    memory = changed(count)
    assert found(memory) == {"KHO-LUO-017"}
    assert found(memory, Severity.ERROR) == set()
    assert consume(memory, "linux-7.3").outcome is Outcome.TAKEN_OVER
