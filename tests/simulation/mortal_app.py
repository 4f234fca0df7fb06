"""A ClientApp whose module ends the process that imports it, as often as ``MEST_DEATHS`` says.

Each import leaves a file in the folder ``MEST_IMPORTS``. ``MEST_DEATHS`` is a number of kills, or
``exit``.
"""

import os
import signal
import sys
import tempfile

import grid_apps

if "MEST_IMPORTS" in os.environ:
    tempfile.mkstemp(dir=os.environ["MEST_IMPORTS"])
    deaths = os.environ["MEST_DEATHS"]
    if deaths == "exit":
        sys.exit("no license found")
    if len(os.listdir(os.environ["MEST_IMPORTS"])) <= int(deaths):
        os.kill(os.getpid(), signal.SIGKILL)

app = grid_apps.app
