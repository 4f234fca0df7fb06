"""What training by forward passes alone, and released gradients, do not go with: one line each."""

import pytest

from mest_fed.config import from_table
from mest_fed.errors import InputError
from mest_fed.task import Task

FORWARD = {"gradient": "zeroth-order"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sparsity": {"mutation": "client"}}, "no gradients to rank weights by; allowed: spars"),
        ({"sparsity": {"method": "snip"}}, "no gradients to score weights by; allowed: another"),
        ({"training": {"optimizer": "adam"}}, "training.optimizer = 'adam' is not allowed with"),
        ({"training": {"proximal": 0.1}}, "training.proximal = 0.1 is not allowed with training"),
        ({"memory": {"recompute": "segments"}}, "memory.recompute = 'segments' is not allowed wi"),
        ({"memory": {"saved": "int8"}}, "memory.saved = 'int8' is not allowed with training.gr"),
        ({"wire": {"slopes": True, "upload": "fp16"}}, "wire.upload = 'fp16' is a format of wei"),
    ],
)
def test_forward_passes_alone(sections, said):
    table = {"training": FORWARD, "sparsity": {"method": "static"}}
    from_table(table, "test")
    changed = {name: table.get(name, {}) | keys for name, keys in sections.items()}
    with pytest.raises(InputError) as refused:
        from_table(table | changed, "test")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_segments_may_be_frozen():
    from_table({"training": FORWARD, "memory": {"frozen": 1}}, "test")


@pytest.mark.parametrize("training", [{"clip_norm": 1.0}, {"optimizer": "adam", "clip_norm": 0.5}])
def test_gradients_that_are_needed_later_are_not_released(training):
    table = {"memory": {"release_gradients": True}}
    from_table(table, "test")
    with pytest.raises(InputError, match=r"memory\.release_gradients = True is not allowed with"):
        from_table(table | {"training": training}, "test")


def test_slopes_are_of_steps_along_directions():
    with pytest.raises(InputError, match=r"wire\.slopes = True is for steps along random"):
        from_table({"wire": {"slopes": True}}, "test")


@pytest.mark.parametrize("gradient", ["backward", "zeroth-order"])
def test_more_segments_than_there_are_cannot_be_frozen(gradient):
    table = {"model": {"name": "mlp"}, "memory": {"frozen": 2}, "training": {"gradient": gradient}}
    task = Task(from_table(table | {"sparsity": {"method": "static"}}, "test"))
    with pytest.raises(InputError, match=r"memory\.frozen = 2 is not allowed; allowed: a whole"):
        task.planner()
