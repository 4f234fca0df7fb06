"""What a configuration may name: every choice is registered once, and keeps its kind's promises."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mest_fed.catalogue as catalogue
from mest_fed.config import RunConfig, from_table, named, to_flat
from mest_fed.data import DataSplit, load_dataset, partition
from mest_fed.devices import load_profile
from mest_fed.errors import InputError
from mest_fed.memory import PlanLimits, TrainingShape
from mest_fed.nn import build_model, read_state
from mest_fed.registry import Registry
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes import build_strategy
from mest_fed.server.selection import SelectionRequest
from mest_fed.simulation.behaviour.availability import Periods
from mest_fed.sparsity import layer_counts, layout_for
from mest_fed.task import Task

REGISTRIES = {name: value for name, value in vars(catalogue).items() if isinstance(value, Registry)}
SOURCE = Path(catalogue.__file__).parent
LABELS = np.arange(60) % 5
#: Models that take no image: the shape and type of their input.
INPUTS = {
    "har1d": ((6, 32), torch.float32),
    "lstm": ((12,), torch.int64),
    "transformer": ((12,), torch.int64),
}


def every(registry):
    """Parametrise a test by the names of a registry."""
    return pytest.mark.parametrize("name", list(registry))


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_every_name_leads_to_a_function_or_class(registry):
    for name, thing in registry.items():
        assert callable(thing)
        assert registry.find(name) is thing
        assert inspect.getdoc(thing)


def test_nothing_is_imported_for_a_look_at_the_names():
    code = (
        "import sys, mest_fed.catalogue as c, mest_fed.config\n"
        "c.MODELS.check('resnet8'), c.SELECTORS.check('uniform'), c.TRACKERS.check('wandb')\n"
        "print({'torch', 'flwr', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_choice_of_the_configuration_is_registered():
    """A text is a choice, or is free: a path, a mix, an order of the planner's knobs."""
    free = {
        "data.columns",
        "data.encoding",
        "data.options",
        "data.partition_file",
        "data.path",
        "memory.segments",
        "model.options",
        "model.weights",
        "server.stop_when",
        "sparsity.exclude",
        "sparsity.include",
        "sparsity.layers",
        "task.options",
        "training.kernels",  # a name of KernelMode, or a path
        "memory.prefer",  # names of KNOBS
        "behaviour.trace",
        "fleet.mix",
        "fleet.budgets",
        "deployment.folder",
        "deployment.link",
        "deployment.link_certificates",
        "deployment.link_enrol",
    }
    flat = to_flat(RunConfig())
    texts = {key for key, value in flat.items() if isinstance(value, str)}
    assert texts - free == set(named())
    for key, choices in named().items():
        assert choices in (*REGISTRIES.values(), *vars(catalogue).values())
        assert flat[key] in list(choices)
        if isinstance(choices, Registry):
            assert key in choices.key.split(" or ")


def test_no_name_is_written_twice_in_the_configuration():
    names = {name for registry in REGISTRIES.values() for name in registry}
    names |= {name for choices in named().values() for name in choices}
    for file in (SOURCE / "config").glob("*.py"):
        lists = (ast.Tuple, ast.List, ast.Set, ast.Dict)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, lists):
                texts = [e.value for e in ast.iter_child_nodes(node) if isinstance(e, ast.Constant)]
                assert not names & {text for text in texts if isinstance(text, str)}


@pytest.mark.parametrize(("section", "key"), [key.split(".") for key in named()])
def test_what_is_registered_is_allowed_and_nothing_else(section, key):
    choices = named()[f"{section}.{key}"]
    for name in choices:
        if (section, key) == ("wire", "download") and name in catalogue.DIFFERENCE_CODECS:
            continue
        others = {"mutation": "client"} if name in ("rigl", "feddst", "private") else {}
        table = {section: {key: name, **others}}
        assert to_flat(from_table(table, "test"))[f"{section}.{key}"] == name
    with pytest.raises(InputError, match=", ".join(choices)):
        from_table({section: {key: "no such"}}, "test")


@every(catalogue.MODELS)
def test_models(name):
    shape, dtype = INPUTS.get(name, ((3, 8, 8), torch.float32))
    model = build_model(name, shape, 4, generator=torch.Generator(), width=0.25)
    assert model.eval()(torch.zeros(2, *shape, dtype=dtype)).shape == (2, 4)


@every(catalogue.NORMS)
def test_norms(name):
    norm, x = catalogue.NORMS.build(name, 6), torch.ones(2, 6, 3, 3)
    assert (norm(x, residual=-x, relu=True) >= 0).all()


def test_data_sets_say_what_a_split_is():
    assert isinstance(load_dataset("digits"), DataSplit)


