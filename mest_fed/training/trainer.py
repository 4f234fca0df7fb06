"""One client's local training: batches, micro-batches, optimizer steps."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mest_fed.catalogue import LEARNING_RATES, ComputeDevice
from mest_fed.data import Batch
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.nn.optimizers import ClientOptimizer
from mest_fed.training.forgetting import ForgettingState
from mest_fed.training.mutation import LocalMutation

#: Images in one forward pass of an evaluation.
EVALUATION_BATCH = 256

NO_MEMORY_OPTIONS = MemoryOptions()


@dataclass
class Metrics:
    """Sums over examples.

    Parameters
    ----------
    loss : float
        Sum of the examples' cross-entropies.
    correct : int
        Examples classified rightly.
    examples : int
        Examples presented.
    """

    loss: float = 0.0
    correct: int = 0
    examples: int = 0

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy; NaN without examples."""
        return self.loss / self.examples if self.examples else float("nan")

    @property
    def accuracy(self) -> float:
        """Share classified rightly; NaN without examples."""
        return self.correct / self.examples if self.examples else float("nan")


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
        Called after each micro-batch with the trainer; may lower ``micro_batch``.
    forgetting : ForgettingState or None
        Told of each presentation, before the batch's update.
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
    ) -> None:
        if micro_batch < 1:
            raise not_allowed("micro_batch", micro_batch, "a whole number of at least 1")
        self.model = model
        self.optimizer = optimizer
        self.micro_batch = micro_batch
        self.memory = memory
        self.guard = guard
        self.forgetting = forgetting

    def fit(self, batches: Iterable[Batch], mutation: LocalMutation | None = None) -> Metrics:
        """Take one optimizer step for each batch.

        Parameters
        ----------
        batches : iterable of Batch
            Images, labels and example positions.
        mutation : LocalMutation, optional
            Mutates the model between the steps, where gradients stand.

        Returns
        -------
        Metrics
            Of all presentations, each taken before its batch's update.
        """
        self.model.train()
        totals = Metrics()
        with memory_saving(self.model, self.memory) as forward:
            if mutation is not None:
                mutation.open()
            for step, batch in enumerate(batches):
                if mutation is not None:
                    mutation.before_step(step)
                self._step(forward, batch, totals)
                if mutation is not None:
                    mutation.after_step(step)
            if mutation is not None:
                mutation.close()
        return totals

    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        self.optimizer.zero_grad()
        correct = self._accumulate(forward, batch, totals)
        if self.forgetting is not None:
            self.forgetting.observe(batch.examples, correct.numpy())
        self.optimizer.step()

    def _accumulate(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics
    ) -> Tensor:
        """Backpropagate the mean loss of a batch; return which examples were right."""
        size, right = len(batch.labels), []
        device = next(self.model.parameters()).device
        done = 0
        while done < size:
            # Even pieces of what is left, so that none is a lone example.
            left = size - done
            part = slice(done, done + -(-left // -(-left // self.micro_batch)))
            labels = batch.labels[part].to(device)
            logits = forward(batch.images[part].to(device))
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            (loss / size).backward()  # type: ignore[no-untyped-call]
            right.append((logits.detach().argmax(dim=1) == labels).cpu())
            totals.loss += loss.item()
            totals.correct += int(right[-1].sum())
            done = part.stop
            del logits, loss
            if self.guard is not None:
                self.guard(self)
        totals.examples += size
        return torch.cat(right)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[Metrics, Tensor]:
    """Evaluate a model.

    Returns
    -------
    totals : Metrics
        Loss and accuracy over all examples.
    correct : Tensor
        bool, in the order of the batches.
    """
    model.eval()
    device = next(model.parameters()).device
    totals, right = Metrics(), []
    for batch in batches:
        labels = batch.labels.to(device)
        logits = model(batch.images.to(device))
        totals.loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right.append((logits.argmax(dim=1) == labels).cpu())
        totals.correct += int(right[-1].sum())
        totals.examples += len(labels)
    return totals, torch.cat(right) if right else torch.zeros(0, dtype=torch.bool)


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
