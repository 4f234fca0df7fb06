"""Each command of the README and the guides: its options exist, and it runs as it is written.

A command is run by the soak test unless ``NOT_RUN`` says why it is not; every one is parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
import typer

from mest_fed.cli.app import app, register_commands
from mest_fed.link.node.command import parser as node_parser

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Commands that are parsed and not run, by how they begin, and why.
NOT_RUN = {
    "make simulate": "sets an environment up and compiles: minutes, and the network",
    "make test": "is the suite itself",
    "pip install": "compiles and needs the network",
    "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1": "is for flwr run alone",
    "export NO_PROXY=": "is for Flower's server alone",
    "flower-superlink": "is a server that stays; tests/simulation start it",
    "flwr supernode register": "needs that server; tests/simulation run it",
    "flwr run": "starts a SuperLink that stays; tests/simulation/test_flwr_run.py runs it",
    "mest-fed client": "waits for a SuperLink; tests/simulation runs devices over loopback",
    "mest-fed calibrate --serve": "is a server that stays; tests/devices run it",
    "mest-fed calibrate --out my-board.toml --server": "needs that server; tests/devices run it",
    "mest-fed calibrate --compare": "needs the run of real devices; tests/simulation run it",
    "mest-fed plan --device my-board.toml": "needs a board's file; tests/cli run it",
    "mest-fed devices my-board.toml": "needs a board's file; tests/cli run it",
    "mest-fed simulate --preset quickstart --set fleet.mix=my-board.toml": "needs a board's file",
    "mest-fed server": "waits for nodes; tests/link runs both",
    "mest-fed node": "waits for a server; tests/link runs both",
    "mest-fed certs refuse": "needs a device that has a certificate; tests/cli run it",
    "mest-fed compare shares/simulated": "needs the run of nodes; tests/link runs both",
    "mest-fed simulate --preset million": "a million devices: minutes, and 1 GB of memory",
}
if any(find_spec(name) is None for name in ("wandb", "mlflow", "tensorboard")):
    NOT_RUN["mest-fed simulate --log"] = "needs extras that are not installed here"
#: What is added to commands that train, so that each takes seconds. With 0 workers a run has the
#: same result as with Ray's.
SMALL = (
    "--workers 0 --set run.rounds=2 --set fleet.devices=6 --set server.clients_per_round=2 "
    "--set behaviour.availability=always "
)
#: One kind of device, instead of the preset's.
ONE_KIND = SMALL + "--set fleet.mix=laptop:1"
#: Where a command has a budget of its own.
OWN_BUDGET = SMALL + "--set fleet.mix=rpi-zero-2w:1"


def commands(page):
    """Return the commands of a page's blocks, continued lines joined, comments left out."""
    found = []
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind in ("", "sh", "bash"):
            lines = text.replace("\\\n", " ").splitlines()
            words = (shlex.split(line, comments=True) for line in lines)
            found += [shlex.join(each).replace(" '>' ", " > ") for each in words]
    return [each for each in found if each]


def why_not_run(command):
    """Return why a command is not run; None if it is."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


EVERY = [(page, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def clis():
    """Return the commands of both command lines, as click knows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's own use of typer
        from flwr.cli.app import app as flower
    if not app.registered_commands:
        register_commands()
    return {"mest-fed": typer.main.get_command(app), "flwr": typer.main.get_command(flower)}


def check_click(group, arguments):
    """Parse a command's arguments; click raises where an option is unknown or a value is wrong."""
    with click.Context(group, info_name=group.name) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        if isinstance(command, click.Group):
            check_click(command, rest)
        else:
            command.make_context(name, rest, parent=context)


def check_superlink(*arguments):
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink

    _parse_args_run_superlink().parse_args(arguments)


def check_make(target):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", text, re.MULTILINE), target


def check_pip(verb, *what):
    assert verb == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    if what == ("--no-deps", "mest_fed-*.whl"):
        return
    if len(what) > 1:  # what a node needs beside the wheel, which has no torch
        assert {re.sub(r"^numpy>.*", "numpy", each) for each in extras["edge"]} == set(what)
        return
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", *what)
    assert match, what
    named = set(filter(None, (match[1] or "").split(",")))
    assert named <= extras.keys()


