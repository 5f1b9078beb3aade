"""Reading scenario files: TOML with the line of every key, so that errors can name it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from abi.errors import UsageError

Path = tuple[str | int, ...]

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+)\s*([KMGT]?)(?:iB|B)?\Z")
_HEADER = re.compile(r"\s*(\[\[?)(.*)")
# Possessive: no text is gone through twice.
_NAME = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\]|\\.)*+"|'[^']*+')"""
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_PART = re.compile(_NAME)
#: Bytes of a file, and names in one key: reading a key takes the square of their number.
MAX_TEXT, MAX_NAMES = 4 << 20, 32
_DEEP = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_NAME}\s*+\.\s*+){{{MAX_NAMES}}}")


class ScenarioError(UsageError):
    """A scenario says something that makes no sense: file, line, key and reason."""


class Document:
    """A parsed file and where its keys stand."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        if len(text) > MAX_TEXT:
            raise ScenarioError(f"{name}: more than {MAX_TEXT >> 20} MiB are no scenario")
        for number, line in enumerate(text.split("\n"), 1):
            if line.count(".") >= MAX_NAMES and _DEEP.search(line):
                raise ScenarioError(f"{name}:{number}: a key of more than {MAX_NAMES} names")
        try:
            self.data = tomllib.loads(text)
        except ValueError as error:  # of syntax, or of a number with thousands of digits
            raise ScenarioError(_syntax_message(name, str(error).partition(";")[0])) from None
        self.lines = dict(_lines(text))

    def error(self, path: Path, message: str) -> ScenarioError:
        """An error at a key: the nearest line known, the key, the reason."""
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        line = self.lines.get(near, 1)
        return ScenarioError(f"{self.name}:{line}: {spell(path) or 'scenario'}: {message}")

    @property
    def root(self) -> Table:
        """The top-level table."""
        return Table(self, (), self.data)


class Table:
    """A table that is read key by key; :meth:`done` complains about keys nobody asked for."""

    def __init__(self, document: Document, path: Path, values: Mapping[str, Any]) -> None:
        self.document = document
        self.path = path
        self._values = values
        self._known: set[str] = set()

    def error(self, key: str | None, message: str) -> ScenarioError:
        """An error at one of the table's keys, or at the table."""
        return self.document.error(self.path if key is None else (*self.path, key), message)

    def blame(self, message: str) -> ScenarioError:
        """An error at the key, here or in a table below, whose value the message quotes."""
        return self.document.error((*self.path, *_quoted(self._values, message)), message)

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        self._known.add(key)
        return key in self._values

    def _get(self, key: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        self._known.add(key)
        if key not in self._values:
            if default is REQUIRED:
                raise self.error(key, f"is missing: {what}")
            return default
        value = self._values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"is not {what}")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        """A string."""
        return self._get(key, str, "a string", REQUIRED if default is ... else default)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        return bool(self._get(key, bool, "true or false", default))

    def integer(self, key: str, default: Any = ..., *, bits: int = 64) -> Any:
        """A number that fits ``bits`` bits; also as text, ``"0x10"`` or ``"16"``."""
        default = REQUIRED if default is ... else default
        value = self._get(key, (int, str), "a number", default)
        if isinstance(value, str) and key in self._values:
            try:
                value = int(value, 0)
            except ValueError:
                raise self.error(key, f"{value!r} is no number") from None
        if isinstance(value, int) and not 0 <= value < 1 << bits:
            raise self.error(key, f"{_said(value)} does not fit in {bits} bits")
        return value

    def number(self, key: str, default: float) -> float:
        """A number with a fraction."""
        value = self._get(key, (int, float), "a number", default)
        try:
            return float(value)
        except OverflowError:
            raise self.error(key, f"{_said(value)} is too large") from None

    def size(self, key: str, default: Any = ...) -> Any:
        """Bytes: a number, or text like ``"4K"``, ``"1GiB"``, ``"0x1000"``."""
        default = REQUIRED if default is ... else default
        value = self._get(key, (int, str), 'a size like 4096 or "4K"', default)
        if key not in self._values:
            return value
        return self._size(key, value)

    def _size(self, key: str, value: Any) -> int:
        try:
            return parse_size(value)
        except ValueError:
            raise self.error(key, f'{_said(value)} is no size like 4096 or "4K"') from None

    def sizes(self, key: str) -> list[int]:
        """A list of sizes; empty if the key is missing."""
        values = self._get(key, list, "a list of sizes", [])
        return [self._size(key, v) for v in values]

    def strings(self, key: str) -> list[str]:
        """A list of strings, or one; empty if the key is missing."""
        values = self._get(key, (list, str), "a list of strings", [])
        values = [values] if isinstance(values, str) else values
        if not all(isinstance(v, str) for v in values):
            raise self.error(key, "is not a list of strings")
        return list(values)

    def choice(self, key: str, allowed: Iterable[str], default: Any = ...) -> Any:
        """One of a few strings."""
        value = self.text(key, default)
        allowed = list(allowed)
        if key in self._values and value not in allowed:
            raise self.error(key, unknown(value, allowed))
        return value

    def table(self, key: str) -> Table:
        """A table; an empty one if the key is missing."""
        value = self._get(key, dict, "a table", {})
        return Table(self.document, (*self.path, key), value)

    def tables(self, key: str) -> list[Table]:
        """An array of tables; empty if the key is missing."""
        values = self._get(key, list, "an array of tables", [])
        if not all(isinstance(v, dict) for v in values):
            raise self.error(key, "is not an array of tables")
        return [Table(self.document, (*self.path, key, i), v) for i, v in enumerate(values)]

    def raw(self, key: str) -> Any:
        """The value as it is, or None."""
        self._known.add(key)
        return self._values.get(key)

    def raw_keys(self) -> list[str]:
        """All keys; they count as known."""
        self._known |= set(self._values)
        return list(self._values)

    def done(self) -> None:
        """Raises ScenarioError if the table has keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                raise self.error(key, unknown(key, sorted(self._known), "key"))


def _quoted(values: Mapping[str, Any], message: str) -> Path:
    """The first key whose value a message quotes, own ones first; () if there is none."""
    for key, value in values.items():
        if isinstance(value, str) and repr(value) in message:
            return (key,)
        try:
            number = parse_size(value)
        except ValueError:
            continue
        # Names of files have their token behind a slash.
        if re.search(rf"(?<![/\w]){number:#x}\b", message):
            return (key,)
    for key, value in values.items():
        for i, inner in enumerate(value) if isinstance(value, list) else ():
            if isinstance(inner, dict) and (found := _quoted(inner, message)):
                return (key, i, *found)
    return ()


class _Required:
    pass


REQUIRED = _Required()


def unknown(word: str, allowed: Iterable[str], what: str = "value", see: str = "") -> str:
    """``no such value 'x'; did you mean 'y'?``, or what there is, or ``see`` what lists them."""
    allowed = list(allowed)
    near = difflib.get_close_matches(word, allowed, 1)
    every = f"{see!r} lists them" if see else f"there are: {', '.join(allowed)}"
    hint = f"did you mean {near[0]!r}?" if near else every
    return f"no such {what} {word!r}; {hint}"


def parse_size(value: int | str) -> int:
    """Bytes, below 2^64. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
        return value
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if match is not None:
        size = int(match[1], 0 if match[1].startswith("0x") else 10) * _UNITS[match[2]]
        if size < 1 << 64:
            return size
    raise ValueError("no size")


