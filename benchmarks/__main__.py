"""Run the benches: ``python -m benchmarks [--json] [NAME...]``.

A bench is a module ``bench_NAME.py`` in this directory with a function ``run()`` that
returns a list of :class:`benchmarks.common.Result`. Exit status 1 if a ratio is over its
limit, 3 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.common import NotMeasurableError, Result, report


def main() -> int:
    """Run all benches, or those named."""
    here = Path(__file__).parent
    names = sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    results: list[Result] = []
    for name in arguments.names or names:
        print(f"running {name} ...", file=sys.stderr)
        try:
            results += importlib.import_module(f"benchmarks.bench_{name}").run()
        except NotMeasurableError as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
    if not results:
        return 3
    return 0 if report(results, as_json=arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
