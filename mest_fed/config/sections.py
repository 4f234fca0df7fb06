"""The run configuration: one frozen section for each part, every key with its default."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from mest_fed.catalogue import (
    AUGMENTATIONS,
    DATASETS,
    DISTRIBUTIONS,
    FORMATS,
    KNOBS,
    LEARNING_RATES,
    METHODS,
    MODELS,
    MODES,
    NORMS,
    OPTIMIZERS,
    PARTITIONERS,
    SCHEMES,
    SELECTORS,
    SERVER_OPTIMIZERS,
    TASKS,
    VALUE_CODECS,
    WEIGHTINGS,
    ComputeDevice,
    KeptModel,
    KernelMode,
    MutationPlace,
    Recompute,
)
from mest_fed.config.base import (
    FOLDER,
    Options,
    Positive,
    Section,
    Share,
    absolute,
    beside_file,
    format_mix,
    one_of,
    parse_mix,
    parse_names,
)
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.config.stopping import FORMS as STOP_FORMS
from mest_fed.config.stopping import StopRule
from mest_fed.errors import InputError
from mest_fed.registry import REFERENCES, is_reference
from mest_fed.system.limits import MARGIN
from mest_fed.units import parse_bytes

if TYPE_CHECKING:
    from mest_fed.memory import MemoryOptions


def mutates_on_clients_alone(method: str) -> bool:
    """Whether a method's masks cannot mutate on the server, which has no dense gradients.

    Raises
    ------
    InputError
        If there is no such method.
    """
    return getattr(METHODS.find(method), "needs_dense_gradient", False)


def _kernels(value: str, info: ValidationInfo) -> str:
    if value not in list(KernelMode) and not value.endswith(".json"):
        raise ValueError(f"allowed: {', '.join(KernelMode)}, or the path of a run's kernels.json")
    return value if value in list(KernelMode) else beside_file(value, info)


def _whole_values(value: str) -> str:
    if getattr(VALUE_CODECS.find(value), "differences", False):
        raise ValueError(
            f"{value} sends differences from what the receiver holds, and a device may hold "
            "nothing; allowed: codecs that send the values as they are"
        )
    return value


def _as_text(value: Any) -> Any:
    """Write a list of names as ``a, b``; leave everything else to the check of the type."""
    names = isinstance(value, list | tuple) and all(isinstance(it, str) for it in value)
    return ", ".join(value) if names else value


class RunSection(Section):
    """The run as a whole."""

    seed: int = 1
    rounds: Positive = 10
    checkpoint_every: Positive = 10
    """Rounds between checkpoints; one is also written at the end and on Ctrl-C."""


class TaskSection(Section):
    """What is learned: the loss, the metrics, what counts as correct."""

    name: Annotated[str, one_of(TASKS)] = "classification"
    """What is learned; see ``docs/tasks.md``."""
    options: Options = ""
    """Arguments of the task, such as ``{loss = "mae"}``."""


class DataSection(Section):
    """The data and how it is spread over the devices."""

    name: Annotated[str, one_of(DATASETS)] = "digits"
    path: str = ""
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
    shards_per_partition: Positive = 2
    partition_file: str = ""
    """Partitions saved before, so that a device needs no partitioner."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each client's examples that it keeps for evaluation."""
    augmentation: Annotated[str, one_of(AUGMENTATIONS)] = "none"

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
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Factor on the channel counts, for a builder that has a parameter of this name."""
    norm: Annotated[str, one_of(NORMS)] = "group"
    """Normalisation layer, for a builder that has a parameter of this name."""
    options: Options = ""
    """Further arguments of the builder; see ``docs/models.md``."""
    weights: Annotated[str, AfterValidator(absolute)] = ""
    """Weights to start from instead of random ones: a ``state_dict`` of the dense model, or the
    folder of a finished run. Sparse layers keep their largest weights. Only the server reads it."""


class SparsitySection(Section):
    """Sparse training: method, scheme, density and mutation."""

    method: Annotated[str, one_of(METHODS)] = "mest-ems"
    mutation: Annotated[str, one_of(MutationPlace)] = "server"
    scheme: Annotated[str, one_of(SCHEMES)] = "block"
    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    distribution: Annotated[str, one_of(DISTRIBUTIONS)] = "uniform"
    include: str = ""
    """Patterns of the layers that may be sparse, such as ``encoder.*``; empty for all. Also as a
    TOML list."""
    exclude: str = ""
    """Patterns of modules that stay dense, with everything in them; also as a TOML list."""
    layers: str = ""
    """Densities of single layers, such as ``stage1.*:0.3, hidden:0.05``, also as a TOML table
    ``[sparsity.layers]``. The first pattern that names a layer decides; ``density`` is that of the
    other layers. It holds in every tier."""
    period: Annotated[float, Field(gt=0, le=1)] = 0.03125
    """Progress between mutations; MEST: 5 of 160 epochs."""
    gradient_weight: Annotated[float, Field(ge=0)] = 0.5
    """Lambda of the importance |w| + lambda |g|."""

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        return _as_text(value)

    @field_validator("layers", mode="before")
    @classmethod
    def _table_as_text(cls, value: Any) -> Any:
        return format_mix(value) if isinstance(value, dict) else value

    @field_validator("layers")
    @classmethod
    def _densities(cls, value: str) -> str:
        for pattern, density in parse_mix(value).items():
            try:
                ok = 0 < float(density) <= 1
            except ValueError:
                ok = False
            if not ok:
                raise ValueError(
                    f"the density of {pattern} is {density!r}; allowed: a number in (0, 1]"
                )
        return value

    @property
    def included(self) -> tuple[str, ...]:
        """The patterns of ``include``."""
        return parse_names(self.include)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of ``exclude``."""
        return parse_names(self.exclude)

    @property
    def densities(self) -> str:
        """The distribution with the densities of single layers, as the sparsifier reads it."""
        return f"{self.distribution}, {self.layers}" if self.layers else self.distribution


