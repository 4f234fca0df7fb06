"""NVFlare's edge scenario in virtual time: sixteen devices whose answers take minutes.

Each device has a sixteenth of CIFAR-10 and trains four epochs on it, in batches of 4; an answer
takes 100, 200 or 400 seconds, and 5 seconds of transfer. Synchronously ten rounds wait for all
sixteen; asynchronously each update makes a new model, 160 of them, at a server's rate of 0.05.
NVFlare sleeps the delays: its example reports 82 and 45 minutes, of which 68 and 39 are expected
delays, and about 10 minutes of either kind without delays, on a machine that it does not name
(examples/advanced/edge: README, network and rates, read in 2026-12). Here they pass in virtual
time: a row has the minutes that a run really took against those that NVFlare's took, and the
virtual ones.

    python benchmarks/delays.py --data FOLDER --json delays.json
"""

import argparse
import json
import logging
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from command_line import Parser, collect, positive, run, show
from harness import Row, software, write_json

from mest_fed.config import RunConfig, from_table
from mest_fed.simulation.simulate import open_run

DEVICES, EPOCHS, TRANSFER = 16, 4, 5.0
DELAYS = (100.0, 200.0, 400.0)
#: Real minutes that NVFlare's example reports for so many updates, and the delays in them.
REPORTED = {"synchronous": (82.0, 68.0), "asynchronous": (45.0, 39.0)}
UPDATES = 160
NETWORK = f"{Path(__file__).with_name('nvflare_network.py')}:build"
METHODS = {"dense": {"method": "dense"}, "EM&S, 10%": {"method": "mest-ems", "density": 0.1}}
COLUMNS = {
    "mode": "name",
    "real minutes": "ours",
    "NVFlare's": "peer",
    "virtual minutes": "virtual_minutes",
    "expected delays": "expected_minutes",
    "accuracy": "accuracy",
    "sent MB": "sent_megabytes",
}


def profile_of(delay: float, folder: Path) -> Path:
    """Write the profile of a device that answers after a delay, whatever it computes."""
    source = resources.files("mest_fed.devices") / "profiles" / "laptop.toml"
    table: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
    fast = 1e18
    table |= {
        "title": f"answers after {delay:g} s",
        "message_seconds": delay,
        "latency": TRANSFER / 2,
        "availability": 1.0,
        **dict.fromkeys(("memory_rate", "core_speed", "download_rate", "upload_rate"), fast),
        "flops": dict.fromkeys(table["flops"], fast),
    }
    table["sources"] = dict.fromkeys(table["sources"], "modelled: NVFlare's edge scenario")
    path = folder / f"delay-{delay:g}.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def config_of(mode: str, method: str, options: argparse.Namespace, folder: Path) -> RunConfig:
    """Return the configuration of one run."""
    updates = options.updates
    modes = {
        "synchronous": {"clients_per_round": DEVICES},
        "asynchronous": {
            **{"mode": "buffered", "concurrency": DEVICES, "buffer": 1, "learning_rate": 0.05},
            "max_staleness": 100,
        },
    }
    rounds = -(-updates // DEVICES) if mode == "synchronous" else updates
    table = {
        "run": {"seed": options.seed, "rounds": rounds, "checkpoint_every": 10**6},
        "data": {"name": options.dataset, "path": str(options.data or ""), "partition": "iid"},
        "model": {"name": options.model},
        "sparsity": {"scheme": "block", **METHODS[method]},
        "training": {
            **{"local_epochs": EPOCHS, "batch_size": 4, "device": "cpu"},
            **{"learning_rate": 0.001, "momentum": 0.9},
        },
        "server": {
            **{"evaluate_clients_every": 0, "evaluate_every": max(1, rounds // 10)},
            **modes[mode],
        },
        "fleet": {
            "devices": DEVICES,
            "mix": {str(profile_of(delay, folder)): 1 for delay in DELAYS},
        },
        "behaviour": {"availability": "always", "compute_jitter": 0.01},
    }
    return from_table(table, "benchmarks/delays.py")


def rows_of(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Run each mode and method; yield a row for each."""
    for method in METHODS:
        for mode, (reported, expected) in REPORTED.items():
            config = config_of(mode, method, options, folder)
            began = time.monotonic()
            path = open_run("delays", config, folder / f"{mode}-{method}").run(options.workers)
            real = time.monotonic() - began
            lines = (path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
            rounds = [json.loads(line) for line in lines]
            share = options.updates / UPDATES
            sent = sum(row["bytes_up"] + row["bytes_down"] for row in rounds)
            yield {
                "name": f"{mode}, {method}",
                "ours": round(real / 60, 3),
                "peer": round(reported * share, 2),
                "peer_name": "NVFlare's example, as it reports (not run here)",
                "unit": "real minutes (measured)",
                "ratio": round(reported * share * 60 / real, 2),
                "runs": 1,
                "virtual_minutes": round(rounds[-1]["virtual_seconds"] / 60, 2),
                "expected_minutes": round(expected * share, 2),
                "accuracy": rounds[-1]["accuracy"],
                "sent_megabytes": round(sent / 1e6, 1),
                "updates": sum(row["trained"] for row in rounds),
            }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"updates": 32, "dataset": "digits", "model": "mlp"}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--dataset", default="cifar10", help="another that the model can take")
    parser.add_argument("--model", default=NETWORK, help="name of another, or FILE.py:BUILDER")
    parser.add_argument("--updates", type=positive, default=UPDATES, help="that each run takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="worker processes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("server").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as text:
        done = collect(rows_of(options, Path(text)))
    show("Virtual time (modelled) against NVFlare's slept delays (reported)", done, COLUMNS)
    if options.json:
        facts = {"devices": DEVICES, "delays": DELAYS, "transfer": TRANSFER}
        facts |= {"data": options.dataset, "model": options.model.rpartition("/")[2]}
        write_json(options.json, done, software=software("torch", "numpy", "flwr"), **facts)


if __name__ == "__main__":
    run(main)
