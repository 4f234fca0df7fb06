"""The kernels of a run: chosen once, before any worker starts; the run folder keeps them."""

from clients.kernels import kernel_table
from mest_fed.kernels.table import Table
from mest_fed.task import Task
from server.run_folder import RunFolder
from simulations.engine.isolation import one_thread
from simulations.fleet import Fleet


def run_kernels(task: Task, fleet: Fleet, folder: RunFolder, *, resume: bool) -> Table:
    """Choose the kernels of a run, or take those of a run that is resumed.

    Implementations differ in the last bits, so that a resumed run must have its own again, and
    all workers the same.

    Raises
    ------
    InputError
        If the folder's table is unusable or missing.
    """
    if resume:
        return folder.read_kernels()
    tiers = sorted(fleet.tiers, key=lambda tier: -tier.clients)
    with one_thread():  # as clients compute
        table = kernel_table(task, [tier.plan for tier in tiers])
    return table
