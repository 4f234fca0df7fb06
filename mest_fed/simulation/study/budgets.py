"""One memory budget for all kinds of device, in bytes or as a share of dense training's peak."""

import re

from mest_fed.catalogue import GradientKind
from mest_fed.config import RunConfig, to_flat
from mest_fed.config.base import format_mix
from mest_fed.errors import InputError, not_allowed
from mest_fed.task import Task
from mest_fed.units import parse_bytes

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
#: What does not change the peak of dense training, as far as a study changes it.
_WITHOUT = (
    *("run.", "sparsity.", "memory.", "fleet.", "server.", "behaviour.", "wire.", "forgetting."),
    *("training.gradient", "training.perturbations", "training.epsilon"),
)


class DenseTraining:
    """The predicted peak of dense training, worked out once for what it depends on."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

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


def budgeted(config: RunConfig, budget: object, dense: DenseTraining) -> RunConfig:
    """Return a configuration whose devices all have one budget.

    Parameters
    ----------
    config : RunConfig
        The run.
    budget : str or int
        Bytes such as ``3MB``, or ``20%`` of the predicted peak of dense training.
    dense : DenseTraining
        Knows that peak.

    Raises
    ------
    InputError
        If the budget is neither.
    """
    share = _PERCENT.fullmatch(str(budget))
    if share is not None:
        number = int(float(share[1]) / 100 * dense.peak(config))
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
    return config.model_copy(update={"fleet": fleet})
