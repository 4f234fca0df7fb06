"""Runs Flower apps from their folders on Flower's own simulation engine, and writes how they ended.

    python flower_app_engine.py FILE.json APP_DIR...

An app's files are used as they are. Its ServerApp gets Flower's grid in one order (:mod:`ordered`)
and finds the generators that it draws from seeded as ``mest-fed run`` seeds them.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from flwr.app import Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_dir
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.fleet.vce import vce_api
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType
from ordered import Ordered

from mest_fed.run_rows.row import as_row
from mest_fed.server.flower_internals import recorded_results
from mest_fed.simulation.flower_app.project import read_project
from mest_fed.simulation.flower_app.record import metrics_of
from mest_fed.simulation.flower_app.run import seed_generators
from mest_fed.simulation.flower_app.summary import result_row, state_digests

partitions: dict[int, int] = {}
register = vce_api._register_nodes


def registered(*arguments, **keywords):
    """Remember which node holds which partition."""
    partitions.update(register(*arguments, **keywords))
    return dict(partitions)


def play(folder: Path, number: int) -> dict[str, object]:
    """Run an app; return what its strategies and its ServerApp ended with."""
    project = read_project(folder)
    found: dict[str, object] = {}
    outer = ServerApp()

    @outer.main()
    def serve(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < project.num_supernodes:
            time.sleep(0.1)
        nodes = sorted(partitions, key=lambda node: partitions[node])
        # Ray, which draws from the server's generators as it starts, has started when it answers.
        ready = [Message(RecordDict(), nodes[0], "query.ready")]
        assert next(iter(grid.send_and_receive(ready))).has_error()
        inner = load_app(project.serverapp, ImportError, folder)
        seed_generators(1)
        with recorded_results() as results:
            inner(Ordered(grid, nodes), context)
        found["results"] = [as_row(result_row(*result)) for result in results]
        found["server_state"] = metrics_of(context.state)
        found["server_arrays"] = state_digests(context.state)

    run = Run.create_empty(run_id=number)
    run.primary_task_id, run.federation_id = number, NOOP_FEDERATION_ID
    # As for an app that was installed: its clients find their run configuration by these.
    run.fab_id, run.fab_version, run.fab_hash = "mest-fed/app", "1.0.0", "0" * 8
    TaskIdentity.task_id, TaskIdentity.run_id = number, number
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    config = get_fused_config_from_dir(folder, {})
    _run_simulation(
        num_supernodes=project.num_supernodes,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        server_app=outer,
        client_app_attr=project.clientapp,
        server_app_context=Context(number, 0, {}, RecordDict(), config),
        app_dir=str(folder),
        run=run,
        is_app=True,
        backend_config={
            "init_args": {"num_cpus": 2, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return found


def main(file: Path, folders: list[Path]) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    vce_api._register_nodes = registered
    found = {}
    for number, folder in enumerate(folders, start=1):
        partitions.clear()
        found[folder.name] = play(folder, number)
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder).absolute() for folder in sys.argv[2:]])
