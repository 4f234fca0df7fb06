import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest
from example_run import example_files, write_files

from mest_fed.schema import Metric
from mest_fed.simulation.report.figures import draw_charts
from mest_fed.simulation.report.figures.devices import time_and_energy_by_device
from mest_fed.simulation.report.figures.failures import failures_by_reason
from mest_fed.simulation.report.figures.layers import density_by_layer
from mest_fed.simulation.report.figures.memory import memory_by_tier
from mest_fed.simulation.report.figures.metric import (
    metric_over_rounds,
    metric_over_time,
    metric_over_traffic,
)
from mest_fed.simulation.report.figures.style import house_style
from mest_fed.simulation.report.load import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    contents = example_files(rounds=3, tiers=3, clients_per_round=6)
    return load_run(write_files(tmp_path_factory.mktemp("run"), contents))


@pytest.fixture(scope="module")
def charts(run):
    return drawn_charts(run)


def drawn_charts(run):
    return {name: chart for name, chart in draw_charts(run).items() if chart is not None}


@pytest.fixture(autouse=True)
def styled():
    with house_style():
        yield


def texts(chart):
    return [element.text for element in ElementTree.fromstring(chart.svg).iter("text")]


def with_rounds(run, **changes):
    return replace(run, rounds=tuple(replace(row, **changes) for row in run.rounds))


def with_tier(run, **changes):
    tiers = (replace(run.summary.tiers[0], **changes), *run.summary.tiers[1:])
    return replace(run, summary=replace(run.summary, tiers=tiers))


@pytest.mark.soak
def test_every_drawing_is_titled_and_described(charts):
    for chart in charts.values():
        svg = ElementTree.fromstring(chart.svg)
        assert svg.get("role") == "img"
        label, description = svg.get("aria-labelledby").split()
        assert svg.find(f"title[@id='{label}']").text == chart.title
        assert svg.find(f"desc[@id='{description}']").text == chart.caption
        assert all(basis.endswith(("measured", "modelled")) for basis in chart.basis)


def test_ids_are_unique_in_the_page_and_references_resolve(charts):
    page = "".join(chart.svg for chart in charts.values())
    ids = Counter(re.findall(r'\bid="([^"]*)"', page))
    assert max(ids.values()) == 1
    references = set(re.findall(r"url\(#([^)]*)\)", page)) | set(
        re.findall(r'href="#([^"]*)"', page)
    )
    assert references
    assert references <= set(ids)


def test_drawings_bring_no_style_sheet_and_no_addresses(charts):
    for chart in charts.values():
        assert "<style" not in chart.svg
        assert "http" not in chart.svg


@pytest.mark.soak
def test_drawing_is_repeatable_and_leaves_matplotlib_alone(run, charts):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        again = drawn_charts(run)
    assert again == charts
    assert dict(matplotlib.rcParams) == before


def test_without_any_accuracy_there_are_no_curves(run):
    blind = with_rounds(run, accuracy=None, client_accuracy=None)
    assert metric_over_rounds(blind) is None
    assert metric_over_time(blind) is None
    assert metric_over_traffic(blind) is None


def test_without_a_central_test_set_the_clients_median_is_drawn(run):
    clients = with_rounds(run, accuracy=None)
    drawn = texts(metric_over_rounds(clients))
    assert "central test set" not in drawn
    assert "clients, median" in drawn
    assert "accuracy, clients' median" in texts(metric_over_time(clients))


def test_without_client_accuracy_only_the_central_curve_is_drawn(run):
    drawn = texts(metric_over_rounds(with_rounds(run, client_accuracy=None)))
    assert "central test set" in drawn
    assert not any("clients" in text for text in drawn)


def test_a_single_round_is_drawn_at_a_whole_number(run):
    drawn = texts(metric_over_rounds(replace(run, rounds=run.rounds[-1:])))
    assert "3" in drawn
    assert not any("." in text and "%" not in text for text in drawn)


