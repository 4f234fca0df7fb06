"""``mest-fed calibrate``: thin; :mod:`mest_fed.devices.calibration` measures."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from mest_fed.cli.app import needs
from mest_fed.errors import InputError, MestFedError


def calibrate(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="The profile of this device.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE",
            help="Stands for what is not measured; the board's own profile, or laptop, if left "
            "out.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Of the profile, as of mest-fed node: one if left out.", min=1),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Time the link to a mest-fed calibrate --serve."),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure nothing: answer devices with --server."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Of the profile; the board's name if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, and less exact.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Measure nothing: set a deployed run beside what was predicted."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", help="With --compare: predict all devices by this profile."
        ),
    ] = None,
) -> None:
    """Measure this device, and write a profile by which simulations and plans predict it.

    Needs no torch: python -m mest_fed.devices.calibration does the same where NumPy alone is.
    With --compare: rounds and memory of real devices beside what their profiles predict.
    """
    measured = (out, like, threads, server, title, quick or None, force or None)
    alone = [each for each in (serve, compare, *measured) if each is not None]
    if (serve is not None or compare is not None) and len(alone) > 1:
        raise InputError("--serve and --compare stand alone; allowed: one of them, or --out")
    if device is not None and compare is None:
        raise InputError("--device goes with --compare RUN; allowed: --like PROFILE to calibrate")
    if compare is not None:
        needs("client", "pydantic")
        from mest_fed.cli.twin import print_comparison

        print_comparison(compare, device)
        return
    from mest_fed.devices.calibration import command

    if serve is not None:
        command.serve(serve)
        return
    given = (out, like, threads or 1, server, title)
    wanted = command.Wanted(*given, *(command.QUICK if quick else ()))
    command.calibrate(replace(wanted, force=force))
    if not quick and all(find_spec(each) is not None for each in ("flwr", "torch", "pydantic")):
        _print_flowers_node()


def _print_flowers_node() -> None:
    """Say what Flower's node takes here, where it is installed; its profile has no place for it."""
    from mest_fed.cli.baseline import measure_baseline
    from mest_fed.cli.environment import node_environment

    try:
        typer.echo(f"Flower's node with torch: {measure_baseline(node_environment()).in_words()}")
    except MestFedError as error:
        typer.echo(f"Flower's node with torch: not measured ({error})")
