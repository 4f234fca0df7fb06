"""The environment of a device's processes."""

import os
import sys
from pathlib import Path

from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT

#: Hosts that no proxy is asked for.
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def node_environment() -> dict[str, str]:
    """Return the environment of the node; Flower finds its own commands by the PATH.

    Each ClientApp plays this device alone (``mest_fed/client/isolation.py``).
    """
    scripts = Path(sys.executable).parent
    path = f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0"}
    ours = {"PATH": path, "MEST_FED_DEVICE": "1"}
    for name in ("NO_PROXY", "no_proxy"):  # its processes speak HTTP with each other
        ours[name] = ",".join(filter(None, (os.environ.get(name), *LOOPBACK)))
    return quiet | os.environ | ALLOCATOR_ENVIRONMENT | ours
