"""The command line of the lab."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abi.errors import KhoError, UsageError
from lab.host import LabError, end_on_signals

app = typer.Typer(
    name="kho-lab",
    help="Real kernels under QEMU: they produce images, and they judge them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Accel = Annotated[str, typer.Option(help="auto, kvm or tcg.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seconds = Annotated[float, typer.Option(help="Give up after so many seconds of wall time.")]
OptionalSeconds = Annotated[
    float | None,
    typer.Option(
        help="Give up after so many seconds of wall time; else 120, and more for much content."
    ),
]
Append = Annotated[str, typer.Option(help="More kernel command line.")]
KernelName = Annotated[
    str, typer.Option("--kernel", "-k", help="A bzImage, or a kernel of the cache: 7.3, 7.3.4.")
]
Image = Annotated[Path, typer.Argument(help="Raw or ELF, plain or .zst; kdump.")]


def _print(data: Any) -> None:
    print(json.dumps(data, indent=1))


def _patience(timeout: float | None) -> Any:
    from lab.qemu import Patience

    return Patience(total=timeout) if timeout is not None else None


def _clean(text: str) -> str:
    """A line that came from a guest or an image, fit for a terminal."""
    from inspector.text import display

    return display(text)


@app.command()
def build(
    source: Annotated[
        str | None, typer.Option(help="A kernel tree, or a release: 7.3 (newest), 7.3.4.")
    ] = None,
    kernel: Annotated[Path | None, typer.Option(help="Only look at a bzImage.")] = None,
    iommu: Annotated[bool, typer.Option(help="With VT-d, iommufd and VFIO.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1)] = None,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
) -> None:
    """Build a minimal kernel with KHO and LUO; a release is built once and kept."""
    from lab import build as builder

    if (source is None) == (kernel is None):
        raise UsageError("give either --source TREE|RELEASE or --kernel bzImage")
    if kernel is not None:
        found = builder.from_bzimage(kernel)
        print(f"{found.release}  {found.bzimage}")
        return
    assert source is not None
    built, was_cached = builder.build(source, iommu=iommu, jobs=jobs, timeout=timeout)
    print(f"{built.name}  {built.release}  {built.bzimage}{'  (cached)' if was_cached else ''}")


@app.command("list")
def list_kernels() -> None:
    """The kernels in the cache."""
    from lab.build import cached

    for kernel in cached():
        print(f"{kernel.name}  {kernel.release}  {kernel.bzimage}")


@app.command()
def capture(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for images and truth.")],
    kernel: KernelName,
    to: Annotated[
        str | None, typer.Option(help="The kernel that takes over; else the same.")
    ] = None,
    workload: Annotated[
        Path | None, typer.Option(help="TOML or JSON; else a built-in one.")
    ] = None,
    small: Annotated[bool, typer.Option(help="The small built-in workload.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of content, tokens and sizes.")] = None,
    moments: Annotated[
        str, typer.Option(help="Of outgoing, handoff, incoming, retrieved.")
    ] = "outgoing,handoff,incoming",
    formats: Annotated[str, typer.Option(help="Of raw, elf, kdump, filtered.")] = "raw",
    accel: Accel = "auto",
    append: Append = "",
    timeout: Seconds = 600.0,
) -> None:
    """Run a live update and keep memory at chosen moments, with the truth about it."""
    from lab import capture as capturing
    from lab import dumps
    from lab.build import find
    from lab.workload import Workload

    chosen = _choice(moments, capturing.MOMENTS, "moment")
    kinds = _choice(formats, dumps.FORMATS, "format")
    if workload is not None:
        what = Workload.load(workload, seed)
    else:
        what = (Workload.small if small else Workload.default)(1 if seed is None else seed)
    producer = find(kernel)
    result = capturing.capture(
        producer,
        find(to) if to else producer,
        what,
        out,
        moments=chosen,
        formats=kinds,
        accel=accel,
        append=append,
        patience=_patience(timeout),
    )
    assert result.report is not None
    for path in result.images.values():
        print(path)
    print(f"{result.report.outcome} by {result.consumer.release}, {result.seconds:.1f} s")
    for reason in result.report.reasons[:10]:
        print(f"  {_clean(reason)}")


@app.command()
def live(kernel: KernelName, accel: Accel = "auto", timeout: OptionalSeconds = None) -> None:
    """Let kho look at a running kernel, before and after a live update; status 4 if it errs."""
    from lab import live as looking
    from lab.build import find
    from lab.qemu import Patience

    patience = Patience(cpu=timeout, asleep=timeout, total=timeout) if timeout else None
    report = looking.run(find(kernel), accel=accel, patience=patience)
    for line in report.seen:
        print(f"ok     {_clean(line)}")
    for line in report.wrong:
        print(f"WRONG  {_clean(line)}")
    print(f"{report.kernel}, {report.seconds:.0f} s")
    if report.wrong:
        raise typer.Exit(4)


@app.command()
def boot(
    image: Image,
    kernel: KernelName,
    truth: Annotated[
        Path | None, typer.Option(help="What to expect; else what the image says.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Address of the root FDT.")] = None,
    scratch: Annotated[
        str | None, typer.Option(help="Scratch areas instead of the image's: ADDR:SIZE,...")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Size of the machine: 512M.")] = None,
    poison: Annotated[bool, typer.Option(help="Fill what the image does not hold.")] = False,
    accel: Accel = "auto",
    append: Append = "",
    timeout: OptionalSeconds = None,
    as_json: Json = False,
    log: Annotated[bool, typer.Option(help="Print the kernel's log too.")] = False,
) -> None:
    """Let a real kernel take over an image; exit status 4 if it does not get all of it."""
    from inspector.findings import Outcome
    from lab import boot as booting
    from lab.build import find
    from lab.expectation import expect
    from lab.workload import size_of

    report = booting.boot(
        image,
        find(kernel),
        expect(image, truth),
        root=_address(root) if root else None,
        scratch=_areas(scratch) if scratch else None,
        ram_size=size_of(memory) if memory else None,
        append=append,
        poison=poison,
        accel=accel,
        patience=_patience(timeout),
    )
    if as_json:
        _print(report.as_json())
    else:
        print(f"{report.outcome}  ({report.kernel}, {report.seconds:.1f} s)")
        for line in [*report.reasons[:20], *report.notes]:
            print(f"  {_clean(line)}")
        right = sum(not f["errno"] for f in report.files)
        print(f"  {len(report.files)} files asked for, {right} retrieved")
        if log:
            print("\n".join(_clean(line) for line in report.console.splitlines()))
    if report.outcome is Outcome.TAKEN_OVER_WITH_WARNINGS:
        raise typer.Exit(1)
    if report.outcome is not Outcome.TAKEN_OVER:
        raise typer.Exit(4)


@app.command()
def matrix(
    kernels: Annotated[
        list[str] | None, typer.Argument(help="Kernels; else all of the cache.")
    ] = None,
    seed: int = 1,
    accel: Accel = "auto",
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Let every kernel hand over to every kernel."""
    from lab import matrix as pairs
    from lab.build import cached, find
    from lab.workload import Workload

    chosen = (
        [find(k) for k in kernels] if kernels else [k for k in cached() if "-iommu" not in k.name]
    )
    if not chosen:
        raise UsageError("no kernels in the cache; see 'kho-lab build --source RELEASE'")

    def show(pair: pairs.Pair) -> None:
        if not as_json:
            why = f"  {_clean(pair.reasons[0])}" if pair.reasons else ""
            print(f"{pair.producer:>10} -> {pair.consumer:<10} {pair.outcome}{why}", flush=True)

    done = pairs.run(
        chosen, Workload.small(seed), accel=accel, patience=_patience(timeout), progress=show
    )
    if as_json:
        _print({"schema_version": 1, "pairs": [p.as_json() for p in done]})


