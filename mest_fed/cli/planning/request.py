"""What is to be planned: a model, a method and a batch; and the planner for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rich.console import Console

from mest_fed.cli.app import needs
from mest_fed.cli.baseline import measure_client_app
from mest_fed.cli.environment import node_environment
from mest_fed.cli.planning.step_time import StepTime
from mest_fed.devices import DeviceProfile
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory import (
    COST_ORDER,
    ModelTrace,
    Plan,
    PlanLimits,
    Planner,
    TrainingSetup,
    TrainingShape,
    trace_model,
)
from mest_fed.memory.activations import segments_of
from mest_fed.nn import build_shell, layer_densities
from mest_fed.sparsity import build_method
from mest_fed.units import format_bytes, parse_bytes

#: Factors on the channel counts that a model usually has, where it is not 1: MEST's ResNet-32.
_USUAL_WIDTH = {"resnet32": 2.0}
#: Batch statistics need several images.
_LEAST_MICRO_BATCH = {"batch": 8, "group": 1}

DENSE = "dense"


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for; the fields are the command's options.

    Raises
    ------
    InputError
        If a value is not allowed; some are found only when the planner is built.
    """

    model: str
    width: float | None
    norm: str
    scheme: str
    density: float
    method: str
    batch: int
    image: str
    classes: int
    threads: int = 1

    @property
    def channels_by(self) -> float:
        """Factor on the channel counts: the one given, or the model's usual one."""
        return _USUAL_WIDTH.get(self.model, 1.0) if self.width is None else self.width

    @property
    def sparse(self) -> bool:
        """Whether the method has sparse layers."""
        return self.method != DENSE

    @property
    def title(self) -> str:
        """Say what is planned."""
        usual = ", the usual" if self.width is None else ""
        sparse = f", {self.scheme} at density {self.density:.3g}" if self.sparse else ""
        return (
            f"{self.model} (width {self.channels_by:g}{usual}; {self.norm} norm), "
            f"{self.method}{sparse}, {self.batch} images of {self.image} a step"
        )

    @property
    def limits(self) -> TrainingShape:
        """Return what is wished for: the whole batch at once, nothing saved."""
        density = self.density if self.sparse else 1.0
        return TrainingShape(density, "uniform", self.batch, self.batch)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        parts = self.image.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise not_allowed("--image", self.image, "CHANNELSxHEIGHTxWIDTH, such as 3x32x32")
        return int(parts[0]), int(parts[1]), int(parts[2])

    @cached_property
    def trace(self) -> ModelTrace:
        """The model's memory needs."""
        shell = build_shell(
            self.model,
            self.input_shape,
            self.classes,
            width=self.channels_by,
            norm=self.norm,
            scheme=self.scheme if self.sparse else None,
        )
        return trace_model(shell, self.input_shape)

    @cached_property
    def planner(self) -> Planner:
        """The planner."""
        limits = self.limits
        wished = PlanLimits(
            limits,
            _LEAST_MICRO_BATCH.get(self.norm, 1),
            len(segments_of(self.trace.meta_model)),
            sparse=self.sparse,
            batch_statistics=self.norm == "batch",
        )
        setting = TrainingSetup(build_method(self.method, self.density), threads=self.threads)
        return Planner(self.trace, setting, wished)


def read_preference(text: str | None) -> tuple[str, ...] | None:
    """Read an order of the planner's knobs, comma separated; None stays None.

    Raises
    ------
    InputError
        If a name is unknown, missing or given twice: names it.
    """
    if text is None:
        return None
    given = [name.strip() for name in text.split(",") if name.strip()]
    allowed = f"each of {', '.join(COST_ORDER)} once, in any order"
    wrong = {
        "does not know": [name for name in given if name not in COST_ORDER],
        "lacks": [name for name in COST_ORDER if name not in given],
        "repeats": sorted({name for name in given if given.count(name) > 1}),
    }
    for what, names in wrong.items():
        if names:
            raise InputError(f"--prefer {what} {', '.join(names)}; allowed: {allowed}")
    return tuple(given)


@dataclass(frozen=True)
class Budget:
    """Bytes that training may add to a process, and where the number comes from.

    Parameters
    ----------
    bytes : int
        The number.
    origin : str
        A sentence for people; empty where they gave the number themselves.
    """

    bytes: int
    origin: str = ""


