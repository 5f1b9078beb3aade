"""What goes into the machine: the archive, the ROM, the init program."""

import gzip
import hashlib
import subprocess

import pytest

from lab import guest
from lab.host import MissingTool

pytestmark = pytest.mark.usefixtures("needs_compiler")


def entries(archive):
    data = gzip.decompress(archive)
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size + -(110 + name_size) % 4
        if name == "TRAILER!!!":
            return
        yield name, mode, data[start : start + size]
        at = start + size + -size % 4


def test_the_archive_holds_what_it_is_given():
    found = {
        name: (mode, data) for name, mode, data in entries(guest.initramfs({"next/a": b"abc"}))
    }
    assert found["next/a"] == (0o100644, b"abc")
    assert found["next"][0] == 0o040755
    assert found["init"][1][:4] == b"\x7fELF"
    assert found["dev/console"][0] == 0o020600
    assert list(found).index("next") < list(found).index("next/a")


def test_the_rom_maps_four_gigabytes_to_themselves():
    rom = guest.rom(0x1234, 0x5678)
    base = 0xFFFF0000

    def entry(table, index):
        at = table - base + 8 * index
        return int.from_bytes(rom[at : at + 8], "little")

    for address in (0, 0x200000, 0x3FFFFFFF, 0x40000000, 0xFFFFFFFF, 0x12345678):
        pdpt = entry(base, address >> 39) & ~0xFFF
        directory = entry(pdpt, address >> 30) & ~0xFFF
        leaf = entry(directory, address >> 21 & 511)
        assert leaf & 0xE3 == 0xE3
        assert (leaf & ~0x1FFFFF) == address & ~0x1FFFFF
    assert rom[0x8000:0x8010] == (0x1234).to_bytes(8, "little") + (0x5678).to_bytes(8, "little")
    assert rom[0xFFF0] == 0xE9


def test_the_guests_sha256(tmp_path):
    """Every way in which a block boundary can fall."""
    here = guest._HERE
    program = tmp_path / "sum"
    (tmp_path / "main.c").write_text(
        '#include "sha256.h"\n#include <stdio.h>\n'
        "int main(void) { struct sha256 s; char b[77], h[65]; size_t n; sha256_start(&s);\n"
        "while ((n = fread(b, 1, sizeof b, stdin)) > 0) sha256_update(&s, b, n);\n"
        "sha256_finish(&s, h); puts(h); }\n"
    )
    subprocess.run(
        ["gcc", "-O1", f"-I{here}", "-o", program, tmp_path / "main.c", here / "sha256.c"],
        check=True,
    )
    for size in (0, 1, 55, 56, 57, 63, 64, 65, 77, 119, 120, 128, 1000, 100_001):
        data = bytes(i * 7 & 255 for i in range(size))
        done = subprocess.run([program], input=data, capture_output=True, check=True)
        assert done.stdout.decode().strip() == hashlib.sha256(data).hexdigest()


def test_guest_programs_are_compiled_once(cache, monkeypatch, tmp_path):
    first = guest.init_program()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert guest.init_program() == first


def test_no_compiler_is_one_clear_line(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"gcc is not installed; building init needs it"):
        guest.init_program()
