"""``mest-fed plan``: budgets and where they come from, costs, other plans, and the picture."""

import json
import sys

import pytest

from mest_fed import cli
from mest_fed.cli import plan
from mest_fed.cli.baseline import Weight
from mest_fed.devices import load_profile, train_seconds, training_work
from mest_fed.memory import COST_ORDER, read_plan
from mest_fed.nn import Reason, Sparsity, build_model
from mest_fed.rng import torch_generator

SMALL = ("plan", "--model", "resnet8", "--width", "0.5", "--batch", "16")
#: A budget that takes several knobs, and one that takes none.
TIGHT, LARGE = ("--budget", "4200kB"), ("--budget", "1GB")


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


def test_a_runner_up_is_what_its_preference_gives(plans):
    first, *_ = plans(*TIGHT)["runners_up"]
    order = [*(name for name in COST_ORDER if name != "micro_batch"), "micro_batch"]
    assert shape_of(plans(*TIGHT, "--prefer", ", ".join(order))) == shape_of(first)


def test_a_device_has_a_budget_and_a_speed(plans):
    profile = load_profile("rpi-4")
    alone, given = plans("--device", "rpi-4"), plans("--device", "rpi-4", *LARGE)
    assert alone["budget_bytes"] == profile.budget_bytes
    assert given["budget_bytes"] == 1_000_000_000
    options = {"generator": torch_generator(0, "test"), "norm": "group", "width": 0.5}
    model = build_model("resnet8", (3, 32, 32), 10, **options, sparsity=Sparsity())
    seconds = 16 * train_seconds(profile, training_work(model, (3, 32, 32)), "block")
    assert alone["step_seconds"] == given["step_seconds"] == pytest.approx(seconds, abs=1e-6)
    assert alone["device"] == "rpi-4"


def test_recomputation_takes_time(plans):
    order = "recompute, release_gradients, micro_batch, saved, density, momentum, frozen"
    plan = plans("--batch", "64", "--budget", "17MB", "--prefer", order, "--device", "rpi-zero-2w")
    assert (plan["recompute"], plan["density"]) == ("segments", 0.1)
    assert 4 / 3 < plan["step_relative"] < 3 / 2  # of the stem, whose input has no gradient


def test_the_step_time_in_words(says):
    text = says(*SMALL, *LARGE, "--device", "rpi-zero-2w")
    assert "on Raspberry Pi Zero 2 W (modelled), no longer than it would" in text


def test_a_limit_of_the_whole_process(says, plans, fails, monkeypatch):
    weight = Weight(200_000_000, 0, 0)
    monkeypatch.setattr("mest_fed.cli.planning.request.measure_client_app", lambda _: weight)
    assert plans("--limit", "210MB")["budget_bytes"] == 10_000_000
    assert "takes 200 MB before it trains (measured" in says(*SMALL, "--limit", "210MB")
    line = fails(*SMALL, "--limit", "200MB")
    assert "--limit = '200 MB' is not allowed; allowed: more than 200 MB" in line


def test_the_usual_width(says):
    assert "resnet8 (width 1, the usual" in says("plan", "--model", "resnet8", *LARGE)
    assert "resnet8 (width 0.5; group norm)" in says(*SMALL, *LARGE)


def test_the_usual_width_of_mests_resnet32(says):
    assert "resnet32 (width 2, the usual" in says(
        "plan", "--image", "1x8x8", "--batch", "2", *LARGE
    )


def test_a_dense_plan_needs_more_memory_and_time(says, plans):
    device = ("--device", "rpi-4", *LARGE, "--width", "4", "--batch", "2")
    sparse, dense = (plans("--method", method, *device) for method in ("mest-em", "dense"))
    assert dense["predicted_peak_bytes"] > sparse["predicted_peak_bytes"]
    assert dense["step_seconds"] > sparse["step_seconds"]
    assert dense["density"] == 1.0
    assert "Trains all of" in says(*SMALL, *LARGE, "--method", "dense")


def test_other_options(plans):
    options = ("--image", "1x8x8", "--batch", "8", "--classes", "3", "--norm", "batch")
    plan = plans(*LARGE, *options)
    assert plan["batch"] == 8
    assert plan["predicted_peak_bytes"] < plans(*LARGE)["predicted_peak_bytes"]


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(says, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = says(*SMALL, *TIGHT, "--device", "rpi-zero-2w")
    assert max(map(len, text.splitlines())) <= columns
    others = text.partition("What else fits into 4.2 MB (modelled)")[2]
    assert "(the plan)" in others
    assert "micro_batch" in others


def test_the_picture(monkeypatch, capsys, tmp_path):
    def draw_both(report, path):
        draw(report, path)
        draw(report, path.with_suffix(".png"))

    draw, file = plan._draw, tmp_path / "frontier.svg"
    monkeypatch.setattr(plan, "_draw", draw_both)
    monkeypatch.setattr(sys, "argv", ["mest-fed", *SMALL, *TIGHT, "--picture", str(file), "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    table = json.loads(capsys.readouterr().out)
    assert min(each["step_relative"] for each in table["frontier"]) == 1.0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    drawn = file.read_text(encoding="utf-8")
    for words in ("budget 4.2 MB", "resnet8 (width 0.5", "kept as int8", "the plan"):
        assert words in drawn


def test_the_threads_of_the_device_are_planned_for(says):
    def workspace(*options):
        small = ("plan", "--model", "resnet8", "--width", "1", "--batch", "1", "--density", "0.3")
        return json.loads(says(*small, *LARGE, "--json", *options))["parts"]["workspace"]

    one, two, three = (workspace("--threads", count) for count in "123")
    assert three - two == two - one > 0
    assert workspace("--device", "rpi-4") == one  # as a simulation plans for it
