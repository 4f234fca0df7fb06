"""What the page says of a run's origin, labels, losses, clients, staleness and rounds."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from example_run import example_files, with_facts, write_files

from mest_fed.errors import InputError
from mest_fed.run_rows.rounds import Spread
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.figures import draw_charts
from mest_fed.simulation.report.figures.clients import metric_by_client
from mest_fed.simulation.report.figures.labels import distances, labels_by_client
from mest_fed.simulation.report.figures.loss import loss_over_rounds
from mest_fed.simulation.report.figures.metric import metric_over_rounds
from mest_fed.simulation.report.figures.staleness import staleness_of_updates
from mest_fed.simulation.report.figures.style import house_style
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.plan_table import PLAN_COLUMNS, plan_groups, plan_rows
from mest_fed.simulation.report.tables import client_rows, round_rows

HOSTILE = "<script>alert('&')</script>"


def contents(mode="buffered", rounds=8):
    return with_facts(example_files(rounds=rounds, tiers=3, clients_per_round=6), mode)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_files(tmp_path_factory.mktemp("run"), contents()))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), contents())


@pytest.fixture(autouse=True)
def styled():
    with house_style():
        yield


def texts(chart):
    return [element.text for element in ElementTree.fromstring(chart.svg).iter("text")]


def page_of(tmp_path, files):
    return write_report(write_files(tmp_path, files)).read_text(encoding="utf-8")


@pytest.mark.soak
def test_every_figure_is_drawn_and_has_its_basis(run):
    charts = draw_charts(run)
    assert [name for name, chart in charts.items() if chart is None] == []
    for chart in charts.values():
        assert all(basis.endswith(("measured", "modelled")) for basis in chart.basis)
        assert "http" not in chart.svg
        assert "<image" not in chart.svg


@pytest.mark.soak
def test_the_page_says_where_a_run_comes_from(page):
    assert "mest-fed simulate --out &#39;a b&#39;" in page
    for text in ("2026-03-01 12:30 UTC", "A CPU, 2 cores of 4, 8 GB of memory", "torch 2.13.0"):
        assert text in page
    assert "1 setting differs from the preset quickstart." in page
    assert re.search(r"run\.seed</th><td>1</td><td>7</td>", page)


@pytest.mark.soak
def test_a_run_like_its_preset_says_so(tmp_path):
    files = contents()
    files["provenance"] |= {"changes": [], "base": ""}
    assert "No setting differs from the defaults." in page_of(tmp_path, files)


@pytest.mark.soak
def test_folders_without_the_new_facts_give_a_page(tmp_path):
    page = page_of(tmp_path, example_files(rounds=2, tiers=2, clients_per_round=3))
    for heading in ("What was run, and where", "How the clients differ", "Staleness of updates"):
        assert heading not in page
    assert "The last rounds" in page


@pytest.mark.soak
def test_what_files_say_stays_text(tmp_path):
    files = contents()
    files["provenance"] |= {"command": HOSTILE, "started": HOSTILE, "base": HOSTILE}
    files["provenance"]["changes"] = [{"key": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    files["provenance"]["machine"] |= {"cpu": HOSTILE, "system": HOSTILE}
    files["labels"]["classes"] = [HOSTILE, HOSTILE]
    files["rounds"][-1]["client_scores"][0]["device"] = HOSTILE
    page = page_of(tmp_path, files)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("labels", {"counts": [[1, 2]]}, "1 counts for 3 partitions"),
        ("labels", {"classes": ["cat"]}, "has not 1 classes"),
        ("labels", {"counts": [[-1, 0], [0, 1], [0, 1]]}, "counts.0.0"),
        ("provenance", {"machine": 3}, "machine"),
    ],
)
def test_broken_facts_are_named(tmp_path, name, change, says):
    files = contents()
    files[name] |= change
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        load_run(write_files(tmp_path, files))
    assert f"{name}.json" in str(caught.value)


def test_the_distance_of_labels_is_a_total_variation():
    # All together: half and half. Two clients have one label each, the third both.
    assert distances(np.array([[10, 0], [0, 10], [5, 5], [0, 0]])) == [0.5, 0.5, 0.0]
    assert distances(np.array([[0, 0]])) == []


def test_labels_are_drawn_by_client(run):
    chart = labels_by_client(run)
    assert {"client 0", "client 2", "cat", "dog", "10", "5"} <= set(texts(chart))
    assert "all together is 0.50 or more, the largest is 0.50" in chart.caption


def test_many_clients_and_classes_are_thinned_out(run):
    counts = tuple(tuple(int(c == p % 50) for c in range(50)) for p in range(100))
    names = tuple(str(number) for number in range(50))
    labels = replace(
        run.labels, classes=names, devices=1000, partitions=tuple(range(0, 1000, 10)), counts=counts
    )
    chart = labels_by_client(replace(run, labels=labels))
    assert "Shown are 60 of 1\N{NARROW NO-BREAK SPACE}000 clients" in chart.caption
    assert "40 most frequent of 50 classes" in chart.caption


def test_losses_are_drawn_where_they_were_measured(run):
    assert {"central test set", "training, on clients"} <= set(texts(loss_over_rounds(run)))
    blind = replace(run, rounds=tuple(replace(r, loss=None, metrics={}) for r in run.rounds))
    chart = loss_over_rounds(blind)
    assert "central test set" not in texts(chart)
    assert "Least loss" not in chart.caption
    never = tuple(replace(row, train_loss=None) for row in blind.rounds)
    assert loss_over_rounds(replace(run, rounds=never)) is None


def bands(run):
    svg = ElementTree.fromstring(metric_over_rounds(run).svg)
    wanted = "fill: #f6d99a"
    return sum(wanted in (element.get("style") or "") for element in svg.iter("use"))


def test_bands_are_where_clients_evaluated_in_consecutive_rounds(run):
    spread = Spread(mean=0.5, min=0.1, p10=0.2, median=0.5, p90=0.8, max=0.9)

    def evaluated_in(*numbers):
        rounds = (
            replace(row, client_accuracy=spread if row.round in numbers else None)
            for row in run.rounds
        )
        return replace(run, rounds=tuple(rounds))

    assert bands(evaluated_in(1, 2)) == 1
    assert bands(evaluated_in(1, 2, 3, 6, 7)) == 2
    assert bands(evaluated_in(1, 4, 8)) == 0


def test_each_client_has_a_dot_and_a_row(run):
    chart = metric_by_client(run)
    assert "70% · 1 client" in texts(chart)
    assert "The medians lie between 50% (Raspberry Pi Zero 2 W) and 70%" in chart.caption
    assert client_rows(run)[0] == ("0", "Raspberry Pi Zero 2 W", "10", "8", "50%")
    assert [row[0] for row in client_rows(run)] == ["0", "1", "2"]


def test_staleness_is_drawn_where_rounds_do_not_wait(run, tmp_path):
    chart = staleness_of_updates(run)
    assert "the largest 2" in chart.caption
    assert "the oldest one 57.7% of a fresh one" in chart.caption  # 3^-1/2
    assert "older than 9 rounds are rejected" in chart.caption
    waits = load_run(write_files(tmp_path, contents("sync")))
    assert staleness_of_updates(waits) is None


@pytest.mark.soak
@pytest.mark.parametrize(("mode", "waits"), [("sync", True), ("buffered", False)])
def test_captions_fit_the_mode(tmp_path, mode, waits):
    page = page_of(tmp_path, contents(mode))
    assert ("A round that waits for all devices lasts as long" in page) == waits
    assert ("Who is done waits for the end of the round" in page) == waits
    assert ("Rounds do not wait for the slowest task" in page) != waits
    assert f"<dd>{mode}: " in page


@pytest.mark.soak
def test_every_round_is_in_a_table_that_folds(run, page):
    folded = re.search(r"<summary>All 9 rows.*?</details>", page, re.DOTALL)[0]
    assert re.findall(r'<th scope="row">(\d+)</th>', folded) == [str(n) for n in range(9)]
    assert len(round_rows(run)) == 9


def test_equal_plans_are_one(run):
    tier = run.summary.tiers[0]
    twin = replace(tier, profile="twin", title="Twin", budget_bytes=2 * tier.budget_bytes)
    other = replace(tier, profile="other", title="Other", micro_batch=1)
    over = replace(tier, profile="over", title="Over", budget_bytes=1)
    groups = plan_groups([twin, other, tier, over])
    assert [group.titles for group in groups] == ["Over", "Other", f"{tier.title}, Twin"]
    both = replace(run, summary=replace(run.summary, tiers=(tier, twin)))
    (row,) = plan_rows(both)
    assert row.cells[:2] == ("40", "48 MB to 96 MB")
    assert row.cells[4] == "up to 90%"


def test_real_devices_of_one_kind_that_train_alike_share_a_row_of_ranges(run):
    def tier(budget, peak, **changes):
        known = {"profile": "", "title": "a board", "clients": 1, "measured_peak_bytes": peak}
        own = {"budget_bytes": budget, "predicted_peak_bytes": peak - 1_000_000, **changes}
        return replace(run.summary.tiers[0], **known, **own)

    alike = [tier(329_000_000, 90_000_000), tier(79_000_000, 60_000_000)]
    small, over = tier(40_000_000, 20_000_000, micro_batch=1), tier(50_000_000, 55_000_000)
    tiers = (*alike, tier(129_000_000, 62_000_000), small, over)
    rows = plan_rows(replace(run, summary=replace(run.summary, tiers=tiers)))
    assert [(row.title, *row.cells[:5]) for row in rows] == [
        ("a board", "1", "40 MB", "19 MB", "20 MB", "50%"),
        ("a board", "1", "50 MB", "54 MB", "55 MB", "110%"),
        ("a board", "3", "79 MB to 329 MB", "59 MB to 89 MB", "60 MB to 90 MB", "up to 75.9%"),
    ]
    assert [row.over_budget for row in rows] == [False, True, False]


@pytest.mark.soak
def test_a_plan_s_numbers_have_their_column_s_name_where_the_page_is_narrow(page):
    first = page[page.index('<table class="plans">') :].partition('<tr class="plan">')[0]
    names = [f"{name}, {basis}" if basis else name for name, basis in PLAN_COLUMNS]
    assert re.findall(r'data-column="([^"]+)"', first) == names


def test_a_drawing_that_is_wider_than_a_narrow_page_says_that_it_scrolls(page):
    narrow = page.partition("@media screen and (max-width: 760px)")[2].partition("@media")[0]
    assert '.wide h3::after { content: "scrolls sideways' in narrow
    assert 'class="wide"' in page


@pytest.mark.soak
def test_the_page_is_for_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--[a-z-]+)", page))
    light, dark = (
        set(re.findall(r"(--[a-z-]+):", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    )
    assert used <= light
    assert dark <= light
    assert json.dumps(sorted(light - dark)) == '["--mono", "--sans"]'
