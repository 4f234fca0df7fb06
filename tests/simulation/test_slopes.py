"""Updates that are slopes: a run ends with the bits of one whose clients send their weights."""

from types import SimpleNamespace

import pytest
from tiny_run import read_rows, read_summary, start, tiny_config

from mest_fed.cli.planning.traffic import StartingModel
from mest_fed.errors import InputError, WireError
from mest_fed.nn import read_state
from mest_fed.server.node import Node
from mest_fed.server.repeated_update import repeat_update
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task
from mest_fed.wire import encode
from mest_fed.wire.records import to_record
from mest_fed.wire.slopes import write_slopes

ZEROTH = {"gradient": "zeroth-order", "learning_rate": 0.02, "perturbations": 2}
FORMS = {
    "sparse": {
        "model": {"name": "mlp"},
        "sparsity": {"method": "static", "scheme": "unstructured", "density": 0.1},
    },
    "frozen, padded": {
        "model": {"norm": "group"},
        "sparsity": {"method": "static", "scheme": "block", "density": 0.3},
        "memory": {"frozen": 1},
    },
    "buffered": {
        "model": {"name": "mlp"},
        "sparsity": {"method": "mest-em", "density": 0.2},
        "server": {"mode": "buffered", "concurrency": 4, "buffer": 2},
    },
}


def config_of(form, slopes, **more):
    sections = {"data": {"partition": "iid"}, "training": ZEROTH, **FORMS[form], **more}
    return tiny_config(**sections, wire={"slopes": slopes})


@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_those_of_weights_and_the_bytes_are_few(form, tmp_path):
    by_weights = start(tmp_path / "weights", config_of(form, slopes=False))
    by_slopes = start(tmp_path / "slopes", config_of(form, slopes=True))
    one, two = read_summary(by_weights), read_summary(by_slopes)
    assert one["model_sha256"] == two["model_sha256"]
    assert one["clients_failed"] == two["clients_failed"] == 0
    assert one["bytes_down"] == two["bytes_down"]
    assert two["bytes_up"] < 0.5 * one["bytes_up"]
    trained = [row for row in read_rows(by_slopes, "clients") if row["train_loss"] is not None]
    assert all(row["bytes_up"] < 1000 for row in trained)


def test_what_is_forecast_are_the_slopes_of_every_step():
    task = Task(config_of("sparse", slopes=True))
    model, plan = StartingModel(task), task.fleet_plans()["rpi-4"]
    few, growing = model.traffic(plan, 32)
    many, _ = model.traffic(plan, 5 * 32)
    assert task.most_steps(33) == 2 * task.most_steps(32)
    assert many.up - few.up == 4 * 2 * 4 * task.config.training.local_epochs
    assert growing.up == 0
    weights, _ = StartingModel(Task(config_of("sparse", slopes=False))).traffic(plan, 32)
    assert weights.down == few.down
    assert weights.up > 10 * few.up


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"training": {}}, "wire.slopes = True is for steps along random directions"),
        ({"wire": {"upload": "int8"}}, "wire.upload = 'int8' is a format of weights"),
    ],
)
def test_a_configuration_that_slopes_do_not_go_with(sections, said):
    given = {"model": {"name": "mlp"}, "training": ZEROTH, "wire": {}} | sections
    given["wire"] = {"slopes": True, **given["wire"]}
    with pytest.raises(InputError, match=said):
        tiny_config(sparsity={"method": "static"}, **given)


def test_statistics_of_batches_are_refused_before_anything_is_written(tmp_path):
    config = config_of("sparse", slopes=True, model={"name": "resnet8", "norm": "batch"})
    with pytest.raises(InputError, match=r"wire\.slopes = True is not allowed with model\.norm"):
        open_run("tiny", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("slopes", "said"),
    [([1.0] * 1000, "1000 slopes; allowed: 2 each of at most"), ([3e38, -3e38], "beyond 1e")],
)
def test_slopes_of_no_client_of_ours_are_refused(slopes, said):
    task = Task(config_of("sparse", slopes=True))
    sent = read_state(task.build_model())
    node = Node(7, 0, "rpi-4", 1 << 30, task.density, 32, 0, examples=64, held_out=0)
    reply = SimpleNamespace(content=to_record(write_slopes(slopes)))
    with pytest.raises(WireError, match=said):
        repeat_update(reply, task, node, sent, 1)
    reply.content = to_record(encode(sent, task.spec)[0])
    with pytest.raises(WireError, match="instead of slopes alone"):
        repeat_update(reply, task, node, sent, 1)
