"""Files that cannot be studies: one line that names key, value and what is allowed."""

import pytest
from study_cases import SMALL, study_of

from mest_fed.errors import InputError
from mest_fed.simulation.study.checks import check_study
from mest_fed.simulation.study.grid import expand
from mest_fed.simulation.study.study_file import read_study

ONE = "[axes]\nseed = [1]\n"


def read_and_check(text):
    study = study_of(text)
    check_study(study, expand(study))


def refusal(text):
    with pytest.raises(InputError) as caught:
        read_and_check(text)
    line = str(caught.value)
    assert "\n" not in line
    return line


WRONG = [
    (
        "the study has no axes (small.toml)",
        "",
    ),
    (
        "unknown table axis (small.toml); allowed: study, settings",
        "[axis]\nseed = [1]",
    ),
    (
        "axes.seed (small.toml) = 3 is not allowed; allowed: a list",
        "[axes]\nseed = 3",
    ),
    (
        "axes.seed (small.toml) = [] is not allowed",
        "[axes]\nseed = []",
    ),
    (
        "axes.seed: 1 stands twice (small.toml)",
        "[axes]\nseed = [1, 1]",
    ),
    (
        "axes.seed (small.toml) = [1] is not allowed; allowed: numbers",
        "[axes]\nseed = [[1]]",
    ),
    (
        "axes.sede names nothing (small.toml)",
        "[axes]\nsede = [1]",
    ),
    (
        'axes.name may be several keys (small.toml); allowed: "task.name"',
        "[axes]\nname = ['x']",
    ),
    (
        "unknown key run.sede (small.toml, axes); did you mean run.seed?",
        "[axes]\n'run.sede' = [1]",
    ),
    (
        "run.seed = 'a' is not allowed (small.toml, seed=a); allowed: a whole",
        "[axes]\nseed = ['a']",
    ),
    (
        "sparsity.method = 'magic' is not allowed (small.toml, method=magic)",
        "[axes]\nmethod = ['magic']",
    ),
    (
        "axes.seed and axes.run.seed both set run.seed",
        "[axes]\nseed = [1]\n'run.seed' = [2]",
    ),
    (
        "bundles.method.foo is no value of axes.method (small.toml), which has 'dense', 'mest-em'; "
        "allowed: a text that is one of these",
        "[axes]\nmethod = ['dense', 'mest-em']\n[bundles.method.foo]\nwire.upload = 'int8'",
    ),
    (
        "bundles.seed.1 is no value of axes.seed (small.toml), which has 1, 2; allowed: a text",
        "[axes]\nseed = [1]\n[[include]]\nseed = 2\n[bundles.seed.1]\nrun.rounds = 2",
    ),
    (
        "bundles.condition.dropout is no value of axes.condition (small.toml), which has 'calm'",
        "[study]\nprotocol = 'robustness'\n[axes]\ncondition = ['calm']\n"
        "[bundles.condition.dropout]\nbehaviour.dropout = 0.1",
    ),
    (
        "study.protocol = 'fast' is not allowed",
        "[study]\nprotocol = 'fast'\n" + ONE,
    ),
    (
        "study.target is missing",
        "[study]\nprotocol = 'cost'\n" + ONE,
    ),
    (
        "study.target = 7.0 is not allowed; allowed: a share",
        "[study]\nprotocol = 'cost'\ntarget = 7\n" + ONE,
    ),
    (
        "study.target = 0.5 is not allowed with study.protocol = 'quality'",
        "[study]\ntarget = 0.5\n" + ONE,
    ),
    (
        "unknown key study.refrence (small.toml); did you mean study.reference?",
        "[study]\nrefrence = {}\n" + ONE,
    ),
    (
        "axis (small.toml) = 'method' is not allowed; allowed: seed",
        "[study]\nreference = {method = 'dense'}\n" + ONE,
    ),
    (
        "study.reference.seed (small.toml) = 3 is not allowed; allowed: 1",
        "[study]\nreference = {seed = 3}\n" + ONE,
    ),
    (
        "--preset = 'nothing' is not allowed",
        "[study]\npreset = 'nothing'\n" + ONE,
    ),
    (
        "no such file",
        "[study]\nconfig = 'nothing.toml'\n" + ONE,
    ),
    (
        "unknown key run.sede (small.toml)",
        "[settings]\nrun.sede = 1\n" + ONE,
    ),
    (
        "run.rounds = 0 is not allowed (small.toml, seed=1)",
        "[settings]\nrun.rounds = 0\n" + ONE,
    ),
    (
        "bundles.method is of no axis (small.toml)",
        ONE + "[bundles.method.x]\nrun.seed = 1",
    ),
    (
        "unknown key run.sede (small.toml)",
        "[axes]\nmethod = ['x']\n[bundles.method.x]\nrun.sede = 1",
    ),
    (
        "bundles.method (small.toml) = {'x': 1} is not allowed",
        "[axes]\nmethod = ['x']\n[bundles.method]\nx = 1",
    ),
    (
        "exclude.seed (small.toml) = 2 is not allowed; allowed: 1",
        ONE + "[[exclude]]\nseed = 2",
    ),
    (
        "the study has no cell: all are excluded",
        ONE + "[[exclude]]\nseed = 1",
    ),
    (
        "include 1 adds seed = 1, which is there already",
        ONE + "[[include]]\nseed = 1",
    ),
    (
        "axis (small.toml) = 'sede' is not allowed",
        ONE + "[[include]]\nsede = 1",
    ),
    (
        "exclude (small.toml) = {'seed': 1} is not allowed",
        ONE + "[exclude]\nseed = 1",
    ),
    (
        "budget = 'much' is not allowed; allowed: bytes such as 3MB",
        "[axes]\nbudget = ['much']",
    ),
    (
        "deployment is for real devices",
        "[axes]\n'deployment.folder' = ['x']",
    ),
    (
        "judged by different metrics",
        "[axes]\n'task.name' = ['classification', 'regression']",
    ),
    (
        "server.clients_per_round = 99 is not allowed",
        "[axes]\n'clients_per_round' = [99]",
    ),
]


