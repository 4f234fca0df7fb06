"""Sinks: the rows of ``rounds.jsonl`` in the formats of other tools, beneath the run folder.

Nothing here sends anything over a network.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mest_fed.errors import InputError, not_allowed
from simulations.watching.observers import Expendable, Observer

#: Name -> the class, made with the run folder. A name is also that of the extra it needs.
SINKS = {
    "tensorboard": "simulations.watching.sinks.tensorboard:TensorBoardSink",
    "wandb": "simulations.watching.sinks.wandb:WandbSink",
    "mlflow": "simulations.watching.sinks.mlflow:MLflowSink",
}


def open_sinks(names: Sequence[str], folder: Path) -> list[Observer]:
    """Return the named sinks of a run, each once; they write nothing before the run begins.

    A sink that fails later on costs one line of warning, not the run.

    Raises
    ------
    InputError
        If a name is unknown, or the library behind it cannot be imported.
    """
    for name in names:
        if name not in SINKS:
            raise not_allowed("--log", name, SINKS)
    return [Expendable(f"--log {name}", _make(name, folder)) for name in dict.fromkeys(names)]


def _make(name: str, folder: Path) -> Observer:
    module, _, kind = SINKS[name].partition(":")
    try:
        sink: Observer = getattr(import_module(module), kind)(folder)
    except ImportError as error:
        raise InputError(f"--log {name}: {error}; run: pip install 'mest-fed[{name}]'") from None
    return sink
