"""One client's local training: batches, micro-batches, optimizer steps."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mest_fed.catalogue import LEARNING_RATES, ComputeDevice
from mest_fed.data import Batch
from mest_fed.devices import StepWork, Work
from mest_fed.errors import InputError, ObjectiveError, not_allowed
from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.nn.client_optimizer import ClientOptimizer
from mest_fed.training.forgetting import ForgettingState
from mest_fed.training.metrics import Metrics, weight_of
from mest_fed.training.mutation import LocalMutation
from mest_fed.training.objective import Objective
from mest_fed.training.objective_checks import check_finite, judge_correct
from mest_fed.training.tasks import Classification

#: Images in one forward pass of an evaluation.
EVALUATION_BATCH = 256

NO_MEMORY_OPTIONS = MemoryOptions()
CLASSIFICATION = Classification()


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If the name is unknown, or CUDA is asked for and absent.
    """
    if name not in list(ComputeDevice):
        raise not_allowed("training.device", name, ComputeDevice)
    if name == ComputeDevice.CUDA and not torch.cuda.is_available():
        raise not_allowed("training.device", name, "auto or cpu: this machine has no CUDA device")
    return torch.device(
        "cuda" if name != ComputeDevice.CPU and torch.cuda.is_available() else "cpu"
    )


