"""``mest-fed shares``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from mest_fed.cli.app import needs
from mest_fed.cli.options import Force, Settings, check_new_file
from mest_fed.errors import not_allowed
from mest_fed.system.files import check_folder
from mest_fed.units import format_bytes, number_of

if TYPE_CHECKING:
    from mest_fed.config import RunConfig
    from mest_fed.config.load import Scalar
    from mest_fed.task import Task

#: Where the commands that are printed have the server listen: all are for one machine.
_LINK = "127.0.0.1:9443"
#: Files beyond which a fleet's examples are written for some of its devices alone.
_MOST = 1000
#: What the devices of a simulation and real ones must have alike, or their updates differ: in real
#: time other devices are away, slow or the first.
_ALIKE: "dict[str, Scalar]" = {
    "behaviour.availability": "always",
    "behaviour.dropout": 0.0,
    "behaviour.memory_pressure": 0.0,
    "behaviour.battery": False,
    "fleet.deadline": 0.0,
    "server.mode": "sync",
    "server.over_selection": 1.0,
}


def shares(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="A TOML file instead of a preset."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset whose data are shared out; quickstart if left out.")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("shares"),
    partitions: Annotated[
        list[int] | None,
        typer.Option(
            "--partition", metavar="N", help="This device's file alone, from 0; repeatable."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write each device's examples to a file that mest-fed node --data reads.

    Beside them it writes the configuration, run.toml, and prints the commands of a simulation, and
    of a server and nodes that train on the same examples.
    """
    needs("client", "pydantic", "tomli_w")
    from mest_fed.config import to_toml
    from mest_fed.simulation.settings import resolve

    _, config = resolve(preset, file, settings or [])
    chosen = _chosen(partitions or [], config.fleet.devices)
    run, files = out / "run.toml", {number: out / f"device-{number}.npz" for number in chosen}
    check_folder(out, "--out")
    for path in (run, *files.values()):
        check_new_file(path, force=force)
    from mest_fed.data.partition_files import save_share
    from mest_fed.system.files import writing
    from mest_fed.task import Task

    task, count = Task(config), 0
    commands = list(_commands(task, run, files))
    for number, path in files.items():
        count += save_share(path, task.data.train, task.partitions[number])
    with writing(run, "--out"):
        run.write_text(to_toml(config), encoding="utf-8")
    size = format_bytes(sum(path.stat().st_size for path in files.values()))
    typer.echo(f"# {number_of(count, 'example')} of {number_of(len(files), 'device')}, {size}")
    typer.echo("\n".join(commands))
    if not partitions and (lacking := settings_alike(config)):
        more = " ".join(f"--set {each}" for each in lacking)
        typer.echo(f"nodes end with the weights of the simulation only with: {more}", err=True)


def settings_alike(config: "RunConfig") -> list[str]:
    """Return the settings that a configuration lacks for simulation and nodes to end alike.

    With them, both end with the same bits, if each node plans as its simulated device does.
    """
    from mest_fed.config import to_flat

    flat = to_flat(config)
    devices, cohort = config.fleet.devices, config.server.clients_per_round
    wanted = {**_ALIKE, "server.min_nodes": devices}
    if cohort > devices:  # which a simulation refuses
        wanted["server.clients_per_round"] = devices
    if cohort < devices:  # otherwise all are selected, whoever is the fastest
        wanted["server.selection"] = "uniform"
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in wanted.items()
        if flat[key] != value
    ]


def _chosen(partitions: Sequence[int], devices: int) -> Sequence[int]:
    for number in partitions:
        if not 0 <= number < devices:
            allowed = f"0 to {devices - 1} (fleet.devices = {devices})"
            raise not_allowed("--partition", number, allowed)
    if not partitions and devices > _MOST:
        allowed = f"at most {_MOST} without --partition N, which names one whose file is written"
        raise not_allowed("fleet.devices", devices, allowed)
    return list(dict.fromkeys(partitions)) or range(devices)


def _commands(task: "Task", run: Path, files: dict[int, Path]) -> Iterator[str]:
    """Yield the commands of the simulation, of the server, and of each node."""
    folder = run.parent
    yield f"mest-fed simulate {quote(str(run))} --out {quote(str(folder / 'simulated'))}"
    served = quote(str(folder / "served"))
    yield f"mest-fed server {quote(str(run))} --insecure --listen {_LINK} --out {served}"
    for number, path in files.items():
        device = task.devices[number]
        yield (
            f"mest-fed node --link {_LINK} --insecure --data {quote(str(path))} "
            f"--partition {number} --device {quote(device)} --budget {task.budget(device)} "
            f"--name {path.stem} --state {quote(str(folder / f'state-{number}'))}"
        )
