"""The edge link and its lean node, beside Flower's stock node: memory, first step, server, wire.

    python benchmarks/edge.py [--parts PART ...] [--sides lean stock] [--json FILE] [--quick]

All figures are measured, in fresh processes over loopback; the two sides run in turn.

``idle``: memory of a node that waits for work, ``mest-fed node`` and the whole tree of processes
of ``mest-fed client``. ``training``: the peak of one that trains, from its start on, sampled every
20 ms (``VmHWM`` is the kernel's own peak). Flower's node trains the quickstart's network alone.
``first-gradient``: seconds from the start of a process to the end of its first step and the
encoding of its update. The lean one reads its programs from files; the stock one is the process
that Flower's node starts for a message, without that node and without its message's way, so that
it is less than what a message takes there. ``server``: an EdgeServer and nodes that other processes
play, transport alone; they share this machine's cores with it. ``overhead``: bytes that pass a TCP
relay beside an update; headers of TCP and IP are not in them.

``PSS`` counts a page that N processes map as 1/N: less where programs beside the node map the same
libraries, as the server does here. ``alone`` is what the node takes on a machine of its own.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import edge_memory
from command_line import Parser, positive, run, show
from edge_first_step import FirstStep, first_step, prepare
from edge_memory import JOBS, KEYS, QUICKSTART, Peak
from edge_meter import INTERVAL, Memory, loads
from edge_rows import Case, megabytes, row_of
from edge_server import Crowd, serve
from harness import Row, software, write_json

LEAN, STOCK = "lean", "stock"
SIDES = (LEAN, STOCK)
HERE = Path(__file__).parent
TERMINATED = 143
#: What a sum of memory is, in names of rows.
SUMS = {"pss": "PSS", "alone": "alone", "high_water": "VmHWM"}
#: Goals. Memory of training has its own in :mod:`edge_memory`.
IDLE_MB, FIRST_SECONDS, REGISTER_SECONDS, ROUND_SECONDS, SERVER_MB, OVERHEAD_PERCENT = (
    45.0,
    1.5,
    30.0,
    20.0,
    1000.0,
    3.0,
)
COLUMNS = {
    "what": "name",
    "lean": "ours",
    "spread": "ours_spread",
    "stock": "peer",
    "stock spread": "peer_spread",
    "unit": "unit",
    "times": "ratio",
    "goal": "goal",
    "met": "met",
    "runs": "runs",
}
Options = argparse.Namespace


def in_turn(
    sides: Mapping[str, Callable[[], Any]], options: Options
) -> tuple[dict[str, list[Any]], list[list[float]]]:
    """Run sides in turn, every second time backwards; return their results, and loads before each.

    Sides that were not asked for have no results.
    """
    found: dict[str, list[Any]] = {side: [] for side in SIDES}
    before = []
    for number in range(options.repeats):
        names = [side for side in sides if side in options.sides]
        for side in names if number % 2 == 0 else reversed(names):
            before.append(loads())
            found[side].append(sides[side]())
    return found, before


def in_folder(measure: Callable[..., Any], *given: object) -> Callable[[], Any]:
    """Return a call that measures in an empty folder of its own."""

    def call() -> Any:
        with tempfile.TemporaryDirectory() as text:
            return measure(Path(text), *given)

    return call


def idle(options: Options) -> Iterator[Row]:
    """Yield rows of nodes that wait for work."""
    sides = {
        LEAN: in_folder(edge_memory.lean_idle, QUICKSTART),
        STOCK: in_folder(edge_memory.stock_idle, QUICKSTART),
    }
    found, before = in_turn(sides, options)
    lean: list[Memory] = found[LEAN]
    stock: list[Memory] = found[STOCK]
    for key in KEYS:
        case = Case("idle", f"waits for work, {SUMS[key]}", "MB", IDLE_MB)
        ours, peer = ([getattr(one, key) for one in side] for side in (lean, stock))
        yield row_of(
            case,
            megabytes(ours),
            megabytes(peer),
            processes={LEAN: _count(lean), STOCK: _count(stock)},
            loads=before,
        )


def _count(side: Sequence[Memory]) -> int | None:
    return side[-1].processes if side else None


def training(options: Options) -> Iterator[Row]:
    """Yield rows of nodes that train."""
    for job in JOBS:
        sides = {LEAN: in_folder(edge_memory.lean_peak, job, options.rounds)}
        if job is QUICKSTART:
            sides[STOCK] = in_folder(edge_memory.stock_peak, job, options.rounds)
        found, before = in_turn(sides, options)
        lean: list[Peak] = found[LEAN]
        stock: list[Peak] = found[STOCK]
        fields = {
            "rounds": options.rounds,
            "settings": list(job.settings),
            "budget": job.budget,
            "seconds_between_samples": {
                side: [round(one.seconds_between, 4) for one in found[side]] for side in SIDES
            },
            "loads": before,
        }
        for key in SUMS:
            case = Case("training", f"{job.name}, {SUMS[key]}", "MB", job.goal)
            ours, peer = ([getattr(one, key) for one in side] for side in (lean, stock))
            if key == "high_water":
                peer = []  # the peaks of several processes are not at one moment
            yield row_of(case, megabytes(ours), megabytes(peer), **fields)
        after = [one.after.pss for one in lean if one.after is not None]
        yield row_of(Case("training", f"{job.name}, after the run, PSS", "MB"), megabytes(after))


def first_gradient(options: Options) -> Iterator[Row]:
    """Yield the row of first steps, and those of its parts."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepare(folder)
        sides = {side: _step(side, folder) for side in SIDES}
        for side in options.sides:
            sides[side]()  # Python files are compiled, and the file cache is warm
        found, before = in_turn(sides, options)
    steps: dict[str, list[FirstStep]] = found
    updates = {one.update for side in SIDES for one in steps[side]}
    if len(updates) != 1:
        raise SystemExit("error: the two sides did not make the same update")
    seconds = {side: [one.seconds for one in steps[side]] for side in SIDES}
    case = Case("first-gradient", "start to the end of the first step", "s", FIRST_SECONDS)
    yield row_of(case, seconds[LEAN], seconds[STOCK], same_update=True, loads=before)
    for part in next(one for side in SIDES for one in steps[side]).parts:
        case = Case("first-gradient", f"of it, until {part}", "s")
        ours, peer = ([one.parts[part] for one in steps[side]] for side in SIDES)
        yield row_of(case, ours, peer)


