"""Names and numbers as people read them, and safe to print.

What an image calls something is data. Three spellings, each reversible (what is shown, up to
its limit):

* :func:`name_text`, for JSON: UTF-8 as it is, a backslash doubled, each byte that is not
  UTF-8 as ``\\xNN``;
* :func:`display`, for terminals: also control and format characters as ``\\xNN`` or
  ``\\uNNNN``, so that no name can move the cursor or reverse the line, and cut where it is
  longer than anything that people read;
* :func:`path_component`, for paths of objects: ``/``, ``%``, control characters and bytes
  that are not UTF-8 as ``%NN``.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote_from_bytes, unquote_to_bytes

#: Characters that are shown of one name or message.
MAX_SHOWN = 1 << 14

_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")


def c_string(raw: bytes) -> bytes:
    """The bytes before the first NUL."""
    return raw.partition(b"\0")[0]


def name_text(raw: bytes) -> str:
    """A name for JSON; :func:`name_bytes` undoes it."""
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def name_bytes(text: str) -> bytes:
    """Undo :func:`name_text`."""
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]) if m[1] else b"\\", text.encode("utf-8"))


def display(raw: bytes | str) -> str:
    """A name fit for a terminal: one line, no control or format characters, not endless."""
    more = len(raw) - MAX_SHOWN
    if more > 0:
        unit = "byte" if isinstance(raw, bytes) else "character"
        return f"{display(raw[:MAX_SHOWN])}... and {plural(more, unit)}"
    text = name_text(raw) if isinstance(raw, bytes) else raw
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char.isprintable() and unicodedata.category(char)[0] != "C":
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def path_component(raw: bytes) -> str:
    """One component of an object path; :func:`component_bytes` undoes it."""
    if raw in (b".", b".."):
        return raw.decode().replace(".", "%2E")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return quote_from_bytes(raw, safe=" !\"#$&'()*+,:;<=>?@[]^`{|}~\\")
    return "".join(
        c if c.isprintable() and c not in "/%" else quote_from_bytes(c.encode("utf-8"), safe="")
        for c in text
    )


def component_bytes(component: str) -> bytes:
    """Undo :func:`path_component`."""
    return unquote_to_bytes(component)


def parse_integer(text: str) -> int | None:
    """An integer in any notation (``0x10``, ``16``, ``0o20``, ``0b1``), else None."""
    try:
        return int(text, 0)
    except ValueError:
        try:
            return int(text, 10)
        except ValueError:
            return None


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(size: int) -> str:
    """Bytes in the largest unit that keeps the number readable: ``4 KiB``, ``1.5 GiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


# No more digits than 64 bits have, with room: Python refuses to read thousands.
_SIZE = re.compile(r"(0x[0-9a-f]{1,64}|[0-9]{1,64})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes out of ``4096``, ``0x1000``, ``64K``, ``1 MiB``; else None."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(match[1], 0) << 10 * " kmgt".index(match[2].lower() or " ")


def plural(count: int, noun: str) -> str:
    """``1 page``, ``2 pages``."""
    if count != 1:
        noun = (
            noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"
        )
    return f"{count:,} {noun}"
