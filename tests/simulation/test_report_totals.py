from dataclasses import replace

import pytest
from example_run import DENSE_BYTES, example_files, write_files

from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.simulation.report.figures.style import byte_scale, joule_scale, time_scale
from mest_fed.simulation.report.formats import (
    count_of,
    format_count,
    format_joules,
    format_percent,
    format_watt_hours,
    shorten,
)
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.statistics import (
    LostTasks,
    lost_by_reason,
    status_counts,
    tasks_by_device,
    traffic,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    contents = example_files(rounds=2, tiers=2, clients_per_round=3, losses=False)
    return load_run(write_files(tmp_path_factory.mktemp("run"), contents))


def with_lost(run, *lost):
    """Give the first tasks a status and a reason each."""
    changed = [
        replace(task, status=status, reason=reason, bytes_up=0)
        for task, (status, reason) in zip(run.tasks, lost, strict=False)
    ]
    return replace(run, tasks=(*changed, *run.tasks[len(changed) :]))


def test_dense_traffic_counts_the_transfers_that_took_place(run):
    assert traffic(run).dense == 12 * DENSE_BYTES
    assert traffic(with_lost(run, ("failed", "away"))).dense == 11 * DENSE_BYTES


def test_messages_of_training_are_compared_with_messages_of_training(run):
    size = DENSE_BYTES // 4
    tasks = tuple(replace(task, bytes_up=size, bytes_down=size) for task in run.tasks)
    # Evaluation sends bytes as well, which the rows of tasks do not have.
    summary = replace(run.summary, bytes_up=50 * DENSE_BYTES, bytes_down=50 * DENSE_BYTES)
    found = traffic(replace(run, tasks=tasks, summary=summary))
    assert (found.training, found.total) == (2 * len(tasks) * size, 100 * DENSE_BYTES)
    assert found.saving == pytest.approx(4, rel=1e-3)


def test_without_traffic_there_is_no_saving(run):
    tasks = tuple(replace(task, bytes_up=0, bytes_down=0) for task in run.tasks)
    assert traffic(replace(run, tasks=tasks)).saving is None


def test_tasks_are_lost_by_kind_whatever_the_reason_says(run):
    kinds = [
        (FailureKind.OUT_OF_MEMORY, "needs 24.1 MB"),
        (FailureKind.OUT_OF_MEMORY, "needs 31 MB"),
        (FailureKind.AWAY, "device was away"),
        (FailureKind.CLIENT_ERROR, "KeyError: 'img'"),
        (FailureKind.CLIENT_ERROR, "KeyError: 'image'"),
        (FailureKind.CLIENT_ERROR, "KeyError: 'img'"),
        (FailureKind.SURPLUS, None),
    ]
    tasks = [
        replace(run.tasks[0], status=kind.status, failure=kind, reason=reason, bytes_up=0)
        for kind, reason in kinds
    ]
    assert lost_by_reason(replace(run, tasks=(*run.tasks, *tasks))) == [
        LostTasks("KeyError: 'img'", {"failed": 2}),
        LostTasks("training ran out of memory", {"failed": 2}),
        LostTasks("KeyError: 'image'", {"failed": 1}),
        LostTasks("enough other devices were faster", {"surplus": 1}),
        LostTasks("the device was away", {"away": 1}),
    ]
    assert lost_by_reason(run) == []


def test_runs_that_logged_no_kind_are_counted_by_their_reasons(run):
    lost = with_lost(run, ("failed", "late by 3 s"), ("rejected", None), ("late", "late by 3 s"))
    assert lost_by_reason(lost) == [
        LostTasks("late by 3 s", {"failed": 1, "late": 1}),
        LostTasks("no reason given", {"rejected": 1}),
    ]


def test_every_status_is_counted(run):
    statuses = [status for status in TaskStatus if status != "ok"]
    run = replace(run, tasks=(*run.tasks, *run.tasks))
    lost = with_lost(run, *((status, "some reason") for status in statuses))
    assert status_counts(lost) == {
        "ok": len(run.tasks) - len(statuses),
        **dict.fromkeys(statuses, 1),
    }
    assert sum(entry.total for entry in lost_by_reason(lost)) == len(statuses)


def test_the_counts_of_the_summary_are_taken_where_there_are_any(run):
    summary = replace(run.summary, tasks={TaskStatus.OK: 90, TaskStatus.LATE: 10})
    counts = status_counts(replace(run, summary=summary))
    assert counts == dict.fromkeys(TaskStatus, 0) | {"ok": 90, "late": 10}


def test_devices_come_in_the_tiers_order_and_unknown_ones_last(run):
    tasks = [replace(task, device="rpi-zero-2w") for task in run.tasks[:3]]
    tasks = [replace(run.tasks[0], device="mystery"), *tasks]
    groups = tasks_by_device(replace(run, tasks=tuple(tasks)))
    assert [(group.title, len(group.tasks)) for group in groups] == [
        ("Raspberry Pi Zero 2 W", 3),
        ("mystery", 1),
    ]


def test_completed_tasks_are_the_accepted_ones(run):
    lost = with_lost(run, ("failed", "away"), ("rejected", "late"))
    assert sum(len(group.completed) for group in tasks_by_device(lost)) == len(run.tasks) - 2


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (0.05, "5%"),
        (0.9721, "97.2%"),
        (0.9997, "99.97%"),
        (1, "100%"),
        (0.00123, "0.123%"),
    ],
)
def test_percent(share, text):
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("joules", "text"), [(0, "0 J"), (999.9, "1000 J"), (31_240, "31.2 kJ"), (2.5e9, "2.5 GJ")]
)
def test_joules(joules, text):
    assert format_joules(joules) == text


def test_watt_hours():
    assert format_watt_hours(3600) == "1 Wh"
    assert format_watt_hours(9e6) == "2.5 kWh"


def test_counts():
    assert format_count(1_858_000) == "1\u202f858\u202f000"
    assert [count_of(number, "round") for number in (0, 1, 2)] == [
        "0 rounds",
        "1 round",
        "2 rounds",
    ]


@pytest.mark.parametrize("length", range(5, 12))
def test_shortened_text_keeps_both_ends(length):
    short = shorten("abcdefghijklmnopqrstuvwxyz", length)
    assert len(short) == length
    assert short[0] == "a"
    assert short[-1] == "z"
    assert shorten("abc", 5) == "abc"


def test_axes_choose_units_that_give_more_than_a_few_steps():
    assert [time_scale(x).unit for x in (0, 170, 200, 8000, 300_000)] == [
        "seconds",
        "seconds",
        "minutes",
        "hours",
        "days",
    ]
    assert [byte_scale(x).unit for x in (0, 2e3, 3e6, 1.5e9, 5e12)] == ["B", "kB", "MB", "MB", "TB"]
    assert [joule_scale(x).unit for x in (0, 1500, 2500, 4e6)] == ["J", "J", "kJ", "MJ"]