@app.command("break")
def break_images(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for images and truth.")],
    mutations: Annotated[
        int, typer.Option("--mutations", "-n", min=0, help="Randomly mutated images.")
    ] = 100,
    faults: Annotated[
        bool, typer.Option(help="Each fault of the library that fits, in an image of its own.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of content, tokens and mutations.")] = 1,
    release: Annotated[str, typer.Option(help="The kernel that writes the images.")] = "7.3",
) -> None:
    """Write broken images with their truth, for judge."""
    from inspector.kernel.profile import profile
    from lab import mutated

    kernel = profile(f"linux-{release}").name
    made = mutated.faulty(out, seed, kernel) if faults else 0
    made += mutated.make(out, seed, mutations, kernel)
    print(f"{made} images in {out}")


@app.command()
def judge(
    directory: Annotated[Path, typer.Argument(help="Images; a truth file beside one counts.")],
    kernel: KernelName,
    results: Annotated[
        Path | None, typer.Option(help="JSON lines; images in it already are not run again.")
    ] = None,
    accel: Accel = "auto",
    timeout: OptionalSeconds = None,
    as_json: Json = False,
) -> None:
    """Boot every image of a directory and compare with what `kho compat` predicts."""
    from lab import judging
    from lab.build import find

    def show(verdict: judging.Verdict) -> None:
        if not as_json:
            mark = " " if verdict.agrees else "!"
            print(f"{mark} {_clean(verdict.image)}: {verdict.actual}", flush=True)
            if not verdict.agrees:
                print(f"    predicted {verdict.predicted}: {_clean('; '.join(verdict.why[:2]))}")
                print(f"    the kernel: {_clean('; '.join(verdict.reasons[:2]))}")

    verdicts = judging.run(
        directory,
        find(kernel),
        results=results,
        accel=accel,
        patience=_patience(timeout),
        progress=show,
    )
    if as_json:
        _print({"schema_version": 1, "verdicts": [v.as_json() for v in verdicts]})
    else:
        print(judging.confusion(verdicts))
    if any(not v.agrees for v in verdicts):
        raise typer.Exit(1)


def _choice(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    chosen = tuple(word for word in text.split(",") if word)
    for word in chosen:
        if word not in known:
            raise UsageError(f"unknown {what} {word!r} (known: {', '.join(known)})")
    return chosen


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is not an address") from None


def _areas(text: str) -> tuple[tuple[int, int], ...]:
    from lab.workload import size_of

    areas = []
    for part in text.split(","):
        start, _, size = part.partition(":")
        areas.append((_address(start), size_of(size)))
    return tuple(areas)


def main() -> None:
    """Run the command line; an error is one line and an exit status."""
    end_on_signals()
    try:
        app()
    except KhoError as error:
        print(f"kho-lab: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("kho-lab: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None


__all__ = ["LabError", "app", "main"]
