"""A lean node at work: registers, waits for instructions, carries them out, reports."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum

from mest_fed.data.minibatches import Examples, scale_fault
from mest_fed.errors import (
    BudgetError,
    InputError,
    MestFedError,
    NotFiniteError,
    OverBudgetError,
    RefusedError,
)
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import (
    BEGUN,
    START,
    Instruction,
    InstructionKind,
    NodeDescription,
)
from mest_fed.link.node.conditions import Conditions
from mest_fed.link.node.data import KEY, read_examples
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.room import Room
from mest_fed.link.node.session import InstructionOverError
from mest_fed.link.node.store import (
    NodeFolder,
    Reply,
    StateStore,
    attempts_at,
    run_key,
)
from mest_fed.link.node.transport import NodeLink
from mest_fed.link.node.warm_up import warm_up
from mest_fed.link.node.worker import Metrics, NodeWorker
from mest_fed.link.protocol import as_reason
from mest_fed.schema import FailureKind
from mest_fed.system.peak_meter import PeakMeter
from mest_fed.system.proc import resident_bytes
from mest_fed.system.readings import Readings, readings
from mest_fed.units import format_bytes, format_seconds, number_of

log = logging.getLogger("mest_fed.node")

#: Seconds between two looks at this process's memory: each wakes the device's processor.
_LOOK_SECONDS = 0.01
#: A process that died so often while it worked on one instruction does not try it again.
MOST_ATTEMPTS = 2


@dataclass(frozen=True)
class NodeSetup:
    """How a node takes part.

    Parameters
    ----------
    data : str
        Where its examples are; see :func:`read_examples`.
    budget : int
        Bytes that training may add; 0 for what the limit leaves, or the profile says.
    memory_limit : int
        Bytes that the process may have; 0 for no limit.
    threads : int
        To compute with.
    conditions : Conditions
        When it trains.
    alone : bool
        Whether the process plays this node alone. Then what it measures is this node's, and a round
        is held to the budget.
    """

    data: str
    budget: int = 0
    memory_limit: int = 0
    threads: int = 1
    conditions: Conditions = field(default_factory=Conditions)
    alone: bool = False


class NodeRunner:
    """Takes part in a run until it is stopped.

    Parameters
    ----------
    link : NodeLink
        To the server; it is closed by who made it.
    node : NodeDescription
        Who the node is.
    setup : NodeSetup
        How it takes part.
    folder : NodeFolder
        What survives a loss of power.
    told : callable, optional
        What the system tells of itself, for the conditions.
    look_seconds : float
        How often a node that no plan fits looks whether there is more memory.
    """

    def __init__(
        self,
        link: NodeLink,
        node: NodeDescription,
        setup: NodeSetup,
        folder: NodeFolder,
        *,
        told: Callable[[], Readings] = readings,
        look_seconds: float = 30.0,
    ) -> None:
        self._link, self._node, self._setup = link, node, setup
        self._folder, self._told = folder, told
        self.room = Room(setup.budget, setup.memory_limit, setup.alone)
        self._look_seconds = look_seconds
        self._run_json = ""
        self._fault: str | None = None
        #: Whether the battery was short when the plan was made.
        self._saving = False
        self._examples: Examples | None = None
        self._store: StateStore | None = None
        self._worker: NodeWorker | None = None

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Work until told to stop, between two instructions.

        Raises
        ------
        RefusedError
            If the server does not take this node.
        InputError
            If its examples do not fit the run, or its budget fits no plan.
        """
        self._join()
        while not stopped():
            if (budget := self.room.change()) is not None or self._saving != self._saves():
                self._plan_anew(self.room.asked if budget is None else budget, stopped)
                continue
            instruction = self._link.wait()
            if self._link.registration.run_json != self._run_json:
                self._join()  # the server runs another one now
            if instruction is not None and self._carry_out(instruction) is _Again.SMALLER:
                self._plan_anew(self.room.failed(), stopped)

    def _join(self) -> None:
        """Read the examples as a run needs them, and register with what is left to train with."""
        self.room.base = 0
        try:
            self._register_to_train()
        except BudgetError as error:
            raise self.room.too_tight(error) from None

    def _register_to_train(self) -> None:
        node = replace(self._node, examples=0, budget_bytes=self.room.provisional())
        log.info("asks to take part; for the first device of its kind the server plans a while")
        run = RunDescription.read(self._link.register(node).run_json)
        self._examples = read_examples(self._setup.data, run.inputs)
        self._check_scale(run)
        self._store = None
        warm_up()
        run = self._plan(self.room.begin())
        log.info(
            "takes part as %s, number %d, with %s; %s in use before training (measured: RSS, "
            "examples included), %s",
            as_reason(self._link.registration.name) or self._node.name,
            run.partition,
            number_of(len(self._examples.targets), "example"),
            format_bytes(resident_bytes()),
            _in_words(run),
        )
        if notice := as_reason(self._link.registration.notice):
            log.warning("%s", notice)

    def _check_scale(self, run: RunDescription) -> None:
        """Warn, once for each scale of a run's, of examples that are far from it."""
        assert self._examples is not None
        known = replace(self._examples, mean=run.inputs.mean, std=run.inputs.std)
        fault = scale_fault(known)
        if fault is not None and fault != self._fault:
            log.warning("%s: %s", KEY, fault)
        self._fault = fault

    def _plan(self, budget: int) -> RunDescription:
        """Register with a budget, and work by the plan that the server makes of it."""
        examples = self._examples
        assert examples is not None
        self._saving = self._saves()
        node = replace(
            self._node,
            examples=len(examples.targets),
            budget_bytes=budget,
            saving=self._saving,
        )
        self._run_json = self._link.register(node).run_json
        run = RunDescription.read(self._run_json)
        if self._store is None:
            self._store = StateStore(self._folder, run_key(self._run_json))
            if self._store.of_another:
                log.info("--state holds the state of another run, or of another node: begun anew")
        programs = NodePrograms(self._link.program, self._setup.threads)
        self._worker = NodeWorker(run, examples, programs, self._store.kept.state)
        self.room.planned(run)
        return run

    def _saves(self) -> bool:
        return self._setup.conditions.saves(self._told())

    def _plan_anew(self, budget: int, stopped: Callable[[], bool]) -> None:
        """Go on with another plan; stay out of rounds while none fits."""
        try:
            run = self._plan(budget)
        except InputError as error:
            text = "%s to train in (measured) fit no plan, out of rounds until there is more: %s"
            log.warning(text, format_bytes(budget), error)
            self._link.leave()
            self._stay_out(stopped)
            return
        what = "to train in now, to spare the battery" if self._saving else "to train in now"
        log.warning("%s %s: %s", format_bytes(run.budget), what, _in_words(run))

    def _stay_out(self, stopped: Callable[[], bool]) -> None:
        while not stopped():
            time.sleep(self._look_seconds)
            budget = self.room.again()
            if budget is None:
                continue
            with suppress(InputError):
                log.info("takes part again: %s", _in_words(self._plan(budget)))
                return

    def _carry_out(self, instruction: Instruction) -> "_Again":
        """Do what an instruction says; whatever happens, the next one is waited for."""
        begun = time.monotonic()
        try:
            with PeakMeter(_LOOK_SECONDS) as meter:
                reply = self._done_before(instruction) or self._do(instruction, meter)
            objects, metrics = reply
            seconds = time.monotonic() - begun
            said = {"peak_bytes": self.room.added(meter), "seconds": seconds}
            counts = self._link.report(instruction, objects, metrics, **said)  # type: ignore[arg-type]
        except RefusedError:
            raise
        except InstructionOverError:
            log.info("round %d: over before it was done", instruction.round)
        except MemoryError:
            self._fail(instruction, FailureKind.OUT_OF_MEMORY, "there was no memory left to train")
            return _Again.SMALLER
        except OverBudgetError as error:
            self._fail(instruction, FailureKind.OVER_BUDGET, str(error))
            return _Again.SMALLER
        except _NotNowError as error:
            self._fail(instruction, error.failure, str(error))
            died = error.failure in (FailureKind.WORKER_DIED, FailureKind.OUT_OF_MEMORY)
            return _Again.SMALLER if died else _Again.SAME
        except NotFiniteError as error:
            self._fail(instruction, FailureKind.NOT_FINITE, str(error))
        except (MestFedError, KeyError) as error:
            self._fail(instruction, FailureKind.CLIENT_ERROR, str(error))
        else:
            log.info(
                "round %d: %s in %s%s",
                instruction.round,
                instruction.kind,
                format_seconds(seconds),
                "" if counts else ", too late to count",
            )
        return _Again.SAME

    def _do(self, instruction: Instruction, meter: PeakMeter) -> tuple[dict[str, bytes], Metrics]:
        worker, store = self._worker, self._store
        assert worker is not None
        assert store is not None
        if instruction.kind not in (InstructionKind.TRAIN, InstructionKind.EVALUATE):
            raise InputError(f"a lean node has no answer to an instruction to {instruction.kind}")
        obstacle = self._setup.conditions.obstacle(self._told())
        if obstacle is not None:
            raise _NotNowError(*obstacle)
        if attempts_at(self._folder, instruction.id) > MOST_ATTEMPTS:
            text = f"the process died {MOST_ATTEMPTS} times while it worked on this"
            raise _NotNowError(FailureKind.WORKER_DIED, text)
        self._go_on(instruction)
        objects = {name: self._link.fetch(ref) for name, ref in instruction.objects.items()}
        if instruction.kind is InstructionKind.EVALUATE:
            masks = worker.state.masks
            metrics = worker.evaluate(objects)
            if worker.state.masks is not masks:  # the server goes by what this node knows now
                store.save(worker.state, store.kept.round, store.kept.reply)
            return {}, metrics
        before = worker.state
        made, metrics = worker.train(objects, instruction.round, instruction.scalars)
        try:
            self.room.hold(meter)
        except OverBudgetError:
            worker.state = replace(before, masks=worker.state.masks)
            raise
        store.save(worker.state, instruction.round, Reply(instruction.id, made, metrics))
        return made, metrics

    def _go_on(self, instruction: Instruction) -> None:
        """Go back to before the rounds that a server repeats, if it was started anew."""
        start, begun = instruction.scalars.get(START), instruction.scalars.get(BEGUN)
        worker, store = self._worker, self._store
        assert worker is not None
        assert store is not None
        if not (isinstance(start, str) and isinstance(begun, int)):
            return  # of a server that does not say
        had = store.kept.round
        if (kept := store.go_on_from(start, begun)) is not None:
            worker.state = kept.state
            if begun:
                text = "round %d is repeated: back from round %d to %d"
                log.info(text, begun + 1, had, kept.round)
            else:
                before = number_of(had, "earlier round")
                log.info("the run begins with round 1; what is here of %s is dropped", before)

    def _done_before(self, instruction: Instruction) -> tuple[dict[str, bytes], Metrics] | None:
        """Return the reply that this node made before it lost its power or the server."""
        reply = self._store.kept.reply if self._store else None
        if reply is None or reply.instruction != instruction.id:
            return None
        log.info("round %d: done before, reported again", instruction.round)
        return dict(reply.objects), dict(reply.metrics)

    def _fail(self, instruction: Instruction, failure: FailureKind, reason: str) -> None:
        log.warning("round %d: %s", instruction.round, reason)
        self._link.fail(instruction, failure, reason)


class _Again(Enum):
    """How the next instruction is carried out."""

    SAME = "by the same plan"
    SMALLER = "by a plan that needs less memory"


class _NotNowError(MestFedError):
    """The device may not train now."""

    def __init__(self, failure: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure


def _in_words(run: RunDescription) -> str:
    return f"batches by {run.micro_batch}, peak {format_bytes(run.predicted_peak)} (modelled)"
