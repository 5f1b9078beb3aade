"""``kho``: the commands, gathered.

Each verb is a module with a function ``register(app)``; heavy modules are imported inside
the commands, so that ``kho --help`` and completion stay fast.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

# One thread is enough for what numpy does here, and starting more costs 60 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer

from abi.errors import KhoError
from inspector import progress
from inspector.cli import bar

#: The verbs, in the order of ``kho --help``.
VERBS = (
    "info",
    "dump",
    "cat",
    "preserved",
    "pagetable",
    "devices",
    "cpr",
    "simulate",
    "consume",
    "check",
    "compat",
    "diff",
    "extract",
    "report",
    "fuzz",
    "abi",
)

app = typer.Typer(
    name="kho",
    help="Read, judge and make the state that one Linux kernel hands over to the next.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status, a bit mask: 0 clean, 1 differences or warnings, 2 usage, "
    "4 errors or incompatible, 8 unreadable, 16 incomplete.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kho {version('kho-inspector')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


for _verb in VERBS:
    import_module(f"inspector.cli.{_verb}").register(app)


def main() -> None:
    """Run a command; every expected failure is one line on stderr and an exit status."""
    try:
        with progress.watch(bar.watcher()):
            app()
    except KhoError as error:
        _fail(str(error), error.exit_status)
    except BrokenPipeError:
        # The reader went away: not an error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        _fail("out of memory", 8)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 8)
    except RecursionError:
        _fail("the input is nested too deeply", 8)
    except Exception as error:
        if os.environ.get("KHO_TRACEBACK"):
            raise
        _fail(
            f"internal error, a bug in kho: {type(error).__name__}: {error}"
            " (KHO_TRACEBACK=1 shows where)",
            8,
        )


def _fail(message: str, status: int) -> None:
    from inspector.text import display

    sys.stdout.flush()
    print(f"kho: {display(message)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