def test_a_run_that_cost_nothing_can_be_drawn(run):
    rounds = {"virtual_seconds": 0.0, "bytes_up": 0, "bytes_down": 0, "accuracy": 0.0}
    idle = {"download_seconds": 0.0, "train_seconds": 0.0, "upload_seconds": 0.0}
    tasks = tuple(replace(task, energy_joules=0.0, **idle) for task in run.tasks)
    charts = draw_charts(replace(with_rounds(run, **rounds), tasks=tasks))
    not_there = {"clients", "labels", "staleness"}  # in the files of this run
    assert {name for name, chart in charts.items() if chart is None} == not_there | {"timeline"}


def test_cost_captions_name_when_the_goal_was_reached(run):
    rounds = tuple(
        replace(
            row, accuracy=accuracy, virtual_seconds=60.0 * row.round, bytes_up=0, bytes_down=500
        )
        for row, accuracy in zip(run.rounds, (0.1, 0.5, 0.79, 0.8), strict=True)
    )
    climb = replace(run, rounds=rounds)
    assert "reached after 2 min 00 s" in metric_over_time(climb).caption
    assert "had cost 1.5 kB" in metric_over_traffic(climb).caption


def test_memory_names_the_use_of_each_budget(charts, run):
    tier = run.summary.tiers[0]
    drawn = texts(charts["memory"])
    assert "90% of 48 MB" in drawn
    assert tier.title in drawn
    assert "measured peak" in drawn
    assert f"{tier.title}, 90% of it" in charts["memory"].caption
    assert charts["memory"].basis == ("prediction modelled", "peak measured")


def test_memory_over_budget_is_said(run):
    over = with_tier(run, measured_peak_bytes=60_000_000)
    chart = memory_by_tier(over)
    assert chart.caption.startswith("Over budget: Raspberry Pi Zero 2 W.")
    assert "125% of 48 MB" in texts(chart)


def test_memory_without_measurements_is_modelled_alone(run):
    tiers = tuple(replace(tier, measured_peak_bytes=None) for tier in run.summary.tiers)
    chart = memory_by_tier(replace(run, summary=replace(run.summary, tiers=tiers)))
    assert chart.basis == ("modelled",)
    assert "measured peak" not in texts(chart)
    assert "No peak was measured" in chart.caption


def test_parts_that_do_not_explain_the_peak_leave_a_rest(run):
    tier = with_tier(run, predicted_peak_bytes=100, parts={"values": 60, "kernel scratch": 30})
    drawn = texts(memory_by_tier(tier))
    assert {"60%", "30%", "10%", "kernel scratch", "other"} <= set(drawn)


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_tiers_can_be_drawn(tmp_path, count):
    contents = example_files(rounds=2, tiers=count, clients_per_round=30)
    run = load_run(write_files(tmp_path, contents))
    drawn = texts(memory_by_tier(run))
    alone = [tier.title for tier in run.summary.tiers if tier.profile not in ("rpi-5", "server")]
    assert all(title in drawn for title in alone)
    # Their plans and peaks are equal.
    assert ("Raspberry Pi…(8 GB) + 1 more" in drawn) == (count == 9)


def test_devices_show_medians_of_completed_tasks(run):
    task = run.tasks[0]
    phases = {"download_seconds": 1.0, "upload_seconds": 2.0}
    tasks = tuple(
        replace(task, device="solo", status=status, train_seconds=seconds, reason=None, **phases)
        for seconds, status in ((7.0, "ok"), (9.0, "ok"), (17.0, "ok"), (900.0, "failed"))
    )
    chart = time_and_energy_by_device(replace(run, tasks=tasks))
    assert "12.0 s · 3 tasks" in texts(chart)
    assert chart.caption.startswith("A task on solo takes 12.0 s.")


def test_the_start_of_a_process_is_explained_where_there_is_one(run):
    chart = time_and_energy_by_device(run)
    assert "start of a process" not in texts(chart)
    assert "starts the process" not in chart.caption
    tasks = tuple(replace(task, setup_seconds=3.0) for task in run.tasks)
    chart = time_and_energy_by_device(replace(run, tasks=tasks))
    assert "start of a process" in texts(chart)
    assert chart.caption.count("A device starts the process that trains anew") == 1


