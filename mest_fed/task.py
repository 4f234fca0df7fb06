"""The learning task of a run, as both the clients and the server build it from the configuration.

``Task(config)`` builds one. :mod:`mest_fed.process_tasks` has those of this process, so that data,
model and trace are shared by all clients that it plays.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor

from mest_fed.catalogue import AUGMENTATIONS, Engine, GradientKind, KernelMode, MutationPlace
from mest_fed.config import RunConfig
from mest_fed.config.learning import sends_differences
from mest_fed.data.minibatches import batch_starts, unchanged
from mest_fed.devices import load_profile
from mest_fed.errors import BudgetError, InputError
from mest_fed.kernels.choice import Choices
from mest_fed.memory import (
    MemoryOptions,
    ModelTrace,
    Plan,
    PlanLimits,
    Planner,
    TrainingSetup,
    TrainingShape,
)
from mest_fed.memory.activations import check_frozen
from mest_fed.memory.footprint import Footprint, footprint
from mest_fed.memory.knobs import OF_BACKWARD, OF_PROGRAMS
from mest_fed.memory.program_bytes import Compiler
from mest_fed.rng import numpy_generator
from mest_fed.sparsity import Interval
from mest_fed.task_model import TaskModel
from mest_fed.training import (
    ForgettingPolicy,
    OptimizerSettings,
    choose_device,
    learning_rate,
)
from mest_fed.training.directions import ZerothOrder
from mest_fed.training.forward_compiler import ForwardCompiler
from mest_fed.training.program_choice import can_compile
from mest_fed.training.programs import check_step
from mest_fed.training.step_compiler import StepCompiler
from mest_fed.training.zeroth_order import check_probed


class Task(TaskModel):
    """Data, model and schedules of one configuration.

    Parameters
    ----------
    config : RunConfig
        The run.
    data : DataSplit, optional
        Training and central test data; by default the configuration's data set, which is loaded
        when it is used.
    partitions : sequence of arrays, optional
        Training examples of each device; by default as the configuration shares them out.
    choices : Choices, optional
        Implementations of the model's sparse layers; by default those of the rule.
    """

    def reconfigured(self, config: RunConfig, choices: Choices | None) -> "Task":
        """Return the task of another configuration, or kernels, with this one's data and shares."""
        partitions = None if self.draws_examples else self.partitions
        return Task(config, data=self.data, partitions=partitions, choices=choices)

    def dense(self) -> "Task":
        """Return the task of the same run whose layers are dense and all train, by torch.

        It shares the data if this one has loaded them, and shares nothing out.
        """
        config = self.config
        changed = {
            "sparsity": config.sparsity.model_copy(update={"method": "dense"}),
            "training": config.training.model_copy(update={"engine": Engine.TORCH.value}),
            "memory": config.memory.model_copy(update={"frozen": 0}),
        }
        return Task(config.model_copy(update=changed), data=vars(self).get("data", self._data))

    def at_width(self, share: float) -> "Task":
        """Return the task of a device whose model has the first share of the channels.

        Itself, unless the method cuts widths.

        Raises
        ------
        InputError
            If the channels of a narrower model are not the first ones of this.
        """
        if not self.method.cuts_width or share == 1:
            return self
        if share not in self._narrower:
            from mest_fed.task_width import NarrowTask  # which is made of this

            self._narrower[share] = NarrowTask(self, share)
        return self._narrower[share]

    @cached_property
    def _narrower(self) -> "dict[float, Task]":
        """The tasks of narrower models, by their share of the channels."""
        return {}

    def _with_widths(self, traced: ModelTrace) -> ModelTrace:
        if not self.method.cuts_width:
            return traced
        from mest_fed.task_width import check_nested

        check_nested(self.model, self.config)
        return replace(traced, at_width=lambda share: self.at_width(share).trace)

    @cached_property
    def interval(self) -> Interval:
        """Which rounds mutate."""
        return Interval(self.config.run.rounds, self.config.sparsity.period)

    @cached_property
    def forgetting(self) -> ForgettingPolicy:
        """When examples are left out."""
        return ForgettingPolicy(**self.config.forgetting.model_dump())

    def optimizer(self, progress: float) -> OptimizerSettings:
        """Return the client optimizer's settings at a progress in [0, 1]."""
        training = self.config.training
        rate = learning_rate(training.schedule, training.learning_rate, progress)
        return OptimizerSettings(
            rate,
            0.0 if self.goes_forward_alone else training.momentum,
            training.weight_decay,
            name=training.optimizer,
            beta1=training.beta1,
            beta2=training.beta2,
            eps=training.eps,
            clip_norm=training.clip_norm,
            proximal=training.proximal,
        )

    @property
    def goes_forward_alone(self) -> bool:
        """Whether training is by forward passes, without gradients."""
        return self.config.training.gradient == GradientKind.ZEROTH_ORDER

    @property
    def zeroth_order(self) -> ZerothOrder:
        """How the loss is probed where training goes forward alone."""
        training = self.config.training
        return ZerothOrder(training.epsilon, training.perturbations)

    def directions_rng(self, number: int, partition: int) -> np.random.Generator:
        """Return what draws a client's directions in a round, here and where they are repeated."""
        return numpy_generator(self.config.run.seed, number, partition, "directions")

    def progress(self, number: int) -> float:
        """Return the run's progress at the start of a round (from 1), in [0, 1]."""
        return min(1.0, (number - 1) / self.config.run.rounds)

    def most_steps(self, examples: int) -> int:
        """Return the steps of a client of so many examples in a round, if it leaves out none."""
        training = self.config.training
        return training.local_epochs * math.ceil(examples / training.batch_size)

    def compiles(self, memory: MemoryOptions | None = None) -> bool:
        """Whether training under memory options, or evaluation without, is asked to be compiled.

        A model without a program is torch's all the same: see :meth:`why_torch`.
        """
        training = self.config.training
        if training.engine != Engine.COMPILED or training.kernels == KernelMode.DENSE:
            return False
        possible = memory is None or can_compile(memory)
        return possible and choose_device(training.device).type == "cpu"

    @property
    def forward(self) -> Callable[[Tensor], Tensor] | None:
        """What computes the resident model in evaluation; None if the model itself does."""
        return self.programs.forward if self.compiles() else None

    def why_torch(self, plans: Mapping[str, Plan]) -> str | None:
        """Return why torch trains, though compiled programs are asked for; None if it does not.

        Parameters
        ----------
        plans : mapping of str to Plan
            Device -> its plan, of the devices that are known.
        """
        training, example = self.config.training, self.example
        if training.engine == Engine.TORCH:
            return None
        asked = f"training.engine = {training.engine!r}"
        if training.kernels == KernelMode.DENSE:
            return f"{asked}: torch trains, as training.kernels = {training.kernels!r} asks"
        if not self.compiles():
            device = choose_device(training.device).type
            return f"{asked}: torch trains, since programs run on the CPU and not on {device}"
        known = {name: plan.memory for name, plan in plans.items()}
        memories = known or {"all devices": self.config.memory.options}
        stored = {it.saved for it in memories.values() if can_compile(it)} or {"fp32"}
        inputs = (min(2, training.batch_size), *example.input_shape), example.input_dtype
        try:
            # Not the resident model, which has no weights before its first state.
            model = self.build_model()
            if self.goes_forward_alone:
                check_probed(model, inputs)
                return None
            for storage in sorted(stored):
                check_step(model, inputs, self.objective, self.optimizer(0.0), storage)
        except InputError as error:
            return f"{asked}: torch trains; {error}"
        others = ", ".join(name for name, memory in memories.items() if not can_compile(memory))
        where = f"a plan recomputes segments or packs otherwise than as {OF_PROGRAMS}"
        return f"{asked}: torch trains where {where}: {others}" if others else None

    @cached_property
    def step_compiler(self) -> Compiler | None:
        """What gives the planner the programs of steps; None where torch trains."""
        if not self.compiles():
            return None
        example = tuple(self.example.input_shape), self.example.input_dtype
        if self.goes_forward_alone:
            return ForwardCompiler(example)
        return StepCompiler(example, self.objective, self.optimizer(0.0))

    def budget(self, device: str) -> int:
        """Return the memory budget of a device profile, in bytes."""
        override = self.config.fleet.budget_bytes.get(device)
        return _profile_once(device).budget_bytes if override is None else override

    def fleet_plans(self) -> dict[str, Plan]:
        """Return the plan of each device profile of the fleet, within its budget.

        Raises
        ------
        InputError
            If a profile is unknown, or ``fleet.budgets`` names none of the fleet.
        BudgetError
            If nothing fits a device; names it and the bytes that would do.
        """
        fleet = self.config.fleet
        unknown = sorted(set(fleet.budget_bytes) - set(fleet.weights))
        if unknown:
            raise InputError(
                f"fleet.budgets names {unknown[0]}, which is not in the fleet (fleet.mix); "
                f"allowed: {', '.join(fleet.weights)}"
            )
        own = self.config.fleet.budget_bytes
        named = {
            name: f"{name} (fleet.budgets)" if name in own else name for name in self.devices.counts
        }
        return {name: self.plan(self.budget(name), who) for name, who in named.items()}

    def plan(self, budget: int, who: str, threads: int = 1) -> Plan:
        """Plan local training within a budget.

        Parameters
        ----------
        budget : int
            Bytes that training may add to the process.
        who : str
            Whose budget it is, for the error's text.
        threads : int
            That the device computes with. A simulated one has one thread.

        Raises
        ------
        BudgetError
            If nothing fits; names ``who`` and the bytes that would do.
        """
        try:
            return self.planner(threads).plan(budget, self.config.memory.preference)
        except BudgetError as error:
            raise error.of(who) from None

    def footprint_on(self, plan: Plan, examples: int) -> Footprint:
        """Return what a plan takes on a device that trains on so many examples.

        Modelled. The plan itself holds for any number; a known one has fewer sizes of groups.
        """
        if self.forgetting.active:  # which leaves out some, other ones in each round
            return plan.footprint
        *_, start = batch_starts(examples, plan.shape.batch)
        last = examples - start
        setting = replace(self.planner().setting, rest=0 if last == plan.shape.batch else last)
        return footprint(self.trace, setting, plan.shape)

    def planner(self, threads: int = 1) -> Planner:
        """Return a planner for this task's model, batch and method on so many threads."""
        training, sparsity = self.config.training, self.config.sparsity
        check_frozen(self.model, self.config.memory.options)
        optimizer = self.optimizer(0.0)
        shape = TrainingShape(
            density=self.density,
            distribution=sparsity.densities,
            micro_batch=training.batch_size,
            batch=training.batch_size,
            momentum=optimizer.has_momentum,
            optimizer=optimizer.name,
            proximal=optimizer.proximal > 0,
            memory=self.config.memory.options,
        )
        setup = TrainingSetup(
            self.method,
            mutates=sparsity.mutation == MutationPlace.CLIENT,
            threads=threads,
            compiler=self.step_compiler,
            rest=None,
            feedback=sends_differences(self.config.wire.upload),
            forward_only=self.goes_forward_alone,
            held=self._held,
        )
        fixed = frozenset() if optimizer.can_release else frozenset({"release_gradients"})
        if self.goes_forward_alone:
            fixed = frozenset(OF_BACKWARD)
        compiled = setup.compiler is not None
        limits = PlanLimits.of(self.trace, shape, fixed, compiled=compiled)
        return Planner(self.trace, setup, limits)

    @property
    def _held(self) -> int:
        """Bytes of each number of a batch that stands as it was read while it trains."""
        if AUGMENTATIONS.find(self.config.data.augmentation) is unchanged:
            return 0
        encoding = self.encoding
        return np.dtype("float32" if encoding is None else encoding.dtype).itemsize


_profile_once = lru_cache(maxsize=64)(load_profile)
