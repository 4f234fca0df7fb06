"""Studies for tests: files as text, and rows without runs."""

import tomllib

from mest_fed.simulation.study.study_file import parse_study

#: What every small study of the tests shares.
SMALL = """
[settings]
run.rounds = 2
run.checkpoint_every = 1
model.width = 0.25
training.device = "cpu"
server.clients_per_round = 2
server.evaluate_clients_every = 0
fleet.devices = 6
fleet.mix = "rpi-4:1"
fleet.budgets = ""
behaviour.availability = "always"
"""


def study_of(text, name="small", folder=None):
    """Return the study that a text says."""
    return parse_study(name, tomllib.loads(text), text, f"{name}.toml", folder)


def row_of(study, labels, **values):
    """Return a row of results with the values given, the axes by their names."""
    del study
    return {
        "cell": ",".join(f"{name}={label}" for name, label in labels.items()),
        **labels,
        "status": "done",
        "reason": "",
        "metric": "accuracy",
        "higher_is_better": True,
        "share": True,
        "final": None,
        "best": None,
        "peak_bytes": 1000,
        "traffic_bytes": 2000,
        "virtual_seconds": 3.0,
        "energy_joules": 4.0,
        "density_reached": 0.1,
        "model_sha256": "0" * 64,
        **values,
    }
