"""The sections that say what is learned, and how: data, model, training, memory, wire."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from mest_fed.catalogue import (
    AUGMENTATIONS,
    DATASETS,
    DIFFERENCE_CODECS,
    FORMATS,
    KNOBS,
    LEARNING_RATES,
    MODELS,
    NORMS,
    OPTIMIZERS,
    PARTITIONERS,
    TASKS,
    VALUE_CODECS,
    ComputeDevice,
    Engine,
    GradientKind,
    KernelMode,
    Recompute,
)
from mest_fed.config.base import (
    FOLDER,
    PATH,
    PATTERNS,
    FilePath,
    Form,
    Options,
    Positive,
    Section,
    Share,
    absolute,
    as_text,
    beside_file,
    one_of,
    parse_names,
)
from mest_fed.references import REFERENCES, is_reference
from mest_fed.system.limits import MARGIN

if TYPE_CHECKING:
    from mest_fed.memory import MemoryOptions


_KERNELS = f"{', '.join(KernelMode)}, or the path of a run's kernels.json"
_KNOBS = f"each of {', '.join(KNOBS)} once, in any order, or nothing"


def _kernels(value: str, info: ValidationInfo) -> str:
    if value not in list(KernelMode) and not value.endswith(".json"):
        raise ValueError(f"allowed: {_KERNELS}")
    return value if value in list(KernelMode) else beside_file(value, info)


def sends_differences(codec: str) -> bool:
    """Whether a value codec sends differences from what the receiver holds.

    Raises
    ------
    InputError
        If there is no such codec.
    """
    found = VALUE_CODECS.find(codec)
    made = found if isinstance(found, type) or not VALUE_CODECS.is_builtin(codec) else found()
    return getattr(made, "differences", False)


def _whole_values(value: str) -> str:
    if sends_differences(value):
        raise ValueError(
            f"{value} sends differences from what the receiver holds, and a device may hold "
            "nothing; allowed: codecs that send the values as they are"
        )
    return value


class TaskSection(Section):
    """What is learned: the loss, the metrics, what counts as correct."""

    name: Annotated[str, one_of(TASKS)] = "classification"
    """What is learned; see ``docs/tasks.md``."""
    options: Options = ""
    """Arguments of the task, such as ``{loss = "mae"}``."""


class DataSection(Section):
    """The data and how it is spread over the devices."""

    name: Annotated[str, one_of(DATASETS)] = "digits"
    """A data set by name, a kind of files, or a loader of one's own; see ``docs/data.md``."""
    path: Annotated[str, PATH] = ""
    """File, or folder with the data set's files, relative to the configuration file; empty
    downloads it (digits needs neither). A loader of one's own gets the text as it is."""
    columns: Options = ""
    """Which columns of a table are ``inputs``, ``targets``, ``groups`` and ``categories``."""
    options: Options = ""
    """What a kind of files, or a user's loader, takes beside the path."""
    normalise: bool = True
    """Whether bytes, and floats of a file, are normalised by the training part."""
    encoding: Options = ""
    """How examples become numbers (shape, classes, statistics): the path of a run's
    ``encoding.json``, or its content. Empty: found in the training part. For servers and devices
    that do not have it."""
    partition: Annotated[str, one_of(PARTITIONERS)] = "dirichlet"
    """How examples are shared out. ``sampled`` draws each device's examples by itself, so that
    devices may share some: this is how there can be more devices than examples. ``column:NAME``
    gives each device the rows of one value, such as a person; ``groups`` does so where a data set
    or loader has groups."""
    alpha: Annotated[float, Field(gt=0)] = 0.3
    """Dirichlet concentration: smaller is less alike."""
    examples_per_device: Positive = 40
    """For ``sampled``: examples of each device, ``hold_out`` included."""
    classes_per_partition: Positive = 2
    """For ``pathological``: classes of each device."""
    shards_per_partition: Positive = 2
    """For ``shard``: equal pieces of the examples, sorted by class, that each device gets."""
    partition_file: FilePath = ""
    """Partitions saved before, so that a device needs no partitioner."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each client's examples that it keeps for evaluation."""
    augmentation: Annotated[str, one_of(AUGMENTATIONS)] = "none"
    """What is done to each batch of training inputs; ``crop-flip`` is for images."""

    @field_validator("path")
    @classmethod
    def _beside_file(cls, value: str, info: ValidationInfo) -> str:
        known = DATASETS.is_builtin(info.data.get("name", ""))
        return beside_file(value, info) if known else value

    @field_validator("encoding", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or not value.endswith(".json"):
            return value
        folder = (info.context or {}).get(FOLDER) or Path()
        path = folder / Path(value).expanduser()
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"allowed: a file that can be read ({error})") from None


