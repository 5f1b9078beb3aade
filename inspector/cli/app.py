"""``kho``: the commands, gathered.

Each verb is a module with a function ``register(app)`` that is imported when the verb is
named; heavy modules are imported inside the commands, so that ``kho --help`` and completion
stay fast.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any

# One thread is enough for what numpy does here, and starting more costs 60 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer
from typer.core import TyperGroup

from abi.errors import KhoError
from inspector import progress
from inspector.cli import bar

#: The verbs in the order of ``kho --help``, and what it says of them.
VERBS = {
    "info": "Say what an image is and what it holds.",
    "dump": "Show what one kernel hands to the next, as a tree.",
    "cat": "Write a file's content, a blob, a region or a struct.",
    "preserved": "List the preserved blocks, one a line.",
    "pagetable": "List what page tables map, or translate addresses.",
    "devices": "Show which device can DMA where.",
    "cpr": "Show QEMU's CPR state, alone or beside an image.",
    "simulate": "Write the image that a kernel would hand over.",
    "consume": "Boot a simulated kernel on an image.",
    "check": "Check an image against every rule.",
    "explain": "Say what a finding means and what the kernel does.",
    "compat": "Foresee what another kernel does with an image.",
    "diff": "Show the structural difference of two images.",
    "extract": "Cut an image down to the pages that matter.",
    "report": "Write one self-contained HTML page.",
    "fuzz": "Feed mutated images to the decoder or a command.",
    "abi": "List, show, verify and compare the ABI's generations.",
}
#: Verbs that live in another verb's module.
_MODULES = {"explain": "check"}


class _Verbs(MutableMapping[str, Any]):
    """The commands by name; a verb's module is imported when its command is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if name not in VERBS:
                raise KeyError(name)
            module = import_module(f"inspector.cli.{_MODULES.get(name, name)}")
            group = typer.Typer(rich_markup_mode=None, add_completion=False)
            group.callback()(_nothing)
            module.register(group)
            self._loaded.update(typer.main.get_group(group).commands)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Group(TyperGroup):
    """The root command: knows its verbs without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Verbs()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of verbs in ``kho --help``."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _nothing() -> None:
    pass


#: What the parser raises for a wrong call; typer exports only what derives from it.
_CommandLineError: Any = typer.BadParameter.__mro__[1]


app = typer.Typer(
    name="kho",
    cls=_Group,
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


def main() -> None:
    """Run a command; every expected failure is one line on stderr and an exit status."""
    # What a command makes lives until it ends: looking it through for garbage again and again
    # takes a tenth of the time where there are 100,000 devices.
    gc.set_threshold(100_000, 50, 1000)
    try:
        with progress.watch(bar.watcher()):
            status = app(standalone_mode=False)
        sys.stdout.flush()
    except KhoError as error:
        _fail(str(error), error.exit_status)
    except _CommandLineError as error:
        _wrong_call(error)
    except BrokenPipeError:
        _reader_gone()
    except SystemExit as leaving:
        # Typer makes 1 of a broken pipe, which would say that there are differences.
        if isinstance(leaving.__context__, BrokenPipeError):
            _reader_gone()
        raise
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
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _wrong_call(error: Any) -> None:
    """What the parser of the command line refuses, and where to read on."""
    if error.message.startswith("Usage: "):  # nothing was said: the whole help
        error.show()
        sys.exit(error.exit_code)
    place = error.ctx.command_path if error.ctx is not None else "kho"
    message = " ".join(error.format_message().split()).removesuffix(".")
    _fail(f"{message[:1].lower()}{message[1:]} ('{place} --help' tells more)", error.exit_code)


def _reader_gone() -> None:
    """The reader of standard output went away: no error, but nothing more can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    sys.exit(141)


def _fail(message: str, status: int) -> None:
    from inspector.text import display

    sys.stdout.flush()
    print(f"kho: {display(message)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