def _step(side: str, folder: Path) -> Callable[[], FirstStep]:
    return lambda: first_step(side, folder)


def server(options: Options) -> Iterator[Row]:
    """Yield rows of a server with very many nodes; Flower has no part in them."""
    tls = options.link == "tls"
    crowd = Crowd(options.nodes, options.players, options.rounds, options.payload, tls)
    found, before = in_turn({LEAN: lambda: serve(crowd)}, _lean_alone(options))
    served, peaks = found[LEAN], [one.peak for one in found[LEAN]]
    link = "mutual TLS" if tls else "without TLS"
    who = f"{options.nodes} nodes, {link}"
    fields = {"link": link, "nodes": options.nodes, "players": options.players, "loads": before}
    case = Case("server", f"{who}: until all are registered", "s", REGISTER_SECONDS)
    yield row_of(case, [one.register_seconds for one in served], **fields)
    each = f"{options.payload / 1000:g} kB"
    case = Case("server", f"{who}: a round, {each} down and up", "s", ROUND_SECONDS)
    rounds = [seconds for one in served for seconds in one.round_seconds]
    yield row_of(case, rounds, payload=options.payload, **fields)
    case = Case("server", f"{who}: server's peak RSS", "MB", SERVER_MB)
    yield row_of(case, megabytes(peaks), **fields)
    case = Case("server", f"{who}: of it, nodes add", "MB")
    yield row_of(case, megabytes([one.peak - one.before for one in served]), **fields)
    case = Case("server", f"{who}: server's peak PSS", "MB")
    yield row_of(case, megabytes([one.peak_pss for one in served]), **fields)


def _lean_alone(options: Options) -> Options:
    return argparse.Namespace(**{**vars(options), "sides": [LEAN]})


def overhead(options: Options) -> Iterator[Row]:
    """Yield rows of bytes on the wire beside updates."""
    for tls, link in ((True, "mutual TLS"), (False, "without TLS")):
        case = {"tls": tls, "payload": options.payload, "repeats": options.repeats}
        found = _count_bytes(case)
        for way, what in (("up", "update up"), ("down", "model down")):
            name = f"{options.payload / 1000:g} kB {what}, {link}"
            beside = [(size / options.payload - 1) * 100 for size in found[way]]
            goal = Case("overhead", name, "%", OVERHEAD_PERCENT, below=True)
            yield row_of(goal, beside, link=link, payload=options.payload, bytes=found[way])
        name = f"connection and registration, {link}"
        yield row_of(Case("overhead", name, "kB"), [found["begin"] / 1000], link=link)


def _count_bytes(case: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "edge_overhead.py")]
    done = subprocess.run(
        command, input=json.dumps(case), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


#: In the order in which they run: this process maps the least of what nodes do while theirs runs.
PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "idle": idle,
    "training": training,
    "first-gradient": first_gradient,
    "server": server,
    "overhead": overhead,
}


def _was_measured(row: Row) -> bool:
    return row["ours"] is not None or row["peer"] is not None


def parse(arguments: Sequence[str] | None) -> Options:
    """Parse the command line."""
    quick = {"repeats": 1, "rounds": 1, "nodes": 20, "players": 1}
    parser = Parser(__doc__.splitlines()[0], quick)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="of memory and first steps")
    add("--repeats", type=positive, default=5, help="fresh processes of each figure")
    add("--rounds", type=positive, default=3, help="rounds of training, and of the server")
    add("--nodes", type=positive, default=500, help="of the server")
    add("--players", type=positive, default=2, help="processes that play them")
    add("--payload", type=positive, default=100_000, help="bytes of an update")
    add("--link", choices=("tls", "insecure"), default="tls", help="of the server's nodes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write a file; what was measured before a failure is kept."""
    options = parse(arguments)
    done: list[Row] = []
    begin = loads()
    try:
        for part in (name for name in PARTS if name in options.parts):
            print(f"{part} ...", file=sys.stderr, flush=True)
            rows = [row for row in PARTS[part](options) if _was_measured(row)]
            done += rows
            show(f"{part} (measured)", rows, COLUMNS)
    except KeyboardInterrupt:
        print(f"interrupted after {len(done)} rows", file=sys.stderr)
    finally:
        if options.json:
            write_json(
                options.json,
                done,
                software=software("torch", "flwr", "grpcio", "cryptography", "numpy"),
                loads={"before": begin, "after": loads()},
                sample_seconds=INTERVAL,
                options={name: value for name, value in vars(options).items() if name != "json"},
            )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # what it started ends, too
    run(main)
