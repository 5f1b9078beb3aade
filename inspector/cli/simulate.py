"""``kho simulate``: an image out of a scenario."""

from __future__ import annotations

from typing import Annotated

import typer

from abi.errors import UsageError


def simulate(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="[SCENARIO]",
            help="A scenario file, or the name of a shipped one (see --list).",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="ELF core to write, .zst to compress."),
    ] = "",
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed instead of the scenario's.")
    ] = None,
    moment: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="outgoing or handoff.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="NAME", help="Inject a fault besides (see --faults)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    list_scenarios: Annotated[bool, typer.Option("--list", help="List shipped scenarios.")] = False,
    list_faults: Annotated[bool, typer.Option("--faults", help="List the fault library.")] = False,
) -> None:
    """Write the image that a kernel would hand over, valid or broken in a chosen way."""
    if list_scenarios or list_faults:
        _list(list_scenarios, list_faults)
        return
    if not scenario or not output:
        raise UsageError("give a scenario (--list shows them) and an output file (-o)")
    from dataclasses import replace

    from inspector.kernel import scenario as scenarios
    from inspector.kernel.outgoing.kernel import Moment
    from inspector.memory.elfcore import write_core

    if moment is not None and moment not in list(Moment):
        raise UsageError(f"no moment {moment!r}: {', '.join(Moment)}")
    chosen = scenarios.load(scenario)
    extra = tuple(scenarios.Fault(name) for name in fault or ())
    chosen = replace(chosen, faults=(*chosen.faults, *extra))
    image = chosen.run(seed=seed, moment=moment)
    write_core(output, image.memory, force=force)
    if not chosen.kernel.measured:
        typer.echo(
            f"kho: note: linux-{chosen.kernel.release} is modelled, but no real one was measured",
            err=True,
        )


def _list(scenarios: bool, faults: bool) -> None:
    if scenarios:
        from inspector.kernel.scenario import shipped

        names = shipped()
        width = max(map(len, names), default=0)
        for name, title in names.items():
            typer.echo(f"{name:{width}}  {title}")
    if faults:
        from inspector.kernel.faults import FAULTS

        width = max(map(len, FAULTS), default=0)
        for name, fault in FAULTS.items():
            typer.echo(f"{name:{width}}  {fault.doc}")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(simulate)
