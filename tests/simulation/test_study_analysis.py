"""What rows come to: groups, pairs, protocols and tables, by numbers worked by hand."""

import pytest
from study_cases import row_of, study_of

from mest_fed.schema import Metric
from mest_fed.simulation.report.compare import Column
from mest_fed.simulation.study.analysis import Analysis, Pairing
from mest_fed.simulation.study.tables import (
    BETTER,
    UNKNOWN,
    WITHIN,
    WORSE,
    differences_table,
    failures_table,
    in_short,
    means_table,
    signed,
)

TEXT = """
[study]
reference = { method = "dense" }

[axes]
method = ["dense", "static", "set"]
density = [0.1, 0.5]
seed = SEEDS
"""
#: Method and density -> accuracies by seed.
FINAL = {
    ("dense", 0.1): (0.50, 0.52, 0.54),
    ("dense", 0.5): (0.60, 0.60, 0.60),
    # 0.1 above with each seed, and a little noise: beyond it.
    ("static", 0.1): (0.60, 0.62, 0.65),
    # As much above as below: within noise.
    ("static", 0.5): (0.57, 0.60, 0.63),
    ("set", 0.1): (0.40, 0.42, 0.44),
    ("set", 0.5): (0.61, 0.59, 0.60),
}


def analysis(seeds=(1, 2, 3), text=TEXT, changes=lambda row: row):
    study = study_of(text.replace("SEEDS", str(list(seeds))))
    rows = [
        row_of(
            study,
            {"method": method, "density": density, "seed": seed},
            final=values[seed - 1],
            best=values[seed - 1],
        )
        for (method, density), values in FINAL.items()
        for seed in seeds
    ]
    return Analysis(study, [changes(row) for row in rows])


def by_name(table):
    return {row[0].text: row[1:] for row in table.rows}


def test_groups_are_all_but_the_seed():
    found = analysis()
    assert [group.labels for group in found.groups] == [
        {"method": method, "density": str(density)} for method, density in FINAL
    ]
    spread = found.groups[0].spread("final")
    assert spread.mean == pytest.approx(0.52)
    assert spread.deviation == pytest.approx(0.02)


def test_pairs_have_the_same_seed_and_the_same_everything_else():
    (pairing,) = analysis().pairings
    assert pairing.name == "dense"
    assert [(pair.group.labels, pair.against.labels) for pair in pairing.pairs] == [
        (
            {"method": method, "density": str(density)},
            {"method": "dense", "density": str(density)},
        )
        for method, density in FINAL
        if method != "dense"
    ]
    first = pairing.pairs[0].differences["final"]
    # 0.10, 0.10, 0.11: mean 0.31 / 3, deviation 0.005774, half 4.3027 x 0.005774 / sqrt 3.
    assert first.mean == pytest.approx(0.31 / 3)
    assert first.half == pytest.approx(0.014342, abs=1e-6)


def test_which_differences_are_beyond_noise():
    found = analysis()
    table = by_name(differences_table(found, found.pairings[0]))
    assert {name: cells[1].kind for name, cells in table.items()} == {
        "static · 0.1": BETTER,
        "static · 0.5": WITHIN,
        "set · 0.1": WORSE,
        "set · 0.5": WITHIN,
    }
    first = table["static · 0.1"]
    assert first[0].text == "3"
    assert first[1].text == "+10.33 points"
    assert list(first[1].more) == ["[+8.90, +11.77]", "beyond noise: better"]
    assert table["set · 0.1"][1].text == "\N{MINUS SIGN}10.00 points"
    said = in_short(found)
    assert said.startswith("18 of 18 cells are done. In final accuracy, against dense: ")
    assert "static · 0.1 is better beyond noise; set · 0.1 is worse beyond noise" in said


def test_with_one_seed_nothing_is_said_to_be_beyond_noise():
    found = analysis(seeds=(1,))
    table = by_name(differences_table(found, found.pairings[0]))
    assert {cells[1].kind for cells in table.values()} == {UNKNOWN}
    assert {tuple(cells[1].more) for cells in table.values()} == {("one pair",)}
    assert "With one seed nothing can be said of noise." in in_short(found)
    assert "beyond" not in in_short(found)


def test_the_best_of_those_that_are_compared_are_marked():
    table = by_name(means_table(analysis()))
    best = {name for name, cells in table.items() if cells[1].kind == "best"}
    # At density 0.5 all three have the same mean.
    assert best == {"static · 0.1"}
    assert table["dense · 0.1"][1].text == "52%"
    assert list(table["dense · 0.1"][1].more) == ["± 2"]
    assert list(table["dense · 0.5"][1].more) == ["± 0"]


def fail(row):
    if (row["method"], row["density"], row["seed"]) == ("static", 0.1, 3):
        return row | {"status": "failed", "reason": "no room", "final": None}
    return row


