"""Write what is generated from the code: the man page and the catalogue of rules.

python docs/generate.py            # write docs/kho.1 and docs/rules.md
python docs/generate.py --check    # say whether they are current
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def roff(text: str) -> str:
    """Text with what troff would interpret escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(("\\&" + line) if line[:1] in ".'" else line for line in escaped.split("\n"))


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below ``command`` with its path, groups dissolved."""
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


def synopsis(path: tuple[str, ...], command: Any) -> str:
    """One line: the command and its arguments."""
    words = [f"\\fB{roff(' '.join(path))}\\fR", "[\\fIOPTIONS\\fR]"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = (parameter.metavar or parameter.name.upper()).strip("[]")
            words.append(
                f"\\fI{roff(name)}\\fR" if parameter.required else f"[\\fI{roff(name)}\\fR]"
            )
    return " ".join(words)


def value_of(option: Any) -> str:
    """What an option takes: its metavar, or the words to choose from."""
    return option.metavar or "|".join(getattr(option.type, "choices", ())) or "VALUE"


def man_page() -> str:
    """kho(1)."""
    import typer

    from inspector.cli.app import app

    root = typer.main.get_command(app)
    lines = [
        ".\\\" Generated from the commands; see docs/generate.py.",
        '.TH KHO 1 "" "kho-inspector" "User Commands"',
        ".SH NAME",
        "kho \\- read, judge and make the state one Linux kernel hands over to the next",
        ".SH SYNOPSIS",
        ".B kho",
        "\\fICOMMAND\\fR [\\fIOPTIONS\\fR] ...",
        ".SH DESCRIPTION",
        roff(
            "Reads Kexec HandOver (KHO) state, Live Update Orchestrator (LUO) sessions and what"
            " rides on them out of memory images of any kernel from 6.16 on, with no symbols and no"
            " hint. IMAGE is raw memory, an ELF core, a kdump file, each also compressed with zstd;"
            " '-' is standard input, '/proc/kcore' the running machine."
        ),
        ".SH COMMANDS",
    ]  # fmt: skip
    for path, command in commands(root, ("kho",)):
        lines += [".SS " + synopsis(path, command)]
        text = " ".join((command.help or "").split())
        lines.append(roff(text))
        for parameter in command.params:
            if parameter.param_type_name == "argument" or parameter.name == "help":
                continue
            flags = ", ".join(
                f"\\fB{roff(o)}\\fR" for o in (*parameter.opts, *parameter.secondary_opts)
            )
            metavar = "" if parameter.is_flag else f" \\fI{roff(value_of(parameter))}\\fR"
            lines += [".TP", f"{flags}{metavar}", roff(parameter.help or "")]
    lines += [
        ".SH PATHS",
        roff(
            "Objects have paths such as /LUO/sessions/vm0/files/0x1. In a name '/', '%', control"
            " characters and bytes that are not UTF-8 are written %NN. Tokens may be in any integer"
            " notation."
        ),
        ".SH EXIT STATUS",
        roff(
            "A bit mask: 0 clean, 1 differences or warnings, 2 wrong usage, 4 errors or"
            " incompatible, 8 unreadable, 16 incomplete (pages are missing)."
        ),
        ".SH ENVIRONMENT",
        ".TP",
        "\\fBNO_COLOR\\fR",
        "no colours, even on a terminal.",
        ".SH SEE ALSO",
        ".BR kexec (8),",
        ".BR crash (8),",
        ".BR drgn (1)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def rules() -> str:
    """The catalogue of ``kho check`` as Markdown."""
    from inspector.check import MODULES, catalogue
    from inspector.findings import Severity

    lines = [
        "# Rules",
        "",
        "What `kho check` looks for, and what kernels do about it. Generated from the rules; `kho"
        " explain CODE` prints one.",
        "",
    ]
    counts = {s: sum(r.severity is s for r in catalogue().values()) for s in Severity}
    lines += [
        f"{len(catalogue())} rules: {counts[Severity.ERROR]} errors, {counts[Severity.WARNING]}"
        f" warnings, {counts[Severity.INFO]} notes.",
        "",
    ]
    from importlib import import_module

    for name in MODULES:
        module = import_module(f"inspector.check.{name}")
        lines += [f"## {(module.__doc__ or name).strip().splitlines()[0].rstrip('.')}", ""]
        lines += ["| code | severity | what is wrong | what the kernel does |", "|---|---|---|---|"]
        lines += [
            f"| `{r.code}` | {r.severity.name.lower()} | {cell(r.statement)} | {cell(r.kernel)} |"
            for r in module.RULES
        ]
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text inside a Markdown table."""
    return text.replace("|", "\\|")


GENERATED = {"kho.1": man_page, "rules.md": rules}


def main() -> int:
    """Write the files, or with ``--check`` compare them."""
    stale = []
    for name, make in GENERATED.items():
        path, text = DOCS / name, make()
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
    for name in stale:
        print(f"docs/{name} is not current: run python docs/generate.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