class TrainingSection(Section):
    """Local training."""

    local_epochs: Positive = 1
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    schedule: Annotated[str, one_of(LEARNING_RATES)] = "cosine"
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
    device: Annotated[str, one_of(ComputeDevice)] = "auto"
    kernels: Annotated[str, AfterValidator(_kernels)] = "rule"
    """How sparse layers compute on a CPU.

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
    """How activations stand in memory between forward and backward."""
    release_gradients: bool = False
    """Whether gradients go into the momentum during backward: for ``sgd`` without clipping."""
    frozen: Annotated[int, Field(ge=0)] = 0
    """Segments at the start of the model that do not train."""
    segments: str = ""
    """Patterns of the modules that are segments, also as a TOML list; empty: they are found."""
    prefer: str = ""
    """Knobs of the planner, least harm first; empty takes the order that suits the model."""
    margin: Annotated[float, Field(ge=0, lt=1)] = MARGIN
    """Share of a device's memory limit that stays free; nearer to it the micro-batch is halved."""

    @field_validator("segments", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        return _as_text(value)

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
    readmit: bool = False


class WireSection(Section):
    """How values travel. A value beyond the range of ``fp16`` or ``bf16`` becomes its largest."""

    upload: Annotated[str, one_of(VALUE_CODECS)] = "fp32"
    download: Annotated[str, one_of(VALUE_CODECS), AfterValidator(_whole_values)] = "fp32"


class ServerSection(Section):
    """Rounds, evaluation and the server's optimizer."""

    clients_per_round: Positive = 10
    selection: Annotated[str, one_of(SELECTORS)] = "uniform"
    """Who trains: anyone, those who are there, or those of most use (``server/selection/``)."""
    min_nodes: Positive = 1
    """Nodes to wait for before the first round (in deployment they join one by one)."""
    central_evaluation: bool = True
    """Evaluate on the central test set; needs the data on the server."""
    evaluate_every: Positive = 1
    """Rounds between central evaluations; the last round is always evaluated."""
    evaluate_clients_every: Annotated[int, Field(ge=0)] = 10
    """Rounds between evaluations on the clients' held-out shares; 0 never."""
    evaluate_clients: Positive = 50
    """Largest number of clients to ask in such an evaluation."""
    stop_when: str = ""
    """Ends the run early: ``METRIC >= NUMBER``, ``METRIC <= NUMBER`` or ``no improvement of METRIC
    in N rounds``, of the global model's evaluations; empty: after ``run.rounds``."""
    keep: Annotated[str, one_of(KeptModel)] = "last"
    """The model that a run leaves: that of the last round, or the best one by the task's primary
    metric among those that were evaluated."""
    optimizer: Annotated[str, one_of(SERVER_OPTIMIZERS)] = "fedavg"
    """What is done with the clients' average (``server/optimizers.py`` has the formulas)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """1 suits ``fedavg``. The adaptive ones move a weight by about this much in a round: 0.1 or
    less suits them."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of ``fedavgm``; beta1 of ``fedadam`` and ``fedyogi``. ``fedadagrad`` has none."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the second moment of ``fedadam`` and ``fedyogi``."""
    tau: Annotated[float, Field(gt=0)] = 1e-3
    """Term in the denominator of ``fedadam``, ``fedyogi`` and ``fedadagrad``."""
    mode: Annotated[str, one_of(MODES)] = "sync"
    """When a round ends: with the cohort; with a full buffer; with a period of time."""
    over_selection: Annotated[float, Field(ge=1)] = 1.0
    """With ``sync``: asks so many times the cohort, and takes the first to arrive."""
    concurrency: Positive = 10
    """With ``buffered`` and ``semi-sync``: devices that train at a time."""
    buffer: Positive = 5
    """With ``buffered``: updates that make a round."""
    period: Annotated[float, Field(gt=0)] = 60.0
    """With ``semi-sync``: seconds that make a round; virtual in a simulation."""
    staleness_exponent: Annotated[float, Field(ge=0)] = 0.5
    """a of the weight (1 + staleness)^-a; FedBuff: 1/2."""
    max_staleness: Annotated[int, Field(ge=0)] = 20
    """Updates older than so many rounds are rejected."""
    weighting: Annotated[str, one_of(WEIGHTINGS)] = "examples"
    """With ``buffered`` and ``semi-sync``: what an update counts; in FedBuff all are equal."""

    @field_validator("stop_when")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        try:
            StopRule.parse(value)
        except InputError:
            raise ValueError(f"allowed: {STOP_FORMS}, or nothing") from None
        return " ".join(value.split())

    @property
    def evaluates(self) -> bool:
        """Whether the global model is evaluated at all."""
        return self.central_evaluation or self.evaluate_clients_every > 0


class FleetSection(Section):
    """The devices."""

    devices: Positive = 20
    mix: str = "rpi-zero-2w:4, rpi-3b-plus:3, rpi-4:3, rpi-5:2, jetson-nano:2, phone-low:2, phone-mid:2, phone-high:2"  # noqa: E501
    """Profile names (or paths) and their weights, also as a TOML table."""
    budgets: str = ""
    """Memory budgets that replace the profiles' own, such as ``rpi-zero-2w:24MB``."""
    deadline: Annotated[float, Field(ge=0)] = 0.0
    """Seconds after which a reply is too late (virtual in a simulation); 0 waits for all that are
    there: of a real device that vanished the server learns after at most 60."""

    @field_validator("mix", "budgets", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return format_mix(value) if isinstance(value, dict) else value

    @field_validator("mix")
    @classmethod
    def _weights(cls, value: str) -> str:
        for name, weight in parse_mix(value).items():
            try:
                ok = float(weight) > 0
            except ValueError:
                ok = False
            if not ok:
                raise ValueError(f"the weight of {name} is {weight!r}; allowed: a positive number")
        if not parse_mix(value):
            raise ValueError("allowed: at least one profile, such as rpi-4:1")
        return value

    @field_validator("budgets")
    @classmethod
    def _bytes(cls, value: str) -> str:
        for name, budget in parse_mix(value).items():
            try:
                parse_bytes(budget)
            except InputError as error:
                raise ValueError(f"the budget of {name}: {error}") from None
        return value

    @property
    def weights(self) -> dict[str, float]:
        """The mix as profile -> weight."""
        return {name: float(weight) for name, weight in parse_mix(self.mix).items()}

    @property
    def budget_bytes(self) -> dict[str, int]:
        """The budgets as profile -> bytes."""
        return {name: parse_bytes(budget) for name, budget in parse_mix(self.budgets).items()}


class DeploymentSection(Section):
    """What ``flwr run`` leaves on the server; for ``mest-fed simulate`` options say so."""

    folder: str = ""
    """The run's folder on the server; empty: ``runs/flwr-RUN_ID``, where the server was started."""
    resume: bool = False
    """Go on with the run in the folder, from its newest checkpoint."""


class RunConfig(Section):
    """A whole run."""

    run: RunSection = RunSection()
    task: TaskSection = TaskSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    sparsity: SparsitySection = SparsitySection()
    training: TrainingSection = TrainingSection()
    memory: MemorySection = MemorySection()
    forgetting: ForgettingSection = ForgettingSection()
    wire: WireSection = WireSection()
    server: ServerSection = ServerSection()
    fleet: FleetSection = FleetSection()
    behaviour: BehaviourSection = BehaviourSection()
    deployment: DeploymentSection = DeploymentSection()

    @model_validator(mode="after")
    def _dense_gradients_exist_on_clients(self) -> "RunConfig":
        method, place = self.sparsity.method, self.sparsity.mutation
        if place == MutationPlace.SERVER and mutates_on_clients_alone(method):
            raise ValueError(
                f"sparsity.method = {method!r} grows by dense gradients, which exist on clients "
                f"alone; allowed: sparsity.mutation = {MutationPlace.CLIENT.value!r}"
            )
        return self

    @model_validator(mode="after")
    def _gradients_that_can_be_released(self) -> "RunConfig":
        if not self.memory.release_gradients:
            return self
        from mest_fed.nn.optimizer_settings import OptimizerSettings
        from mest_fed.nn.optimizers import WHERE_RELEASED

        training = self.training
        settings = OptimizerSettings(name=training.optimizer, clip_norm=training.clip_norm)
        if not settings.can_release:
            raise ValueError(
                f"memory.release_gradients = True is not allowed with training.optimizer = "
                f"{training.optimizer!r} and training.clip_norm = {training.clip_norm:g}; "
                f"allowed: {WHERE_RELEASED}"
            )
        return self

    @model_validator(mode="after")
    def _nodes_to_wait_for_exist(self) -> "RunConfig":
        if self.server.min_nodes > self.fleet.devices:
            raise ValueError(
                f"server.min_nodes = {self.server.min_nodes} is never reached; "
                f"allowed: 1 to {self.fleet.devices} (fleet.devices = {self.fleet.devices})"
            )
        return self

    @model_validator(mode="after")
    def _what_is_compared_is_evaluated(self) -> "RunConfig":
        server = self.server
        for key, value, default in (
            ("stop_when", server.stop_when, ""),
            ("keep", server.keep, KeptModel.LAST),
        ):
            if value != default and not server.evaluates:
                raise ValueError(
                    f"server.{key} = {value!r} needs evaluations; allowed with "
                    "server.central_evaluation = true or server.evaluate_clients_every > 0"
                )
        return self

    @model_validator(mode="after")
    def _what_is_resumed_is_named(self) -> "RunConfig":
        if self.deployment.resume and not self.deployment.folder:
            raise ValueError(
                "deployment.resume = True is not allowed without deployment.folder; "
                "allowed: the folder of the run to go on with"
            )
        return self
