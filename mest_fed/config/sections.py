"""The run configuration: one frozen section for each part, every key with its default."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from mest_fed.catalogue import (
    MODES,
    SELECTORS,
    SERVER_OPTIMIZERS,
    WEIGHTINGS,
    Growth,
    KeptModel,
    MutationPlace,
)
from mest_fed.config.base import (
    ADDRESS,
    PATH,
    FilePath,
    Form,
    PerDevice,
    Positive,
    Section,
    format_mix,
    is_profile_file,
    one_of,
    parse_mix,
)
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.config.gradients import check_gradient
from mest_fed.config.learning import (
    DataSection,
    ForgettingSection,
    MemorySection,
    ModelSection,
    TaskSection,
    TrainingSection,
    WireSection,
)
from mest_fed.config.sparsity import SparsitySection, cuts_width, mutates_on_clients_alone
from mest_fed.config.stopping import FORMS as STOP_FORMS
from mest_fed.config.stopping import StopRule
from mest_fed.devices import profile_names
from mest_fed.errors import InputError
from mest_fed.units import parse_bytes

#: The names of checkpoints, which sort by round, have six digits.
MOST_ROUNDS = 999_999
#: The kinds of all devices are drawn as one array, a byte each.
MOST_DEVICES = 100_000_000


class RunSection(Section):
    """The run as a whole."""

    seed: int = 1
    """From which all draws derive: the same seed gives the same bits."""
    rounds: Annotated[Positive, Field(le=MOST_ROUNDS)] = 10
    """Rounds of the run; ``server.stop_when`` can end it earlier."""
    checkpoint_every: Positive = 10
    """Rounds between checkpoints; one is also written at the end and on Ctrl-C. A run of real
    devices writes one after each round, and keeps the last two beside one in so many rounds."""


class ServerSection(Section):
    """Rounds, evaluation and the server's optimizer."""

    clients_per_round: Positive = 10
    """Devices that are asked to train in a round: the cohort."""
    selection: Annotated[str, one_of(SELECTORS)] = "uniform"
    """Who trains: anyone, those who are there, or those of most use (``server/selection/``)."""
    min_nodes: Positive = 1
    """Nodes to wait for before a round: in deployment they join one by one, and may leave."""
    central_evaluation: bool = True
    """Evaluate on the central test set; needs the data on the server."""
    evaluate_every: Positive = 1
    """Rounds between central evaluations; the last round is always evaluated."""
    evaluate_clients_every: Annotated[int, Field(ge=0)] = 10
    """Rounds between evaluations on the clients' held-out shares; 0 never."""
    evaluate_clients: Positive = 50
    """Largest number of clients to ask in such an evaluation."""
    stop_when: Annotated[str, Form(f"{STOP_FORMS}, or nothing")] = ""
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
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest L2 distance of an update from what its client was sent; one that is further away is
    moved back to it. 0 clips nothing. With real devices the log says each round's distances."""
    clip_median: Annotated[float, Field(ge=0)] = 0.0
    """The same with a bound of so many times the median of the round's distances, such as 1. The
    server keeps the updates of a round for it. 0 clips nothing. With ``sync``."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of a weight's holders whose values are left out at either end, largest and smallest.
    The others then count the same, whatever their examples. The server keeps the updates of a round
    for it. 0: the mean of all, weighted by examples."""
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
    def keeps_updates(self) -> bool:
        """Whether aggregation needs all updates of a round at once, and no sums of them."""
        return self.trim > 0 or self.clip_median > 0

    @property
    def evaluates(self) -> bool:
        """Whether the global model is evaluated at all."""
        return self.central_evaluation or self.evaluate_clients_every > 0


class FleetSection(Section):
    """The devices."""

    devices: Annotated[Positive, Field(le=MOST_DEVICES)] = 20
    """Devices of the fleet. The data set is shared out into as many partitions."""
    mix: Annotated[PerDevice, Form("NAME:NUMBER, ...")] = (
        "rpi-zero-2w:4, rpi-3b-plus:3, rpi-4:3, rpi-5:2, jetson-nano:2, phone-low:2, phone-mid:2, phone-high:2"  # noqa: E501
    )
    """Profile names, or paths relative to the configuration file, and their weights; also as a
    TOML table."""
    budgets: Annotated[PerDevice, Form("NAME:BYTES, ..., or nothing")] = ""
    """Memory budgets that replace the profiles' own, such as ``rpi-zero-2w:24MB``. A setting of
    ``fleet.mix`` alone leaves out those of a preset or file whose profiles it replaces."""
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
            if not is_profile_file(name) and name not in profile_names():
                raise ValueError(
                    f"{name} is no device profile; allowed: {', '.join(profile_names())}, or the "
                    "path of a .toml file"
                )
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
    """For ``flwr run``: what it leaves on the server, and its edge link; commands have options."""

    folder: Annotated[str, PATH] = ""
    """The run's folder on the server; empty: ``runs/flwr-RUN_ID``, where the server was started."""
    resume: bool = False
    """Go on with the run in the folder, from its newest checkpoint."""
    link: Annotated[str, ADDRESS] = ""
    """Address of an edge link, where lean nodes take part beside Flower's; empty: there is none."""
    link_certificates: FilePath = ""
    """Folder of ``mest-fed certs`` on the server, with the certificates of the edge link."""
    link_enrol: Annotated[str, ADDRESS] = ""
    """Where lean nodes that have a token get certificates; empty: nowhere."""
    link_insecure: bool = False
    """The edge link is without certificates, on loopback alone."""


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
    def _clients_grow(self) -> "RunConfig":
        growth, place = self.sparsity.growth, self.sparsity.mutation
        if growth == Growth.PRIVATE and place == MutationPlace.SERVER:
            raise ValueError(
                f"sparsity.growth = {growth!r} is of masks that mutate on clients; allowed: "
                f"{Growth.SEEDED.value!r}, or sparsity.mutation = {MutationPlace.CLIENT.value!r}"
            )
        return self

    @model_validator(mode="after")
    def _widths_are_averaged_at_once(self) -> "RunConfig":
        server = self.server
        if not cuts_width(self.sparsity.method):
            return self
        for key in ("mode", "over_selection", "trim"):
            value, allowed = getattr(server, key), type(server).model_fields[key].default
            if value != allowed:
                raise ValueError(
                    f"server.{key} = {value!r} is for models of one width; allowed: {allowed!r} "
                    f"(sparsity.method = {self.sparsity.method!r})"
                )
        return self

    @model_validator(mode="after")
    def _the_gradient_has_what_it_needs(self) -> "RunConfig":
        check_gradient(self)
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

    @model_validator(mode="after")
    def _what_a_link_has_is_of_a_link(self) -> "RunConfig":
        for name in ("link_certificates", "link_enrol", "link_insecure"):
            if (value := getattr(self.deployment, name)) and not self.deployment.link:
                raise ValueError(
                    f"deployment.{name} = {value!r} is not allowed without deployment.link; "
                    "allowed: the address of an edge link beside it"
                )
        return self
