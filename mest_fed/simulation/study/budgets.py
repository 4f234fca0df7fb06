"""One memory budget for all kinds of device, in bytes or as a share of dense training's peak.

The model of such a run is the largest that its devices hold: of a larger one nobody would train the
rest, which would stay in the model that is evaluated as it began.
"""

import re

from mest_fed.catalogue import GradientKind
from mest_fed.config import RunConfig, to_flat
from mest_fed.config.base import format_mix
from mest_fed.config.sparsity import cuts_width
from mest_fed.errors import BudgetError, InputError, not_allowed
from mest_fed.task import Task
from mest_fed.units import parse_bytes

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
#: What does not change the peak of dense training, as far as a study changes it.
_WITHOUT = (
    *("run.", "sparsity.", "memory.", "fleet.", "server.", "behaviour.", "wire.", "forgetting."),
    *("training.gradient", "training.perturbations", "training.epsilon"),
)


class StudyForecasts:
    """What is predicted of a study's runs, each worked out once for what it depends on.

    Dense training's peak, and how much of a model is trained within a budget.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._tasks: dict[str, Task] = {}

    def peak(self, config: RunConfig) -> int:
        """Return the bytes that a run takes on a device if it is dense and saves no memory."""
        relevant = {k: v for k, v in to_flat(config).items() if not k.startswith(_WITHOUT)}
        key = repr(sorted(relevant.items()))
        if key not in self._known:
            sparsity = config.sparsity.model_copy(update={"method": "dense"})
            memory = type(config.memory)()
            training = config.training.model_copy(update={"gradient": GradientKind.BACKWARD})
            dense = config.model_copy(
                update={"sparsity": sparsity, "memory": memory, "training": training}
            )
            self._known[key] = Task(dense).planner().plan(1 << 50).footprint.total
        return self._known[key]

    def share(self, config: RunConfig, budget: int) -> float:
        """Return how much of a run's model is trained within a budget of so many bytes; 1 is all.

        A budget that holds no plan is left to the run, which says so.
        """
        flat = to_flat(config)
        key = repr(sorted((k, v) for k, v in flat.items() if not k.startswith(("run.", "fleet."))))
        # What a task has worked out for one budget, it need not for another.
        if key not in self._tasks:
            self._tasks[key] = Task(config)
        task = self._tasks[key]
        try:
            return task.plan(budget, "every device").density / task.density
        except BudgetError:
            return 1.0


def as_large_as_fits(config: RunConfig, budget: int, forecasts: StudyForecasts) -> RunConfig:
    """Return a run whose model is as large, in density or width, as is trained within a budget."""
    # A smaller model has plans of its own, which may be smaller still.
    while (share := forecasts.share(config, budget)) < 1:
        if cuts_width(config.sparsity.method):
            width = config.model.width * share
            model = config.model.model_copy(update={"width": width})
            config = config.model_copy(update={"model": model})
        else:
            density = config.sparsity.density * share
            sparsity = config.sparsity.model_copy(update={"density": density})
            config = config.model_copy(update={"sparsity": sparsity})
    return config


def rounded(num_bytes: float) -> int:
    """Return bytes to three digits: a peak's others are those of a machine's kernels."""
    return int(float(f"{num_bytes:.3g}"))


def budgeted(config: RunConfig, budget: object, forecasts: StudyForecasts) -> RunConfig:
    """Return a configuration whose devices all have one budget, and a model that fits it.

    Parameters
    ----------
    config : RunConfig
        The run.
    budget : str or int
        Bytes such as ``3MB``, or ``20%`` of the predicted peak of dense training.
    forecasts : StudyForecasts
        Of the study's runs.

    Raises
    ------
    InputError
        If the budget is neither.
    """
    share = _PERCENT.fullmatch(str(budget))
    if share is not None:
        number = rounded(float(share[1]) / 100 * forecasts.peak(config))
    else:
        try:
            number = parse_bytes(str(budget), "budget")
        except InputError:
            allowed = "bytes such as 3MB, or a share of dense training's peak such as 20%"
            raise not_allowed("budget", budget, allowed) from None
    if number < 1:
        raise not_allowed("budget", budget, "more than nothing")
    kinds = config.fleet.weights
    fleet = config.fleet.model_copy(update={"budgets": format_mix(dict.fromkeys(kinds, number))})
    return as_large_as_fits(config.model_copy(update={"fleet": fleet}), number, forecasts)
