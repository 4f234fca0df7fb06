"""The benchmarks of kernels and training steps: tiny runs, and their arithmetic."""

import json
import time

import compiled_step
import kernels
import numpy as np
import pytest
import runtime_process
import sparseprop_peer
import torch
import train_step
from amdahl import amdahl, modelled_limits
from benchmark_cases import timings
from layer_clock import LayerClock
from layer_program import LayerProgram
from torch import nn
from train_contestants import SETTINGS, Case, Model, by_torch, compiled, dense, run_compiled

from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.nn import SparseLayer, sparsifiable, sparsify
from mest_fed.training.programs import Programs
from mest_fed.training.tasks import Classification

TINY = ("--threads", "1", "--repeats", "2", "--warm-up", "1", "--batch", "2")


@pytest.fixture
def rows(tmp_path):
    def measure(script, *arguments):
        path = tmp_path / "rows.json"
        script.main([*arguments, *TINY, "--json", str(path)])
        return json.loads(path.read_text())["rows"]

    return measure


@pytest.mark.parametrize("layer", kernels.LAYERS)
def test_kernels(rows, layer):
    schemes = ("block:4", "pattern")
    found = rows(kernels, "--layers", layer, "--schemes", *schemes, "--peers", "dense")
    # a linear layer has no patterns; each case has a row of the module and one of its program
    assert len(found) == 2 * {"768-3072": 1, "64@32": 2}.get(layer, 8)
    assert [row["contestant"] for row in found[:2]] == ["layer", "compiled"]
    for row in found:
        if row["contestant"] == "compiled":
            assert row["planes_in_place"] == (layer != "768-3072")
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)
        assert (row["unit"], row["runs"], row["peer_name"]) == ("ms", 2, "dense")
        assert set(row["ours_runs"]) == set(row["peer_runs"]) == {"forward", "backward", "total"}


@pytest.mark.parametrize("scheme", kernels.SCHEMES)
def test_kernels_have_the_density_they_say(rows, scheme):
    options = ("--layers", "64@16", "--schemes", scheme, "--densities", "0.1", "--peers", "dense")
    for row in rows(kernels, *options):
        assert row["density"] == pytest.approx(0.1, abs=0.01)


def test_kernels_check_results():
    generator = torch.Generator().manual_seed(0)
    shape = kernels.LAYERS["128@8"]
    layer = kernels.sparse_layer("block", 0.1, shape.layer(generator))
    x = shape.input(2, generator)
    work = kernels.Work(x, torch.randn(2, 128, 8, 8, generator=generator))
    masked = layer.to_dense()
    assert kernels.agree(work, layer, masked)
    with torch.no_grad():
        layer.values[0] *= 1.5
    assert not kernels.agree(work, layer, masked)


@pytest.mark.parametrize("scheme", ["block", "channel"])
def test_kernels_check_results_of_compiled_layers(scheme):
    generator = torch.Generator().manual_seed(0)
    shape = kernels.LAYERS["128@8"]
    layer = kernels.sparse_layer(scheme, 0.1, shape.layer(generator))
    x, gradient = shape.input(2, generator), torch.randn(2, 128, 8, 8, generator=generator)
    work, program = kernels.Work(x, gradient), LayerProgram(layer, x, gradient, threads=2)
    assert kernels.program_agrees(program, work, layer)
    assert kernels.program_agrees(program, work, layer)  # a run leaves its input as it was
    with torch.no_grad():
        layer.values[0] *= 1.5
    assert not kernels.program_agrees(program, work, layer)


def test_kernels_take_the_better_variant_of_a_peer():
    slow, fast = timings(total=[2.0]), timings(total=[1.0])
    contestants = {"ours": fast, "dense": slow, "sparseprop over batch": slow}
    contestants["sparseprop over row"] = fast
    best = kernels.best_variants(contestants, kernels.PEERS)
    assert best == {"dense": "dense", "sparseprop": "sparseprop over row"}
    assert kernels.best_variants({"ours": fast, "dense": slow}, kernels.PEERS) == {"dense": "dense"}


def test_kernels_refuse_a_peer_that_is_absent(monkeypatch):
    monkeypatch.setattr(kernels, "WHY_ABSENT", "no such package")
    with pytest.raises(InputError, match="--peers sparseprop does not import"):
        kernels.main(["--peers", "sparseprop"])


