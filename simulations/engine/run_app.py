"""Running a Flower ServerApp on a grid, as Flower's own runtime would."""

from collections.abc import Mapping

from flwr.app import Context, RecordDict, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from simulations.engine.flower_internals import claim_identity


def run_server_app(
    server_app: ServerApp,
    grid: Grid,
    *,
    run_config: Mapping[str, UserConfigValue] | None = None,
) -> Context:
    """Run a ServerApp to its end and return its context.

    Parameters
    ----------
    server_app : ServerApp
        Any Flower ServerApp.
    grid : Grid
        The fleet.
    run_config : mapping of str to scalar, optional
        What the app finds in ``context.run_config``.
    """
    claim_identity(grid.run.run_id)
    context = Context(
        run_id=grid.run.run_id,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )
    server_app(grid, context)
    return context