class LocalTrainer:
    """Trains a model on batches, each taken in micro-batches whose gradients add up.

    With GroupNorm the accumulated gradient equals that of the whole batch; with BatchNorm the
    statistics are those of each micro-batch.

    Parameters
    ----------
    model : nn.Module
        Sparse or dense.
    optimizer : ClientOptimizer or torch.optim.Optimizer
        Of the model's parameters.
    micro_batch : int
        Largest number of images in one forward and backward pass. It may be lowered during
        :meth:`fit`, by a guard for example.
    memory : MemoryOptions
        What is recomputed, packed and frozen; whether gradients are consumed is the optimizer's
        matter. By default nothing.
    guard : callable or None
        Called after each micro-batch with the trainer; may :meth:`halve` it.
    forgetting : ForgettingState or None
        Receives each presentation, before the batch's update.
    objective : Objective
        What is learned; classification by default.
    costs : callable, optional
        Gives what steps by torch take, when the first one is taken; nothing is counted by default.

    Attributes
    ----------
    work : Work
        What the steps so far took (modelled).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: ClientOptimizer | torch.optim.Optimizer,
        *,
        micro_batch: int,
        memory: MemoryOptions = NO_MEMORY_OPTIONS,
        guard: Callable[["LocalTrainer"], None] | None = None,
        forgetting: ForgettingState | None = None,
        objective: Objective = CLASSIFICATION,
        costs: Callable[[], StepWork] | None = None,
    ) -> None:
        if micro_batch < 1:
            raise not_allowed("micro_batch", micro_batch, "a whole number of at least 1")
        self.model = model
        self.optimizer = optimizer
        self.micro_batch = micro_batch
        self.memory = memory
        self.guard = guard
        self.forgetting = forgetting
        self.objective = objective
        self.work = Work()
        #: Whether the model is in training mode; else it is as in evaluation.
        self.as_in_training = True
        self._costs = costs

    def halve(self) -> bool:
        """Take half as many examples together from now on; say whether that is possible."""
        if self.micro_batch == 1:
            return False
        self.micro_batch = -(-self.micro_batch // 2)
        return True

    def fit(self, batches: Iterable[Batch], mutation: LocalMutation | None = None) -> Metrics:
        """Take one optimizer step for each batch.

        Parameters
        ----------
        batches : iterable of Batch
            Inputs, targets and example positions.
        mutation : LocalMutation, optional
            Mutates the model between the steps, where gradients stand.

        Returns
        -------
        Metrics
            Of all presentations, each taken before its batch's update.

        Raises
        ------
        ObjectiveError
            If the objective gives a loss that is not finite or not one for each example, or sums
            that are none; the text says in which batch.
        """
        self.model.train(self.as_in_training)
        totals = Metrics()
        with memory_saving(self.model, self.memory) as forward:
            if mutation is not None:
                mutation.open()
            step = 0
            for batch in batches:
                if mutation is not None:
                    mutation.before_step(step)
                try:
                    self._step(forward, batch, totals)
                except ObjectiveError as error:
                    raise type(error)(f"batch {step + 1}: {error}") from None
                if mutation is not None:
                    mutation.after_step(step)
                step += 1  # noqa: SIM113 - enumerate() holds what it gave last
                del batch  # or it stands in memory while the next one is made
            if mutation is not None:
                mutation.close()
        return totals

    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        if self._costs is not None:
            self.work += self._costs().of_batch(len(batch.targets), self.micro_batch)
        self.optimizer.zero_grad()
        correct = self._accumulate(forward, batch, totals)
        if self.forgetting is not None:
            self.forgetting.observe(batch.examples, torch.cat(correct).numpy())
        self.optimizer.step()

    def _accumulate(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics
    ) -> list[Tensor]:
        """Backpropagate the mean loss of a batch; return which examples were right, by parts.

        Nothing is returned where forgetting is not counted.
        """
        objective = self.objective
        size, right = len(batch.targets), list[Tensor]()
        weight = weight_of(objective, batch.targets) or 1.0  # of nothing that counts, no loss
        device = next(self.model.parameters()).device
        done = 0
        while done < size:
            # Even parts of what is left, so that none is a lone example.
            left = size - done
            part = slice(done, done + -(-left // -(-left // self.micro_batch)))
            targets = batch.targets[part].to(device)
            loss = self._forward(forward, batch.part(part).to(device), targets, totals, right)
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            done = part.stop
            del loss
            if self.guard is not None:
                self.guard(self)
        return right

    def _forward(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        totals: Metrics,
        right: list[Tensor],
    ) -> Tensor:
        """Return the loss of a micro-batch, and count it; its outputs do not stay for backward."""
        objective = self.objective
        outputs = forward(inputs)
        loss = objective.total_loss(outputs, targets)
        outputs, total = outputs.detach(), loss.item()
        check_finite(total, objective, outputs, targets)
        totals.add(total, targets, objective, objective.sums(outputs, targets))
        if self.forgetting is not None:
            right.append(judge_correct(objective, outputs, targets))
        return loss


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective = CLASSIFICATION,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Metrics:
    """Evaluate a model on all examples of some batches.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode afterwards.
    batches : iterable of Batch
        Inputs and targets.
    objective : Objective
        What is learned.
    forward : callable, optional
        Computes the outputs in the model's place, as its compiled program does.

    Raises
    ------
    ObjectiveError
        If the objective gives something that is no loss or no sum. A loss that is not finite stays.
    """
    model.eval()
    forward = model if forward is None else forward
    device = next(model.parameters()).device
    totals = Metrics()
    for batch in batches:
        targets = batch.targets.to(device)
        outputs = forward(batch.part().to(device))
        loss = objective.total_loss(outputs, targets).item()
        totals.add(loss, targets, objective, objective.sums(outputs, targets))
        del batch, targets, outputs  # or they stand in memory while the next ones are made
    return totals


@torch.no_grad()
def judge(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective = CLASSIFICATION,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return which examples a model answers correctly; bool, in the order of the batches.

    Parameters
    ----------
    model, batches, objective, forward
        As for :func:`evaluate`.

    Raises
    ------
    ObjectiveError
        If the objective does not tell.
    """
    model.eval()
    forward = model if forward is None else forward
    device = next(model.parameters()).device
    right = list[Tensor]()
    for batch in batches:
        outputs = forward(batch.part().to(device))
        right.append(judge_correct(objective, outputs, batch.targets.to(device)))
        del batch, outputs  # as above
    return torch.cat(right) if right else torch.zeros(0, dtype=torch.bool)


def constant(progress: float) -> float:
    """Keep the learning rate."""
    del progress
    return 1.0


def cosine(progress: float) -> float:
    """MEST anneals to 4e-8, here to zero."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def step(progress: float) -> float:
    """Tenth at half, hundredth at three quarters (He et al. 2016)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def learning_rate(schedule: str, base: float, progress: float) -> float:
    """Return the learning rate at a progress in [0, 1].

    Raises
    ------
    InputError
        If the schedule is unknown, or gives something else than a number from 0 on.
    """
    factor = LEARNING_RATES.build(schedule, progress)
    if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
        key = f"{LEARNING_RATES.key} = {schedule!r}"
        raise InputError(f"{key} gives {factor!r} at {progress:g}; allowed: a number from 0 on")
    return base * factor
