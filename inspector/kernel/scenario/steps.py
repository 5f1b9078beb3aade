"""What a scenario does to the running kernel: sessions, files, and steps in order.

``[[session]]`` with its ``[[session.file]]`` is the short form for steps that make and
preserve files; ``[[step]]`` tables follow, each one operation. ``expect = "EBUSY"`` says that
an operation fails, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from abi.errors import UsageError
from inspector.kernel import errno
from inspector.kernel.errno import KernelErrno
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.memfd import Memfd, pattern_bytes
from inspector.kernel.profile import KernelProfile
from inspector.kernel.toml_file import ScenarioError, Table

SEALS = {"seal": 1, "shrink": 2, "grow": 4, "write": 8, "future-write": 16, "exec": 32}
#: Bytes of content that are made at a time.
AT_ONCE = 1 << 20
FILLS = ("pattern", "zero", "head", "tail", "every-other")


@dataclass(slots=True)
class World:
    """The kernel and the objects that steps refer to by name."""

    kernel: Kernel
    sessions: dict[str, Session] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def session_number(self, name: str | None) -> int:
        """The place of a session in the order of creation; sessions closed since count."""
        return self._numbers[name] if name is not None else 0

    def add_session(self, name: str, session: Session) -> None:
        """A session that was created."""
        self._numbers[name] = len(self._numbers)
        self.sessions[name] = session

    def session(self, name: str) -> Session:
        """A session of the scenario."""
        session: Session = _named(self.sessions, name, "session")
        return session

    def file(self, name: str) -> Any:
        """A file of the scenario."""
        return _named(self.files, name, "file")

    def memfd(self, name: str) -> Memfd:
        """A memory file of the scenario."""
        file = self.file(name)
        if not isinstance(file, Memfd):
            raise UsageError(f"{name!r} is no memory file")
        return file


def _named(known: dict[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise UsageError(f"there is no {what} {name!r} at this point")
    return known[name]


Do = Callable[[World], None]
#: (session, name, token, number in its series) -> what makes the file and preserves it.
FileMaker = Callable[["str | None", str, "int | None", int], Do]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. ``expect`` is the error it must end in, None for success.

    ``content`` is how many bytes other than zero it may store.
    """

    do: Callable[[World], None]
    table: Table = field(repr=False)
    expect: str | None = None
    content: int = 0

    def run(self, world: World) -> None:
        """Perform it. Raises ScenarioError, with the line, unless it ends as expected."""
        try:
            self.do(world)
        except KernelErrno as error:
            if error.name != self.expect:
                raise self.table.blame(f"the kernel says {error}") from None
        except ScenarioError:
            raise
        except UsageError as error:
            raise self.table.blame(str(error)) from None
        else:
            if self.expect is not None:
                raise self.table.error("expect", f"succeeded, not -{self.expect}")


def read(root: Table, kernel: KernelProfile) -> Iterator[Step]:
    """The steps of a scenario, in order."""
    for table in root.tables("file"):
        yield from _file(table, in_session=False)(None)
    for table in root.tables("session"):
        yield from _session(table, kernel)
    for table in root.tables("step"):
        yield _step(table)


def _session(table: Table, kernel: KernelProfile) -> Iterator[Step]:
    name, count = table.text("name"), table.integer("count", 1, bits=24)
    if not kernel.has("luo"):
        raise table.error(None, f"{kernel} has no sessions")
    if count > 1 and "{i}" not in name:
        raise table.error("name", "needs {i} where there are several sessions")
    expect = _expect(table)
    files = [_file(each, in_session=True) for each in table.tables("file")]
    table.done()
    for i in range(count):
        own = name.replace("{i}", str(i))
        yield Step(_create(own), table, expect)
        for file in files:
            yield from file(own)


def _create(name: str) -> Callable[[World], None]:
    def do(world: World) -> None:
        world.add_session(name, world.kernel.luo.create_session(name))

    return do


def _expect(table: Table) -> str | None:
    name: str | None = table.text("expect", None)
    if name is not None:
        try:
            errno.number(name)
        except KeyError:
            raise table.error("expect", f'{name!r} is no error like "EBUSY"') from None
    return name


# -- files -------------------------------------------------------------------------------------


def _file(table: Table, *, in_session: bool) -> Callable[[str | None], Iterator[Step]]:
    """A file, or ``count`` with ascending tokens, for each session that has it."""
    kind = table.choice("type", FILE_TYPES, "memfd")
    count = table.integer("count", 1, bits=24)
    token: int | None = table.integer("token", ... if in_session else None)
    if token is not None and token + count > 1 << 64:
        raise table.error("token", f"{count} tokens from {token:#x} on do not fit in 64 bits")
    expect = _expect(table)
    make = FILE_TYPES[kind](table)
    content = FILE_CONTENT[kind](table) if kind in FILE_CONTENT else 0
    base: str | None = table.text("id", None)
    table.done()

    def name(session: str | None, own: int | None, i: int) -> str:
        if base is None:
            return f"{session}/{own:#x}" if own is not None else f"file{i}"
        if count > 1 and "{i}" not in base:
            return f"{base}{i}".replace("{session}", session or "")
        return base.replace("{i}", str(i)).replace("{session}", session or "")

    def steps(session: str | None) -> Iterator[Step]:
        for i in range(count):
            own = None if token is None else token + i
            yield Step(make(session, name(session, own, i), own, i), table, expect, content)

    return steps


