"""What users see of every image of the corpus, and of some simulated ones.

    python corpus/golden.py            # write corpus/golden/
    python corpus/golden.py --check    # name what is not current

``NAME.txt`` and ``NAME.json`` are what ``kho dump`` says, ``NAME.VERB.txt`` what other verbs
print, with the exit status in the last line. All of it is compared by the tests: a change is a
change that users see.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import zstandard

CORPUS = Path(__file__).parent
GOLDEN = CORPUS / "golden"
#: Shipped scenarios with state that no capture has.
SIMULATED = ("guest-memfd", "kvm-caretaker")
KERNELS = ("linux-6.17", "linux-6.18", "linux-6.19", "linux-7.1", "linux-7.3")
#: What is printed of each image, by the name of the file it is kept in.
VERBS: dict[str, tuple[str, ...]] = {
    "info": ("info", "{image}"),
    "check": ("check", "{image}"),
    "compat": ("compat", "{image}", *(word for name in KERNELS for word in ("--to", name))),
}
#: What is printed of images with passed-through devices.
DEVICES = {"devices": ("devices", "{image}"), "pagetable": ("pagetable", "{image}", "0")}
#: One update seen from both sides.
PAIRS = (
    ("linux-7.3.4-outgoing", "linux-7.3.4-handoff"),
    ("linux-7.3.4-outgoing", "linux-7.3.4-incoming"),
    ("iommu-vw-legacy-handoff", "iommu-vw-legacy-incoming"),
)


def images() -> Iterator[Path]:
    """Images with a KHO root."""
    for path in sorted(CORPUS.glob("*.elf.zst")):
        if not any(part in path.name for part in ("amdv1", "smmuv3", "vtd-legacy")):
            yield path


def simulated(name: str) -> Any:
    """The memory of a scenario's image."""
    from inspector.kernel import scenario

    return scenario.load(name).run().memory


def text(source: Any) -> str:
    """What ``kho dump`` prints where there is no terminal."""
    import kho
    from inspector import tree
    from inspector.cli.common import Printer

    out = io.StringIO()
    with kho.open(source) as image, redirect_stdout(out):
        for line in tree.render(tree.build(image)):
            print(line)
        Printer().notes(image)
    return out.getvalue()


def document(source: Any) -> str:
    """What ``kho dump --format json`` prints."""
    import kho
    from inspector.cli.common import SCHEMA_VERSION

    with kho.open(source) as image:
        whole = {"schema_version": SCHEMA_VERSION, **kho.document(image)}
    return json.dumps(whole, indent=2) + "\n"


def printed(*words: str) -> str:
    """What a command prints where there is no terminal, run in the folder of the corpus."""
    from unittest import mock

    from inspector.cli.app import main

    # With a buffer beneath, as some verbs write bytes.
    out, status = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n"), 0
    environment = mock.patch.dict(os.environ, KHO_TRACEBACK="1")
    arguments = mock.patch.object(sys, "argv", ["kho", *words])
    with redirect_stdout(out), chdir(CORPUS), environment, arguments:
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
    out.seek(0)
    return f"{out.read()}exit status {status}\n"


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name of the expected output, words of the command) for verbs other than ``dump``."""
    for path in images():
        verbs = VERBS | (DEVICES if path.name.startswith("iommu-") else {})
        for verb, words in verbs.items():
            yield f"{short(path)}.{verb}.txt", tuple(w.format(image=path.name) for w in words)
    for one, other in PAIRS:
        yield f"{one}.diff-{other}.txt", ("diff", f"{one}.elf.zst", f"{other}.elf.zst")


def short(path: Path) -> str:
    """An image's name in the names of its expected output."""
    return path.name.removesuffix(".elf.zst")


def stored(name: str) -> str | None:
    """The expected output called ``name``; JSON is kept compressed."""
    plain, packed = GOLDEN / name, GOLDEN / f"{name}.zst"
    if plain.exists():
        return plain.read_text()
    if packed.exists():
        with zstandard.open(packed, "rt", encoding="utf-8") as stream:
            return str(stream.read())
    return None


def main() -> int:
    """Write or check everything."""
    GOLDEN.mkdir(exist_ok=True)
    check = "--check" in sys.argv
    stale = []
    for kind, made in _everything():
        if stored(kind) == made:
            continue
        stale.append(kind)
        if check:
            continue
        if kind.endswith(".txt"):
            (GOLDEN / kind).write_text(made)
        else:
            packed = zstandard.ZstdCompressor(19).compress(made.encode())
            (GOLDEN / f"{kind}.zst").write_bytes(packed)
    for kind in stale:
        print(f"corpus/golden/{kind} was not current", file=sys.stderr)
    return bool(stale) and check


def _everything() -> Iterator[tuple[str, str]]:
    sources: list[tuple[str, Any]] = [(short(path), path) for path in images()]
    sources += [(f"simulated-{name}", simulated(name)) for name in SIMULATED]
    for name, path in sources:
        yield f"{name}.txt", text(path)
        yield f"{name}.json", document(path)
    for name, words in commands():
        yield name, printed(*words)


if __name__ == "__main__":
    sys.exit(main())
