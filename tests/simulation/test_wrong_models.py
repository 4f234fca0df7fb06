"""Models that cannot be trained: one line each, from ``simulate`` and from ``plan``."""

import shutil
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from cli_output import without_phases
from tiny_run import tiny_config, tiny_table
from wrong_nets import good

from mest_fed.cli import main
from mest_fed.errors import InputError
from mest_fed.task import Task
from mest_fed.task_trials import try_examples

#: Kinds of faults at length, each in a run of its own.
pytestmark = pytest.mark.soak

HERE = Path(__file__).parent
SIMULATE = ("simulate", "tiny.toml", "--workers", "0", "--out", "run")
PLAN = ("plan", "tiny.toml")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command with settings, and returns the line that it costs."""
    shutil.copy(HERE / "wrong_nets.py", tmp_path)
    table = tiny_table(model={"width": 1.0}, run={"rounds": 1})
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    monkeypatch.chdir(tmp_path)

    def run(command, *settings):
        changes = [part for setting in settings for part in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["mest-fed", *command, *changes])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        err = without_phases(err)
        assert (caught.value.code, out, err.count("\n")) == (2, "", 1), err
        assert not (tmp_path / "run").exists()
        return err

    return run


GIVEN = "inputs of shape (n, 1, 8, 8) and torch.float32"
WRONG = {
    "few_outputs": f"gives shape (n, 7) for {GIVEN}; allowed: (n, 10)",
    "many_outputs": "gives shape (n, 13) ",
    "sequence": "gives shape (n, 5, 10) ",
    "one_number": "gives shape (n,) ",
    "no_examples": "gives shape (10,) ",
    "a_dict": "gives a dict; allowed: a tensor",
    "whole_numbers": "gives torch.int64; allowed: floating-point numbers",
    "no_gradient": "gives an output without a gradient",
    "raises": f"does not take {GIVEN}, which data.name gives: KeyError: ",
    "half": ": 1.weight is of torch.float16; allowed: torch.float32",
    "double": ": 1.weight is of torch.float64; allowed: torch.float32",
    "partly_double": ": 3.weight is of torch.float64; allowed: torch.float32",
    "imaginary": ": 1.weight is of torch.complex64; allowed: torch.float32",
    "lazy": ": 1.weight has no shape yet",
    "other_size": f"does not take {GIVEN}, which data.name gives: ",
    "other_channels": f"does not take {GIVEN}, which data.name gives: RuntimeError: Given groups=1",
    "no_memory": ": 1.weight is on device meta; allowed: cpu",
    "empty": "has no parameters; allowed: a model with weights to train",
    "no_forward": "NotImplementedError: ",
    "absent": "has no attribute 'absent'",
}


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("method", ["mest-ems", "dense"])
@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_cannot_be_trained(name, method):
    """Simulations try the objective, plans and devices the trace."""
    file = f"{HERE}/wrong_nets.py:{name}"
    model = {"name": file, "width": 1.0}
    task = Task(tiny_config(model=model, sparsity={"method": method}))
    for attempt in (lambda: try_examples(task), lambda: task.trace):
        with pytest.raises(InputError) as caught:
            attempt()
        line = " ".join(str(caught.value).split())
        assert line.startswith(f"model.name = {file!r}")
        assert WRONG[name] in line


@pytest.mark.parametrize("command", [SIMULATE, PLAN], ids=["simulate", "plan"])
@pytest.mark.parametrize("name", ["few_outputs", "imaginary", "no_gradient"])
def test_it_costs_one_line(name, command, refused, tmp_path):
    err = refused(command, f"model.name=wrong_nets.py:{name}")
    assert err.startswith(f"error: model.name = '{tmp_path}/wrong_nets.py:{name}'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_model_on_cuda_where_there_is_none():
    task = Task(tiny_config(model={"name": f"{HERE}/wrong_nets.py:on_cuda", "width": 1.0}))
    with pytest.raises(InputError, match=r"^model\.name = .*on_cuda': \w+: .*wrong_nets\.py:"):
        _ = task.model


def test_first_weights_that_are_not_finite():
    task = Task(tiny_config(model={"name": f"{HERE}/wrong_nets.py:not_finite", "width": 1.0}))
    with pytest.raises(InputError, match="not_finite' gives outputs that are not finite"):
        try_examples(task)


@pytest.mark.parametrize("command", [SIMULATE, PLAN], ids=["simulate", "plan"])
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["model.options=7"], "model.options = 7 is not allowed"),
        (["model.options=[1]"], "model.options = [1] is not allowed"),
        (["model.options.depth=3"], "model.options.depth is no option of model.name = "),
        (["model.name=wrong_nets.py:needs_an_option"], "model.options.hidden is missing"),
        (["model.name=wrong_nets.py:needs_a_third"], "model.options.hidden is missing"),
        (["model.width=0.5"], "model.width = 0.5 is not allowed"),
        (["memory.segments=layer*"], "memory.segments = 'layer*' matches no module"),
        (["memory.segments='2'"], "memory.segments = '2' is not allowed; allowed: modules with"),
        (["model.weights=absent.pt"], "model.weights = "),
        (["model.weights=whole.pt"], "model.weights = "),
        (["model.name=resnet8", "model.options.depth=3"], "model.options.depth is no option of"),
        (["model.name=resnet8", "model.options=3"], "model.options = 3 is not allowed"),
    ],
)
def test_a_key_of_the_model_that_is_wrong(settings, line, command, refused, tmp_path):
    state = {name: it.int() for name, it in good((1, 8, 8), 10).state_dict().items()}
    torch.save(state, tmp_path / "whole.pt")
    err = refused(command, "model.name=wrong_nets.py:good", *settings)
    assert err.startswith(f"error: {line}")


@pytest.mark.soak
def test_a_builder_s_own_parameters_are_what_is_allowed(refused):
    """Those that the data fill are no options."""
    err = refused(PLAN, "model.name=wrong_nets.py:good", "model.options.depth=3")
    assert err.endswith("; allowed: hidden\n")
