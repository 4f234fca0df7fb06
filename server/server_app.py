"""Flower's way to the server: ``[tool.flwr.app.components]`` names it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flwr.serverapp import Grid

from mest_fed.server.app import build_server_app
from mest_fed.task import Task


def join_link(task: Task, grid: Grid) -> AbstractContextManager[Grid]:
    """Join Flower's nodes with those of an edge link, if the configuration asks for one."""
    if not task.config.deployment.link:
        return nullcontext(grid)
    from mest_fed.link.server.opening import joined_with_link

    return joined_with_link(task, grid)


app = build_server_app(bundle=Path(__file__).absolute().parents[1], join=join_link)