def read_text(path: FilePath) -> str:
    """A file of TOML. Raises UsageError, one line; FileNotFoundError."""
    try:
        with path.open("rb") as file:
            # What is longer is refused for its length, whatever it is.
            return file.read(MAX_TEXT + 1).decode("utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _said(value: Any) -> str:
    """A value in a message; Python does not spell numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def spell(path: Path) -> str:
    """``session[2].file[0].size``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _syntax_message(name: str, message: str) -> str:
    match = re.search(r"\(at line (\d+), column \d+\)", message)
    reason = re.sub(r"\s*\(at .*?\)", "", message)
    return f"{name}:{match[1] if match else 1}: {reason}"


def _lines(text: str) -> Iterator[tuple[Path, int]]:
    """(path, line) of every header and key that begins a line; the text is valid TOML."""
    here: Path = ()
    counts: dict[Path, int] = {}
    closing = ""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if closing or depth:
            depth, closing = _scan(line, depth, closing)
            continue
        header = _HEADER.match(line)
        if header:
            here = _resolve(header, counts)
            yield here, number
            continue
        key = _KEY.match(line)
        if key:
            path = here
            for part in _PART.findall(key[1]):
                path = (*path, part.strip("\"'"))
                yield path, number
            depth, closing = _scan(line[key.end() :], 0, "")


def _resolve(header: re.Match[str], counts: dict[Path, int]) -> Path:
    """The path a header opens: names of arrays of tables get the index of their last element."""
    double = header[1] == "[["
    parts = [p.strip("\"'") for p in _PART.findall(header[2].split("]")[0])]
    path: Path = ()
    for i, part in enumerate(parts):
        path = (*path, part)
        last = i == len(parts) - 1
        if last and double:
            counts[path] = counts.get(path, -1) + 1
        if path in counts and (not last or double):
            path = (*path, counts[path])
    return path


def _scan(line: str, depth: int, closing: str) -> tuple[int, str]:
    """Follow brackets and strings of one line; what is open at its end."""
    i = 0
    while i < len(line):
        if closing:
            end = line.find(closing, i)
            if end < 0:
                return depth, closing if len(closing) == 3 else ""
            if closing[0] == '"' and end and line[end - 1] == "\\":
                i = end + 1
                continue
            i, closing = end + len(closing), ""
            continue
        char = line[i]
        if char == "#":
            break
        if line.startswith(('"""', "'''"), i):
            closing = line[i : i + 3]
            i += 3
            continue
        if char in "\"'":
            closing = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        i += 1
    return depth, closing if len(closing) == 3 else ""
