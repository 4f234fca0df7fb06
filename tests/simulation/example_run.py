"""Writes the folder of a made-up but plausible finished run, for tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.rng import numpy_generator

MB = 10**6
DENSE_BYTES = 7_432_000
TARGET = 0.10

# profile, title, budget, predicted peak, measured peak, density, micro-batch, task seconds, watts
DEVICES: list[tuple[Any, ...]] = [
    ("rpi-zero-2w", "Raspberry Pi Zero 2 W", 48 * MB, 44.1 * MB, 43.2 * MB, 0.05, 4, 410, 1.9),
    ("rpi-3b-plus", "Raspberry Pi 3 Model B+", 96 * MB, 88.4 * MB, 86.0 * MB, 0.10, 8, 205, 3.6),
    ("rpi-4-2gb", "Raspberry Pi 4 (2 GB)", 512 * MB, 172 * MB, 169 * MB, 0.10, 32, 96, 5.4),
    ("phone-low", "Phone, entry level", 200 * MB, 150 * MB, 146 * MB, 0.10, 16, 150, 2.4),
    ("phone-high", "Phone, high end", 1500 * MB, 172 * MB, None, 0.10, 32, 34, 4.1),
    ("jetson-nano", "NVIDIA Jetson Nano (4 GB)", 2500 * MB, 172 * MB, 168 * MB, 0.10, 32, 22, 8.8),
    ("phone-mid", "Phone, middle class", 700 * MB, 172 * MB, 171 * MB, 0.10, 32, 71, 3.1),
    ("rpi-5", "Raspberry Pi 5 (8 GB)", 4000 * MB, 172 * MB, 170 * MB, 0.10, 32, 38, 7.9),
    ("server", "Edge server", 32000 * MB, 172 * MB, 170 * MB, 0.10, 32, 9, 60.0),
]
PARTS = {
    "values": 0.10,
    "gradients": 0.10,
    "optimizer": 0.08,
    "index": 0.04,
    "activations": 0.52,
    "workspace": 0.11,
    "batch": 0.05,
}
LOSSES = [
    ("dropped", "device dropped out"),
    ("late", "missed the deadline of 900 s"),
    ("away", "device was away"),
    ("surplus", "enough other devices were faster"),
]


def example_files(
    *,
    rounds: int = 60,
    tiers: int = 5,
    clients_per_round: int = 20,
    fleet: int | None = None,
    losses: bool = True,
) -> dict[str, Any]:
    """Make the contents of a run folder; a ``fleet`` is as large as a cohort if not given.

    Returns
    -------
    dict
        ``rounds`` and ``clients``: lists of rows; ``summary``: a dict; ``config``: text.
    """
    random = numpy_generator(7, "example", rounds, tiers)
    devices = DEVICES[:tiers]
    size = clients_per_round if fleet is None else fleet
    clients = [
        _task(random, number, int(index), devices[index % tiers], losses=losses)
        for number in range(1, rounds + 1)
        for index in np.sort(random.choice(size, clients_per_round, replace=False))
    ]
    rows = _rounds(random, rounds, clients)
    return {
        "rounds": rows,
        "clients": clients,
        "summary": _summary(rows, clients, devices),
        "config": _CONFIG.format(rounds=rounds, clients=clients_per_round),
    }


def with_facts(contents: dict[str, Any], mode: str = "sync") -> dict[str, Any]:
    """Add what runs of earlier versions lack: origin, labels, scores of clients, staleness."""
    devices = [tier["profile"] for tier in contents["summary"]["tiers"]]
    scores = [
        {"partition": index, "device": device, "examples": 10 + index, "value": 0.5 + 0.1 * index}
        for index, device in enumerate(devices[:5])
    ]
    rounds = [*contents["rounds"][:-1], contents["rounds"][-1] | {"client_scores": scores}]
    clients = [task | {"staleness": index % 3} for index, task in enumerate(contents["clients"])]
    machine = {"system": "Linux 6.1", "architecture": "x86_64", "cpu": "A CPU", "cores": 2}
    return contents | {
        "rounds": rounds,
        "clients": clients,
        "config": f'{contents["config"]}\n[server]\nmode = "{mode}"\nbuffer = 5\n'
        "max_staleness = 9\nstaleness_exponent = 0.5\n",
        "provenance": {
            "command": "mest-fed simulate --out 'a b'",
            "started": "2026-03-01T12:30:59+00:00",
            "machine": machine | {"machine_cores": 4, "memory_bytes": 8_000_000_000},
            "versions": {"mest-fed": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
            "base": "quickstart",
            "changes": [{"key": "run.seed", "before": "1", "after": "7"}],
        },
        "labels": {
            "classes": ["cat", "dog"],
            "devices": 3,
            "partitions": [0, 1, 2],
            "counts": [[10, 0], [0, 10], [5, 5]],
        },
    }


def write_files(folder: Path, contents: dict[str, Any]) -> Path:
    """Write the contents as a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rounds", "clients"):
        lines = "".join(json.dumps(row) + "\n" for row in contents[name])
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    summary = json.dumps(contents["summary"], indent=2)
    (folder / "summary.json").write_text(summary, encoding="utf-8")
    (folder / "config.toml").write_text(contents["config"], encoding="utf-8")
    for name in ("provenance", "labels"):
        if name in contents:
            (folder / f"{name}.json").write_text(json.dumps(contents[name]), encoding="utf-8")
    return folder


