"""Where energy went: all of it is accounted for, whatever the run knows of its devices."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from example_run import example_files, write_files

from mest_fed.run_rows.summary import Watts
from mest_fed.simulation.report.figures.devices import energy_by_tier_and_time
from mest_fed.simulation.report.figures.style import house_style
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.statistics import (
    EnergyUse,
    energy_by_tier,
    energy_over_time,
    lost_energy,
)
from mest_fed.simulation.report.tables import headline_tiles

PHASES = {"download_seconds": 1.0, "train_seconds": 10.0, "upload_seconds": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four tasks of 46 J on two tiers of 4 W and 2 W; evaluations took 16 J more."""
    contents = example_files(rounds=2, tiers=2, clients_per_round=2, losses=False)
    run = load_run(write_files(tmp_path_factory.mktemp("run"), contents))
    watts = Watts(compute=4.0, radio=2.0)
    summary = replace(
        run.summary,
        energy_joules=200.0,
        tiers=tuple(replace(tier, watts=watts) for tier in run.summary.tiers),
    )
    joules = (0.0, 100.0, 100.0)
    rows = zip(run.rounds, joules, strict=True)
    return replace(
        run,
        summary=summary,
        rounds=tuple(
            replace(row, energy_joules=spent, virtual_seconds=60.0 * row.round)
            for row, spent in rows
        ),
        tasks=tuple(replace(task, energy_joules=46.0, **PHASES) for task in run.tasks),
    )


def test_a_tier_computes_and_sends_and_evaluations_take_the_rest(run):
    assert energy_by_tier(run) == [
        EnergyUse("Raspberry Pi Zero 2 W", compute=80.0, radio=12.0, other=0.0, tasks=2),
        EnergyUse("Raspberry Pi 3 Model B+", compute=80.0, radio=12.0, other=0.0, tasks=2),
        EnergyUse("evaluations", compute=0.0, radio=0.0, other=16.0),
    ]


def test_what_the_tasks_cost_beyond_work_and_radio_is_kept_apart(run):
    tasks = tuple(replace(task, energy_joules=50.0) for task in run.tasks)
    uses = energy_by_tier(replace(run, tasks=tasks))
    assert [use.other for use in uses] == [8.0, 8.0]
    assert sum(use.total for use in uses) == 200.0


def test_a_device_whose_watts_are_unknown_is_not_divided(run):
    tiers = tuple(replace(tier, watts=None) for tier in run.summary.tiers)
    older = replace(run, summary=replace(run.summary, tiers=tiers))
    assert energy_by_tier(older)[0] == EnergyUse("Raspberry Pi Zero 2 W", 0.0, 0.0, 92.0, tasks=2)
    stranger = replace(run, tasks=tuple(replace(task, device="mystery") for task in run.tasks))
    assert energy_by_tier(stranger)[0] == EnergyUse("mystery", 0.0, 0.0, 184.0, tasks=4)


def test_energy_adds_up_over_virtual_time(run):
    assert energy_over_time(run) == [(0.0, 0.0), (60.0, 100.0), (120.0, 200.0)]


def test_tasks_without_an_update_cost_energy_too(run):
    lost = replace(run.tasks[0], status="late")
    assert lost_energy(run) == 0
    assert lost_energy(replace(run, tasks=(lost, *run.tasks[1:]))) == 46.0


def draw(run):
    with house_style():
        return energy_by_tier_and_time(run)


def test_the_drawing_says_who_took_most_and_what_was_lost(run):
    lost = replace(run.tasks[0], status="late")
    chart = draw(replace(run, tasks=(lost, *run.tasks[1:])))
    drawn = [element.text for element in ElementTree.fromstring(chart.svg).iter("text")]
    assert "92 J · 46 J a task" in drawn
    assert {"computing", "radio", "not divided", "evaluations"} <= set(drawn)
    assert "Of the fleet's 200 J, Raspberry Pi Zero 2 W took 46%." in chart.caption
    assert "Sending and receiving took 13% of what is divided." in chart.caption
    assert "Tasks that gave no update took 23%." in chart.caption
    assert chart.basis == ("modelled",)


def test_devices_of_unknown_power_are_left_out_and_named(run):
    tasks = tuple(
        replace(task, energy_joules=None) if task.device == run.tasks[0].device else task
        for task in run.tasks
    )
    summary = replace(run.summary, deployed=True, without_power=1, energy_joules=92.0)
    found = replace(run, summary=summary, tasks=tasks)
    assert [use.total for use in energy_by_tier(found)] == [92.0]
    chart = draw(found)
    assert "Of 1 device no power is known" in chart.caption
    assert chart.basis == ("time measured", "energy modelled")
    tiles = {tile.label: tile for tile in headline_tiles(found)}
    assert "without 1 device of unknown power" in tiles["Energy"].notes[0]
    summary = replace(summary, energy_joules=None)
    tiles = {tile.label: tile for tile in headline_tiles(replace(found, summary=summary))}
    assert tiles["Energy"].value == "unknown"


def test_without_energy_there_is_nothing_to_draw(run):
    free = replace(run, summary=replace(run.summary, energy_joules=0.0))
    idle = {"train_seconds": 0.0, "download_seconds": 0.0, "upload_seconds": 0.0}
    tasks = tuple(replace(task, energy_joules=0.0, **idle) for task in run.tasks)
    assert draw(replace(free, tasks=())) is None
    assert draw(replace(free, tasks=tasks)) is None
