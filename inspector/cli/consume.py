"""``kho consume``: take an image over as a kernel would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from abi.errors import UsageError
from inspector.cli.common import (
    ConsumerPageSizeOption,
    Format,
    FormatOption,
    ImageArgument,
    RegionMapOption,
    RootOption,
    address,
    finish,
    open_memory,
    page_size,
    printer,
    write_json,
)

if TYPE_CHECKING:
    from inspector.kernel.incoming.consumer import Result
    from inspector.kernel.machine.hardware import Hardware

KernelSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of the next kernel's bzImage (default 3M; 0: it lies outside scratch).",
    ),
]
InitrdSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of its initrd (default 1M; 0 with a kernel outside scratch).",
    ),
]
WithOption = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="LAYER=ID", help="Give the kernel another form of a layer."),
]
HardwareOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The machine: a TOML file with iommu and device tables as in a scenario, or a"
        " scenario (default: what the image speaks of).",
    ),
]


def consume(
    image: ImageArgument,
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="KERNEL",
            help="The kernel: linux-7.3, linux-7.3+iommu-vw, or a TOML file with a profile.",
            show_default=False,
        ),
    ],
    session: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Retrieve this session only; may be repeated."),
    ] = None,
    retrieve: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN", help="Retrieve this file only; may be repeated."),
    ] = None,
    finish_: Annotated[
        bool,
        typer.Option(
            "--finish", help="Claim HWPTs, open and move devices, and finish the sessions."
        ),
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Digest the content of files.")] = False,
    with_: WithOption = None,
    hardware: HardwareOption = None,
    kernel_size: KernelSizeOption = None,
    initrd_size: InitrdSizeOption = None,
    format: FormatOption = Format.TEXT,
    root: RootOption = None,
    page_size_: ConsumerPageSizeOption = None,
    regions: RegionMapOption = None,
) -> None:
    """Boot a kernel on an image: what it takes over, what it loses, and how that shows.

    Exit status: 0 taken over, 1 with warnings, 4 anything incompatible, 16 cannot tell.
    """
    machine = find_hardware(hardware)
    with open_memory(image, regions) as memory:
        from inspector import verdict
        from inspector.kernel.incoming import consumer
        from inspector.kernel.profile_file import find

        target = find(as_, with_ or [])
        kernel_bytes, initrd_bytes = segment_sizes(kernel_size, initrd_size)
        booted = consumer.boot(
            memory,
            target.kernel,
            root=address(root),
            hardware=machine,
            kernel_size=kernel_bytes,
            initrd_size=initrd_bytes,
            page_size=page_size(page_size_) or target.page_size,
            behaviours=target.behaviours,
        )
        result = consumer.Result(booted)
        _user_space(result, session, retrieve, finish_)
        if format is Format.JSON:
            write_json(verdict.consumed_document(result, digests=sha256))
        else:
            out = printer()
            for line in verdict.consumed_lines(result, colour=out.colour, digests=sha256):
                out.line(line)
        finish(result.status)


def _user_space(
    result: Result, sessions: list[str] | None, tokens: list[str] | None, finish_: bool
) -> None:
    """What is asked for, else everything. Raises UsageError for what is not in the image."""
    from inspector.kernel.errno import KernelErrno
    from inspector.kernel.incoming.consumer import use_devices
    from inspector.text import name_bytes

    wanted = {address(token, "a token") for token in tokens or ()}
    try:
        luo = result.consumer.open()
    except KernelErrno as error:
        if sessions or tokens:
            result.consumer.notes.append(f"the control device cannot be opened: {error}")
        return
    names = [name_bytes(name) for name in sessions or ()] or [s.name for s in luo.sessions]
    unknown = wanted - {f.token for _, f in luo.files()}
    if unknown:
        raise UsageError(f"no file has the token {min(t or 0 for t in unknown):#x}")
    for name in names:
        try:
            opened = result.consumer.retrieve_session(name)
        except KernelErrno as error:
            if sessions:
                raise UsageError(str(error)) from None
            continue
        for token in opened.tokens:
            if not wanted or token in wanted:
                try:
                    opened.retrieve(token)
                except KernelErrno as error:
                    result.errors[opened.entry.path] = error
        if finish_:
            use_devices(result, opened.entry)
            try:
                opened.finish()
                result.finished = True
            except KernelErrno as error:
                result.errors[opened.entry.path] = error
                result.consumer.notes.append(f"{opened.entry.path} cannot be finished: {error}")


def find_hardware(name: str | None) -> Hardware | None:
    """The machine that ``--hardware`` names. Raises UsageError."""
    if name is None:
        return None
    from inspector.kernel.scenario import hardware_file

    return hardware_file.load(name)


def segment_sizes(kernel: str | None, initrd: str | None) -> tuple[int, int]:
    """Bytes of the kernel and of the initrd, which lies where the kernel does."""
    from inspector.kernel.incoming import early_scratch as early

    kernel_size = size(kernel, early.KERNEL_SIZE)
    return kernel_size, size(initrd, early.INITRD_SIZE if kernel_size else 0)


def size(text: str | None, default: int) -> int:
    """``3M``, ``512K`` or bytes. Raises UsageError."""
    if text is None:
        return default
    from inspector.kernel.toml_file import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise UsageError(f"{text!r} is no size like 3M") from None


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(consume)
