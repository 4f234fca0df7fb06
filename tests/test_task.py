"""The learning task of a configuration: which of its layers are sparse, and how dense they are."""

import pytest

from mest_fed.config import from_table
from mest_fed.errors import InputError
from mest_fed.nn import Reason, SparseLayer, model_spec, read_state
from mest_fed.server.global_model import GlobalModel
from mest_fed.task import Task


def task(**sparsity):
    return Task(from_table({"sparsity": sparsity, "model": {"name": "resnet8"}}, "test"))


def test_layers_are_chosen_and_have_their_densities_in_model_shell_and_tiers():
    chosen = task(
        include=["stage2", "stage3"], exclude=["*.0.conv2"], layers={"stage3": 0.5}, density=0.25
    )
    model = chosen.build_model()
    assert model_spec(model) == chosen.spec
    layers = {n: it for n, it in model.named_modules() if isinstance(it, SparseLayer)}
    densities = {name: it.mask.density for name, it in layers.items()}
    assert densities == {"stage2.0.conv1": 0.25, "stage3.0.conv1": 0.5}
    tier = GlobalModel.from_state(chosen.spec, read_state(model)).tier_masks(
        0.1, chosen.config.sparsity.densities
    )
    assert len(tier["stage3.0.conv1"]) == len(layers["stage3.0.conv1"].slots)
    assert len(tier["stage2.0.conv1"]) < 0.5 * len(layers["stage2.0.conv1"].slots)
    reasons = {row.name: row.reason for row in chosen.layers}
    assert reasons["stage1.0.conv1"] is Reason.NOT_INCLUDED
    assert reasons["stage2.0.conv2"] is Reason.KEPT


@pytest.mark.parametrize("key", ["include", "exclude", "layers"])
def test_a_pattern_that_names_nothing_is_refused_before_a_model_has_weights(key):
    given = {"nothing": 0.5} if key == "layers" else ["nothing"]
    with pytest.raises(InputError, match=rf"^sparsity\.{key} = 'nothing' matches no module"):
        _ = task(**{key: given}).model
