"""From preset, file and ``--set`` to one configuration."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from mest_fed.config import RunConfig, from_table, read_toml, with_settings
from mest_fed.errors import not_allowed

DEFAULT_PRESET = "quickstart"


def preset_names() -> list[str]:
    """Return the names of the presets that ship with mest-fed."""
    folder = files("simulations") / "presets"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


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
        text = (files("simulations") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text)
    source = str(config_file) if config_file else f"preset {name}"
    from_table(table, source)  # so that an error in the file is blamed on the file
    return name, from_table(with_settings(table, settings), "--set" if settings else source)
