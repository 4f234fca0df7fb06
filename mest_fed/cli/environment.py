"""The environment of a device's processes."""

import os
import sys
from pathlib import Path

from mest_fed.memory.meter import ALLOCATOR_ENVIRONMENT


def node_environment() -> dict[str, str]:
    """Return the environment of the node; Flower finds its own commands by the PATH."""
    scripts = Path(sys.executable).parent
    path = f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0"}
    return quiet | os.environ | ALLOCATOR_ENVIRONMENT | {"PATH": path}