def read_budget(budget: str | None, limit: str | None, profile: DeviceProfile | None) -> Budget:
    """Find the budget. For a limit this measures a client process, which takes seconds.

    Raises
    ------
    InputError
        If there is none or more than one, or the limit is too small.
    """
    if budget is not None and limit is not None:
        raise InputError("--budget and --limit exclude each other; allowed: one of them")
    if budget is not None:
        return Budget(parse_bytes(budget, "--budget"))
    if limit is not None:
        return _left_by(parse_bytes(limit, "--limit"))
    if profile is not None:
        origin = f"The budget of {format_bytes(profile.budget_bytes)} is {profile.name}'s own."
        return Budget(profile.budget_bytes, origin)
    raise InputError(
        "plan needs a budget; allowed: --budget BYTES, --limit BYTES, or the budget that "
        "--device NAME has"
    )


def _left_by(limit: int) -> Budget:
    """Return what a limit leaves beside a client process that has not begun to train."""
    needs("client", "flwr", "pydantic")
    with Console(stderr=True).status("measuring a client process before it trains (seconds) ..."):
        taken = measure_client_app(node_environment()).resident
    if limit <= taken:
        allowed = f"more than {format_bytes(taken)}, which a client process takes before it trains"
        raise not_allowed("--limit", format_bytes(limit), f"{allowed} (measured)")
    return Budget(
        limit - taken,
        f"Of the limit of {format_bytes(limit)}, a client process takes {format_bytes(taken)} "
        f"before it trains (measured on this machine): {format_bytes(limit - taken)} are left.",
    )


@dataclass(frozen=True)
class PlanReport:
    """The plan for a request within a budget.

    Parameters
    ----------
    request : PlanRequest
        What is planned.
    budget : Budget
        Bytes, and where they come from.
    profile : DeviceProfile or None
        The device, if there is one.
    preference : sequence of str or None
        Knobs, least harm first; None takes the order that suits the model.

    Raises
    ------
    BudgetError
        From :attr:`plan`, if nothing fits.
    """

    request: PlanRequest
    budget: Budget
    profile: DeviceProfile | None = None
    preference: Sequence[str] | None = field(default=None)

    @cached_property
    def plan(self) -> Plan:
        """The plan of least harm."""
        return self.request.planner.plan(self.budget.bytes, self.preference)

    @cached_property
    def runners_up(self) -> list[Plan]:
        """Other plans for the same budget, each sparing a knob that the plan pulled."""
        return self.request.planner.runners_up(self.plan, self.preference)

    @cached_property
    def frontier(self) -> list[Plan]:
        """A plan for each step of recomputation, format and micro-batch, whatever it needs."""
        return list(self.request.planner.frontier())

    @cached_property
    def clock(self) -> StepTime:
        """Step times."""
        scheme = self.request.scheme if self.request.sparse else DENSE
        return StepTime(self.request.trace, scheme, self.profile)

    def spared(self, other: Plan) -> list[str]:
        """Return the knobs that another plan pulls less far than the plan does."""
        return [name for name, here, there in self._steps(other) if there < here]

    def pulled_further(self, other: Plan) -> list[str]:
        """Return the knobs that another plan pulls further than the plan does."""
        return [name for name, here, there in self._steps(other) if there > here]

    def as_table(self, *, frontier: bool) -> dict[str, Any]:
        """Return all of it as plain values: the plan's own, and what goes with it."""
        table = self._table(self.plan)
        table["device"] = None if self.profile is None else self.profile.name
        table["layers"] = [
            {"name": row.name, "weights": row.weights, "reason": row.reason}
            for row in layer_densities(self.request.trace.meta_model)
        ]
        table["runners_up"] = [self._table(plan) for plan in self.runners_up]
        if frontier:
            table["frontier"] = [self._table(plan) for plan in self.frontier]
        return table

    def _table(self, plan: Plan) -> dict[str, Any]:
        return plan.as_table() | self.clock.as_table(plan, self.request.limits)

    def _steps(self, other: Plan) -> list[tuple[str, int, int]]:
        knobs = self.request.planner.limits.knobs()
        return [
            (each.name, each.step_of(self.plan.shape), each.step_of(other.shape)) for each in knobs
        ]
