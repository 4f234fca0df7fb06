"""What a run is for a lean node: its description, and the numbers of each instruction."""

from typing import Any

from mest_fed.catalogue import AUGMENTATIONS, METHODS, VALUE_CODECS
from mest_fed.errors import InputError
from mest_fed.link.description import InputDescription, RunDescription
from mest_fed.memory import Plan
from mest_fed.registry import Registry
from mest_fed.strict_json import parse_json
from mest_fed.task import Task
from mest_fed.training.program_choice import can_compile

Scalars = dict[str, bool | int | float]


def describe_run(task: Task, plan: Plan, partition: int) -> RunDescription:
    """Return a run's description for a node.

    Parameters
    ----------
    task : Task
        The run's.
    plan : Plan
        How the node trains.
    partition : int
        The node's number in the run.

    Raises
    ------
    InputError
        If the run needs code that a lean node has not: of a user's own, or torch.
    """
    config = task.config
    _check(task, plan)
    example, train, sparsity = task.example, task.data.train, config.sparsity
    encoding = task.encoding
    inputs = InputDescription(
        tuple(example.input_shape),
        _name(example.input_dtype),
        tuple(example.target_shape),
        _name(example.target_dtype),
        example.num_outputs,
        tuple(train.mean),
        tuple(train.std),
        () if encoding is None else tuple(encoding.classes),
    )
    return RunDescription(
        spec=task.spec,
        task=config.task.name,
        task_options=parse_json(config.task.options or "{}", "task.options", dict),
        inputs=inputs,
        seed=config.run.seed,
        rounds=config.run.rounds,
        local_epochs=config.training.local_epochs,
        batch_size=config.training.batch_size,
        micro_batch=plan.micro_batch,
        augmentation=config.data.augmentation,
        hold_out=config.data.hold_out,
        partition=partition,
        method=sparsity.method,
        density=sparsity.density,
        gradient_weight=sparsity.gradient_weight,
        upload=config.wire.upload,
        forgetting=task.forgetting,
        predicted_peak=plan.footprint.total,
    )


def order_of(task: Task, plan: Plan, number: int, mutate: bool) -> Scalars:
    """Return the numbers of an instruction of a round, from 1."""
    progress = min(1.0, (number - 1) / task.config.run.rounds)
    settings = task.optimizer(progress)
    if not plan.shape.momentum:
        settings = settings.without_momentum()
    return {
        "mutate": mutate,
        "learning_rate": settings.learning_rate,
        "progress": progress,
    }


def _check(task: Task, plan: Plan) -> None:
    config = task.config
    named: list[tuple[Registry[Any], str]] = [
        (AUGMENTATIONS, config.data.augmentation),
        (METHODS, config.sparsity.method),
        (VALUE_CODECS, config.wire.upload),
        (VALUE_CODECS, config.wire.download),
    ]
    for registry, name in named:
        if not registry.is_builtin(name):
            raise InputError(f"{registry.key} = {name!r} is code of your own: a lean node has none")
    if not can_compile(plan.memory) or not task.compiles(plan.memory):
        raise InputError(
            "the plan of this budget needs torch (activations recomputed or packed), which a lean "
            "node has not; allowed: a larger budget, or memory.recompute = 'none'"
        )
    if (reason := task.why_torch({"a lean node": plan})) is not None:
        raise InputError(f"a lean node runs programs alone: {reason}")


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
