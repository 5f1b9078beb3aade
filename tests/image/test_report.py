"""The report: self-contained, escaped, and fit for a browser."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import kho
from inspector.check import check
from inspector.decode import decode
from inspector.findings import Severity
from inspector.kernel import scenario
from inspector.kernel.faults import inject
from inspector.memory.sparse import SparseMemory
from inspector.report import render, write

CORPUS = Path(__file__).parents[2] / "corpus"
HANDOFF = CORPUS / "linux-7.3.4-handoff.elf.zst"
IMAGES = [
    HANDOFF,
    CORPUS / "linux-7.3.4-incoming.elf.zst",
    CORPUS / "iommu-vw-legacy-handoff.elf.zst",
    CORPUS / "linux-6.17.8-handoff.elf.zst",
]


class Tags(html.parser.HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_it_is_one_page_that_loads_nothing(path: Path) -> None:
    with kho.open(path) as image:
        page = render(image, source=str(path))
    tags = Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.tags}
    assert {"svg", "rect", "details", "table"} <= names
    assert not names & {"link", "img", "iframe", "object", "embed"}
    assert not any(a.get("src") or a.get("href") for _, a in tags.tags)
    assert not re.search(r"https?://", page)
    assert str(CORPUS) not in page


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("iommu-vw-small_legacy-handoff", "linux-7.3+iommu-vw"),
        ("iommu-v3-small_scalable-handoff", "linux-7.1+iommu-v3"),
    ],
)
def test_an_outcome_for_the_series_that_wrote_the_image(name: str, kernel: str) -> None:
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        page = render(image)
    rows = dict(re.findall(r"<th>(linux-[^<]*)</th>.*?<b class=.*?>([^<]*)</b>", page))
    assert rows[kernel] == "taken-over"
    assert rows["linux-7.3"] != "taken-over"


def test_what_check_finds_is_counted_and_located() -> None:
    """Not only what decoding finds by itself."""
    simulated = scenario.load("linux-7.3").run()
    inject(simulated, "map-scratch")
    inject(simulated, "memfd-seals")
    image = decode(simulated.memory)
    page = render(image)
    found = check(image, at_least=Severity.WARNING).findings
    errors = sum(f.severity is Severity.ERROR for f in found)
    card = re.search(r'<span class="error">(\d+)</span> / <span class="warning">(\d+)</span>', page)
    assert card is not None
    assert (int(card[1]), int(card[2])) == (errors, len(found) - errors)
    assert errors >= 2
    for finding in found:
        assert finding.address is not None
        assert hex(finding.address) in page


def test_names_are_escaped() -> None:
    evil = b'<script>alert(1)</script>\x1b[2J"'
    memory = kho.open_memory(HANDOFF)
    with kho.open(memory) as image:
        address = image.luo.sessions[0].address
    overlay = SparseMemory.over(memory)
    overlay.write(address, evil.ljust(64, b"\0"))
    with kho.open(overlay) as image:
        page = render(image)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page


def test_an_existing_page_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with kho.open(HANDOFF) as image:
        write(image, out)
        with pytest.raises(kho.UsageError, match="exists"):
            write(image, out)
        write(image, out, force=True)
    assert out.read_text().startswith("<!doctype html>")


def test_a_browser_shows_it(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium is installed")
    out = tmp_path / "report.html"
    with kho.open(HANDOFF) as image:
        write(image, out)
    command = [
        browser, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri(),
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not answer here")
    assert "linux" in shown.stdout or "root FDT" in shown.stdout or "<svg" in shown.stdout
    assert shown.stdout.count("<rect") > 10
    assert "vm-alpha" in shown.stdout
