"""A lean node at work: registers, waits for instructions, carries them out, reports."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mest_fed.errors import MestFedError, NotFiniteError
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import (
    Instruction,
    InstructionKind,
    NodeDescription,
)
from mest_fed.link.node.conditions import Conditions, Readings, readings
from mest_fed.link.node.data import read_examples
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.store import (
    NodeFolder,
    Reply,
    attempts_at,
    load_state,
    run_key,
    save_state,
)
from mest_fed.link.node.transport import InstructionOverError, NodeLink
from mest_fed.link.node.worker import Metrics, NodeWorker
from mest_fed.schema import FailureKind
from mest_fed.system.limits import MARGIN, left_for_training
from mest_fed.system.proc import can_reset_peak, read_sizes, reset_peak, resident_bytes
from mest_fed.units import format_bytes, format_seconds

log = logging.getLogger("mest_fed.node")

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
    """

    data: str
    budget: int = 0
    memory_limit: int = 0
    threads: int = 1
    conditions: Conditions = field(default_factory=Conditions)


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
    """

    def __init__(
        self,
        link: NodeLink,
        node: NodeDescription,
        setup: NodeSetup,
        folder: NodeFolder,
        told: Callable[[], Readings] = readings,
    ) -> None:
        self._link, self._node, self._setup = link, node, setup
        self._folder, self._told = folder, told
        self._run_json = ""
        self._worker: NodeWorker | None = None
        self._reply: Reply | None = None

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Work until told to stop, between two instructions.

        Raises
        ------
        RefusedError
            If the server does not take this node.
        InputError
            If its examples do not fit the run, or its budget fits no plan.
        """
        self._join(self._link.register(replace(self._node, examples=0)).run_json)
        while not stopped():
            instruction = self._link.wait()
            if self._link.registration.run_json != self._run_json:
                self._join(self._link.registration.run_json)  # the server runs another one now
            if instruction is not None:
                self._carry_out(instruction)

    def _join(self, run_json: str) -> None:
        """Read the examples as a run needs them, and register with what is left to train with."""
        run = RunDescription.read(run_json)
        examples = read_examples(self._setup.data, run.inputs)
        count = len(examples.targets)
        node = replace(self._node, examples=count, budget_bytes=self._budget())
        self._run_json = self._link.register(node).run_json
        run = RunDescription.read(self._run_json)
        state, self._reply = load_state(self._folder, run_key(self._run_json))
        programs = NodePrograms(self._link.program, self._setup.threads)
        self._worker = NodeWorker(run, examples, programs, state)
        log.info(
            "takes part as number %d with %d examples, %d of them held out; %s in use before "
            "training (measured), plan: batches by %d, peak %s (modelled)",
            run.partition,
            count,
            len(self._worker.rounds.held),
            format_bytes(resident_bytes()),
            run.micro_batch,
            format_bytes(run.predicted_peak),
        )

    def _budget(self) -> int:
        setup = self._setup
        if setup.budget or not setup.memory_limit:
            return setup.budget
        return left_for_training(setup.memory_limit, resident_bytes(), MARGIN, "--memory-limit")

    def _carry_out(self, instruction: Instruction) -> None:
        """Do what an instruction says; whatever happens, the next one is waited for."""
        begun, resident = time.monotonic(), _mark()
        try:
            objects, metrics = self._done_before(instruction) or self._do(instruction)
        except InstructionOverError:
            log.info("round %d: over before it was done", instruction.round)
            return
        except NotFiniteError as error:
            self._fail(instruction, FailureKind.NOT_FINITE, str(error))
            return
        except MemoryError:
            self._fail(instruction, FailureKind.OUT_OF_MEMORY, "there was no memory left to train")
            return
        except _NotNowError as error:
            self._fail(instruction, error.failure, str(error))
            return
        except (MestFedError, KeyError) as error:
            self._fail(instruction, FailureKind.CLIENT_ERROR, str(error))
            return
        seconds, peak = time.monotonic() - begun, _peak_above(resident)
        counts = self._link.report(instruction, objects, metrics, peak_bytes=peak, seconds=seconds)
        log.info(
            "round %d: %s in %s%s",
            instruction.round,
            instruction.kind,
            format_seconds(seconds),
            "" if counts else ", too late to count",
        )

    def _do(self, instruction: Instruction) -> tuple[dict[str, bytes], Metrics]:
        worker = self._worker
        assert worker is not None
        obstacle = self._setup.conditions.obstacle(self._told())
        if obstacle is not None:
            raise _NotNowError(*obstacle)
        if attempts_at(self._folder, instruction.id) > MOST_ATTEMPTS:
            text = f"the process died {MOST_ATTEMPTS} times while it worked on this"
            raise _NotNowError(FailureKind.WORKER_DIED, text)
        objects = {name: self._link.fetch(ref) for name, ref in instruction.objects.items()}
        if instruction.kind is InstructionKind.EVALUATE:
            return {}, worker.evaluate(objects)
        made, metrics = worker.train(objects, instruction.round, instruction.scalars)
        self._reply = Reply(instruction.id, made, metrics)
        save_state(self._folder, worker.state, run_key(self._run_json), self._reply)
        return made, metrics

    def _done_before(self, instruction: Instruction) -> tuple[dict[str, bytes], Metrics] | None:
        """Return the reply that this node made before it lost its power or the server."""
        kept = self._reply
        if kept is None or kept.instruction != instruction.id:
            return None
        log.info("round %d: done before, reported again", instruction.round)
        return dict(kept.objects), dict(kept.metrics)

    def _fail(self, instruction: Instruction, failure: FailureKind, reason: str) -> None:
        log.warning("round %d: %s", instruction.round, reason)
        self._link.fail(instruction, failure, reason)


class _NotNowError(MestFedError):
    """The device may not train now."""

    def __init__(self, failure: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure


def _mark() -> int:
    """Begin to watch the peak of this process; return what is resident."""
    if can_reset_peak():
        reset_peak()
    return resident_bytes()


def _peak_above(resident: int) -> int:
    """Return how far the peak has been above what was resident; 0 where it cannot be told."""
    return max(0, read_sizes().get("VmHWM", 0) - resident) if can_reset_peak() else 0
