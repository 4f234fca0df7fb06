"""What a run is for lean nodes: plans, descriptions, programs, the numbers of each instruction.

Lean nodes have no torch, so the server plans for them and makes their programs.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from mest_fed.catalogue import (
    AUGMENTATIONS,
    METHODS,
    VALUE_CODECS,
    GradientKind,
    MutationPlace,
)
from mest_fed.client.capability import NUMBERS, RECORD
from mest_fed.data import num_held_out
from mest_fed.errors import InputError, not_allowed
from mest_fed.kernels import Channels
from mest_fed.link.description import InputDescription, RunDescription
from mest_fed.link.messages import ProgramRequest
from mest_fed.link.server.nodes import NodeInfo
from mest_fed.link.server.saving import saving_plan
from mest_fed.link.server.task_programs import make_programs
from mest_fed.memory import Plan
from mest_fed.registry import Registry
from mest_fed.strict_json import parse_json
from mest_fed.task import Task
from mest_fed.training.program_choice import can_compile

Scalars = dict[str, bool | int | float]
#: Plans of nodes that are kept, those that were used last: a node can name any budget.
_MOST_PLANS = 4096


def describe_run(
    task: Task, plan: Plan, partition: int, predicted_peak: int | None = None
) -> RunDescription:
    """Return a run's description for a node.

    Parameters
    ----------
    task : Task
        The run's.
    plan : Plan
        How the node trains.
    partition : int
        The node's number in the run.
    predicted_peak : int, optional
        Bytes that training takes; by default the plan's, which hold for any number of examples.

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
        growth=sparsity.growth,
        upload=config.wire.upload,
        frozen=tuple(sorted(task.untrained(plan.memory.frozen))),
        forgetting=task.forgetting,
        budget=plan.budget,
        predicted_peak=plan.footprint.total if predicted_peak is None else predicted_peak,
    )


def order_of(task: Task, plan: Plan, number: int, *, mutate: bool) -> Scalars:
    """Return the numbers of an instruction of a round, from 1."""
    progress = task.progress(number)
    settings = task.optimizer(progress)
    if not plan.shape.momentum:
        settings = settings.without_momentum()
    return {
        "mutate": mutate,
        "learning_rate": settings.learning_rate,
        "progress": progress,
    }


