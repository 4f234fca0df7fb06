"""Everything that a configuration or an option may name, each name once.

Names stand for references, which are imported when they are asked for. So this module needs no
library, and any floor can look names up: the configuration checks ``server.selection`` though the
selectors stand above it and need Flower.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mest_fed.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from io import BytesIO

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mest_fed.memory.activations.saved_tensors import Packed
    from mest_fed.nn.client_optimizer import ClientOptimizer
    from mest_fed.server.export import FinalModel
    from mest_fed.server.optimizers import ServerOptimizer
    from mest_fed.server.selection import Selector
    from mest_fed.server.strategy import MestStrategy
    from mest_fed.simulation.behaviour.availability import Availability
    from mest_fed.simulation.study.protocols import Protocol
    from mest_fed.simulation.trackers.progress import Observer
    from mest_fed.sparsity import Layout, Method
    from mest_fed.training.objective import Objective
    from mest_fed.wire.masks import MaskCodec
    from mest_fed.wire.values import ValueCodec

    Densities = Callable[[Mapping[str, Layout], float], dict[str, float]]

#: docs/models.md says what a model may declare.
MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model.name",
    {
        "resnet8": "mest_fed.nn.models.resnet:resnet8",
        "resnet18": "mest_fed.nn.models.resnet:resnet18",
        "resnet20": "mest_fed.nn.models.resnet:resnet20",
        "resnet32": "mest_fed.nn.models.resnet:resnet32",
        "resnet50": "mest_fed.nn.models.resnet:resnet50",
        "cnn2": "mest_fed.nn.models.cnn:CNN2",
        "mobilenetv2": "mest_fed.nn.models.mobilenet:MobileNetV2",
        "dscnn": "mest_fed.nn.models.mobilenet:DSCNN",
        "mlp": "mest_fed.nn.models.series:MLP",
        "har1d": "mest_fed.nn.models.series:SeriesNet",
        "transformer": "mest_fed.nn.models.tokens:Transformer",
        "lstm": "mest_fed.nn.models.tokens:LSTM",
    },
    called="build(input_shape, num_classes, **options)",
    makes="torch.nn:Module",
)

TASKS: Registry[Callable[..., Objective]] = Registry(
    "task.name",
    {
        "classification": "mest_fed.training.tasks:Classification",
        "next-token": "mest_fed.training.tasks:NextToken",
        "regression": "mest_fed.training.tasks:Regression",
        "multi-label": "mest_fed.training.tasks:MultiLabel",
    },
    called="task(**options)",
    makes="mest_fed.training.objective:Objective",
)

#: A norm is called as ``(x, residual=None, relu=False)``.
NORMS: Registry[Callable[[int], nn.Module]] = Registry(
    "model.norm",
    {
        "batch": "mest_fed.nn.norms:BatchNorm2d",
        "group": "mest_fed.nn.norms:group_norm",
    },
    called="norm(channels)",
    makes="torch.nn:Module",
)

#: Loaders return (train, test), each a pair of arrays or a map-style data set; ours are called with
#: a :class:`~mest_fed.data.DataRequest`.
DATASETS: Registry[Callable[..., Any]] = Registry(
    "data.name",
    {
        "digits": "mest_fed.data.digits:DIGITS",
        "cifar10": "mest_fed.data.image_sets:CIFAR10",
        "cifar100": "mest_fed.data.image_sets:CIFAR100",
        "mnist": "mest_fed.data.image_sets:MNIST",
        "femnist": "mest_fed.data.image_sets:FEMNIST",
        "speech-commands": "mest_fed.data.speech:SPEECH_COMMANDS",
        "shakespeare": "mest_fed.data.datasets:SHAKESPEARE",
        "files": "mest_fed.data.datasets:FILES",
        "folder": "mest_fed.data.datasets:FOLDER",
        "parquet": "mest_fed.data.datasets:PARQUET",
        "npz": "mest_fed.data.datasets:NPZ",
        "csv": "mest_fed.data.datasets:CSV",
        "text": "mest_fed.data.datasets:TEXT",
    },
    called="load(path, **options)",
)

#: They return the positions of each partition's examples. The options are ``seed``, ``groups`` and
#: the keys of ``[data]`` that say so.
PARTITIONERS: Registry[Callable[..., Any]] = Registry(
    "data.partition",
    {
        "iid": "mest_fed.data.partitioners:iid",
        "dirichlet": "mest_fed.data.partitioners:dirichlet",
        "pathological": "mest_fed.data.partitioners:pathological",
        "shard": "mest_fed.data.partitioners:shard",
        "linear": "mest_fed.data.partitioners:linear",
        "square": "mest_fed.data.partitioners:square",
        "exponential": "mest_fed.data.partitioners:exponential",
        "sampled": "mest_fed.data.partition_files:SampledPartitions",
        "groups": "mest_fed.data.partitioners:by_group",
    },
    called="share(labels, count, *, seed, groups, alpha, ...)",
    with_argument={"column:NAME": "mest_fed.data.partitioners:by_column"},
)

#: Attribute ``for_images`` where it is for images alone.
AUGMENTATIONS: Registry[Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]] = Registry(
    "data.augmentation",
    {
        "none": "mest_fed.data.minibatches:unchanged",
        "crop-flip": "mest_fed.data.minibatches:CROP_FLIP",
    },
    called="augment(inputs, generator)",
)

SCHEMES: Registry[Callable[[tuple[int, ...]], Layout]] = Registry(
    "sparsity.scheme",
    {
        "unstructured": "mest_fed.sparsity.schemes:Unstructured",
        "block": "mest_fed.sparsity.schemes:Block",
        "pattern": "mest_fed.sparsity.schemes:pattern_or_block",
        "channel": "mest_fed.sparsity.schemes:Channel",
    },
    called="scheme(shape)",
    makes="mest_fed.sparsity.layout:Layout",
    with_argument={"block:ROWS": "mest_fed.sparsity.schemes:block_of"},
)

#: A class is made by its ``for_density(density, **options)``; ``gradient_weight`` goes to one that
#: has it.
METHODS: Registry[Callable[..., Method]] = Registry(
    "sparsity.method",
    {
        "dense": "mest_fed.sparsity.methods:Dense",
        "heterofl": "mest_fed.sparsity.methods:HeteroFL",
        "static": "mest_fed.sparsity.methods:Static",
        "snip": "mest_fed.sparsity.methods:Snip",
        "set": "mest_fed.sparsity.methods:Set",
        "rigl": "mest_fed.sparsity.methods:RigL",
        "feddst": "mest_fed.sparsity.methods:FedDst",
        "mest-em": "mest_fed.sparsity.methods:MestEM",
        "mest-ems": "mest_fed.sparsity.methods:MestEMS",
    },
    called="method(*, gradient_weight)",
    makes="mest_fed.sparsity.mutation:Method",
    with_argument={"feddst:ALPHA": "mest_fed.sparsity.methods:feddst_of"},
)

DISTRIBUTIONS: Registry[Densities] = Registry(
    "sparsity.distribution",
    {
        "uniform": "mest_fed.sparsity.distribution:uniform",
        "erk": "mest_fed.sparsity.distribution:erk",
    },
    called="densities(layouts, density)",
)

#: Factors on the learning rate, for a progress in [0, 1].
LEARNING_RATES: Registry[Callable[[float], float]] = Registry(
    "training.schedule",
    {
        "constant": "mest_fed.training.trainer:constant",
        "cosine": "mest_fed.training.trainer:cosine",
        "step": "mest_fed.training.trainer:step",
    },
    called="factor(progress)",
)

#: Of mest_fed or of torch.
OPTIMIZERS: Registry[Callable[..., ClientOptimizer | torch.optim.Optimizer]] = Registry(
    "training.optimizer",
    {
        "sgd": "mest_fed.nn.optimizers:SGD",
        "adam": "mest_fed.nn.optimizers:Adam",
        "adamw": "mest_fed.nn.optimizers:AdamW",
    },
    called="optimizer(parameters, learning_rate, *, momentum, betas, eps, weight_decay)",
)

#: The exact formats first.
FORMATS: Registry[Callable[[Tensor], Packed]] = Registry(
    "memory.saved",
    {
        "fp32": "mest_fed.memory.activations.saved_tensors:AsIs",
        "mask": "mest_fed.memory.activations.saved_tensors:Nonzero",
        "fp16": "mest_fed.memory.activations.saved_tensors:float16",
        "bf16": "mest_fed.memory.activations.saved_tensors:bfloat16",
        "int8": "mest_fed.memory.activations.saved_tensors:int8",
    },
    called="pack(activation)",
)

#: The planner's knobs, the least costly first.
KNOBS: Registry[Callable[..., Any]] = Registry(
    "memory.prefer",
    {
        "release_gradients": "mest_fed.memory.knobs:release_gradients",
        "micro_batch": "mest_fed.memory.knobs:micro_batch",
        "recompute": "mest_fed.memory.knobs:recompute",
        "saved": "mest_fed.memory.knobs:saved",
        "density": "mest_fed.memory.knobs:density",
        "frozen": "mest_fed.memory.knobs:frozen",
        "momentum": "mest_fed.memory.knobs:momentum",
    },
    called="knob(limits)",
)

VALUE_CODECS: Registry[Callable[[], ValueCodec]] = Registry(
    "wire.upload or wire.download",
    {
        "fp32": "mest_fed.wire.values:SinglePrecision",
        "fp16": "mest_fed.wire.values:HalfPrecision",
        "bf16": "mest_fed.wire.values:BrainFloat",
        "int8": "mest_fed.wire.values:Int8",
        "topk": "mest_fed.wire.topk:TopK",
    },
    called="codec()",
    makes="mest_fed.wire.values:ValueCodec",
    with_argument={"topk:SHARE": "mest_fed.wire.topk:topk_of"},
)

#: Of these, the codecs that send differences from what the receiver holds (their attribute
#: ``differences``): said here, too, so that keys are described without importing them.
DIFFERENCE_CODECS = ("int8", "topk", "topk:SHARE")

#: The shortest result travels; no key names one.
MASK_CODECS: Registry[Callable[[], MaskCodec]] = Registry(
    "mask codec",
    {
        "bitmap": "mest_fed.wire.masks:Bitmap",
        "gaps": "mest_fed.wire.masks:Gaps",
        "delta": "mest_fed.wire.masks:Delta",
    },
    called="codec()",
    makes="mest_fed.wire.masks:MaskCodec",
)

SELECTORS: Registry[Callable[[], Selector]] = Registry(
    "server.selection",
    {
        "uniform": "mest_fed.server.selection:Uniform",
        "available": "mest_fed.server.selection:Available",
        "utility": "mest_fed.server.selection:Utility",
    },
    called="selector()",
    makes="mest_fed.server.selection:Selector",
)

SERVER_OPTIMIZERS: Registry[Callable[..., ServerOptimizer]] = Registry(
    "server.optimizer",
    {
        "fedavg": "mest_fed.server.optimizers:ServerOptimizer",
        "fedavgm": "mest_fed.server.optimizers:FedAvgM",
        "fedadam": "mest_fed.server.optimizers:FedAdam",
        "fedyogi": "mest_fed.server.optimizers:FedYogi",
        "fedadagrad": "mest_fed.server.optimizers:FedAdagrad",
    },
    called="optimizer(*, learning_rate, momentum, beta2, tau)",
    makes="mest_fed.server.optimizers:ServerOptimizer",
)

#: A class may have ``check_config(config)``.
MODES: Registry[Callable[..., MestStrategy]] = Registry(
    "server.mode",
    {
        "sync": "mest_fed.server.modes:synchronous",
        "buffered": "mest_fed.server.modes.buffered:Buffered",
        "semi-sync": "mest_fed.server.modes.buffered:SemiSynchronous",
    },
    called="strategy(task, model)",
    makes="mest_fed.server.strategy:MestStrategy",
)

#: Of an update, in rounds that do not wait.
WEIGHTINGS: Registry[Callable[[int], float]] = Registry(
    "server.weighting",
    {
        "examples": "mest_fed.server.modes.buffered:by_examples",
        "equal": "mest_fed.server.modes.buffered:equal",
    },
    called="weight(examples)",
)

AVAILABILITIES: Registry[Callable[..., Availability]] = Registry(
    "behaviour.availability",
    {
        "always": "mest_fed.simulation.behaviour.availability:Always",
        "profile": "mest_fed.simulation.behaviour.availability:ByChance",
        "diurnal": "mest_fed.simulation.behaviour.availability:diurnal",
        "trace": "mest_fed.simulation.behaviour.traces:recorded",
    },
    called="availability(*, behaviour, seed, profile_of, trace)",
    makes="mest_fed.simulation.behaviour.availability:Availability",
)

#: When a device is plugged in, or None for never.
CHARGING: Registry[Callable[..., Any]] = Registry(
    "behaviour.charging",
    {
        "diurnal": "mest_fed.simulation.behaviour.availability:plugged_diurnally",
        "never": "mest_fed.simulation.behaviour.availability:never_plugged",
    },
    called="charging(*, behaviour, seed, profile_of)",
)

#: A built-in name is also that of the extra that it needs.
TRACKERS: Registry[Callable[..., Observer]] = Registry(
    "--log",
    {
        "tensorboard": "mest_fed.simulation.trackers.trackers:TensorBoardTracker",
        "wandb": "mest_fed.simulation.trackers.trackers:WandbTracker",
        "mlflow": "mest_fed.simulation.trackers.trackers:MLflowTracker",
    },
    called="tracker(folder)",
    makes="mest_fed.simulation.trackers.progress:Observer",
)


#: Attribute ``suffix`` of the file.
EXPORTS: Registry[Callable[[FinalModel, BytesIO], None]] = Registry(
    "--format",
    {
        "state-dict": "mest_fed.server.export:state_dict",
        "safetensors": "mest_fed.server.export:safetensors",
        "onnx": "mest_fed.server.export:onnx",
        "torchscript": "mest_fed.server.export:torchscript",
    },
    called="write(model, file)",
)

#: Of an Arrow table. A name is also the suffix of a file.
TABLE_FORMATS: Registry[Callable[[Any, BytesIO], None]] = Registry(
    "--format",
    {
        "csv": "mest_fed.cli.tables:as_csv",
        "parquet": "mest_fed.cli.tables:as_parquet",
    },
    called="write(table, file)",
)


#: What a study measures; called with ``target``, if the study has one.
PROTOCOLS: Registry[Callable[..., Protocol]] = Registry(
    "study.protocol",
    {
        "quality": "mest_fed.simulation.study.protocols:Quality",
        "cost": "mest_fed.simulation.study.protocols:Cost",
        "robustness": "mest_fed.simulation.study.protocols:Robustness",
    },
    called="protocol(**options)",
    makes="mest_fed.simulation.study.protocols:Protocol",
)


#: What reads a lean node's examples, if not one of the forms that it knows.
NODE_READERS: Registry[Callable[[str], tuple[NDArray[Any], NDArray[Any]]]] = Registry(
    "--data", {}, called="reader(path)"
)


class MutationPlace(StrEnum):
    """Where masks mutate."""

    CLIENT = "client"
    SERVER = "server"


class Growth(StrEnum):
    """What clients that mutate draw new weights from."""

    SEEDED = "seeded"
    PRIVATE = "private"


class KeptModel(StrEnum):
    """Which round's model a run leaves."""

    LAST = "last"
    BEST = "best"


class ComputeDevice(StrEnum):
    """What clients train on; ``auto`` takes CUDA where there is any."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Engine(StrEnum):
    """What computes a step: a compiled program where the model allows, or torch."""

    COMPILED = "compiled"
    TORCH = "torch"


class GradientKind(StrEnum):
    """What a step goes down: the loss's gradient, or its slope along random directions."""

    BACKWARD = "backward"
    ZEROTH_ORDER = "zeroth-order"


class KernelMode(StrEnum):
    """How kernels are chosen: by rule, timed once, or dense weights everywhere."""

    RULE = "rule"
    TUNED = "tuned"
    DENSE = "dense"


class Recompute(StrEnum):
    """What backward computes again: nothing, outputs of normalisations, or whole segments."""

    NONE = "none"
    NORMS = "norms"
    SEGMENTS = "segments"