@pytest.mark.parametrize(("said", "text"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_a_study(said, text):
    assert said in refusal(text)


def test_a_bundle_that_an_include_adds_is_named():
    text = (
        SMALL
        + '[axes]\nmethod = ["dense"]\n[bundles.method.foo]\nwire.upload = "int8"\n'
        + '[[include]]\nmethod = "foo"\n'
    )
    read_and_check(text)
    with pytest.raises(InputError, match=r"^bundles\.method\.foo is no value of axes\.method"):
        study_of(text.replace('method = "foo"', 'method = "set"'))


def test_axes_are_not_called_as_columns():
    text = '[axes]\nfinal = ["a"]\n[bundles.final.a]\nrun.seed = 1\n'
    assert "axes.final is called as a column of the results" in refusal(SMALL + text)


def test_what_is_compared_must_share_what_the_protocol_says():
    text = (
        '[study]\nreference = {method = "dense"}\n'
        + SMALL
        + '[axes]\nmethod = ["dense", "other"]\n[bundles.method.other]\ndata.alpha = 9.0\n'
    )
    line = refusal(text)
    assert "method=other has data.alpha = 9.0 and its reference method=dense has" in line


def test_a_reference_that_no_cell_has():
    text = (
        '[study]\nreference = {method = "dense"}\n[axes]\nmethod = ["dense", "set"]\n'
        '[[exclude]]\nmethod = "dense"\n'
    )
    assert "no cell has a reference with method = dense" in refusal(text)


def test_a_study_of_no_name(tmp_path):
    allowed = "budgets, .*quickstart, .*a TOML file"
    with pytest.raises(InputError, match=f"^study = 'nothing' is not allowed; allowed: {allowed}"):
        read_study("nothing")
    with pytest.raises(InputError, match="no such file"):
        read_study(str(tmp_path / "nothing.toml"))
    (tmp_path / "x.toml").write_text("[axes\n")
    with pytest.raises(InputError, match="cannot read"):
        read_study(str(tmp_path / "x.toml"))