def _task(
    random: np.random.Generator, number: int, index: int, device: tuple[Any, ...], *, losses: bool
) -> dict[str, Any]:
    seconds = device[7] * random.lognormal(0, 0.18)
    density = device[5]
    down = int(DENSE_BYTES * density * 1.02)
    task = {
        "round": number,
        "partition": index,
        "device": device[0],
        "status": "ok",
        "reason": None,
        "examples": 500,
        "presented": 480,
        "train_loss": 2.3 * 0.96**number + 0.1,
        "bytes_down": down,
        "bytes_up": int(down * 0.97),
        "download_seconds": 0.04 * seconds + 1.1,
        "train_seconds": 0.86 * seconds,
        "upload_seconds": 0.10 * seconds + 1.6,
        "energy_joules": (0.86 * seconds) * device[8] + (0.14 * seconds + 2.7) * 0.6 * device[8],
        "density": density,
    }
    draw = random.random()
    if losses and draw < 0.06:
        status, reason = LOSSES[int(random.integers(len(LOSSES)))]
        task |= {"status": status, "reason": reason, "bytes_up": 0, "density": None}
        if status == "dropped":
            task |= {"train_seconds": 0.43 * seconds, "upload_seconds": 0.0}
            radio = 0.6 * task["download_seconds"]
            task["energy_joules"] = (0.43 * seconds + radio) * device[8]
        if status == "away":
            parts = ("bytes_down", "download_seconds", "train_seconds", "upload_seconds")
            task |= dict.fromkeys((*parts, "energy_joules"), 0)
    elif losses and draw < 0.10 and device[0] == "rpi-zero-2w":
        wanted = f"{random.uniform(48.5, 52):.1f}"
        reason = f"out of memory: needs {wanted} MB, the budget is 48.0 MB"
        task |= {
            "failure": "out-of-memory",
            "status": "failed",
            "reason": reason,
            "bytes_up": 0,
            "density": None,
        }
    elif losses and draw < 0.065:
        task |= {"status": "rejected", "reason": "values are not finite"}
    return task


def _seconds(task: dict[str, Any]) -> float:
    return task["download_seconds"] + task["train_seconds"] + task["upload_seconds"]


