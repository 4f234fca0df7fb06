"""``mest-fed plan``: budgets and where they come from, costs, other plans, and the picture."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args

from mest_fed import cli
from mest_fed.catalogue import MODELS
from mest_fed.cli.baseline import Baseline, ProcessMemory
from mest_fed.cli.planning import picture
from mest_fed.cli.planning.text import _time
from mest_fed.client.capability import budget_of
from mest_fed.config import RunConfig, to_flat
from mest_fed.devices import load_profile, torch_step_work, train_seconds
from mest_fed.memory import read_plan
from mest_fed.memory.knobs import cost_order
from mest_fed.nn import Reason, Sparsity, build_model
from mest_fed.rng import torch_generator
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.settings import resolve
from mest_fed.simulation.simulate import open_run
from mest_fed.system.limits import MemoryLimit
from mest_fed.task import Task
from mest_fed.units import format_bytes

MB = 10**6

SMALL = ("plan", "--model", "resnet8", "--width", "0.5", "--batch", "16")
#: A budget that takes several knobs, and one that takes none.
TIGHT, LARGE = ("--budget", "4200kB"), ("--budget", "1GB")
BY_TORCH = ("--set", "training.engine=torch")


@pytest.fixture
def plans(says):
    """Return a function that plans for the small model and returns the JSON."""
    return lambda *arguments: json.loads(says(*SMALL, *arguments, "--json"))


def shape_of(table):
    names = (
        "density",
        "micro_batch",
        "momentum",
        "recompute",
        "saved",
        "release_gradients",
        "frozen",
    )
    return {name: table[name] for name in names}


@pytest.mark.soak
def test_what_fits_as_wished(says, plans):
    text = says(*SMALL, *LARGE)
    for part in ("activations", "values", "gradients", "predicted peak", "modelled"):
        assert part in text
    assert "Trains 10.0% of the sparse weights in batches of 16 taken 16 at a time" in text
    assert "the plan gives nothing up" in text
    assert "projection shortcut" in text
    plan = plans(*LARGE)
    reasons = {row["name"]: row["reason"] for row in plan["layers"]}
    assert reasons["stage2.0.conv1"] is None
    assert reasons["conv1"] == Reason.STEM
    assert plan["runners_up"] == []
    assert (plan["device"], plan["step_seconds"], plan["step_relative"]) == (None, None, 1.0)
    assert "frontier" not in plan


def test_a_plan_within_a_tight_budget(plans):
    plan = plans(*TIGHT)
    assert plan["predicted_peak_bytes"] == sum(plan["parts"].values()) <= plan["budget_bytes"]
    assert plan["budget_bytes"] == 4_200_000
    assert plan["runners_up"]
    for other in plan["runners_up"]:
        assert other["predicted_peak_bytes"] <= 4_200_000
        assert shape_of(other) != shape_of(plan)
    for table in (plan, *plan["runners_up"]):
        assert read_plan(json.dumps(table)).as_table().items() <= table.items()


@pytest.mark.soak
def test_a_runner_up_is_what_its_preference_gives(plans):
    first, *_ = plans(*TIGHT)["runners_up"]
    order = [*(name for name in cost_order() if name != "micro_batch"), "micro_batch"]
    assert shape_of(plans(*TIGHT, "--prefer", ", ".join(order))) == shape_of(first)


@pytest.mark.soak
def test_a_device_has_a_budget_and_a_speed(plans):
    profile = load_profile("rpi-4")
    alone = plans("--device", "rpi-4", *BY_TORCH)
    given = plans("--device", "rpi-4", *LARGE, *BY_TORCH)
    assert alone["budget_bytes"] == profile.budget_bytes
    assert given["budget_bytes"] == 1_000_000_000
    options = {"generator": torch_generator(0, "test"), "norm": "group", "width": 0.5}
    model = build_model("resnet8", (3, 32, 32), 10, **options, sparsity=Sparsity())
    step = torch_step_work(model, (3, 32, 32))
    seconds = train_seconds(profile, step.total(examples=16, groups=1, steps=1), "block")
    assert alone["step_seconds"] == given["step_seconds"] == pytest.approx(seconds, abs=1e-6)
    assert alone["device"] == "rpi-4"


@pytest.mark.soak
def test_recomputation_takes_time(plans):
    order = "recompute, release_gradients, micro_batch, saved, density, momentum, frozen"
    device = ("--device", "rpi-zero-2w", *BY_TORCH)
    plan = plans("--batch", "64", "--budget", "17MB", "--prefer", order, *device)
    assert (plan["recompute"], plan["density"]) == ("segments", 0.1)
    # A third more, less for what is in no segment, more for the stem, whose input has no gradient.
    assert 1.2 < plan["step_relative"] < 3 / 2


def test_the_step_time_in_words(says):
    text = says(*SMALL, *LARGE, "--device", "rpi-zero-2w")
    assert "on Raspberry Pi Zero 2 W (modelled), no longer than it would" in text


@pytest.mark.soak
def test_small_micro_batches_cost_time_by_torch(plans):
    def relative(micro_batch):
        order = "micro_batch, release_gradients, saved, density, momentum, frozen, recompute"
        budget = f"--budget={micro_batch}MB"
        return plans("--batch", "64", budget, "--prefer", order, *BY_TORCH)["step_relative"]

    few, many = relative(8), relative(30)
    assert few > many >= 1


def test_a_plan_that_takes_longer_says_so():
    def said(*seconds):
        times = iter(seconds)
        clock = SimpleNamespace(seconds=lambda shape: next(times))
        shape, profile = SimpleNamespace(batch=16), SimpleNamespace(title="a board")
        plan = SimpleNamespace(shape=shape)
        return _time(SimpleNamespace(profile=profile, plan=plan, clock=clock, wished=shape))

    assert said(0.5, 0.5).endswith("(modelled), no longer than it would with nothing given up.")
    assert said(0.5, 0.25).endswith("; with nothing given up it would take 250 ms.")


@pytest.fixture
def measured(monkeypatch):
    """Have a client take 200 MB before it trains, and 100 MB beside it."""
    baseline = Baseline(ProcessMemory(200 * MB, 0, 0), {"SuperNode": 60 * MB, "SuperExec": 40 * MB})
    for place in ("cli.planning.request", "cli.client"):
        monkeypatch.setattr(f"mest_fed.{place}.measure_baseline", lambda _: baseline)
    monkeypatch.setattr("mest_fed.cli.planning.request.kind_of_limit", lambda: "cgroup v2")
    return baseline


@pytest.mark.soak
def test_a_limit_of_the_whole_client(says, plans, fails, measured):
    assert plans("--memory-limit", "400MB")["budget_bytes"] == 80 * MB
    assert plans("--memory-limit", "400MB", "--margin", "0")["budget_bytes"] == 100 * MB
    margin = ("--set", "memory.margin=0.1")
    assert plans("--memory-limit", "400MB", *margin)["budget_bytes"] == 60 * MB
    said = " ".join(says(*SMALL, "--memory-limit", "400MB").split())
    assert "5% stay free and the client's processes take 300 MB before training (measured" in said
    line = fails(*SMALL, "--memory-limit", "310MB")
    assert "--memory-limit = '310 MB' is not allowed; allowed: at least 3" in line
    assert "300 MB are taken before training (measured), the smallest plan needs" in line


def test_each_process_by_itself_where_a_limit_bounds_them_so(plans, measured, monkeypatch):
    monkeypatch.setattr("mest_fed.cli.planning.request.kind_of_limit", lambda: "RLIMIT_AS")
    assert plans("--memory-limit", "400MB")["budget_bytes"] == 180 * MB


def test_the_earlier_name_of_the_limit(monkeypatch, capsys, measured):
    monkeypatch.setattr(sys, "argv", ["mest-fed", *SMALL, "--limit", "400MB", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "--limit is now called --memory-limit\n")
    assert json.loads(out)["budget_bytes"] == 80 * MB


@pytest.mark.soak
@pytest.mark.parametrize("margin", [(), ("--margin", "0.2")])
def test_a_plan_promises_what_a_client_gives(plans, measured, monkeypatch, capsys, margin):
    options = ("--memory-limit", "400MB", *margin)
    promised = plans(*options)["budget_bytes"]
    # What mest-fed client says as it starts, and hands to its ClientApp.
    started = []
    held = MemoryLimit("cgroup v2", 400 * MB, "counts.", None, lambda: None)
    monkeypatch.setattr("mest_fed.cli.client.limit_memory", lambda *_, **__: held)
    monkeypatch.setattr("mest_fed.cli.node_memory.limit_of_process", lambda: None)
    monkeypatch.setattr("mest_fed.cli.client.ask", lambda *_: None)
    monkeypatch.setattr("mest_fed.cli.client.wait_for_superlink", lambda *_: None)

    def start(job, _):
        started.extend(job.command)
        raise SystemExit(0)

    monkeypatch.setattr("mest_fed.cli.client.become_supervisor", start)
    node = ("--superlink", "127.0.0.1:8000", "--insecure", "--partition", "0", "--device", "rpi-4")
    monkeypatch.setattr(sys, "argv", ["mest-fed", "client", *node, *options])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"budget: up to about {format_bytes(promised)} for training" in capsys.readouterr().out
    # What the ClientApp works out when the processes take as much as was measured before.
    monkeypatch.setattr("mest_fed.client.capability.usage", lambda: measured.together)
    monkeypatch.setattr("mest_fed.client.capability.limit_of_process", lambda: None)
    told = parse_config_args([started[started.index("--node-config") + 1]])
    context = Context(1, 1, told, RecordDict(), to_flat(RunConfig()))
    assert budget_of(Task(RunConfig()), context, "rpi-4") == promised


# A configuration.


TINY = """
run = { rounds = 1, seed = 5 }
model = { width = 0.25 }
sparsity = { density = 0.2 }
training = { batch_size = 32, device = "cpu" }
server = { clients_per_round = 6, evaluate_clients_every = 0 }
fleet = { devices = 6, mix = "rpi-zero-2w:1, rpi-4:1, rpi-5:1", budgets = "rpi-zero-2w:1200kB" }
"""


@pytest.fixture
def tiny(tmp_path_factory):
    """Return the path of a configuration whose devices get unlike plans."""
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY, encoding="utf-8")
    return file


@pytest.mark.soak
def test_the_plans_of_a_configuration_are_those_of_its_simulation(
    says, tiny, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(
        PeakMeasurement, "start", lambda *_: PeakMeasurement(None)
    )  # measures no memory
    table = json.loads(says("plan", str(tiny), "--json"))
    planned = {device["device"]: device for device in table["devices"]}
    folder = tmp_path_factory.mktemp("run") / "run"
    _, config = resolve(None, tiny, [])
    open_run("tiny", config, folder, resume=False).run(0)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    tiers = summary["tiers"]
    assert [(row["name"], row["weights"], row["reason"]) for row in table["layers"]] == [
        (row["name"], row["weights"], row.get("reason")) for row in summary["layers"]
    ]
    assert len(tiers) == len(planned) == 3
    same = ("budget_bytes", "predicted_peak_bytes", "micro_batch", "density", "parts")
    for tier in tiers:
        plan = planned[tier["profile"]]
        assert tier["clients"] == plan["count"]
        assert [tier[key] for key in same] == [plan[key] for key in same]
    assert len({plan["predicted_peak_bytes"] for plan in planned.values()}) > 1
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert {row["device"] for row in rows} == planned.keys()


def test_one_device_of_a_configuration(says, tiny):
    table = json.loads(says("plan", str(tiny), "--json"))
    (row,) = [device for device in table["devices"] if device["device"] == "rpi-zero-2w"]
    one = json.loads(says("plan", str(tiny), "--json", "--device", "rpi-zero-2w"))
    assert one["budget_bytes"] == 1_200_000
    assert all(row[key] == one[key] for key in row.keys() - {"count"})
    assert table["layers"] == one["layers"]
    whole, text = says("plan", str(tiny)), says("plan", str(tiny), "--device", "rpi-zero-2w")
    assert "stem: the first convolution" in whole
    assert whole.partition("Layers")[2][:200] == text.partition("Layers")[2][:200]
    assert "tiny: resnet8 (width 0.25; group norm)" in text
    assert "The budget of rpi-zero-2w, 1.2 MB, is the one of fleet.budgets." in text


@pytest.mark.soak
def test_options_and_settings_change_a_configuration(says, tiny):
    def plan(*more):
        return json.loads(says("plan", str(tiny), "--device", "rpi-5", "--json", *more))

    assert plan()["batch"] == 32
    assert plan("--batch", "16")["batch"] == 16
    assert plan("--batch", "16", "--set", "training.batch_size=8")["batch"] == 8
    assert plan("--density", "0.5")["density"] == 0.5
    larger = plan("--image", "1x16x16")["parts"]["activations"]
    assert larger > 2 * plan()["parts"]["activations"]


def test_a_fleet_in_a_table(says):
    lines = says("plan", "--preset", "quickstart").splitlines()
    assert lines[0].startswith("quickstart: resnet8 (width 2; group norm), mest-ems, block")
    assert [line.split()[:2] for line in lines if line.strip().startswith("rpi-4 ")] == [
        ["rpi-4", "3"]
    ]


OWN = """
from torch import nn


