"""What is to be planned: a model, a method and a batch; and the planner for it."""

from dataclasses import dataclass
from functools import cached_property

from mest_fed.errors import InputError, not_allowed
from mest_fed.memory import (
    PREFERENCE,
    ModelTrace,
    Planner,
    Setting,
    TrainingShape,
    Wish,
    trace_model,
)
from mest_fed.memory.activations import segments_of
from mest_fed.nn import build_shell
from mest_fed.sparsity import build_method

#: Factors on the channel counts that a model usually has, where it is not 1: MEST's ResNet-32.
_USUAL_WIDTH = {"resnet32": 2.0}
#: Batch statistics need several images.
_LEAST_MICRO_BATCH = {"batch": 8, "group": 1}

DENSE = "dense"


@dataclass(frozen=True)
class Question:
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
    def wish(self) -> TrainingShape:
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
        wish = self.wish
        wished = Wish(
            wish,
            _LEAST_MICRO_BATCH.get(self.norm, 1),
            len(segments_of(self.trace.skeleton)),
            sparse=self.sparse,
            batch_statistics=self.norm == "batch",
        )
        setting = Setting(build_method(self.method, self.density), threads=self.threads)
        return Planner(self.trace, setting, wished)


def read_preference(text: str | None) -> tuple[str, ...] | None:
    """Read an order of the planner's levers, comma separated; None stays None.

    Raises
    ------
    InputError
        If a name is unknown, missing or given twice: names it.
    """
    if text is None:
        return None
    given = [name.strip() for name in text.split(",") if name.strip()]
    allowed = f"each of {', '.join(PREFERENCE)} once, in any order"
    wrong = {
        "does not know": [name for name in given if name not in PREFERENCE],
        "lacks": [name for name in PREFERENCE if name not in given],
        "repeats": sorted({name for name in given if given.count(name) > 1}),
    }
    for what, names in wrong.items():
        if names:
            raise InputError(f"--prefer {what} {', '.join(names)}; allowed: {allowed}")
    return tuple(given)
