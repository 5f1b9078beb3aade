"""The expected output of ``kho dump`` for every image of the corpus, and for simulated ones.

    python corpus/golden.py            # write corpus/golden/
    python corpus/golden.py --check    # name what is not current

Text and JSON are compared by the tests; a change of either is a change that users see.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import zstandard

CORPUS = Path(__file__).parent
GOLDEN = CORPUS / "golden"
#: Shipped scenarios with state that no capture has.
SIMULATED = ("guest-memfd", "kvm-caretaker")


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
    stale = []
    sources = [(path.name.removesuffix(".elf.zst"), path) for path in images()]
    sources += [(f"simulated-{name}", simulated(name)) for name in SIMULATED]
    for name, path in sources:
        for kind, made in ((f"{name}.txt", text(path)), (f"{name}.json", document(path))):
            if stored(kind) == made:
                continue
            stale.append(kind)
            if "--check" in sys.argv:
                continue
            if kind.endswith(".txt"):
                (GOLDEN / kind).write_text(made)
            else:
                packed = zstandard.ZstdCompressor(19).compress(made.encode())
                (GOLDEN / f"{kind}.zst").write_bytes(packed)
    for kind in stale:
        print(f"corpus/golden/{kind} was not current", file=sys.stderr)
    return bool(stale) and "--check" in sys.argv


if __name__ == "__main__":
    sys.exit(main())