class LeanRun:
    """A run's side of the edge link: what its server answers nodes, and sends them.

    Parameters
    ----------
    task : Task
        The run's.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[str, int, bool], Plan] = OrderedDict()

    def describe(self, node: NodeInfo) -> str:
        """Return the run as JSON, for a node that registers.

        Raises
        ------
        InputError
            If the run needs what a lean node has not, its budget fits no plan, or its examples are
            not those of its share.
        """
        partition = self._partition(node)
        if node.description.examples:  # a node registers before it has read them, too
            self._check_examples(node, partition)
        plan = self._plan(node)
        run = describe_run(self.task, plan, partition, self._peak(node, plan))
        return run.as_json()

    def programs(self, node: NodeInfo, request: ProgramRequest) -> Mapping[str, bytes]:
        """Return the parts of a program that a node asks for; see :func:`make_programs`."""
        return make_programs(self.task, self._plan(node), request)

    def order(self, node: NodeInfo, number: int, *, mutate: bool) -> Scalars:
        """Return the numbers of an instruction of a round."""
        return order_of(self.task, self._plan(node), number, mutate=mutate)

    def capability(self, node: NodeInfo) -> RecordDict:
        """Return the answer to the server's query who a node is.

        Raises
        ------
        InputError
            If it has no examples, or a share of data that the run has not.
        """
        said, plan, partition = node.description, self._plan(node), self._partition(node)
        held = num_held_out(said.examples, self.task.config.data.hold_out)
        if said.examples < 1:
            raise InputError(f"the node {node.identity.name} has not read its examples yet")
        self._check_examples(node, partition)
        record: dict[str, int | float | str] = {
            "partition": partition,
            "device": self._device(node),
            "budget": plan.budget,
            "density": plan.density,
            "micro-batch": plan.micro_batch,
            "predicted-peak": self._peak(node, plan),
            "examples": said.examples - held,
            "held-out": held,
            "frozen": plan.memory.frozen,
        }
        return RecordDict({RECORD: ConfigRecord({**record})})

    def _check_examples(self, node: NodeInfo, partition: int) -> None:
        """Refuse a node that has another number of examples than its share of the run's data."""
        said = node.description
        if said.partition is None:
            return
        total = sum(self.task.example_counts(partition))
        if said.examples != total:
            what = f"examples of the node {node.identity.name}, partition {partition}"
            raise not_allowed(what, said.examples, str(total))

    def _peak(self, node: NodeInfo, plan: Plan) -> int:
        """Return what a node's training takes by its plan (modelled)."""
        count = node.description.examples
        held = num_held_out(count, self.task.config.data.hold_out)
        # A node registers before it has read its examples, too.
        return (
            self.task.footprint_on(plan, count - held).total
            if count > held
            else plan.footprint.total
        )

    def _device(self, node: NodeInfo) -> str:
        return node.description.profile_name or node.identity.name

    def _partition(self, node: NodeInfo) -> int:
        given, total = node.description.partition, self.task.config.fleet.devices
        if given is None:
            return total + node.id % NUMBERS
        if given >= total:
            allowed = f"0 to {total - 1} (fleet.devices = {total})"
            raise not_allowed(f"--partition of {node.identity.name}", given, allowed)
        return given

    def _plan(self, node: NodeInfo) -> Plan:
        device, budget = node.description.profile_name, node.description.budget_bytes
        if not budget:
            if not device:
                raise InputError(f"the node {node.identity.name} gives neither device nor budget")
            budget = self.task.budget(device)
        saving = node.description.saving
        key = device, budget, saving
        with self._lock:
            if key not in self._plans:
                plan = self.task.plan(budget, self._device(node))
                self._plans[key] = saving_plan(self.task, plan) if saving else plan
                while len(self._plans) > _MOST_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]


def check_run(task: Task) -> None:
    """Check that lean nodes can take part in a run, if only their budgets hold a plan.

    Raises
    ------
    InputError
        If the run needs what no lean node has: one line.
    """
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
    if task.method.needs_dense_gradient:
        raise InputError(
            f"sparsity.method = {config.sparsity.method!r} grows by dense gradients, which need "
            "torch: a lean node has none"
        )
    if task.goes_forward_alone:
        raise InputError(
            f"training.gradient = {config.training.gradient!r} is not for lean nodes; "
            f"allowed: {GradientKind.BACKWARD.value!r}, or nodes with torch"
        )
    if task.method.cuts_width:
        raise InputError(
            f"{METHODS.key} = {config.sparsity.method!r} gives devices narrower models, of which a "
            "lean node has no description; allowed: a node with torch"
        )
    whole = any(isinstance(it.storage, Channels) for it in task.spec.layouts.values())
    if whole and task.method.peak > 1 and config.sparsity.mutation == MutationPlace.CLIENT:
        raise InputError(
            f"sparsity.mutation = {config.sparsity.mutation!r} with {METHODS.key} = "
            f"{config.sparsity.method!r} grows whole channels within a round, for which a lean "
            f"node's programs have no room; allowed: {MutationPlace.SERVER.value!r}, or another "
            "sparsity.scheme"
        )


def _check(task: Task, plan: Plan) -> None:
    check_run(task)
    if not can_compile(plan.memory) or not task.compiles(plan.memory):
        raise InputError(
            "the plan of this budget needs torch (activations recomputed or packed), which a lean "
            "node has not; allowed: a larger budget, or memory.recompute = 'none'"
        )
    if (reason := task.why_torch({"a lean node": plan})) is not None:
        raise InputError(f"a lean node runs programs alone: {reason}")


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
