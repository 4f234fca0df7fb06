"""The configuration that a plan's options ask for. It loads no torch, so that errors come soon."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mest_fed.catalogue import MutationPlace
from mest_fed.config import RunConfig, from_table, with_settings
from mest_fed.config.load import Scalar, Table
from mest_fed.config.sparsity import mutates_on_clients_alone
from mest_fed.simulation.settings import load_table

#: What is planned where no configuration is given.
_DEFAULTS: Table = {
    "data": {"name": "cifar10"},
    "model": {"name": "resnet32"},
    "training": {"batch_size": 64},
}
#: What options are called whose names are not those of their keys.
_OPTIONS = {"training.batch_size": "--batch"}
#: Preset and TOML file.
Source = tuple[str | None, Path | None]


def read_options(
    source: Source, options: Mapping[str, Scalar | None], settings: Sequence[str] = ()
) -> tuple[str, Table]:
    """Return the name of a preset or file, empty for neither, and what options make of it.

    Parameters
    ----------
    source : (str or None, Path or None)
        Preset and TOML file.
    options : mapping of str to scalar or None
        ``section.key`` -> value; None leaves the key as it is.
    settings : sequence of str
        ``section.key=value``, laid over all else.

    Raises
    ------
    InputError
        If a preset, file or key is wrong.
    """
    name, table = "", {section: dict(keys) for section, keys in _DEFAULTS.items()}
    if any(part is not None for part in source):
        name, _, table = load_table(*source)
    table = with_settings(table, ())
    for key, value in options.items():
        section, _, leaf = key.partition(".")
        if value is not None:
            table.setdefault(section, {})[leaf] = value
    table = with_settings(table, settings)
    method = table.get("sparsity", {}).get("method")
    if not name and method is not None and mutates_on_clients_alone(str(method)):
        table["sparsity"].setdefault("mutation", MutationPlace.CLIENT.value)
    return name, table


def config_of(table: Table) -> RunConfig:
    """Return the configuration that :func:`read_options` made a table of.

    Raises
    ------
    InputError
        If a key or a value is wrong.
    """
    return from_table(table, "options", Path.cwd())


def check_options(
    source: Source,
    options: Mapping[str, Scalar | None],
    settings: Sequence[str] = (),
    *,
    model: str = "--model",
) -> None:
    """Raise :class:`InputError` for what :func:`read_options` and :func:`config_of` refuse.

    What an option gave is named by it; ``model`` is what the command calls the model's.
    """
    table = read_options(source, options, settings)[1]
    given = [key for key, value in options.items() if value is not None]
    typed = {key: _OPTIONS.get(key, f"--{key.partition('.')[2]}") for key in given}
    typed |= {"model.name": model}
    from_table(table, "options", Path.cwd(), typed)