def test_what_failed_takes_no_part():
    found = analysis(changes=fail)
    table = by_name(means_table(found))
    assert table["static · 0.1"][0].text == "2 of 3"
    assert table["static · 0.1"][1].text == "61%"
    assert by_name(differences_table(found, found.pairings[0]))["static · 0.1"][0].text == "2"
    ((cell, status, why),) = failures_table(found).rows
    assert (cell.text, status.text, why.text) == (
        "method=static,density=0.1,seed=3",
        "failed",
        "no room",
    )
    assert failures_table(analysis()) is None


def test_what_was_not_begun_is_counted_and_not_listed():
    def changes(row):
        begun = row["method"] == "dense"
        return fail(row) if begun or row["seed"] == 3 else row | {"status": "not run"}

    table = failures_table(analysis(changes=changes))
    assert [row[0].text for row in table.rows] == ["method=static,density=0.1,seed=3"]
    assert table.caption.endswith("; 8 more cells were not begun")
    assert failures_table(analysis(changes=lambda row: row | {"status": "not run"})) is None


COST = TEXT.replace("[study]", '[study]\nprotocol = "cost"\ntarget = 0.6')


def cost(row):
    reached = row["final"] >= 0.6
    goals = {"goal_round": 10 * row["seed"], "goal_traffic_bytes": 5000}
    goals |= {"goal_virtual_seconds": 60.0, "goal_energy_joules": 70.0}
    return row | {"reached": float(reached)} | {k: v if reached else None for k, v in goals.items()}


def test_what_never_reaches_the_target_is_said_so():
    found = analysis(text=COST, changes=cost)
    table = by_name(means_table(found))
    assert [name for name, _ in means_table(found).headings][2:4] == [
        "reached 60%",
        "rounds to 60%",
    ]
    assert table["set · 0.1"][1].text == "0 of 3"
    assert table["set · 0.1"][2].text == "never"
    assert table["static · 0.1"][1].text == "3 of 3"
    assert table["static · 0.1"][2].text == "20"
    # Of set at 0.5 the seeds 1 and 3 reached it.
    assert table["set · 0.5"][1].text == "2 of 3"
    assert table["set · 0.5"][2].text == "20"
    assert "of 2 that reached it" in table["set · 0.5"][2].more
    pairs = by_name(differences_table(found, found.pairings[0]))
    assert pairs["static · 0.1"][1].text == "—"
    assert list(pairs["static · 0.1"][1].more) == ["no pair reached it"]
    assert pairs["set · 0.5"][0].text == "2"
    assert pairs["set · 0.5"][1].kind == WITHIN


def test_robustness_is_compared_with_calm():
    text = (
        '[study]\nprotocol = "robustness"\n[axes]\nmethod = ["set", "static"]\n'
        'condition = ["calm", "dropout"]\nseed = [1, 2]\n'
    )
    study = study_of(text)
    finals = {
        ("set", "calm"): (0.6, 0.62),
        ("set", "dropout"): (0.5, 0.52),
        ("static", "calm"): (0.5, 0.5),
        ("static", "dropout"): (0.55, 0.45),
    }
    rows = [
        row_of(study, {"method": method, "condition": condition, "seed": seed}, final=final)
        for (method, condition), values in finals.items()
        for seed, final in enumerate(values, start=1)
    ]
    found = Analysis(study, rows)
    (pairing,) = found.pairings
    assert pairing.name == "calm"
    (name, pairs, final, *_), other = differences_table(found, pairing).rows
    assert (name.text, pairs.text) == ("set · dropout", "2")
    assert (final.text, final.kind) == ("\N{MINUS SIGN}10.00 points", WORSE)
    assert other[2].kind == WITHIN
    best = {name for name, cells in by_name(means_table(found)).items() if cells[1].kind == "best"}
    assert best == {"set · calm", "set · dropout"}


def test_tables_as_markdown():
    lines = means_table(analysis()).as_markdown().splitlines()
    assert lines[0].startswith("| method · density | seeds | final accuracy (measured) |")
    assert lines[4].startswith("| static · 0.1 | 3 | **62.3% ± 2.5** |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_a_reference_that_is_a_number_is_named_with_its_axis():
    assert Pairing({"forgetting.fraction": "0"}, ()).name == "forgetting.fraction = 0"
    assert Pairing({"method": "dense", "budget": "20%"}, ()).name == "dense, budget = 20%"


@pytest.mark.parametrize(
    ("number", "text"), [(-0.00001, "0.00 points"), (-0.0123, "\N{MINUS SIGN}1.23 points")]
)
def test_a_difference_that_is_nothing_has_no_sign(number, text):
    metric = Metric("accuracy", higher_is_better=True, share=True)
    column = Column("final", "final accuracy", "measured", str, 1)
    assert signed(number, column, metric) == text
