"""Every example runs by the command that examples/README.md gives, and does what it says there."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mest_fed

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What is no example; Python keeps what it compiles beside a script.
OTHERS = ("README.md", "__pycache__")
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
#: Name -> (link, command), as the table has them.
TABLE = {
    name: (link, command)
    for name, link, command in re.findall(
        r"^\| \[(\w+)\]\(([^)]+)\) \|.*\| `(.+)` \|$", README, re.MULTILINE
    )
}


@pytest.fixture
def run(tmp_path):
    """Return a function that types an example's command beside a copy of the examples."""
    ignored = shutil.ignore_patterns("__pycache__", "activity.csv", "executed.ipynb")
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=ignored)

    def run(name):
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(tmp_path / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        }
        done = subprocess.run(
            TABLE[name][1],
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def summary_of(folder):
    assert (folder / "report.html").is_file()
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def sources():
    """Yield the name and the Python source of each file and notebook cell."""
    for file in EXAMPLES.rglob("*.py"):
        yield str(file.relative_to(EXAMPLES)), file.read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.ipynb"):
        for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                yield f"{file.name}, cell {number}", "".join(cell["source"])


def test_the_table_has_every_example():
    there = {path.stem for path in EXAMPLES.iterdir() if path.name not in OTHERS}
    assert set(TABLE) == there - {"executed"}
    for link, _ in TABLE.values():
        assert (EXAMPLES / link).is_file()


def test_only_public_names_are_imported():
    imported = [
        (where, node.module, alias.name)
        for where, source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mest_fed")
        for alias in node.names
    ]
    assert len(imported) > 10
    for where, module, name in imported:
        assert module == "mest_fed", where
        assert name in mest_fed.__all__, where


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads((EXAMPLES / "budget.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.soak
def test_own_model(run, tmp_path):
    run("own_model")
    summary = summary_of(tmp_path / "runs/own_model")
    assert summary["model"].endswith("mixer.py:build")
    assert summary["achieved_density"] == pytest.approx(0.3, abs=0.01)
    assert summary["final_accuracy"] > 0.5


@pytest.mark.soak
def test_own_data_give_each_person_a_device(run, tmp_path):
    run("own_data")
    summary = summary_of(tmp_path / "runs/own_data")
    assert sum(tier["clients"] for tier in summary["tiers"]) == 10
    assert summary["final_accuracy"] > 0.5


@pytest.mark.soak
def test_own_method(run, tmp_path):
    run("own_method")
    summary = summary_of(tmp_path / "runs/own_method")
    assert summary["method"].endswith("taylor.py:Taylor")
    assert summary["achieved_density"] == pytest.approx(0.2, abs=0.01)
    assert summary["final_accuracy"] > 0.5


@pytest.mark.soak
def test_own_selector_has_each_device_train_equally_often(run, tmp_path):
    run("own_selector")
    summary_of(tmp_path / "runs/own_selector")
    lines = (tmp_path / "runs/own_selector/clients.jsonl").read_text(encoding="utf-8").splitlines()
    trained = Counter(json.loads(line)["partition"] for line in lines)
    assert trained == dict.fromkeys(range(12), 2)


@pytest.mark.soak
def test_a_flower_app_meets_its_devices(run, tmp_path):
    run("flower_app")
    summary = summary_of(tmp_path / "runs/flower_app")
    assert summary["app"] == "digits-app"
    assert {"ok", "away", "late"} <= {status for status, count in summary["tasks"].items() if count}
    assert summary["virtual_seconds"] > 0
    assert summary["energy_joules"] > 0
    *_, last = summary["results"][0]["metrics"]["evaluate"].values()
    assert last["eval_acc"] > 0.5


@pytest.mark.soak
def test_central_training(run):
    printed = run("central")
    (accuracy,) = re.findall(r"^accuracy ([\d.]+)%$", printed, re.MULTILINE)
    assert float(accuracy) > 80
    assert printed.count(", sparse") == 4


@pytest.mark.soak
def test_the_notebook_ends_with_a_figure(run, tmp_path):
    run("budget")
    cells = json.loads((tmp_path / "examples/executed.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [each for cell in cells for each in cell.get("outputs", ())]
    assert "error" not in {each["output_type"] for each in outputs}
    assert "image/png" in outputs[-1]["data"]
