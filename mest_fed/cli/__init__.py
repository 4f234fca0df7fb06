"""The command line: thin, and the only place where all floors meet."""

import sys
from importlib.util import find_spec

from mest_fed.cli.node import NAME, become_node

#: What the commands' own code imports. The library alone does not need it; Flower brings it.
_PLUMBING = ("typer", "click", "rich")
#: Commands that have another form for where the library alone is: it needs NumPy and no extra.
_LEAN = {"calibrate": "python -m mest_fed.devices.calibration"}
#: The shell's status of what SIGINT ends; :mod:`mest_fed.cli.app` has it, too, once imported.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line, or say in one line what to install where the library alone is."""
    if sys.argv[1:2] == [NAME]:
        become_node(sys.argv[2:])
    missing = [module for module in _PLUMBING if find_spec(module) is None]
    if missing:
        sys.exit(_without(missing[0], _LEAN.get("".join(sys.argv[1:2]))))
    try:
        from mest_fed.cli.app import main as run_command
        from mest_fed.cli.app import register_commands

        register_commands()
    except KeyboardInterrupt:
        print("interrupted before the command began; nothing was written", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    run_command()


def _without(module: str, lean: str | None) -> int:
    """Say what the commands need, or what does the same; return the exit status of wrong input."""
    if lean is not None:
        print(
            f"error: {module} is not installed; run: {lean}, which measures with NumPy alone",
            file=sys.stderr,
        )
        return 2
    print(
        f"error: {module} is not installed, the library alone is: mest-fed's commands need an "
        "extra; run: pip install 'mest-fed[simulation]' (all commands), or "
        "'mest-fed[client,data]' (a device)",
        file=sys.stderr,
    )
    return 2


__all__ = ["main"]
