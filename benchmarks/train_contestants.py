"""What benchmarks of whole steps time: their models and cases, and a step of each contestant.

- :func:`compiled`: the model as a compiled program, with the passes and the groups of a client;
- :func:`by_torch`: the same model and optimizer through torch (``training.engine = "torch"``);
- :func:`dense`: the dense model in torch's own operators, with torch's fused SGD.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.program_choice import best_programs, program_of
from mest_fed.training.step_program import PASSES, StepPrograms
from mest_fed.training.tasks import Classification

IMAGE, CLASSES = (3, 32, 32), 10
DENSE = "dense"
LEARNING_RATE = 0.01
SETTINGS = OptimizerSettings(LEARNING_RATE, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class Model:
    """A model, its width, the images of a batch, densities of interest, whether it has norms."""

    name: str
    width: float
    batch: int
    densities: tuple[float, ...] = (0.1, 0.05)
    has_norms: bool = True


MODELS = {
    "resnet32": Model("resnet32", 2.0, 64),  # MEST's
    "resnet18": Model("resnet18", 1.0, 32),
    "cnn2": Model("cnn2", 1.0, 64, (0.1, 0.05, 1.0), has_norms=False),
}


@dataclass(frozen=True)
class Case:
    """One model under one norm, scheme (or ``dense``), density and number of threads."""

    model: Model
    norm: str
    scheme: str
    density: float
    threads: int

    @property
    def name(self) -> str:
        """Name of its rows."""
        model = f"{self.model.name}, batch {self.model.batch}, {self.norm} norm"
        return f"{model}, {self.scheme}, density {self.density:g}, threads {self.threads}"

    @property
    def fields(self) -> dict[str, Any]:
        """What rows say of it."""
        return {
            "model": self.model.name,
            "width": self.model.width,
            "batch": self.model.batch,
            "norm": self.norm,
            "scheme": self.scheme,
            "threads": self.threads,
        }

    @property
    def clock(self) -> Callable[[], float]:
        """The processor's time with one thread, which others on the machine disturb less."""
        return time.process_time if self.threads == 1 else time.perf_counter

    def build(self) -> nn.Module:
        """Build the dense model, the same each time."""
        generator = torch_generator(0, self.model.name)
        options = {"width": self.model.width, "norm": self.norm}
        return build_model(self.model.name, IMAGE, CLASSES, generator=generator, **options)

    def build_sparse(self) -> nn.Module:
        """Build the model that is compared with the dense one, with the same active weights."""
        model = self.build()
        if self.scheme != DENSE:
            sparsify(model, self.scheme, self.density)
        return model

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw images and labels."""
        generator = torch_generator(0, "batch")
        images = torch.randn(self.model.batch, *IMAGE, generator=generator)
        return images, torch.randint(CLASSES, (self.model.batch,), generator=generator)


class Step:
    """One training step of a model with its optimizer, by torch; ``bf16``: under autocast."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        clock: Callable[[], float] = time.perf_counter,
        *,
        bf16: bool = False,
    ) -> None:
        self.model = model.train()
        self.optimizer = optimizer
        self.clock = clock
        self.bf16 = bf16

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Run a step; give the seconds of its parts."""
        start = self.clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = cross_entropy(self.model(images), labels)
        forward = self.clock()
        loss.backward()
        backward = self.clock()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = self.clock()
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "optimizer": end - backward,
        }


def by_torch(model: nn.Module, clock: Callable[[], float] = time.perf_counter) -> Step:
    """Take our model and optimizer as a client does that trains by torch."""
    return Step(model, SETTINGS.build(model), clock)


def dense(
    model: nn.Module, clock: Callable[[], float] = time.perf_counter, *, bf16: bool = False
) -> Step:
    """Take a model as dense torch trains it."""
    return Step(unfused(model), sgd(model), clock, bf16=bf16)


def unfused(model: nn.Module) -> nn.Module:
    """Have a model use torch's own convolutions, norms and ReLUs."""
    for module in model.modules():
        if hasattr(module, "fused"):
            module.fused = False
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's fused SGD, with our settings."""
    parameters, decay = model.parameters(), SETTINGS.weight_decay
    return torch.optim.SGD(
        parameters, LEARNING_RATE, momentum=SETTINGS.momentum, weight_decay=decay, fused=True
    )


def compiled(
    model: nn.Module,
    batch: int,
    threads: int,
    *,
    storage: str = "fp32",
    without: str = "",
    group: int | None = None,
) -> CompiledStep:
    """Make a model a compiled step, as a client does.

    Parameters
    ----------
    model : nn.Module
        Its weights are copied.
    batch : int
        Images, of all batches.
    threads : int
        To compute with.
    storage : str
        Of planes: ``fp32`` or ``bf16``.
    without : str
        A pass that is switched off.
    group : int, optional
        Images of a group; by default as many as a client takes.
    """

    def make(*, groups: bool = True, passes: tuple[str, ...] = tuple(PASSES)) -> StepPrograms:
        kept = [it for it in passes if it != without]
        example, task = (IMAGE, torch.float32), Classification()
        return StepPrograms(
            model, example, task, SETTINGS, groups=groups, passes=kept, storage=storage
        )

    model.train()
    programs = best_programs(make, batch, whole=True)
    captured = programs.captured(batch)
    program, sizes = program_of(programs, programs.of(captured), batch)
    if group is not None:
        program = sizes(group)
    step = CompiledStep(program, threads, resize=sizes, micro_batch=batch, batch=batch)
    for name, array in captured.arrays().items():
        step.load(name, array)
    return step


def run_compiled(step: CompiledStep, images: Tensor, labels: Tensor) -> None:
    """Run a compiled step."""
    step.step(images.numpy(), labels.numpy(), LEARNING_RATE)


def facts(step: CompiledStep) -> dict[str, int]:
    """Return what rows say of a compiled step."""
    return {
        "group": step.program.examples,
        "arena_bytes": step.arena_bytes,
        "workspace_bytes": step.runtime.workspace_bytes,
    }