def file_content(table: Table) -> int:
    """How much :func:`fill_file` stores of a file; next to nothing of the first or last page."""
    if table.has("text"):
        return len(table.text("text").encode())
    size: int = table.size("size", 0)
    fill = table.choice("fill", FILLS, "pattern")
    return {"pattern": size, "every-other": size // 2}.get(fill, 0)


def _memfd(table: Table) -> FileMaker:
    size = table.size("size", 0)
    fill = table.choice("fill", FILLS, "pattern")
    seals = _seals(table)
    pos, huge = table.integer("pos", 0), table.flag("huge")
    chosen = table.integer("pattern", None)
    text = table.text("text", None)

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            if name in world.files:
                raise UsageError(f"there is a file {name!r} already")
            file = world.files[name] = world.kernel.memfd(name, huge=huge)
            content = text.encode() if text is not None else None
            file.truncate(max(size, len(content or b"")))
            if content is not None:
                file.write(0, content)
            else:
                fill_file(file, fill, chosen if chosen is not None else token or 0)
            file.seek(pos)
            if seals:
                file.add_seals(seals)
            if session is not None and token is not None:
                world.session(session).preserve(file, token)

        return do

    return make


def fill_file(file: Memfd, fill: str, token: int) -> None:
    """Write the test pattern: all, nothing, the first or last page, or every other page.

    Raises ENOMEM, EPERM.
    """
    page, size = file.machine.page_size, file.size
    if not size or fill == "zero":
        return
    step, piece = {"pattern": (AT_ONCE, AT_ONCE), "every-other": (2 * page, page)}.get(
        fill, (size, page)
    )
    first = (size - 1) // page * page if fill == "tail" else 0
    # Said before there is no memory left to say it in.
    if -(-(size - first) // step) * piece > sum(r.size for r in file.machine.spec.ram) + piece:
        raise KernelErrno("ENOMEM", f"{file.name}: {size:#x} bytes do not fit in memory")
    for at in range(first, size, step):
        length = min(piece, size - at)
        file.write(at, pattern_bytes(token, at, length))


def _seals(table: Table) -> int:
    value = table.raw("seals")
    if isinstance(value, int) and not isinstance(value, bool):
        return int(table.integer("seals", bits=32))
    seals = 0
    for name in table.strings("seals"):
        if name not in SEALS:
            raise table.error("seals", f"{name!r} is none of {', '.join(SEALS)}")
        seals |= SEALS[name]
    return seals


#: Kinds of files that a session can hold.
FILE_TYPES: dict[str, Callable[[Table], FileMaker]] = {"memfd": _memfd}
#: How much a file of some kinds stores.
FILE_CONTENT: dict[str, Callable[[Table], int]] = {"memfd": file_content}


# -- steps ---------------------------------------------------------------------------------------


def _step(table: Table) -> Step:
    name = table.choice("do", STEPS)
    expect = _expect(table)
    do = STEPS[name](table)
    content = file_content(table) if name == "write" else 0
    table.done()
    return Step(do, table, expect, content)


def _create_session(table: Table) -> Callable[[World], None]:
    return _create(table.text("name"))


def _preserve(table: Table) -> Callable[[World], None]:
    session, file, token = table.text("session"), table.text("file"), table.integer("token")
    return lambda world: _discard(world.session(session).preserve(world.file(file), token))


def _close(table: Table) -> Callable[[World], None]:
    name = table.text("session")

    def do(world: World) -> None:
        world.session(name).close()
        del world.sessions[name]

    return do


def _write(table: Table) -> Callable[[World], None]:
    name, offset = table.text("file"), table.size("offset", 0)
    size, token = table.size("size", 0), table.integer("pattern", 0)
    text = table.text("text", None)

    def do(world: World) -> None:
        file = world.memfd(name)
        if text is not None:
            file.write(offset, text.encode())
        elif size:
            file.fallocate(offset, size)  # as a whole, as a write does
            for at in range(offset, offset + size, AT_ONCE):
                length = min(AT_ONCE, offset + size - at)
                file.write(at, pattern_bytes(token, at, length))

    return do


def _truncate(table: Table) -> Callable[[World], None]:
    name, size = table.text("file"), table.size("size")
    return lambda world: world.memfd(name).truncate(size)


def _fallocate(table: Table) -> Callable[[World], None]:
    name, offset, size = table.text("file"), table.size("offset", 0), table.size("size")
    return lambda world: world.memfd(name).fallocate(offset, size)


def _seek(table: Table) -> Callable[[World], None]:
    name, pos = table.text("file"), table.integer("pos")
    return lambda world: world.memfd(name).seek(pos)


def _seal(table: Table) -> Callable[[World], None]:
    name, seals = table.text("file"), _seals(table)
    return lambda world: world.memfd(name).add_seals(seals)


def _drop(table: Table) -> Callable[[World], None]:
    name = table.text("file")

    def do(world: World) -> None:
        world.memfd(name).close()
        del world.files[name]

    return do


def _finalize(table: Table) -> Callable[[World], None]:
    return lambda world: world.kernel.finalize()


def _abort(table: Table) -> Callable[[World], None]:
    return lambda world: world.kernel.kho.abort()


def _discard(result: object) -> None:
    """For lambdas that must return None."""


#: Operations of ``[[step]]``.
STEPS: dict[str, Callable[[Table], Callable[[World], None]]] = {
    "create-session": _create_session,
    "preserve": _preserve,
    "close": _close,
    "write": _write,
    "truncate": _truncate,
    "fallocate": _fallocate,
    "seek": _seek,
    "seal": _seal,
    "drop": _drop,
    "finalize": _finalize,
    "abort": _abort,
}
