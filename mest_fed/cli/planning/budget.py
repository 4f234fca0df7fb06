"""The budget of a plan: given, what a limit leaves, or a device's own."""

from dataclasses import dataclass

from rich.console import Console

from mest_fed.cli.baseline import measure_client_app
from mest_fed.cli.environment import node_environment
from mest_fed.cli.extras import needs
from mest_fed.devices import DeviceProfile
from mest_fed.errors import InputError, not_allowed
from mest_fed.units import format_bytes, parse_bytes


@dataclass(frozen=True)
class Budget:
    """Bytes that training may add to a process, and where the number comes from.

    Parameters
    ----------
    bytes : int
        The number.
    origin : str
        A sentence for people; empty where they gave the number themselves.
    """

    bytes: int
    origin: str = ""


def read_budget(budget: str | None, limit: str | None, profile: DeviceProfile | None) -> Budget:
    """Find the budget. For a limit this measures a client process, which takes seconds.

    Raises
    ------
    InputError
        If there is none or more than one, or the limit is too small.
    """
    if budget is not None and limit is not None:
        raise InputError("--budget and --limit exclude each other; allowed: one of them")
    if budget is not None:
        return Budget(parse_bytes(budget, "--budget"))
    if limit is not None:
        return _left_by(parse_bytes(limit, "--limit"))
    if profile is not None:
        origin = f"The budget of {format_bytes(profile.budget_bytes)} is {profile.name}'s own."
        return Budget(profile.budget_bytes, origin)
    raise InputError(
        "plan needs a budget; allowed: --budget BYTES, --limit BYTES, or the budget that "
        "--device NAME has"
    )


def _left_by(limit: int) -> Budget:
    """Return what a limit leaves beside a client process that has not begun to train."""
    needs("client", "flwr", "pydantic")
    with Console(stderr=True).status("measuring a client process before it trains (seconds) ..."):
        taken = measure_client_app(node_environment()).resident
    if limit <= taken:
        allowed = f"more than {format_bytes(taken)}, which a client process takes before it trains"
        raise not_allowed("--limit", format_bytes(limit), f"{allowed} (measured)")
    return Budget(
        limit - taken,
        f"Of the limit of {format_bytes(limit)}, a client process takes {format_bytes(taken)} "
        f"before it trains (measured on this machine): {format_bytes(limit - taken)} are left.",
    )