@pytest.mark.skipif(bool(sparseprop_peer.WHY_ABSENT), reason="sparseprop is not installed")
@pytest.mark.parametrize("layer", ["128@8", "32-64@32/2", "768-3072"])
def test_kernels_against_sparseprop(layer, tmp_path):
    options = ["--layers", layer, "--schemes", "block", "--densities", "0.1", "--batch", "8"]
    path = tmp_path / "rows.json"
    kernels.main([*options, *TINY[:-2], "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["notices"] == []
    names = [row["peer_name"].split()[0] for row in found["rows"]]
    assert names == [*kernels.PEERS, "dense"]  # the last is the compiled layer's


@pytest.mark.parametrize("model", train_step.MODELS)
def test_train_step(rows, model):
    options = ("--width", "0.1", "--schemes", "block", "--densities", "0.1")
    found = rows(train_step, "--models", model, *options)
    bf16 = [] if model == "cnn2" else ["compiled-bf16"]  # nothing of cnn2 can be stored so
    assert [row["contestant"] for row in found] == ["compiled", *bf16, "torch", "dense-bf16"]
    for row in found:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)
        assert row["density"] == pytest.approx(0.1, abs=0.03)
        assert 0 < row["measured_share"] < 1
        assert row["modelled_possible"] >= row["modelled_possible_by_layers"] > 1
    for row in found[:-1]:
        assert row["reached"] == pytest.approx(row["ratio"] / row["modelled_possible"], abs=0.002)
    assert all(row["arena_bytes"] > 0 for row in found[:-2])
    assert set(found[-2]["ours_runs"]) == {"forward", "backward", "optimizer", "total"}


def test_train_step_of_a_dense_model_alone(rows):
    options = ("--models", "cnn2", "--width", "0.1", "--densities", "1", "--norm", "batch", "group")
    [row] = rows(train_step, *options, "--contestants", "compiled")
    assert (row["scheme"], row["density"], row["contestant"]) == ("dense", 1.0, "compiled")
    assert "modelled_possible" not in row


@pytest.mark.parametrize("script", [kernels, train_step, compiled_step])
def test_unknown_schemes_are_refused_before_anything_runs(script):
    with pytest.raises(InputError, match="scheme = 'x' is not allowed"):
        script.main(["--scheme" if script is compiled_step else "--schemes", "x"])


@pytest.mark.parametrize(("scheme", "density"), [("unstructured", 1.0), ("dense", 1.0)])
def test_all_sides_train_alike(scheme, density):
    case = Case(Model("cnn2", 0.1, 2), "group", scheme, density, 1)
    steps = [dense(case.build()), by_torch(case.build_sparse())]
    program = compiled(case.build_sparse(), 2, 1)
    images, labels = case.batch()
    for _ in range(3):
        for step in steps:
            step(images, labels)
        run_compiled(program, images, labels)
    plain, own = (step.model for step in steps)
    assert isinstance(own.hidden, SparseLayer) == (scheme != "dense")
    weight = own.hidden.dense_weight() if scheme != "dense" else own.hidden.weight
    assert torch.allclose(weight, plain.hidden.weight, atol=1e-6)
    name, held = ("values", own.hidden.values) if scheme != "dense" else ("weight", weight)
    assert torch.allclose(torch.from_numpy(program.arrays[f"hidden.{name}"]), held, atol=1e-6)


def test_compiled_steps_are_those_of_a_client():
    case = Case(Model("resnet32", 0.3, 8), "group", "block", 0.1, 1)
    model = case.build_sparse().train()
    given = Batch(*case.batch(), np.arange(8))
    client = Programs(model).step(Classification(), SETTINGS, given, 8, whole=True)
    assert compiled(model, 8, 1).program.sha256 == client.step.program.sha256
    assert compiled(model, 8, 1, group=2).program.examples == 2
    assert compiled(model, 8, 1, without="planes").program.sha256 != client.step.program.sha256
    narrow = compiled(model, 8, 1, storage="bf16").program
    assert "bfloat16" in {it.dtype for it in narrow.buffers}


def test_amdahl():
    assert amdahl([0.9], [0.1]) == pytest.approx(1 / 0.19)
    assert amdahl([0.5, 0.3], [0.5, 1.0]) == pytest.approx(1 / 0.75)
    assert amdahl([], []) == 1


def test_modelled_limits():
    def net():
        return nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))

    sparse = net()
    sparsify(sparse, "unstructured", 0.5)
    clocked = {"layer 0": [6.0], "optimizer": [2.0], "rest": [2.0]}
    assert modelled_limits(timings(**clocked), net(), sparse) == {
        "measured_share": 0.6,
        "measured_optimizer_share": 0.2,
        "modelled_possible_by_layers": round(1 / 0.7, 3),
        "modelled_possible": round(1 / 0.65, 3),
    }


def test_layer_clock_counts_the_clocked_layers_alone():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    clock = LayerClock([model[0], model[2]])
    for _ in range(2):
        clock.reset()
        Slow.apply(model(Slow.apply(torch.ones(1, 2, 8, 8)))).sum().backward()
        assert all(0 < seconds < Slow.SECONDS for seconds in clock.seconds)
    with torch.no_grad():
        model(torch.ones(1, 2, 8, 8))  # nothing to bracket, nothing to fail


class Slow(torch.autograd.Function):
    """The identity, in its own time, forward and backward."""

    SECONDS = 0.2

    @staticmethod
    def forward(ctx, x):
        time.sleep(Slow.SECONDS)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(Slow.SECONDS)
        return gradient


def test_layers_of_a_model_are_clocked():
    case = Case(Model("resnet32", 0.1, 2), "batch", "block", 0.1, 1)
    model = case.build()
    clock = LayerClock(sparsifiable(model).values())
    dense(model)(*case.batch())
    assert len(clock.seconds) == 30
    assert min(clock.seconds) > 0


def test_compiled_step(rows, capsys):
    found = rows(compiled_step, "--model", "cnn2", "--width", "0.1", "--groups", "1")
    names = [row["peer_name"] for row in found]
    assert names[0] == "groups of 1"
    assert "without pooling" in names
    assert "without planes" not in names  # a program whose convolutions all take pooling in
    for row in found:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)
        assert row["peer_arena_bytes"] > 0
    assert "sparse_conv2d_relu_pool_gradient" in capsys.readouterr().out


def test_runtime_process(tmp_path, capsys):
    path = tmp_path / "process.json"
    runtime_process.main(["--quick", "--width", "0.1", "--json", str(path)])
    found = json.loads(path.read_text())
    sizes = [row["rss"] for row in found["rows"]]
    assert 0 < sizes[0] < sizes[1] < sizes[-1]
    assert all(row["pss"] <= row["rss"] for row in found["rows"])
    assert found["whole"]["arena"] > 0
    assert "the interpreter" in capsys.readouterr().out
