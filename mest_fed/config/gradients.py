"""What goes with each way to a gradient: by backward passes, by forward passes alone, released."""

from typing import TYPE_CHECKING

from mest_fed.catalogue import KNOBS, GradientKind, MutationPlace
from mest_fed.config.sparsity import scores_first

if TYPE_CHECKING:
    from mest_fed.config.base import Section
    from mest_fed.config.sections import RunConfig


def check_gradient(config: "RunConfig") -> None:
    """Check that the sections of a configuration go with ``training.gradient``.

    Raises
    ------
    ValueError
        If one does not: one line.
    """
    if config.training.gradient == GradientKind.ZEROTH_ORDER:
        _check_forward_only(config)
    elif config.wire.slopes:
        raise ValueError(
            "wire.slopes = True is for steps along random directions; allowed: False "
            f"(training.gradient = {config.training.gradient!r})"
        )
    if config.memory.release_gradients:
        _check_released(config)


def _check_forward_only(config: "RunConfig") -> None:
    training, memory = config.training, config.memory
    if config.sparsity.mutation == MutationPlace.CLIENT:
        raise ValueError(
            f"training.gradient = {training.gradient!r} has no gradients to rank weights by; "
            f"allowed: sparsity.mutation = {MutationPlace.SERVER.value!r}"
        )
    if scores_first(config.sparsity.method):
        raise ValueError(
            f"training.gradient = {training.gradient!r} has no gradients to score weights by; "
            f"allowed: another method than sparsity.method = {config.sparsity.method!r}"
        )
    given: list[tuple[str, Section, str]]
    given = [("training", training, it) for it in ("optimizer", "clip_norm", "proximal")]
    knobs = [it for it in KNOBS if it in type(memory).model_fields and it != "frozen"]
    given += [("memory", memory, it) for it in knobs]
    for section, keys, key in given:
        value, allowed = getattr(keys, key), type(keys).model_fields[key].default
        if value != allowed:
            raise ValueError(
                f"{section}.{key} = {value!r} is not allowed with training.gradient = "
                f"{training.gradient!r}, which goes forward alone; allowed: {allowed!r}"
            )
    upload, allowed = config.wire.upload, type(config.wire).model_fields["upload"].default
    if config.wire.slopes and upload != allowed:
        raise ValueError(
            f"wire.upload = {upload!r} is a format of weights, and wire.slopes = True sends none; "
            f"allowed: {allowed!r}"
        )


def _check_released(config: "RunConfig") -> None:
    from mest_fed.nn.optimizer_settings import OptimizerSettings
    from mest_fed.nn.optimizers import WHERE_RELEASED

    training = config.training
    settings = OptimizerSettings(name=training.optimizer, clip_norm=training.clip_norm)
    if not settings.can_release:
        raise ValueError(
            f"memory.release_gradients = True is not allowed with training.optimizer = "
            f"{training.optimizer!r} and training.clip_norm = {training.clip_norm:g}; "
            f"allowed: {WHERE_RELEASED}"
        )