@every(catalogue.PARTITIONERS)
def test_partitioners(name):
    options = {"examples_per_device": 20, "alpha": 1.0, "groups": np.arange(len(LABELS)) % 5}
    parts = partition(LABELS, 4, scheme=name, seed=0, **options)
    assert len(parts) == 4
    assert all(len(set(part.tolist())) == len(part) > 0 for part in parts)
    again = partition(LABELS, 4, scheme=name, seed=0, **options)
    assert all(np.array_equal(*pair) for pair in zip(parts, again, strict=True))


@every(catalogue.AUGMENTATIONS)
def test_augmentations(name):
    images = np.arange(5 * 3 * 8 * 8, dtype=np.uint8).reshape(5, 3, 8, 8)
    found = catalogue.AUGMENTATIONS.build(name, images, np.random.default_rng(0))
    assert (found.shape, found.dtype) == (images.shape, images.dtype)


@every(catalogue.SCHEMES)
def test_schemes(name):
    layout = layout_for(name, (8, 4, 3, 3))
    slots = layout.best_slots(np.ones((8, 4, 3, 3), np.float32))[0]
    assert layout.positions(slots).shape == (len(slots), layout.width)


@every(catalogue.DISTRIBUTIONS)
def test_distributions(name):
    layouts = {size: layout_for("unstructured", (size, size)) for size in (8, 32)}
    counts = layer_counts(layouts, 0.25, name)
    assert sum(counts.values()) == pytest.approx(0.25 * (64 + 1024), abs=1)


@every(catalogue.METHODS)
def test_methods(name):
    task = Task(from_table({"sparsity": {"method": name, "mutation": "client"}}, "test"))
    assert task.method.bounds(0.5).floor <= 1 <= task.method.bounds(0.5).ceiling
    assert (task.density < 1) == task.method.sparse


@every(catalogue.LEARNING_RATES)
def test_schedules(name):
    factors = [catalogue.LEARNING_RATES.build(name, step / 8) for step in range(9)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] >= 0


@every(catalogue.OPTIMIZERS)
def test_client_optimizers(name):
    weight = nn.Parameter(torch.ones(3))
    optimizer = catalogue.OPTIMIZERS.build(name, [weight], 0.1)
    weight.sum().backward()
    optimizer.step()
    assert (weight < 1).all()


@every(catalogue.FORMATS)
def test_formats_of_activations(name):
    x = torch.arange(-8.0, 8.0).view(2, 2, 4)
    torch.testing.assert_close(catalogue.FORMATS.build(name, x).whole(), x, atol=0.05, rtol=0)


@every(catalogue.KNOBS)
def test_knobs_change_a_shape_step_by_step(name):
    limits = PlanLimits(TrainingShape(0.1, "uniform", 32, 32), segments=6)
    (knob,) = (knob for knob in limits.knobs() if knob.name == name)
    shapes = [knob.pull(limits.shape, step) for step in knob.steps]
    assert shapes[0] == limits.shape
    assert len(set(shapes)) == len(shapes) > 1


@every(catalogue.SELECTORS)
def test_selectors(name):
    selector = catalogue.SELECTORS.build(name)
    chosen = selector.select(SelectionRequest(range(9), 3, 1, (1, "selection"), {4}))
    assert len(set(chosen)) == 3
    assert 4 not in chosen
    selector.restore(selector.arrays())


@every(catalogue.SERVER_OPTIMIZERS)
def test_server_optimizers(name):
    optimizer = catalogue.SERVER_OPTIMIZERS.build(name, learning_rate=0.1, momentum=0.9)
    ones = np.ones(4, np.float32)
    stepped = optimizer.step("layer", ones, ones)
    assert stepped.dtype == np.float32
    assert (stepped < 1).all()


@every(catalogue.MODES)
def test_modes(name):
    task = Task(from_table({"server": {"mode": name}, "model": {"width": 0.25}}, "test"))
    state = GlobalModel.from_state(task.spec, read_state(task.build_model()))
    assert build_strategy(task, state).model is state


@every(catalogue.WEIGHTINGS)
def test_weightings(name):
    assert catalogue.WEIGHTINGS.build(name, 10) >= catalogue.WEIGHTINGS.build(name, 1) > 0


def behaviour(**keys):
    config = from_table({"behaviour": keys}, "test").behaviour
    return {"behaviour": config, "seed": 1, "profile_of": lambda _: load_profile("phone-mid")}


@every(catalogue.AVAILABILITIES)
def test_availabilities(name):
    trace = catalogue.AVAILABILITIES.build("always")  # stands for one that was read
    found = catalogue.AVAILABILITIES.build(name, trace=trace, **behaviour())
    moment = found.returns(3, 1e5)
    assert moment >= 1e5
    assert found.present(3, moment)
    assert found.leaves(3, moment) > moment


@every(catalogue.CHARGING)
def test_charging(name):
    found = catalogue.CHARGING.build(name, **behaviour(battery=True))
    assert found is None or isinstance(found, Periods)
