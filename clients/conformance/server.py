"""Tells whether a client of the edge link keeps to its protocol.

    python clients/conformance/server.py [--port N] [--certificates FOLDER]

It listens on loopback, waits for one client, gives it a fixed series of instructions, breaks
connections meanwhile, and prints a line for each requirement: met or not. Exit status: 0 if all
are met, 1 if one is not, 3 if no client came. ``docs/foreign-clients.md`` says what the
instructions of this series ask for.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relay import Relay

from mest_fed.link.messages import Instruction, InstructionKind, Outcome, Scalar
from mest_fed.link.server.edge_server import EdgeServer, ServerTls

# What this uses of mest_fed, all of it.
from mest_fed.link.server.limits import Limits
from mest_fed.schema import FailureKind

#: Everything soon, so that a series takes half a minute.
LIMITS = Limits(
    chunk_bytes=16 << 10,
    heartbeat_seconds=0.5,
    wait_seconds=1.0,
    gone_seconds=60.0,
    stall_seconds=5.0,
    calls_per_second=100.0,
    call_burst=1000,
)
RUN = '{"conformance": 1}'
#: Seconds that a client has to come, and to do what is asked of it.
PATIENCE = 30.0
#: Bytes of an object that is cut in two, and as a share of them those that may travel in all.
LARGE, MOST_TRAVEL = 1_500_000, 1.5
_WRONG_INPUT, _NO_CLIENT = 2, 3


def changed(data: bytes) -> bytes:
    """Return what a train instruction of the series makes of an object: each byte XOR 0x5A."""
    return bytes(byte ^ 0x5A for byte in data)


def drawn(name: str, size: int) -> bytes:
    """Return bytes without order: SHA-256 of the name and a counter."""
    blocks = -(-size // 32)
    return b"".join(hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(blocks))[:size]


class Failure(Exception):
    """A requirement is not met, for this reason."""


class Series:
    """The requirements, in their order.

    Parameters
    ----------
    start : callable
        Starts a server on a free port.
    port : int
        Where the client connects.
    """

    def __init__(self, start: Callable[[], EdgeServer], port: int) -> None:
        self._start = start
        self._server = start()
        self.relay = Relay(self._server.port, port)
        self._node = 0
        self._number = 0
        self.unmet = 0

    def close(self) -> None:
        """End the server."""
        self.relay.close()
        self._server.close()

    def wait_for_client(self, seconds: float) -> bool:
        """Return whether one registers."""
        return self._registers(time.monotonic() + seconds)

    def run(self) -> None:
        """Go through all requirements, and print a line for each."""
        requirements: tuple[tuple[Callable[[], str], str], ...] = (
            (self._registration, "registers as version 1, with a name, and examples"),
            (
                self._trains,
                "trains: fetches an object, uploads another, reports it with metrics",
            ),
            (self._evaluates, "evaluates: reports metrics alone"),
            (self._beats, "is heard while it works, and long work is its own"),
            (self._goes_on_fetching, "goes on with a fetch that was cut"),
            (self._goes_on_uploading, "goes on with an upload that was cut"),
            (self._reports_once, "goes on after a report whose answer was lost, as if it had come"),
            (self._drops_what_is_late, "goes on after an instruction whose deadline has passed"),
            (
                self._obeys_withdrawal,
                "drops an instruction that was withdrawn",
            ),
            (self._registers_again, "registers again after the server was started anew"),
            (self._knows_other_kinds, "reports a query and a request to forget, without objects"),
            (self._leaves, "leaves when it is told to end"),
        )
        for requirement, title in requirements:
            self._check(requirement, title)

    def _check(self, requirement: Callable[[], str], title: str) -> None:
        try:
            said, verdict = requirement(), "met"
        except Failure as failure:
            said, verdict = str(failure), "NOT MET"
            self.unmet += 1
        print(f"{verdict:8} {title}{': ' if said else ''}{said}", flush=True)

    # Requirements: each returns what was seen.

    def _registration(self) -> str:
        (node,) = self._server.nodes()
        if node.description.examples < 1:
            raise Failure("it has no examples, so that it would take no part")
        return f"{node.description.name}, {node.description.examples} examples"

    def _trains(self) -> str:
        data = drawn("train", 100_000)
        outcome = self._carried_out(InstructionKind.TRAIN, data)
        return f"{len(outcome.objects['output'])} bytes in {outcome.elapsed:.1f} s"

    def _evaluates(self) -> str:
        data = drawn("evaluate", 5000)
        outcome = self._carried_out(InstructionKind.EVALUATE, data)
        if outcome.objects:
            raise Failure("it uploaded an object")
        return ""

    def _beats(self) -> str:
        started = time.monotonic()
        self._submit(InstructionKind.EVALUATE, b"", seconds=3.5 * LIMITS.heartbeat_seconds)
        while time.monotonic() - started < 3.4 * LIMITS.heartbeat_seconds:
            time.sleep(0.1)
            if not self._server.nodes():
                raise Failure("it was silent for three times heartbeat_seconds")
        self._expect(b"", InstructionKind.EVALUATE)
        return ""

    def _goes_on_fetching(self) -> str:
        data, before = drawn("fetch", LARGE), self.relay.down
        self.relay.cut_down = LARGE // 2
        self._carried_out(InstructionKind.EVALUATE, data)
        return self._travelled(self.relay.down - before)

    def _goes_on_uploading(self) -> str:
        data, before = drawn("upload", LARGE // 10), self.relay.up
        self.relay.cut_up = LARGE // 2
        self._carried_out(InstructionKind.TRAIN, data, times=10)
        return self._travelled(self.relay.up - before)

    def _reports_once(self) -> str:
        data, before = drawn("report", 20_000), self.relay.down
        self._submit(InstructionKind.EVALUATE, data, seconds=1.0)
        self._until(lambda: self.relay.down - before > len(data), "it fetched nothing")
        self.relay.late = 0.5
        try:
            self._expect(data, InstructionKind.EVALUATE)
        finally:
            self.relay.cut()
            self.relay.late = 0.0
        self._carried_out(InstructionKind.EVALUATE, drawn("next", 100))
        return ""

    def _drops_what_is_late(self) -> str:
        self._submit(InstructionKind.TRAIN, b"late", seconds=1.6, deadline=0.8)
        self._expect_end(FailureKind.DEADLINE)
        self._carried_out(InstructionKind.EVALUATE, drawn("after a deadline", 100))
        return ""

    def _obeys_withdrawal(self) -> str:
        longest = 6 * LIMITS.heartbeat_seconds
        instruction = self._submit(InstructionKind.TRAIN, b"withdrawn", seconds=60.0)
        time.sleep(0.5)
        self._server.withdraw(self._node, instruction)
        self._expect_end(FailureKind.SURPLUS)
        started = time.monotonic()
        self._carried_out(InstructionKind.EVALUATE, drawn("after a withdrawal", 100))
        taken = time.monotonic() - started
        if taken > longest:
            raise Failure(f"it worked on for {taken:.1f} s; allowed: {longest:g}")
        return f"after {taken:.1f} s"

    def _registers_again(self) -> str:
        self._server.close()
        self.relay.cut()
        time.sleep(1.0)
        self._server = self._start()
        self.relay.target = self._server.port
        known = self._node
        if not self._registers(time.monotonic() + PATIENCE):
            raise Failure(f"not within {PATIENCE:g} s")
        if self._node != known:
            raise Failure("as another node: it must keep its name and its certificate")
        self._carried_out(InstructionKind.TRAIN, drawn("anew", 1000))
        return ""

    def _knows_other_kinds(self) -> str:
        for kind in (InstructionKind.QUERY, InstructionKind.FORGET):
            self._server.submit(self._node, self._instruction(kind))
            if self._outcome().failure is not None:
                raise Failure(f"it failed at {kind}")
        return ""

    def _leaves(self) -> str:
        self._server.submit(self._node, self._instruction(InstructionKind.QUERY, end=True))
        self._outcome()
        # after three heartbeats it would be gone in any case
        soon = 2 * LIMITS.heartbeat_seconds
        self._until(lambda: not self._server.nodes(), "it did not call Leave", soon)
        return ""

    # What they are made of.

    def _instruction(
        self,
        kind: InstructionKind,
        *,
        seconds: float = 0.0,
        deadline: float = 0.0,
        times: int = 1,
        end: bool = False,
    ) -> Instruction:
        self._number += 1
        scalars: dict[str, Scalar] = {"seconds": seconds, "times": times, "end": end}
        name = f"step-{self._number}"
        return Instruction(name, kind, 1, scalars=scalars, deadline_seconds=deadline)

    def _submit(self, kind: InstructionKind, data: bytes, **how: float) -> str:
        instruction = self._instruction(kind, **how)  # type: ignore[arg-type]
        self._server.submit(self._node, instruction, {"input": data})
        return instruction.id

    def _carried_out(self, kind: InstructionKind, data: bytes, times: int = 1) -> Outcome:
        self._submit(kind, data, times=times)
        return self._expect(data, kind, times)

    def _expect(self, data: bytes, kind: InstructionKind, times: int = 1) -> Outcome:
        outcome = self._outcome()
        if outcome.failure is not None:
            raise Failure(f"it ended as {outcome.failure}: {outcome.reason}")
        wanted = {"bytes": float(len(data)), "sum": float(sum(data))}
        found = {name: outcome.metrics.get(name) for name in wanted}
        if found != wanted:
            raise Failure(f"metrics {found}; allowed: {wanted}")
        if kind is InstructionKind.TRAIN and outcome.objects != {"output": changed(data) * times}:
            raise Failure("the object `output` is not what was asked for")
        return outcome

    def _expect_end(self, failure: FailureKind) -> None:
        outcome = self._outcome()
        if outcome.failure is not failure:
            raise Failure(f"it ended as {outcome.failure}; allowed: {failure}")

    def _outcome(self) -> Outcome:
        wanted, until = f"step-{self._number}", time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for outcome in self._server.poll(0.2):
                if outcome.instruction.id == wanted:
                    return outcome
        raise Failure(f"no report within {PATIENCE:g} s")

    def _registers(self, until: float) -> bool:
        while time.monotonic() < until:
            if nodes := self._server.nodes():
                self._node = nodes[0].id
                return True
            time.sleep(0.05)
        return False

    def _until(self, holds: Callable[[], bool], reason: str, most: float = PATIENCE) -> None:
        until = time.monotonic() + most
        while not holds():
            if time.monotonic() > until:
                raise Failure(reason)
            time.sleep(0.02)

    def _travelled(self, count: int) -> str:
        if count > MOST_TRAVEL * LARGE:
            raise Failure(f"{count:,} bytes for an object of {LARGE:,}: it began anew")
        return f"{count:,} bytes for an object of {LARGE:,}"


def _server_of(folder: Path | None) -> Callable[[], EdgeServer]:
    tls = None
    if folder is not None:
        names = ("server.pem", "server.key", "authority.pem")
        tls = ServerTls(*((folder / name).read_bytes() for name in names))
    return lambda: EdgeServer(
        "127.0.0.1:0", describe=lambda _: RUN, tls=tls, insecure=tls is None, limits=LIMITS
    )


@contextmanager
def _series(options: argparse.Namespace) -> Iterator[Series]:
    folder = options.certificates
    try:
        series = Series(_server_of(folder), options.port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "allowed: 0 to 65535"
        print(f"error: --port {options.port}: {reason}", file=sys.stderr)
        sys.exit(_WRONG_INPUT)
    try:
        yield series
    finally:
        series.close()


def main() -> int:
    """Run the series; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--port", type=int, default=0, help="To listen on; a free one if left out.")
    add("--certificates", type=Path, metavar="FOLDER", help="As mest-fed certs new made it; left "
        "out, there is no TLS, and a client says its name in the header mest-node.")  # fmt: skip
    add("--wait", metavar="SECONDS", type=float, default=300.0, help="For the client to come.")
    options = parser.parse_args()
    with _series(options) as series:
        print(f"listening on 127.0.0.1:{series.relay.port}", flush=True)
        if not series.wait_for_client(options.wait):
            print("no client registered", flush=True)
            return _NO_CLIENT
        series.run()
        print(f"{series.unmet} requirements are not met", flush=True)
        return 1 if series.unmet else 0


if __name__ == "__main__":
    sys.exit(main())
