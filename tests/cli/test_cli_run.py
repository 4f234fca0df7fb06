"""``mest-fed run``: wrong input is one line with status 2, and leaves no folder behind."""

import csv
import gc
import io
import shutil
import sys
from pathlib import Path

import pytest

from mest_fed import cli
from mest_fed.cli.app import FAILED, INTERRUPTED, NOTHING_TRAINED

APPS = Path(__file__).parent.parent / "flower_apps"
COMPONENTS = """
[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
rounds = 1
nested.value = 2
"""
SERVER = """
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    print("nodes", len(list(grid.get_node_ids())))
"""
CLIENT = "from flwr.clientapp import ClientApp\napp = ClientApp()\n"


@pytest.fixture
def make_app(tmp_path_factory, request):
    """Return a function that writes an app; each has a package of its own name."""

    def make(project=COMPONENTS, server=SERVER, client=CLIENT):
        folder = tmp_path_factory.mktemp("app")
        package = f"package_{folder.name.replace('-', '_')}_{abs(hash(request.node.name))}"
        (folder / package).mkdir()
        (folder / package / "server_app.py").write_text(server)
        (folder / package / "client_app.py").write_text(client)
        if project is not None:
            (folder / "pyproject.toml").write_text(project.replace("{package}", package))
        return folder

    return make


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        (None, ["has no pyproject.toml; allowed: the folder of a Flower app"]),
        ("[tool", ["cannot read", "pyproject.toml"]),
        ("[project]\nname = 'x'", ["names no ServerApp", "[tool.flwr.app.components]"]),
        ("[tool.flwr.app]\ncomponents = 3", ["tool.flwr.app.components is not a table"]),
        ("[tool]\nflwr = 3", ["tool.flwr is not a table"]),
        (
            COMPONENTS.replace("clientapp", "client"),
            ["names no ClientApp", 'clientapp = "package.module:app"'],
        ),
        (
            COMPONENTS.replace("server_app:app", "server_app"),
            ["serverapp = ", "is not allowed", "package.module:attribute"],
        ),
        (COMPONENTS.replace('"{package}.server_app:app"', "7"), ["serverapp = 7"]),
        (COMPONENTS.replace("rounds = 1", "rounds = [1]"), ["[tool.flwr.app.config]", "rounds"]),
        (
            COMPONENTS.replace("server_app:app", "serverapp:app"),
            ["cannot load the ServerApp", "there is no such module in"],
        ),
        (
            COMPONENTS.replace("server_app:app", "server_app:application"),
            ["cannot load the ServerApp", "has no attribute 'application'"],
        ),
        (
            COMPONENTS.replace("client_app:app", "server_app:app"),
            ["cannot load the ClientApp", "it is a ServerApp, not a ClientApp"],
        ),
        (
            COMPONENTS + "[tool.flwr.federations]\ndefault = 'local'\n"
            "[tool.flwr.federations.local]\noptions.num-supernodes = 0\n",
            ["options.num-supernodes = 0 is not allowed; allowed: a whole number from 1"],
        ),
    ],
)
def test_a_wrong_project_is_one_line(project, expected, make_app, fails):
    line = fails("run", str(make_app(project)), "--workers", "0")
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import no_such_package", ["No module named 'no_such_package'", "pip install"]),
        ("x = 1\nraise ValueError('out of luck')", ["ValueError: out of luck", ".py:2"]),
        ("import sys\nsys.exit(3)", ["SystemExit: 3"]),
        ("def app(:", ["SyntaxError"]),
        ("app = 3", ["it is an int, not a"]),
    ],
)
@pytest.mark.parametrize("kind", ["server", "client"])
def test_an_app_that_cannot_be_imported_is_one_line(kind, code, expected, make_app, fails):
    line = fails("run", str(make_app(**{kind: code})), "--workers", "0")
    assert f"cannot load the {kind.title()}App" in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-c", "round=3"), ["--run-config round is not a key", "rounds, nested.value"]),
        (("-c", "rounds"), ["--run-config = 'rounds' is not allowed", "key=value"]),
        (("-c", "rounds=three"), ["--run-config 'rounds=three' is not allowed", "string"]),
        (("-c", "none.toml"), ["--run-config: no such file: none.toml"]),
        (("-c", "rounds=2", "-c", "more.toml"), ["a file stands alone"]),
        (("--fleet", "none.toml"), ["no such file: none.toml"]),
        (("--workers", "-1"), ["--workers = -1 is not allowed"]),
    ],
)
def test_wrong_options_are_one_line(options, expected, make_app, fails):
    line = fails("run", str(make_app()), "--workers", "0", *options)
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("fleet", "expected"),
    [
        ("[flet]\ndevices = 3", ["unknown key flet", "did you mean", "fleet"]),
        ("[fleet]\ndevices = 0", ["fleet.devices = 0 is not allowed"]),
        ("[fleet]\nmix = 'toaster:1'", ["toaster", "rpi-4"]),
        ("[behaviour]\ndropout = 1.5", ["behaviour.dropout = 1.5 is not allowed"]),
        ("[behaviour]\navailability = 'trace'\ntrace = 'no.csv'", ["no.csv"]),
        ("[behaviour]\nmemory_pressure = 0.1", ["behaviour.memory_pressure = 0.1", "work.memory"]),
        ("[work]\nmemory = 'lots'", ["work.memory = 'lots' is not allowed"]),
        ("[data]\nname = 'digits'", ["unknown key data", "run, fleet, behaviour, work"]),
    ],
)
def test_a_wrong_fleet_is_one_line(fleet, expected, make_app, fails, tmp_path_factory):
    file = tmp_path_factory.mktemp("fleet") / "fleet.toml"
    file.write_text(fleet)
    line = fails("run", str(make_app()), "--workers", "0", "--fleet", str(file))
    for text in expected:
        assert text in line