class ModelSection(Section):
    """The model."""

    name: Annotated[str, one_of(MODELS)] = "resnet8"
    """The model, or the function that builds one of one's own; see ``docs/models.md``."""
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Factor on the channel counts, for a builder that has a parameter of this name."""
    norm: Annotated[str, one_of(NORMS)] = "group"
    """Normalisation layer, for a builder that has a parameter of this name."""
    options: Options = ""
    """Further arguments of the builder; see ``docs/models.md``."""
    weights: Annotated[str, AfterValidator(absolute), PATH] = ""
    """Weights to start from instead of random ones: a ``state_dict`` of the dense model, or the
    folder of a finished run. Sparse layers keep their largest weights. Only the server reads it."""


class TrainingSection(Section):
    """Local training."""

    local_epochs: Positive = 1
    """Passes over its examples that a client makes in a round."""
    batch_size: Positive = 32
    """Examples of a step; a plan may divide them into micro-batches."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """The client's learning rate at the start of the run."""
    schedule: Annotated[str, one_of(LEARNING_RATES)] = "cosine"
    """The factor on the learning rate as the run proceeds."""
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "sgd"
    """The client's optimizer. It is made anew in each round: no momentum, moment or count of steps
    is carried from one round to the next. A usual rate for ``adam`` and ``adamw`` is 0.001. One of
    your own, or of torch (``torch.optim:RMSprop``), gets the keys below that it names, as well."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of ``sgd``."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of gradients, for ``adam`` and ``adamw``; 0 keeps none."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of squared gradients, for ``adam`` and ``adamw``."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term in the denominator of ``adam`` and ``adamw``."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty; ``adamw`` shrinks the weights by it instead."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of a step's gradient over all parameters; 0 does not clip."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """mu of FedProx: each client adds mu/2 times its squared distance from the received model to
    its loss. 0 adds nothing."""
    gradient: Annotated[str, one_of(GradientKind)] = "backward"
    """What a step goes down: ``backward`` computes the gradient; ``zeroth-order`` takes the loss on
    both sides along random directions, by forward passes alone, and keeps no activation, gradient
    or momentum. It needs ``optimizer = "sgd"`` and a far smaller learning rate."""
    perturbations: Positive = 1
    """For ``zeroth-order``: directions of a step, two forward passes each."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    """For ``zeroth-order``: how far along a direction the loss is taken."""
    device: Annotated[str, one_of(ComputeDevice)] = "auto"
    """What clients train on; ``auto`` takes CUDA where there is any."""
    engine: Annotated[str, one_of(Engine)] = "compiled"
    """What computes training and evaluation: ``compiled`` runs them as programs, which takes a CPU;
    what has no program runs by ``torch``, and the log says in one line why. The engines differ in
    rounding, and in what dropout draws."""
    kernels: Annotated[str, AfterValidator(_kernels), Form(_KERNELS)] = "rule"
    """How sparse layers compute on a CPU where torch trains.

    ``rule`` chooses implementations by shape and density alone: the same seed gives the same bits,
    run after run, on one kind of machine. ``tuned`` times them once, before the first round, and
    takes the fastest: one run gives the same bits on any number of workers and when resumed, but
    two separate runs of one seed may differ in the last bits, because timing may choose
    differently. The path of a run's ``kernels.json`` takes that run's choices, and so repeats its
    bits. ``dense`` always builds the dense weight of a sparse layer, for comparisons.
    """


class MemorySection(Section):
    """What saves memory under any budget, and what a plan gives up first."""

    recompute: Annotated[str, one_of(Recompute)] = "none"
    """What backward computes again: nothing, outputs of normalisations, or whole segments."""
    saved: Annotated[str, one_of(FORMATS)] = "fp32"
    """How activations stand in memory between forward and backward. Compiled steps store planes as
    ``fp32`` or as ``bf16``, which is slower than ``fp32`` on a processor without instructions for
    bfloat16, and faster on one that has them; with any other format, and where the program of a
    model has no planes that can be ``bf16`` (only residual networks have), torch trains and packs.
    """
    release_gradients: bool = False
    """Whether gradients go into the momentum during backward: for ``sgd`` without clipping."""
    frozen: Annotated[int, Field(ge=0)] = 0
    """Segments at the start of the model that do not train."""
    segments: Annotated[str, Form(PATTERNS)] = ""
    """Patterns of the modules that are segments, also as a TOML list; empty: they are found."""
    prefer: Annotated[str, Form(_KNOBS)] = ""
    """Knobs of the planner, the least costly first; empty takes the order that suits the model."""
    margin: Annotated[float, Field(ge=0, lt=1)] = MARGIN
    """Share of a device's memory limit that stays free; nearer to it the micro-batch is halved."""

    @field_validator("segments", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        return as_text(value)

    @field_validator("prefer")
    @classmethod
    def _each_knob_once(cls, value: str, info: ValidationInfo) -> str:
        names = parse_names(value)
        folder = (info.context or {}).get(FOLDER)
        knobs = [
            KNOBS.check(name, folder) if name in KNOBS or is_reference(name) else name
            for name in names
        ]
        wrong = {
            "unknown": [name for name in knobs if name not in KNOBS and not is_reference(name)],
            "missing": [name for name in KNOBS if knobs and KNOBS.check(name) not in knobs],
            "repeated": sorted({name for name in knobs if knobs.count(name) > 1}),
        }
        for what, named in wrong.items():
            if named:
                allowed = (
                    f"each of {', '.join(KNOBS)} once, in any order, with knobs of your own "
                    f"({', '.join(REFERENCES)}) beside them, or nothing"
                )
                raise ValueError(f"{what}: {', '.join(named)}; allowed: {allowed}")
        return ", ".join(knobs)

    @property
    def options(self) -> "MemoryOptions":
        """What training saves memory by in any case."""
        from mest_fed.memory import MemoryOptions  # torch: reading a configuration needs none

        return MemoryOptions(
            self.recompute, self.saved, self.release_gradients, self.frozen, self.segments
        )

    @property
    def preference(self) -> tuple[str, ...] | None:
        """The order of preference, or None for the model's own."""
        return parse_names(self.prefer) or None


class ForgettingSection(Section):
    """Data pruning by forgetting events."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest share of a client's examples to leave out; 0 leaves out none."""
    start: Share = 0.4375
    """Progress from which examples are left out; MEST: 70 of 160 epochs."""
    readmit: bool = False
    """Whether an example that was left out comes back if it is forgotten later."""


class WireSection(Section):
    """How values travel. A value beyond the range of ``fp16`` or ``bf16`` becomes its largest."""

    upload: Annotated[str, one_of(VALUE_CODECS)] = "fp32"
    """Codec of the values that clients send."""
    download: Annotated[
        str, one_of(VALUE_CODECS, without=DIFFERENCE_CODECS), AfterValidator(_whole_values)
    ] = "fp32"
    """Codec of the values that the server sends; none that sends differences."""
    slopes: bool = False
    """For ``training.gradient = "zeroth-order"``: send what the steps found along their directions,
    4 bytes each, and no weights: the server repeats the steps, with the same bits."""