def test_a_budget_s_tick_does_not_cover_the_peak(run):
    budgets, predicted, *_ = memory_by_tier(run).figure.axes[0].collections
    ticks, rows = (set(each.get_offsets()[:, 1]) for each in (budgets, predicted))
    assert len(ticks) == len(rows)
    assert not ticks & rows


def test_without_tasks_there_is_nothing_to_draw(run):
    assert time_and_energy_by_device(replace(run, tasks=())) is None
    assert failures_by_reason(replace(run, tasks=())) is None


def test_many_reasons_are_merged_into_a_last_row(run):
    tasks = tuple(
        replace(task, status="failed", reason=f"reason {chr(97 + index)}")
        for index, task in enumerate(run.tasks)
    )
    drawn = texts(failures_by_reason(replace(run, tasks=tasks)))
    assert len(tasks) == 18
    assert "9 other reasons" in drawn
    assert sum(text.startswith("reason") for text in drawn) == 9


def test_dense_layers_get_a_word_in_place_of_a_bar(charts, run):
    drawn = texts(charts["layers"])
    assert drawn.count("dense") == 2
    assert "100%, 864 of 864 weights" in drawn
    dense = tuple(replace(layer, density=1.0) for layer in run.summary.layers)
    summary = replace(run.summary, layers=dense)
    assert density_by_layer(replace(run, summary=summary)) is None


def test_a_deep_model_shows_its_largest_layers_in_order(run):
    layer = run.summary.layers[1]
    layers = tuple(replace(layer, name=f"layer{i}", weights=1000 + i) for i in range(100))
    chart = density_by_layer(replace(run, summary=replace(run.summary, layers=layers)))
    names = [text for text in texts(chart) if text.startswith("layer")]
    assert names == [f"layer{i}" for i in range(40, 100)]
    assert "the 60 largest of 100 layers" in chart.caption


def test_names_are_neither_markup_nor_mathematics(run):
    drawn = memory_by_tier(with_tier(run, title=r"<b> $\frac$"))
    assert r"<b> $\frac$" in texts(drawn)
    assert "<b>" not in drawn.svg


def with_metric(run, metric, values):
    """Return a run whose task has another primary metric; nothing is known of its accuracy."""
    rows = [
        replace(
            row,
            accuracy=None,
            client_accuracy=None,
            metrics={metric.name: value},
            virtual_seconds=60.0 * row.round,
        )
        for row, value in zip(run.rounds, values, strict=True)
    ]
    summary = replace(run.summary, primary_metric=metric, final_metrics=rows[-1].metrics)
    return replace(run, rounds=tuple(rows), summary=summary)


def test_a_metric_of_which_less_is_better(run):
    metric = Metric("perplexity", higher_is_better=False)
    chart = metric_over_rounds(with_metric(run, metric, (900.0, 40.0, 20.0, 21.0)))
    assert chart.title == "Perplexity over rounds"
    assert (
        "Best perplexity on the central test set: 20 at round 2. Lower is better." in chart.caption
    )
    time = metric_over_time(with_metric(run, metric, (900.0, 60.0, 20.0, 21.0)))
    reached = "95% of the way from the first to the best perplexity was reached after 1 min 00 s"
    assert reached in time.caption
    assert time.basis == ("perplexity measured", "time modelled")


def test_a_metric_that_only_got_worse(run):
    metric = Metric("mse", higher_is_better=False)
    worse = with_metric(run, metric, (1.0, 2.0, 2.0, 3.0))
    assert "Best mse on the central test set: 1 at round 0" in metric_over_rounds(worse).caption
    assert "was reached after 0" in metric_over_time(worse).caption


@pytest.mark.parametrize("values", [(0.0,) * 4, (-5.0, -3.0, 1.0, 2.0), (1e-9, 1.0, 5.0, 1e9)])
def test_any_values_of_a_metric_can_be_drawn(run, values):
    metric = Metric("r2", higher_is_better=True)
    measured = with_metric(run, metric, values)
    charts = [
        draw(measured) for draw in (metric_over_rounds, metric_over_time, metric_over_traffic)
    ]
    assert "r2" in texts(charts[0])
    assert all("mathdefault" not in " ".join(texts(chart)) for chart in charts)