def _rounds(
    random: np.random.Generator, rounds: int, clients: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows, virtual, wall = [], 0.0, 0.0
    for number in range(rounds + 1):
        tasks = [task for task in clients if task["round"] == number]
        done = [task for task in tasks if task["status"] == "ok"]
        for task in tasks:
            task["start_seconds"] = virtual
        virtual += max((_seconds(task) for task in done), default=0.0)
        wall += 2.4 * random.lognormal(0, 0.1)
        accuracy = 0.1 + 0.76 * (1 - 0.94**number) + (random.normal(0, 0.006) if number else 0)
        rows.append(
            {
                "round": number,
                "accuracy": accuracy,
                "loss": 2.3 * 0.95**number,
                "client_accuracy": _spread(random, accuracy) if number else None,
                "train_loss": 2.3 * 0.96**number if number else None,
                "density": TARGET * (1 if number % 3 or not number else 0.998),
                "bytes_up": sum(task["bytes_up"] for task in tasks),
                "bytes_down": sum(task["bytes_down"] for task in tasks),
                "virtual_seconds": virtual,
                "wall_seconds": wall,
                "trained": len(done),
                "failed": len(
                    [t for t in tasks if t["status"] not in ("ok", "rejected", "surplus")]
                ),
                "rejected": sum(task["status"] == "rejected" for task in tasks),
                "energy_joules": 1.04 * sum(task["energy_joules"] for task in tasks),
            }
        )
    return rows


def _spread(random: np.random.Generator, accuracy: float) -> dict[str, float]:
    median = accuracy - 0.025 + random.normal(0, 0.012)
    values = {
        "mean": median - 0.02,
        "min": median - 0.31 + random.normal(0, 0.02),
        "p10": median - 0.14 + random.normal(0, 0.01),
        "median": median,
        "p90": median + 0.09,
        "max": median + 0.13,
    }
    return {name: min(1.0, max(0.0, value)) for name, value in values.items()}


def _summary(
    rows: list[dict[str, Any]], clients: list[dict[str, Any]], devices: list[tuple[Any, ...]]
) -> dict[str, Any]:
    last = rows[-1]
    totals = {
        key: sum(row[key] for row in rows) for key in ("bytes_up", "bytes_down", "energy_joules")
    }
    return {
        "preset": "cifar10-edge-fleet",
        "seed": 7,
        "rounds": last["round"],
        "dataset": "cifar10",
        "model": "resnet32",
        "method": "mest-em",
        "mutation": "server",
        "scheme": "block:4",
        "target_density": TARGET,
        "achieved_density": last["density"],
        "final_accuracy": last["accuracy"],
        "final_client_accuracy": last["client_accuracy"],
        **totals,
        "virtual_seconds": last["virtual_seconds"],
        "wall_seconds": last["wall_seconds"],
        "clients_trained": sum(row["trained"] for row in rows),
        "clients_failed": sum(row["failed"] for row in rows),
        "clients_rejected": sum(row["rejected"] for row in rows),
        "over_budget": sum("out of memory" in (task["reason"] or "") for task in clients),
        "tiers": [_tier(device) for device in devices],
        "layers": _layers(),
        "dense_bytes": DENSE_BYTES,
        "model_sha256": "4f9c" * 16,
        "versions": {"mest-fed": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0", "ray": "2.55.1"},
    }


def _tier(device: tuple[Any, ...]) -> dict[str, Any]:
    profile, title, budget, predicted, measured, density, micro_batch = device[:7]
    tight, watts = predicted > 0.9 * budget, device[8]
    return {
        "profile": profile,
        "title": title,
        "clients": 20,
        "budget_bytes": int(budget),
        "predicted_peak_bytes": int(predicted),
        "measured_peak_bytes": None if measured is None else int(measured),
        "density": density,
        "micro_batch": micro_batch,
        "watts": {"compute": watts, "radio": 0.6 * watts},
        "parts": {name: int(share * predicted) for name, share in PARTS.items()},
        "plan": (
            f"Train {density:.0%} of the weights in blocks of 4 with EM, "
            f"{micro_batch} images at a time"
            + (", recompute block outputs in the backward pass" if tight else "")
            + ", SGD with sparse momentum."
        ),
    }


def _layers() -> list[dict[str, Any]]:
    reason = "stem: the first convolution"
    layers = [{"name": "stem", "weights": 864, "density": 1.0, "reason": reason}]
    for stage, channels in enumerate((32, 64, 128)):
        for block in range(5):
            for half in (1, 2):
                entering = channels // 2 if stage and not block and half == 1 else channels
                weights = 9 * entering * channels
                density = min(0.9, 0.875 * TARGET * (128 / channels) ** 0.7 * (1.06 - 0.03 * block))
                name = f"stages.{stage}.{block}.conv{half}"
                layers.append({"name": name, "weights": weights, "density": density})
    return [*layers, {"name": "classifier", "weights": 1280, "density": 1.0}]


_CONFIG = """\
seed = 7

[data]
name = "cifar10"
partition = "dirichlet"
alpha = 0.3

[model]
name = "resnet32"
norm = "group"

[sparsity]
method = "mest-em"
scheme = "block:4"
density = 0.1
mutation = "server"

[fleet]
rounds = {rounds}
clients_per_round = {clients}
deadline = "15 min"
"""
