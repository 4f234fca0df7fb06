"""From preset, file and ``--set`` to one configuration."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mest_fed.client.kernels import kernel_table
from mest_fed.config import RunConfig, from_table, read_toml, with_settings
from mest_fed.errors import not_allowed
from mest_fed.kernels.table import Table
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.engine.client_runner import one_thread
from mest_fed.simulation.fleet import Fleet
from mest_fed.task import Task

DEFAULT_PRESET = "quickstart"


def preset_names() -> list[str]:
    """Return the names of the presets that ship with mest-fed."""
    names = (item.name for item in _presets().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _presets() -> Traversable:
    return files("mest_fed.simulation") / "presets"


def resolve(
    preset: str | None, config_file: Path | None, settings: Sequence[str]
) -> tuple[str, RunConfig]:
    """Return the name of what was chosen, and the configuration.

    Parameters
    ----------
    preset : str or None
        Name of a preset; ``quickstart`` if there is no file either.
    config_file : Path or None
        A TOML file instead of a preset.
    settings : sequence of str
        ``section.key=value`` to lay over it.

    Raises
    ------
    InputError
        If preset, file, key or value is wrong.
    """
    if config_file is not None:
        table, name = read_toml(config_file), config_file.stem
    else:
        name = preset or DEFAULT_PRESET
        if name not in preset_names():
            raise not_allowed("--preset", name, preset_names())
        text = (files("mest_fed.simulation") / "presets" / f"{name}.toml").read_text(
            encoding="utf-8"
        )
        table = tomllib.loads(text)
    if config_file is None:
        config = from_table(table, f"preset {name}")
    else:
        config = from_table(table, str(config_file), config_file.absolute().parent)
    if settings:  # their paths are relative to the current folder
        config = from_table(with_settings(config.model_dump(), settings), "--set")
    return name, config


def run_kernels(task: Task, fleet: Fleet, folder: RunFolder, *, resume: bool) -> Table:
    """Choose the kernels of a run, or take those of a run that is resumed.

    Implementations differ in the last bits, so that a resumed run must have its own again, and
    all workers the same.

    Raises
    ------
    InputError
        If the folder's table is unusable or missing.
    """
    if resume:
        return folder.read_kernels()
    tiers = sorted(fleet.tiers, key=lambda tier: -tier.clients)
    with one_thread():  # as clients compute
        table = kernel_table(task, [tier.plan for tier in tiers])
    return table
