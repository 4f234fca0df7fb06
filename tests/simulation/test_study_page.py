"""The page of a study, parsed as HTML, and its figures."""

from html.parser import HTMLParser

import pytest
from study_cases import row_of, study_of

from mest_fed.run_rows.facts import Machine
from mest_fed.simulation.report.figure_files import write_charts
from mest_fed.simulation.study.analysis import Analysis
from mest_fed.simulation.study.environment import Environment
from mest_fed.simulation.study.figures import Legend, draw_study
from mest_fed.simulation.study.page import render_study
from mest_fed.simulation.study.record import BEGIN, END, readme, tables_of

TEXT = """
[study]
reference = { method = "dense" }
[axes]
method = METHODS
seed = [1, 2]
"""
HERE = Environment(
    command="mest-fed study x.toml --out '<b>'",
    written="2026-01-02T03:04:05+00:00",
    machine=Machine(
        system="Linux 6", architecture="x86_64", cpu="A", cores=2, machine_cores=2, memory_bytes=1
    ),
    versions={"python": "3.11.0"},
    commit="abc",
)


class Page(HTMLParser):
    """Collects what a page holds: texts by tag, ids, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.ids, self.loads, self._open = {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self._open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.loads += [values[name] for name in ("src", "href") if name in values]
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            continue

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def cells(self):
        return [" ".join(each.split()) for each in self.texts.get("td", [])]


def analysis(methods=("dense", "static"), changes=lambda row: row):
    study = study_of(TEXT.replace("METHODS", str(list(methods)).replace("'", '"')), name="a <b>")
    rows = [
        row_of(study, {"method": method, "seed": seed}, final=0.5 + 0.1 * i + 0.01 * seed, best=0.7)
        for i, method in enumerate(methods)
        for seed in (1, 2)
    ]
    return Analysis(study, [changes(row) for row in rows])


def rounds_of(found):
    return [
        {"cell": row["cell"], "round": number, "value": 0.1 * number}
        for row in found.rows
        for number in range(4)
        if row["status"] == "done"
    ]


def page_of(found):
    return Page(render_study(found, rounds_of(found), HERE))


def test_the_page_holds_its_parts_and_loads_nothing():
    page = page_of(analysis())
    assert [" ".join(each.split()) for each in page.texts["h2"]] == [
        "What was reached, and at what cost",
        "Means over seeds",
        "Paired differences",
        "What was run, and where",
    ]
    assert [each.strip() for each in page.texts["h1"]] == ["a <b>"]
    assert len(page.texts["svg"]) == 6
    assert len(page.ids) == len(set(page.ids))
    assert {"against-peak", "against-traffic", "against-virtual", "against-energy"} <= set(page.ids)
    assert {"over-rounds", "differences-method"} <= set(page.ids)
    assert all(each.startswith("#") for each in page.loads)
    assert "51.5%± 0.71" in page.cells()
    assert any(cell.startswith("+10.00 points") for cell in page.cells())
    assert [each.strip() for each in page.texts["pre"]] == [analysis().study.text.strip()]
    assert "mest-fed study x.toml --out '<b>'" in page.texts["code"]


def test_each_method_has_one_colour_in_the_legend():
    methods = [f"m{i}" for i in range(14)]
    text = TEXT.replace('{ method = "dense" }', '{ method = "m0" }').replace(
        "METHODS", str(methods).replace("'", '"')
    )
    text += "".join(
        f"[bundles.method.{it}]\nrun.rounds = {i + 1}\n" for i, it in enumerate(methods)
    )
    study = study_of(text)
    rows = [row_of(study, {"method": it, "seed": 1}, final=0.5) for it in methods]
    found = Analysis(study, rows)
    looks = Legend(found).looks
    assert len({(look.colour, look.hollow) for look in looks.values()}) == 14
    page = page_of(found)
    assert [each.strip() for each in page.texts["li"]] == methods


def break_off(row):
    return row | {"status": "failed", "reason": "no room <i>", "final": None, "best": None}


def test_what_failed_is_on_the_page():
    found = analysis(changes=lambda row: break_off(row) if row["seed"] == 2 else row)
    page = page_of(found)
    assert "2 of 4 cells are not done; what is missing is in no mean." in page.texts["p"]
    assert "no room <i>" in page.cells()
    assert "What is not done" in page.texts["h2"]


def test_a_page_without_any_result():
    page = page_of(analysis(changes=break_off))
    assert "No cell is done yet." in page.texts["p"]
    assert "svg" not in page.texts


def test_figures_that_stand_alone_have_legends(tmp_path):
    found = analysis()
    charts = draw_study(found, rounds_of(found), alone=True)
    assert len(charts) == 6
    against = [chart for chart in charts if chart.key == "against-peak"]
    assert len(write_charts(against, tmp_path)) == 1
    text = (tmp_path / "against-peak.svg").read_text()
    assert ">dense<" in text
    assert ">static<" in text
    (inline, *_) = draw_study(found, rounds_of(found))
    assert ">static<" not in inline.svg


def test_no_axis_has_more_than_all_of_a_share():
    found = analysis(changes=lambda row: row | {"final": 0.99, "best": 1.0})
    rounds = [row | {"value": 1.0} for row in rounds_of(found)]
    for chart in draw_study(found, rounds)[:5]:
        low, high = chart.figure.axes[0].get_ylim()
        assert -0.01 < low < high < 1.01


@pytest.mark.parametrize("written", [False, True])
def test_a_record_keeps_what_a_person_wrote(written):
    found = analysis()
    first = readme(found, HERE)
    assert tables_of(found) in first
    before = first.replace("Write it here", "It shows nothing") + "\nMore.\n" if written else first
    better = analysis(changes=lambda row: row | {"final": row["final"] + 0.1})
    again = readme(better, HERE, before)
    assert tables_of(better) in again
    assert tables_of(found) not in again
    assert again.partition(END)[2] == before.partition(END)[2]
    assert again.partition(BEGIN)[0] == before.partition(BEGIN)[0]