@pytest.mark.parametrize(("page", "command"), EVERY, ids=lambda it: getattr(it, "name", it))
def test_the_options_of_a_command_exist(page, command, clis):
    words = shlex.split(command)
    program, *arguments = words[: words.index(">")] if ">" in words else words
    if words[:2] == ["mest-fed", "node"]:
        node_parser().parse_args(words[2:])
    elif program in clis:
        check_click(clis[program], arguments)
    elif program == "export":
        assert re.fullmatch(r"[A-Z_]+=[\w.,:]+", *arguments)
    else:
        checks = {"make": check_make, "pip": check_pip, "flower-superlink": check_superlink}
        checks[program](*arguments)


def test_each_exception_is_of_a_command_that_is_there():
    assert [
        start for start in NOT_RUN if not any(command.startswith(start) for _, command in EVERY)
    ] == []


def write_stand_ins(page, folder):
    """Write what the commands of a page name: the page's own files, then stand-ins for the rest."""
    own = ROOT / "docs" / "models.md", page  # the README's my_nets.py is that of docs/models.md
    for kind, text in [block for each in own for block in BLOCK.findall(each.read_text())]:
        name = text.partition("\n")[0].removeprefix("# ")
        if kind == "python" and re.fullmatch(r"\w+\.py", name):
            (folder / name).write_text(text)
        if kind == "toml" and "[work]" in text:
            (folder / "fleet.toml").write_text(text)
    if not (folder / "fleet.toml").exists():
        shutil.copy(ROOT / "examples" / "flower_app" / "fleet.toml", folder)
    shutil.copytree(ROOT / "simulations", folder / "simulations")
    for name in ("my-app", "my-flower-app"):
        shutil.copytree(ROOT / "examples" / "flower_app", folder / name)
    (folder / "long.toml").write_text("num-server-rounds = 2\n")
    shutil.copy(ROOT / "simulations" / "presets" / "quickstart.toml", folder / "my.toml")
    draw = np.random.default_rng(1).integers
    rows = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in draw(0, 99, (300, 2))]
    (folder / "my.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    write_images(folder / "FOLDER", draw)


def write_images(folder, draw):
    """Write a data set of the form that cifar10 has."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def encoded():
        file = io.BytesIO()
        Image.fromarray(draw(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue()}

    folder.mkdir()
    for part, count in (("train", 200), ("test", 40)):
        columns = {
            "img": [encoded() for _ in range(count)],
            "label": [i % 10 for i in range(count)],
        }
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")


def scaled(command):
    """Return a command as it is run: one that trains is small."""
    if command.startswith("mest-fed simulate") and "--resume" not in command:
        return f"{command} {OWN_BUDGET if 'fleet.budgets' in command else ONE_KIND}"
    if command.startswith(("mest-fed simulate", "mest-fed study")):
        return f"{command} --workers 0"
    if command.startswith("mest-fed run") and "--workers" not in command:
        return f"{command} --workers 0"
    return command


def kill_before_its_end(command, folder):
    """Leave a run that a command goes on with as one that was killed before its summary."""
    words = shlex.split(command)
    if "--resume" in words and "--rounds" not in words and "--out" in words:
        (folder / words[words.index("--out") + 1] / "summary.json").unlink()


#: Runs that the README's commands name without making them, and the tutorials' page before.
EARLIER = {"README.md": ("runs/a", "runs/b"), "fleet.md": ("runs/quickstart",)}


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda it: it.name)
def test_the_commands_of_a_page_run(page, tmp_path):
    write_stand_ins(page, tmp_path)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": "local",
        "WANDB_MODE": "offline",
    }
    earlier = [f"mest-fed simulate --out {run}" for run in EARLIER.get(page.name, ())]
    failed = {}
    for command in [*earlier, *(each for each in commands(page) if why_not_run(each) is None)]:
        kill_before_its_end(command, tmp_path)
        done = subprocess.run(
            ["bash", "-c", scaled(command)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            failed[command] = f"status {done.returncode}: {done.stderr[-600:]}"
    assert not failed, "\n".join(f"{command}: {why}" for command, why in failed.items())
