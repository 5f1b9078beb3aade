"""Coverage-guided fuzzing with atheris (extra ``fuzz``).

    python -m inspector.fuzz.coverage --target decode --seconds 60 --out DIR [IMAGE|SCENARIO]...

libFuzzer's bytes do not become an image: they stand in for the random numbers that the
mutator draws, so that what it evolves are mutations by meaning. ``kho fuzz --coverage``
starts this.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any


class Bytes(random.Random):
    """Random numbers out of a byte string; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0

    def getrandbits(self, k: int) -> int:
        """The next ``k`` bits."""
        size = (k + 7) // 8
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little") >> max(8 * len(piece) - k, 0)

    def random(self) -> float:
        """The next 16 bits as a fraction."""
        return self.getrandbits(16) / 65536

    def randbytes(self, n: int) -> bytes:
        """The next ``n`` bytes, repeated from short input."""
        piece = self._data[self._at : self._at + n] or b"\0"
        self._at += n
        return (piece * (n // len(piece) + 1))[:n]

    def _randbelow(self, n: int) -> int:
        # The usual one draws again until it fits, and zeros for ever would not end.
        return self.getrandbits(max(n.bit_length(), 8)) % n


def main(argv: list[str] | None = None) -> int:
    """Command line. Exit status 0, or libFuzzer's own (77) after a finding."""
    parser = argparse.ArgumentParser(prog="python -m inspector.fuzz.coverage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", default="decode")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="cases that fail, and libFuzzer's corpus")
    parser.add_argument("images", nargs="*")
    options = parser.parse_args(argv)
    try:
        import atheris
    except ImportError:
        print("kho: --coverage needs atheris: pip install 'kho-inspector[fuzz]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["abi", "inspector", "specs"]):
        import inspector.decode
        import inspector.document
        import inspector.walk.preserved  # noqa: F401
        from inspector.fuzz import base, shrink, targets  # noqa: F401
    return _fuzz(atheris, options)


def _fuzz(atheris: Any, options: argparse.Namespace) -> int:
    from abi.errors import KhoError
    from inspector.fuzz import base as bases_of
    from inspector.fuzz import cases, shrink, targets
    from inspector.fuzz.guard import Guard
    from inspector.fuzz.run import attempt

    try:
        bases = [bases_of.load(i) for i in options.images] or list(bases_of.defaults())
        target = targets.make(options.target, bases)
    except KhoError as error:
        print(f"kho: {error}", file=sys.stderr)
        return error.exit_status
    seen: set[str] = set()
    guard = Guard()
    arguments = [sys.argv[0], f"-max_total_time={options.seconds}", f"-seed={options.seed}",
                 "-max_len=512", "-len_control=0", "-print_final_stats=1",
                 "-rss_limit_mb=4096", "-handle_alrm=0"]  # fmt: skip
    if options.out is not None:
        corpus = options.out / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        arguments.append(str(corpus))

    def consume(data: bytes) -> None:
        base, edits = target.pick(Bytes(data))
        outcome = attempt(target, base, edits, guard)
        key = f"{outcome.kind} {outcome.key}"
        if outcome.fine or key in seen:
            return
        seen.add(key)
        print(f"FOUND {key}\n{outcome.detail}", file=sys.stderr)
        if options.out is not None:
            less, memory = shrink.shrink(target, base, edits, outcome)
            case = shrink.case_of(target, options.seed, len(seen), base, less, outcome, memory)
            name = f"{target.name}-{outcome.kind}-coverage-{options.seed}-{len(seen)}"
            cases.save(case, options.out / f"{name}.json")

    with guard:
        atheris.Setup(arguments, consume, enable_python_coverage=True)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
