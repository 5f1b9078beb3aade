"""An extract says what the image says, and nothing of what was left out is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

import kho
from abi import fdt
from inspector.document import document
from inspector.extract import extract
from inspector.memory.sparse import SparseMemory
from inspector.output import OutputError
from inspector.redact import Pseudonyms

CORPUS = Path(__file__).parents[2] / "corpus"
IMAGES = sorted(
    p for p in CORPUS.glob("*.elf.zst")
    if p.name.startswith(("linux-", "iommu-")) and "amdv1" not in p.name and "smmu" not in p.name
)  # fmt: skip


def same(one: dict[str, object], other: dict[str, object]) -> None:
    for key in ("root", "scratch", "preserved", "reserve_mem", "kexec_metadata", "luo", "blobs"):
        assert one[key] == other[key], key


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
@pytest.mark.parametrize("content", [True, False])
def test_an_extract_dumps_as_the_image(path: Path, content: bool, tmp_path: Path) -> None:
    out = tmp_path / "out.elf.zst"
    with kho.open(path) as image:
        extract(image, out, content=content)
        before = document(image)
    with kho.open(out) as again:
        after = document(again)
    if content:
        assert after == before
    same(before, after)


def test_content_is_kept_unless_it_is_not_wanted(tmp_path: Path) -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    path = "/LUO/sessions/vm-alpha/files/0x1111111100000004"
    with kho.open(source) as image:
        wanted = kho.content(image, path)
        extract(image, tmp_path / "full.elf")
        extract(image, tmp_path / "small.elf", max_file=4096)
        extract(image, tmp_path / "none.elf", content=False)
    with kho.open(tmp_path / "full.elf") as image:
        assert kho.content(image, path) == wanted
    for name in ("small.elf", "none.elf"):
        with kho.open(tmp_path / name) as image, pytest.raises(kho.IncompleteError):
            kho.content(image, path)


@pytest.mark.parametrize("redact", [False, True])
def test_nothing_of_the_content_is_left(redact: bool, tmp_path: Path) -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    out = tmp_path / "out.elf"
    with kho.open(source) as image:
        extract(image, out, content=False, redact=redact)
        data = out.read_bytes()
        for memfd_path, memfd in image.memfds():
            whole = kho.content(image, memfd_path, fill_missing=True)
            for at in range(0, min(len(whole), 65536), 4096):
                sample = whole[at : at + 32]
                if len(set(sample)) > 4:
                    assert sample not in data, memfd_path
            assert memfd.nr_folios >= 0


@pytest.mark.parametrize("name", ["linux-6.17.8-handoff", "linux-6.18.15-handoff"])
def test_what_lies_beside_small_structures_is_not_kept(name: str, tmp_path: Path) -> None:
    """Bitmaps of 512 bytes are objects of a slab; the objects beside them are the kernel's."""
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        extract(image, tmp_path / "out.elf", redact=True)
    data = (tmp_path / "out.elf").read_bytes()
    for word in (*(r["name"] for r in truth["reserve_mem"]), *truth["cmdline"].split()):
        assert word.encode() not in data, word


def test_redaction_replaces_names_and_tokens_consistently(tmp_path: Path) -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    truth = json.loads((CORPUS / "linux-7.3.4-handoff.truth.json").read_text())
    out = tmp_path / "out.elf"
    with kho.open(source) as image:
        extract(image, out, redact=True)
    data = out.read_bytes()
    for name in (*truth["sessions"], *(r["name"] for r in truth["reserve_mem"])):
        assert name.encode() not in data
    for file in truth["files"]:
        token = int(file["token"], 0)
        if len(set(token.to_bytes(8, "little"))) > 3:
            assert token.to_bytes(8, "little") not in data
    with kho.open(out) as image:
        names = [s.name for s in image.luo.sessions]
        assert len(set(names)) == len(truth["sessions"])
        assert sum(len(s.files) for s in image.luo.sessions) == len(truth["files"])


@pytest.mark.parametrize("damage", ["no end", "no start"])
def test_regions_of_a_damaged_tree_have_no_names_either(damage: str, tmp_path: Path) -> None:
    source = CORPUS / "linux-7.3.4-handoff.elf.zst"
    with kho.open(source) as image:
        names = [region.name for region in image.reserve_mem]
        at = next(blob.address for blob in image.blobs if blob.name == b"memblock")
        overlay = SparseMemory.over(image.memory)
        blob = overlay.read(at, 4096)
        tree = fdt.parse(blob)
        if damage == "no end":
            end = next(t.offset for t in tree.tokens() if t.tag == fdt.Tag.END)
            overlay.write(at + tree.header.off_dt_struct + end, b"\0\0\0\x77")
        else:
            overlay.write(at + blob.index(b"start\0"), b"other")
        with kho.open(overlay) as damaged:
            assert len(damaged.reserve_mem) < len(names)
            extract(damaged, tmp_path / "out.elf", redact=True)
    assert len(names) > 1
    for name in names:
        assert name not in (tmp_path / "out.elf").read_bytes()


def test_tokens_that_refer_to_files_still_do(tmp_path: Path) -> None:
    source = CORPUS / "iommu-vw-small_legacy-handoff.elf.zst"
    out = tmp_path / "out.elf"
    with kho.open(source) as image:
        extract(image, out, redact=True)
    with kho.open(out) as image:
        assert not any(b"vm-a" in s.name for s in image.luo.sessions)


def test_a_short_token_stands_for_the_first_long_one_and_searches_no_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unlisted(dict[int, int]):
        def items(self) -> None:  # type: ignore[override]
            raise AssertionError("every new token goes through all tokens")

        __iter__ = keys = values = items  # type: ignore[assignment]

    with kho.open(CORPUS / "linux-7.3.4-handoff.elf.zst") as image:
        names = Pseudonyms(image, SparseMemory.over(image.memory))
        monkeypatch.setattr(names, "tokens", Unlisted())
        long, other = names._token(0x5_0000_0007), names._token(0x6_0000_0007)
        assert names._token(7, 4) == long != other
        assert names._token(0x6_0000_0007) == other
        fresh = [names._token(n, 4) for n in range(100, 200)]
        assert len(set(fresh)) == 100
        assert not {long, other} & set(fresh)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.elf"
    out.write_bytes(b"precious")
    with kho.open(CORPUS / "linux-6.17.8-handoff.elf.zst") as image:
        with pytest.raises(kho.UsageError, match="exists"):
            extract(image, out)
        assert out.read_bytes() == b"precious"
        extract(image, out, force=True)
    assert out.read_bytes()[:4] == b"\x7fELF"


def test_nothing_is_left_behind_where_it_cannot_be_written(tmp_path: Path) -> None:
    with kho.open(CORPUS / "linux-6.17.8-handoff.elf.zst") as image:
        with pytest.raises((OutputError, kho.UsageError)):
            extract(image, tmp_path / "absent" / "out.elf")
        assert list(tmp_path.iterdir()) == []


def test_readelf_can_read_it(tmp_path: Path) -> None:
    import shutil
    import subprocess

    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    out = tmp_path / "out.elf.zst"
    with kho.open(CORPUS / "linux-6.17.8-handoff.elf.zst") as image:
        extract(image, out)
    plain = tmp_path / "out.elf"
    with zstandard.open(out, "rb") as stream:
        plain.write_bytes(stream.read())
    listing = subprocess.run(["readelf", "-hl", plain], capture_output=True, text=True, check=True)
    assert "CORE (Core file)" in listing.stdout
    assert "Warning" not in listing.stderr
