"""The end of a step: the optimizer's operators, one for each parameter that has a gradient."""

from dataclasses import asdict, dataclass
from typing import Any

from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import Gradients
from mest_fed.runtime.program import Program

#: The setting that holds the learning rate of the step.
RATES = "rates"


@dataclass(frozen=True)
class SGD:
    """SGD as torch's: weight decay is added to the gradient; no dampening.

    Parameters
    ----------
    momentum, weight_decay : float
        0 for none; without momentum there is no state.
    nesterov : bool
        Whether the step looks ahead.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    name = "sgd"

    @property
    def states(self) -> dict[str, str]:
        """Name -> dtype of what a parameter has beside itself."""
        return {"momentum_buffer": "float32"} if self.momentum else {}


@dataclass(frozen=True)
class Adam:
    """Adam as torch's, or AdamW where the decay is decoupled from the gradient.

    Parameters
    ----------
    beta1, beta2, epsilon, weight_decay : float
        As torch's.
    decoupled : bool
        Whether weights decay by rate * weight_decay instead (Loshchilov and Hutter 2019).
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    name = "adam"

    @property
    def states(self) -> dict[str, str]:
        """Name -> dtype of what a parameter has beside itself."""
        return {"first": "float32", "second": "float32", "step": "int64"}


@dataclass(frozen=True)
class Limits:
    """What keeps a step short, before the update.

    Parameters
    ----------
    clip_norm : float
        Largest norm of all gradients together; 0 for none.
    proximal : float
        Strength with which parameters are drawn to the state ``PARAMETER:reference`` (FedProx, Li
        et al. 2020), before gradients are clipped; 0 for none.
    """

    clip_norm: float = 0.0
    proximal: float = 0.0


def with_updates(
    gradients: Gradients, optimizer: SGD | Adam, limits: Limits | None = None
) -> Program:
    """Add an update of each parameter that has a gradient.

    States start at zero; their buffers are named ``PARAMETER:STATE``. References must be given. The
    step's learning rate is the setting ``rates``.
    """
    builder = Builder(gradients.program)
    rates = builder.buffer(RATES, (1,), role="setting")
    limits = limits or Limits()
    found = dict(gradients.of)
    if limits.proximal:
        found = _drawn(builder, found, limits.proximal)
    total = _squares(builder, found) if limits.clip_norm else None
    attributes: dict[str, Any] = asdict(optimizer)
    for parameter, gradient in found.items():
        name, shape = builder.buffers[parameter].name, builder.buffers[parameter].shape
        if total is not None:
            clipped = {"gradient": gradient, "total": total}
            (gradient,) = builder.operator(
                "clip", clipped, {}, f"{name}:clipped", most=limits.clip_norm
            )
        given: dict[str, int | None] = {
            "gradient": gradient,
            "rates": rates,
            "parameter": parameter,
        }
        for state, dtype in optimizer.states.items():
            size = (1,) if state == "step" else shape
            given[state] = builder.buffer(f"{name}:{state}", size, dtype, "state")
        builder.operator(optimizer.name, given, {}, **attributes)
    return builder.end_phase(2).unchecked()


def _drawn(builder: Builder, gradients: dict[int, int], strength: float) -> dict[int, int]:
    """Add FedProx's term to each gradient."""
    found = {}
    for parameter, gradient in gradients.items():
        name, shape = builder.buffers[parameter].name, builder.buffers[parameter].shape
        reference = builder.buffer(f"{name}:reference", shape, role="state")
        given = {"gradient": gradient, "parameter": parameter, "reference": reference}
        (found[parameter],) = builder.operator(
            "proximal", given, {}, f"{name}:drawn", strength=strength
        )
    return found


def _squares(builder: Builder, gradients: dict[int, int]) -> int | None:
    """Return the buffer of the sum of all gradients' squares, added up in their order."""
    total = None
    for gradient in gradients.values():
        given = {"x": gradient, "before": total}
        (total,) = builder.operator("sum_of_squares", given, {}, "squares")
    return total
