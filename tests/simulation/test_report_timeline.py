"""Devices over virtual time, worked out by hand for two rounds that end at 10 s and 30 s."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from example_run import example_files, write_files

from mest_fed.simulation.report.figures import draw_charts
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.render import render_page
from mest_fed.simulation.report.statistics import Span, timeline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    contents = example_files(rounds=2, tiers=2, clients_per_round=2, losses=False)
    run = load_run(write_files(tmp_path_factory.mktemp("run"), contents))
    ends = (0.0, 10.0, 30.0)
    rounds = zip(run.rounds, ends, strict=True)
    return replace(
        run, rounds=tuple(replace(row, virtual_seconds=end) for row, end in rounds), tasks=()
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of device 0: from 0 on, 1 s down, 4 s of training, 2 s up."""
    contents = example_files(rounds=1, tiers=1, clients_per_round=1, losses=False)
    task = load_run(write_files(tmp_path_factory.mktemp("task"), contents)).tasks[0]
    return replace(task, download_seconds=1.0, train_seconds=4.0, upload_seconds=2.0)


def line(run, *tasks):
    """Return the one device's line."""
    (found,) = timeline(replace(run, tasks=tasks)).lines
    return found


WORK = (Span("downloading", 0, 1), Span("training", 1, 5), Span("sending", 5, 7))


def test_who_is_done_waits_for_the_round_to_end(run, task):
    found = line(run, task)
    assert (found.title, found.partition) == ("Raspberry Pi Zero 2 W", 0)
    assert found.spans == (*WORK, Span("waiting", 7, 10))
    assert found.losses == ()
    assert timeline(replace(run, tasks=(task,))).waited == pytest.approx(0.3)


@pytest.mark.parametrize("status", ["late", "failed", "rejected", "surplus"])
def test_a_lost_task_is_marked_where_it_ended(run, task, status):
    found = line(run, replace(task, status=status))
    assert found.spans == (*WORK, Span("waiting", 7, 10))
    assert found.losses == ((7, status),)


def test_a_device_that_drops_out_is_away_from_then_on(run, task):
    found = line(run, replace(task, status="dropped", train_seconds=2.5, upload_seconds=0.0))
    training = Span("training", 1, 3.5)
    assert found.spans == (WORK[0], training, Span("away", 3.5, 10))
    assert found.losses == ((3.5, "dropped"),)


def test_a_device_that_was_away_does_nothing_in_its_round(run, task):
    nothing = dict.fromkeys(("download_seconds", "train_seconds", "upload_seconds"), 0.0)
    away = replace(task, status="away", round=2, start_seconds=10.0, **nothing)
    shown = timeline(replace(run, tasks=(away,)))
    assert shown.lines[0].spans == (Span("away", 10, 30),)
    assert shown.lines[0].losses == ()
    assert shown.waited == 0


def test_a_device_that_is_late_works_on_beyond_its_round(run, task):
    late = replace(task, status="late", train_seconds=50.0)
    found = line(run, late)
    assert found.spans == (WORK[0], Span("training", 1, 30))
    assert found.losses == ((30, "late"),)


def test_waiting_ends_where_the_next_task_begins(run, task):
    # As where the server takes replies as they come: the second task is begun within round 1.
    second = replace(task, round=2, start_seconds=8.0)
    found = line(run, second, task)
    assert found.spans[3] == Span("waiting", 7, 8)
    assert found.spans[4] == Span("downloading", 8, 9)
    assert found.spans[-1] == Span("waiting", 15, 30)


def test_only_the_last_rounds_are_shown(run, task):
    rounds = tuple(replace(run.rounds[0], round=n, virtual_seconds=10.0 * n) for n in range(101))
    early = replace(task, round=88, start_seconds=870.0, partition=1)
    across = replace(task, round=89, start_seconds=878.0)
    shown = timeline(replace(run, rounds=rounds, tasks=(early, across)))
    assert [number for number, _ in shown.rounds] == list(range(89, 101))
    assert (shown.begin, shown.end) == (880, 1000)
    (only,) = shown.lines
    assert only.spans[0] == Span("training", 880, 883)


def test_of_many_devices_as_many_of_each_tier_are_shown(run, task):
    tasks = [replace(task, partition=number) for number in range(1000)]
    tasks += [replace(task, device="rpi-3b-plus", partition=number) for number in range(2000, 2005)]
    shown = timeline(replace(run, tasks=tuple(tasks)))
    assert shown.asked == 1005
    titles = [found.title for found in shown.lines]
    assert titles == ["Raspberry Pi Zero 2 W"] * 35 + ["Raspberry Pi 3 Model B+"] * 5
    partitions = [found.partition for found in shown.lines]
    assert partitions[:3] == [0, 28, 57]
    assert partitions[35:] == [2000, 2001, 2002, 2003, 2004]


def test_each_of_more_tiers_than_rows_has_at_most_one(run, task):
    tasks = tuple(replace(task, device=f"board {n}", partition=n) for n in range(60))
    shown = timeline(replace(run, tasks=tasks))
    assert [found.partition for found in shown.lines] == list(range(40))
    assert shown.asked == 60


@pytest.mark.parametrize("change", [{"start_seconds": None}, {"start_seconds": 30.0}])
def test_without_times_there_is_no_timeline(run, task, change):
    assert timeline(replace(run, tasks=(replace(task, **change),))) is None


def test_neither_tasks_nor_rounds(run, task):
    assert timeline(run) is None
    assert timeline(replace(run, rounds=run.rounds[:1], tasks=(task,))) is None


@pytest.mark.soak
def test_the_drawing_names_devices_phases_and_losses(run, task):
    late = replace(task, partition=7, status="late")
    chart = draw_charts(replace(run, tasks=(task, late)))["timeline"]
    drawn = [element.text for element in ElementTree.fromstring(chart.svg).iter("text")]
    assert {"Raspberry Pi Zero 2 W #0", "Raspberry Pi Zero 2 W #7"} <= set(drawn)
    assert {"downloading", "training", "sending", "waiting", "late", "1"} <= set(drawn)
    assert not {"away", "dropped", "failed"} & set(drawn)
    assert chart.caption.startswith("All devices that were asked in rounds 1 to 2, by number;")
    assert "that took 30% of the time" in chart.caption
    assert chart.basis == ("modelled",)
    assert "starting" not in drawn
    begun = draw_charts(replace(run, tasks=(replace(task, setup_seconds=1.0),)))["timeline"]
    assert "Starting: a device starts the process" in begun.caption


def test_a_folder_of_an_older_run_opens_without_a_timeline(tmp_path):
    contents = example_files(rounds=2, tiers=2, clients_per_round=4)
    for row in contents["clients"]:
        del row["start_seconds"]
    for tier in contents["summary"]["tiers"]:
        del tier["watts"]
    page = render_page(load_run(write_files(tmp_path, contents)))
    assert 'id="timeline"' not in page
    assert 'id="energy"' in page