@pytest.mark.soak
@pytest.mark.ray
def test_a_client_that_no_worker_can_import_is_one_line(make_app, fails):
    line = fails("run", str(make_app(client="import no_such_package")), "--workers", "1")
    assert "cannot load the ClientApp" in line
    assert "No module named 'no_such_package'" in line
    gc.collect()  # what Ray left open is closed here, where that is no error


def test_apps_may_be_attributes_of_attributes_and_names_odd(make_app, run, tmp_path):
    folder = make_app(
        COMPONENTS.replace("client_app:app", "client_app:holder.app") + "[project]\nname='../x'\n",
        client=CLIENT + "class holder:\n    app = app\n",
    )
    assert run(str(folder), "--workers", "0")[0] == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


def test_a_folder_that_is_in_use_stays_as_it_is(make_app, fails, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    line = fails("run", str(make_app()), "--workers", "0", "--out", "out")
    assert "--out out is not empty; allowed: a new folder\n" in line


def test_a_folder_that_does_not_exist_is_one_line(fails):
    assert "nowhere is not a folder" in fails("run", "nowhere", "--workers", "0")


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Return a function that runs a command in an empty folder: (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", "run", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capfd.readouterr())

    return run


def test_a_server_that_raises_is_one_line_and_its_traceback_is_in_the_log(make_app, run, tmp_path):
    server = SERVER + "    raise KeyError('lr')\n"
    status, _, errors = run(str(make_app(server=server)), "--workers", "0", "--out", "out")
    assert status == FAILED
    assert errors.splitlines()[-1] == (
        "error: the ServerApp raised KeyError: 'lr'; the traceback is in out/run.log"
    )
    log = (tmp_path / "out" / "run.log").read_text()
    assert "raise KeyError('lr')" in log
    assert "nodes 10" in log
    assert not (tmp_path / "out" / "summary.json").exists()


def test_an_app_that_sends_nothing_has_a_report(make_app, run, tmp_path):
    status, output, errors = run(str(make_app()), "--workers", "0", "--out", "out")
    assert (status, "nodes 10\n" in errors) == (0, True)
    assert output.startswith("round\tok\tfailed\t")
    assert output.count("\n") == 1  # there was no round
    assert "No client was asked" in (tmp_path / "out" / "report.html").read_text()


def test_a_quiet_run_leaves_standard_output_to_the_server(make_app, run):
    status, output, errors = run(str(make_app()), "--workers", "0", "--out", "out", "--quiet")
    assert (status, output, errors) == (0, "nodes 10\n", "")


def test_a_run_in_which_every_client_failed_ends_with_status_3(make_app, run):
    server = SERVER.replace("import ServerApp", "import ServerApp\nfrom flwr.app import *")
    server += (
        "    ids = grid.get_node_ids()\n"
        "    messages = [Message(RecordDict(), each, 'train') for each in ids]\n"
        "    list(grid.send_and_receive(messages))\n"
    )
    client = CLIENT + "@app.train()\ndef train(message, context):\n    raise KeyError('img')\n"
    app = make_app(server=server, client=client)
    status, output, errors = run(str(app), "--workers", "0", "--out", "out")
    assert status == NOTHING_TRAINED
    assert errors.splitlines()[-1] == "no client gave a result (10 failed)"
    assert "10 failed: the client raised an error" in errors
    (row,) = csv.DictReader(io.StringIO(output), delimiter="\t")
    assert (row["ok"], row["failed"]) == ("0", "10")


def test_an_app_runs_with_devices_and_overrides_from_another_folder(run, tmp_path):
    shutil.copytree(APPS / "numpy_app", tmp_path / "numpy_app")
    (tmp_path / "fleet.toml").write_text("[fleet]\nmix = 'rpi-4:1'\n[run]\nseed = 3\n")
    options = ("--fleet", "fleet.toml", "-c", "rounds=1 step=0.1", "--workers", "0")
    status, output, errors = run("numpy_app", *options)
    assert status == 0
    assert "round 1: loss" in errors
    assert "round 2" not in errors
    assert "numpy-app: 1 round on 4 nodes" in errors
    assert "of virtual time (modelled)" in errors
    table = list(csv.DictReader(io.StringIO(output), delimiter="\t"))
    assert [row["round"] for row in table] == ["0", "1"]  # it asks for parameters first
    assert int(table[1]["ok"]) > 0
    config = (tmp_path / "runs" / "numpy-app" / "config.toml").read_text()
    assert "rounds = 1\nstep = 0.1\n" in config
    assert "seed = 3\n" in config
    monkey = ["mest-fed", "report", str(tmp_path / "runs" / "numpy-app")]
    page = tmp_path / "runs" / "numpy-app" / "report.html"
    first = page.read_bytes()
    page.unlink()
    sys.argv = monkey
    with pytest.raises(SystemExit):
        cli.main()
    assert page.read_bytes() == first


RESULTS = """
import math
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    for number in (1, 2):
        nodes = list(grid.get_node_ids())[:2]
        content = RecordDict({"n": MetricRecord({"number": number})})
        grid.send_and_receive(
            [Message(content, node, "train", group_id=str(number)) for node in nodes]
        )
"""
GIVES = """
import math
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    number = message.content["n"]["number"]
    return Message(RecordDict({"m": MetricRecord({"loss": LOSS})}), reply_to=message)
"""


def run_app(make_app, run, loss):
    folder = make_app(server=RESULTS, client=GIVES.replace("LOSS", loss))
    status, _, errors = run(str(folder), "--workers", "0", "--out", "out", "--quiet")
    return status, errors.splitlines()[-1] if errors else ""


def test_an_app_without_any_result_says_so_with_status_3(make_app, run):
    status, line = run_app(make_app, run, "1 / 0")
    assert (status, line) == (NOTHING_TRAINED, "no client gave a result (4 failed)")


@pytest.mark.parametrize("loss", ["math.nan", "-math.inf if number == 2 else 1.0"])
def test_metrics_that_are_not_finite_at_the_end_are_said_with_status_3(make_app, run, loss):
    status, line = run_app(make_app, run, loss)
    assert status == NOTHING_TRAINED
    count = 4 if loss == "math.nan" else 2
    left_out = f"metrics were not finite and are left out: train loss ({count})"
    assert line == f"the run diverged: at its end, {left_out}"
    assert "The run diverged: at its end" in Path("out/report.html").read_text()


def test_metrics_that_became_finite_again_are_said(make_app, run):
    status, line = run_app(make_app, run, "math.inf if number == 1 else 1.0")
    assert (status, line) == (0, "metrics were not finite and are left out: train loss (2)")


def test_finite_metrics_are_not_spoken_of(make_app, run):
    assert run_app(make_app, run, "1.0") == (0, "")


def test_an_app_s_run_that_did_not_end_has_a_report(make_app, run, monkeypatch):
    folder = make_app(
        server=RESULTS + "    raise KeyError('lr')\n", client=GIVES.replace("LOSS", "1")
    )
    assert run(str(folder), "--workers", "0", "--out", "out", "--quiet")[0] == FAILED
    with (Path("out") / "clients.jsonl").open("a") as file:
        file.write('{"round": 3, "ty')
    monkeypatch.setattr(sys, "argv", ["mest-fed", "report", "out"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    page = Path("out/report.html").read_text()
    assert "The run did not end: it came to round 2." in page


@pytest.mark.parametrize(("when", "kept"), [("before", False), ("after", True)])
def test_ctrl_c_keeps_what_clients_gave(make_app, run, when, kept):
    stop = "    raise KeyboardInterrupt\n"
    server = SERVER + stop if when == "before" else RESULTS + stop
    folder = make_app(server=server, client=GIVES.replace("LOSS", "1"))
    status, _, errors = run(str(folder), "--workers", "0", "--out", "out", "--quiet")
    assert status == INTERRUPTED
    assert Path("out").exists() == kept
    said = "what the run has logged so far is in out" if kept else "nothing was kept"
    assert said in errors
