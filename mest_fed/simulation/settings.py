"""From preset, file and ``--set`` to one configuration."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mest_fed.config import RunConfig, from_table, read_toml, with_settings
from mest_fed.config.load import Table, current_key
from mest_fed.errors import InputError, not_allowed

DEFAULT_PRESET = "quickstart"
#: The preset of settings that name a model or data: the budgets of the other suit its own alone.
PLAIN_PRESET = "plain"
_OF_ITS_OWN = {"model.name", "data.name"}


def preset_names() -> list[str]:
    """Return the names of the presets that ship with mest-fed."""
    names = (item.name for item in _presets().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _presets() -> Traversable:
    return files("mest_fed.simulation") / "presets"


def load_table(preset: str | None, config_file: Path | None) -> tuple[str, str, Table]:
    """Return the name of a preset or file, how errors call it, and its sections of keys.

    Parameters
    ----------
    preset : str or None
        Name of a preset; ``quickstart`` if there is no file either.
    config_file : Path or None
        A TOML file instead of a preset.

    Raises
    ------
    InputError
        If preset, file, key or value is wrong, or both are given.
    """
    if preset is not None and config_file is not None:
        raise InputError("a preset and a file exclude each other; allowed: one of them")
    if config_file is not None:
        name, source, folder = config_file.stem, str(config_file), config_file.absolute().parent
        config = from_table(read_toml(config_file), source, folder)
    else:
        name = preset or DEFAULT_PRESET
        if name not in preset_names():
            raise not_allowed("--preset", name, preset_names())
        source = f"preset {name}"
        text = (_presets() / f"{name}.toml").read_text(encoding="utf-8")
        config = from_table(tomllib.loads(text), source)
    return name, source, config.model_dump()


def resolve(
    preset: str | None, config_file: Path | None, settings: Sequence[str]
) -> tuple[str, RunConfig]:
    """Return the name of what was chosen, and the configuration.

    Parameters
    ----------
    preset, config_file : str or None, Path or None
        As for :func:`load_table`. With neither, settings that name a model or a data set are laid
        over the preset ``plain``.
    settings : sequence of str
        ``section.key=value`` to lay over it.

    Raises
    ------
    InputError
        If preset, file, key or value is wrong.
    """
    if preset is None and config_file is None:
        keys = {current_key(setting.partition("=")[0].strip()) for setting in settings}
        preset = PLAIN_PRESET if keys & _OF_ITS_OWN else DEFAULT_PRESET
    name, source, table = load_table(preset, config_file)
    # Paths of settings are relative to the current folder.
    source = "--set" if settings else source
    return name, from_table(with_settings(table, settings), source, Path.cwd())
