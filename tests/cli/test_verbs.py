"""The fixed points of the command line, on a real capture."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.conftest import CORPUS, Run

TRUTH = json.loads((CORPUS / "linux-7.3.4-handoff.truth.json").read_text())


def test_preserved_lines_are_the_map(kho: Run, handoff: Path) -> None:
    result = kho("preserved", handoff)
    assert result.status == 0
    digest = TRUTH["preserved"]["sha256_of_lines_pa_order"]
    assert hashlib.sha256(result.out).hexdigest() == digest


def test_preserved_formats_agree(kho: Run, handoff: Path) -> None:
    text = kho("preserved", handoff).text.splitlines()
    jsonl = [
        json.loads(line) for line in kho("preserved", handoff, "-f", "jsonl").text.splitlines()
    ]
    whole = json.loads(kho("preserved", handoff, "--format", "json").text)
    assert whole["schema_version"] == 1
    assert jsonl == whole["blocks"]
    assert text == [f"{b['address']} {b['order']}" for b in jsonl]


def test_preserved_ranges_cover_the_blocks(kho: Run, handoff: Path) -> None:
    ranges = [line.split() for line in kho("preserved", handoff, "--ranges").text.splitlines()]
    assert sum(int(size, 0) for _, size in ranges) == TRUTH["preserved"]["pages"] * 4096


def test_dump_json_has_every_fixed_key(kho: Run, handoff: Path) -> None:
    document = json.loads(kho("dump", handoff, "--format", "json").text)
    assert document["schema_version"] == 1
    for key in ("root", "candidates", "scratch", "preserved", "reserve_mem", "kexec_metadata",
                "luo"):  # fmt: skip
        assert key in document
    assert {"address", "compatible", "generation", "moment"} <= document["root"].keys()
    assert {"liveupdate_number", "sessions", "flbs"} <= document["luo"].keys()
    for session in document["luo"]["sessions"]:
        for file in session["files"]:
            assert {"token", "compatible", "data", "memfd"} <= file.keys()
            assert {"size", "pos", "seals", "nr_folios"} <= file["memfd"].keys()
            int(file["token"], 16)


def test_dump_text_is_a_tree(kho: Run, handoff: Path) -> None:
    text = kho("dump", handoff).text
    assert "\x1b" not in text
    assert "├── scratch" in text
    assert "0xdeadbeefcafe0004" in text


def test_dump_one_object(kho: Run, handoff: Path) -> None:
    result = kho("dump", handoff, "/LUO/sessions/db-cache", "--format", "json")
    assert json.loads(result.text)["object"]["name"] == "db-cache"


@pytest.mark.parametrize("file", [f for f in TRUTH["files"] if int(f["size"]) <= 65536][:12])
def test_cat_is_the_content(kho: Run, handoff: Path, file: dict[str, str]) -> None:
    path = f"/LUO/sessions/{file['session']}/files/{file['token']}"
    result = kho("cat", handoff, path)
    assert result.status == 0
    assert hashlib.sha256(result.out).hexdigest() == file["sha256"]


def test_cat_takes_tokens_in_any_notation(kho: Run, handoff: Path) -> None:
    hexadecimal = kho("cat", handoff, "/LUO/sessions/db-cache/files/0xffffffffffffffff").out
    decimal = kho("cat", handoff, f"/LUO/sessions/db-cache/files/{2**64 - 1}").out
    assert hexadecimal == decimal
    wanted = next(f for f in TRUTH["files"] if f["token"] == "0xffffffffffffffff")
    assert len(hexadecimal) == wanted["size"]


def test_cat_refuses_missing_pages(kho: Run, handoff: Path) -> None:
    path = "/LUO/sessions/db-cache/files/0xdeadbeefcafe0004"
    refused = kho("cat", handoff, path)
    assert refused.status == 16
    assert refused.out == b""
    assert "not in the image" in refused.err
    assert "0x" in refused.err
    filled = kho("cat", handoff, path, "--fill-missing")
    assert filled.status == 0
    assert len(filled.out) == 3 << 20


def test_path_that_does_not_exist_suggests_the_nearest(kho: Run, handoff: Path) -> None:
    result = kho("dump", handoff, "/LUO/sessions/db-cash")
    assert result.status == 2
    assert "did you mean /LUO/sessions/db-cache?" in result.err
    assert result.err.count("\n") == 1


def test_incoming_says_what_is_lost(kho: Run, incoming: Path) -> None:
    result = kho("dump", incoming)
    assert result.status & 16
    assert "lost: the preserved-memory map" in result.text
    refused = kho("preserved", incoming)
    assert refused.status == 16
    assert "lost" in refused.err


def test_info(kho: Run, handoff: Path) -> None:
    text = kho("info", handoff).text
    assert "kho-v4" in text
    assert "handed-over" in text
    facts = json.loads(kho("info", handoff, "-f", "json").text)
    assert facts["generations"]["luo"]["id"] == "luo-v5"


def test_override_a_generation(kho: Run, handoff: Path) -> None:
    result = kho("dump", handoff, "--abi", "memfd=memfd-v1", "-f", "json")
    document = json.loads(result.text)
    assert document["generations"]["memfd"]["id"] == "memfd-v1"
    assert kho("dump", handoff, "--abi", "memfd=nonsense").status == 2
    assert kho("dump", handoff, "--abi", "nonsense").status == 2


def test_abi_list_marks_what_is_unmeasured(kho: Run) -> None:
    text = kho("abi", "list").text
    assert "kho-v1-bitmap512" in text
    assert "[unmeasured: read]" in text
    rows = json.loads(kho("abi", "list", "--format", "json").text)["generations"]
    assert {r["layer"] for r in rows} >= {"kho", "luo", "memfd", "iommu", "iommufd", "pci"}


def test_abi_show(kho: Run) -> None:
    text = kho("abi", "show", "luo_session_ser").text
    assert "struct luo_session_ser {" in text
    assert "char name[64];" in text
    layout = json.loads(kho("abi", "show", "luo=luo-v5", "-f", "json").text)
    sizes = {s["name"]: s["size"] for s in layout["generations"][0]["structs"]}
    assert sizes["luo_ser"] == 32
    missing = kho("abi", "show", "luo_sesion_ser")
    assert missing.status == 2
    assert "luo_session_ser" in missing.err


def test_check_is_clean_on_a_real_capture(kho: Run, handoff: Path) -> None:
    result = kho("check", handoff)
    assert result.status == 0
    assert "clean" in result.text
    assert "0 B claimed by nobody" in result.text
    sarif = json.loads(kho("check", handoff, "--format", "sarif").text)
    assert sarif["runs"][0]["results"] == []


def test_explain(kho: Run) -> None:
    assert "scratch" in kho("explain", "KHO-SCR-004").text
    assert "compatible string" in kho("explain", "kho-abi-020").text
    assert kho("explain", "KHO-SCR-999").status == 2