def build(input_shape, num_classes):
    body = nn.Conv2d(input_shape[0], 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(256, num_classes))
"""


@pytest.mark.soak
def test_a_model_of_ones_own_from_another_folder(says, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "own").mkdir()
    (folder / "own" / "my.py").write_text(OWN, encoding="utf-8")
    toml = '[model]\nname = "my.py:build"\n[fleet]\nmix = "rpi-4"\n'
    (folder / "own" / "my.toml").write_text(toml, encoding="utf-8")
    monkeypatch.chdir(folder)
    arguments = ("--model", "own/my.py:build", "--image", "3x8x8", "--classes", "5")
    report = json.loads(says("plan", *arguments, "--device", "rpi-4", "--json"))
    assert [row["name"] for row in report["layers"] if row["reason"] is None] == ["2"]
    text = says("plan", "own/my.toml")
    assert f"{folder}/own/my.py:build, mest-ems" in text.replace("\n", "")  # it has no norm


@pytest.mark.parametrize("model", ["transformer", "lstm", "har1d"])
def test_a_model_that_does_not_take_the_data_is_refused(fails, model):
    message = fails("plan", "--model", model, "--set", "data.name=digits", "--device", "rpi-4")
    expected = f"error: model.name = '{model}' does not take inputs of shape (n, 1, 8, 8) and "
    assert message.startswith(expected)


@pytest.mark.soak
def test_models_of_tokens_and_series_are_planned_for_data_of_theirs(says, tmp_path_factory):
    drawn, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    tokens, series = folder / "tokens.npz", folder / "series.npz"
    np.savez(tokens, inputs=drawn.integers(0, 9, (50, 8)), targets=np.arange(50) % 3)
    np.savez(series, inputs=drawn.normal(size=(50, 3, 8)), targets=np.arange(50) % 3)
    for model, path in (("transformer", tokens), ("har1d", series)):
        data = ("--set", "data.name=npz", "--set", f"data.path={path}")
        text = says("plan", "--model", model, *data, "--device", "rpi-4")
        assert f"{model} (width 1, the usual" in text


def test_a_warning_is_a_line(says, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    says("--version")
    line = warnings.formatwarning("of two\nlines", RuntimeWarning, "some.py", 3)
    assert line == "warning: of two lines\n"


@pytest.mark.soak
def test_the_usual_width(says):
    assert "resnet8 (width 1, the usual" in says("plan", "--model", "resnet8", *LARGE)
    assert "resnet8 (width 0.5; group norm)" in says(*SMALL, *LARGE)


@pytest.mark.soak
def test_the_usual_width_of_mests_resnet32(says):
    assert "resnet32 (width 2, the usual" in says(
        "plan", "--image", "1x8x8", "--batch", "2", *LARGE
    )


@pytest.mark.soak
def test_a_dense_plan_needs_more_memory_and_time(says, plans):
    device = ("--device", "rpi-4", *LARGE, "--width", "4", "--batch", "2")
    sparse, dense = (plans("--method", method, *device) for method in ("mest-em", "dense"))
    assert dense["predicted_peak_bytes"] > sparse["predicted_peak_bytes"]
    assert dense["step_seconds"] > sparse["step_seconds"]
    assert dense["density"] == 1.0
    assert "Trains all of" in says(*SMALL, *LARGE, "--method", "dense")


@pytest.mark.soak
def test_other_options(plans):
    options = ("--image", "1x8x8", "--batch", "8", "--classes", "3", "--norm", "batch")
    plan = plans(*LARGE, *options)
    assert plan["batch"] == 8
    assert plan["predicted_peak_bytes"] < plans(*LARGE)["predicted_peak_bytes"]


@pytest.mark.soak
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(says, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = says(*SMALL, *TIGHT, "--device", "rpi-zero-2w")
    assert max(map(len, text.splitlines())) <= columns
    others = text.partition("What else fits into 4.2 MB (modelled)")[2]
    assert "(the plan)" in others
    assert "micro_batch" in others


@pytest.mark.soak
def test_the_picture(monkeypatch, capsys, tmp_path):
    def draw_both(report, path):
        draw(report, path)
        draw(report, path.with_suffix(".png"))

    draw, file = picture.draw_frontier, tmp_path / "frontier.svg"
    monkeypatch.setattr(picture, "draw_frontier", draw_both)
    monkeypatch.setattr(sys, "argv", ["mest-fed", *SMALL, *TIGHT, "--picture", str(file), "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    table = json.loads(capsys.readouterr().out)
    assert min(each["step_relative"] for each in table["frontier"]) <= 1.0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    drawn = file.read_text(encoding="utf-8")
    for words in ("budget 4.2 MB", "resnet8 (width 0.5", "kept as int8", "the plan"):
        assert words in drawn


@pytest.mark.soak
def test_the_threads_of_the_device_are_planned_for(says):
    def workspace(*options):
        small = ("plan", "--model", "resnet8", "--width", "1", "--batch", "1", "--density", "0.3")
        return json.loads(says(*small, *LARGE, "--json", *options))["parts"]["workspace"]

    one, two, three = (workspace("--threads", count) for count in "123")
    assert three - two == two - one > 0
    assert workspace("--device", "rpi-4") == one  # as a simulation plans for it


@pytest.mark.soak
def test_the_picture_of_a_format_of_ones_own(monkeypatch, tmp_path):
    text = "from mest_fed.memory.activations.saved_tensors import AsIs as fmt\n"
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    own = ("--set", "memory.saved=own.py:fmt", "--picture", "p.svg")
    monkeypatch.setattr(sys, "argv", ["mest-fed", *SMALL, *LARGE, *own])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert "kept as own.py:fmt" in (tmp_path / "p.svg").read_text(encoding="utf-8")


def test_the_models_that_have_a_usual_width():
    assert {name: getattr(model, "usual_width", 1.0) for name, model in MODELS.items()} == {
        name: 2.0 if name == "resnet32" else 1.0 for name in MODELS
    }


@pytest.mark.soak
def test_a_method_that_mutates_on_clients_alone_is_planned_so(says):
    assert "rigl" in says(*SMALL, *LARGE, "--method", "rigl")


@pytest.mark.soak
def test_plans_of_compiled_steps_are_read_off_programs(plans):
    device = ("--device", "rpi-4")
    free = plans(*LARGE, *device)
    assert free["parts"] != plans(*LARGE, *device, *BY_TORCH)["parts"]
    assert free["parts"]["runtime"] < 2 * 10**6  # torch's is 2.3 MB
    assert free["step_seconds"] > 0
    tight = plans("--budget", str(free["predicted_peak_bytes"]), *device)
    assert tight["micro_batch"] < free["micro_batch"]
    assert tight["step_seconds"] >= free["step_seconds"]
