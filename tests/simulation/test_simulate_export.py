"""Models taken out of runs: each format loads without mest-fed and computes what the run's does."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_run import StopAfter, read_rows, start, tiny_config

from mest_fed.catalogue import EXPORTS
from mest_fed.cli import main
from mest_fed.errors import InputError
from mest_fed.nn import to_dense
from mest_fed.server.export import export_model, load_final
from mest_fed.simulation.report import run_tables
from mest_fed.simulation.rounds import Interrupted
from mest_fed.task import Task

#: Reads inputs and a program, and writes outputs, where mest-fed cannot be imported.
ELSEWHERE = """
import sys
sys.modules["mest_fed"] = None
import numpy, torch
form, path, inputs, outputs = sys.argv[1:]
x = torch.load(inputs)
if form == "torchscript":
    y = torch.jit.load(path)(x)
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].name == "input"
    y = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
torch.save(y, outputs)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start(folder, tiny_config())
    return folder


def dense_model(folder):
    model = to_dense(Task(tiny_config()).build_model())
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model.eval()


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_a_program_computes_the_same_without_mest_fed(form, run, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    path = export_model(run, form, tmp_path / "program").path
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    given = [form, str(path), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE, *given], check=True)
    expected = dense_model(run)(x)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_those_of_the_run(run):
    expected = torch.load(run / "model.pt", weights_only=True)
    assert export_model(run, "state-dict").path == run / "exported.pt"
    found = torch.load(run / "exported.pt", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_safetensors_hold_the_weights_and_facts(run, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    path = export_model(run, "safetensors", tmp_path / "m.safetensors").path
    expected = torch.load(run / "model.pt", weights_only=True)
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {"model": "resnet8", "dataset": "digits", "round": "3"}.items() <= facts.items()
    assert len(json.loads(facts["normalisation"])["mean"]) == 1


def test_an_unfinished_run_gives_the_model_of_its_newest_checkpoint(
    run, tmp_path, monkeypatch, capsys
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(run, whole)
    (whole / "model.pt").unlink()
    final = load_final(whole)
    assert final.facts["round"] == "3"
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(final.model(x), dense_model(run)(x))
    with pytest.raises(Interrupted):
        start(cut, tiny_config(), display=StopAfter(2))
    assert load_final(cut).facts["round"] == "2"
    said = [_said(monkeypatch, capsys, "export", str(folder), "--force") for folder in (cut, run)]
    assert said[0][1:] == ["the run is not finished: this is the model after round 2"]
    assert len(said[1]) == 1


def test_what_was_exported_is_replaced_only_with_force(run, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole"
    shutil.copytree(run, whole, ignore=shutil.ignore_patterns("exported*"))
    file = whole / "exported.pt"
    assert _said(monkeypatch, capsys, "export", str(whole))[0].startswith(f"state-dict: {file} (")
    file.write_bytes(b"mine")
    for options, line in (
        ([], f"{file} is there already; allowed: --force, which replaces it, or --out FILE\n"),
        (["--out", str(file)], f"--out: {file} is there already; allowed: --force, which replaces"),
    ):
        monkeypatch.setattr("sys.argv", ["mest-fed", "export", str(whole), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert line in capsys.readouterr().err
        assert file.read_bytes() == b"mine"
    _said(monkeypatch, capsys, "export", str(whole), "--force")
    assert torch.load(file, weights_only=True).keys() == dense_model(run).state_dict().keys()


def _said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["mest-fed", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


OWN = """
import numpy as np
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, input_shape, num_classes, num_tokens):
        super().__init__()
        self.embed = nn.Embedding(num_tokens, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, num_classes)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(1))

def load(path):
    tokens = np.random.default_rng(1).integers(0, 9, (80, 12))
    return (tokens[:60], tokens[:60, 0] % 3), (tokens[60:], tokens[60:, 0] % 3)
"""


def test_a_checkpoint_gives_each_weight_whatever_a_layer_calls_it(tmp_path):
    """Attention's packed projection is no ``weight`` of a layer in the dense model."""
    file = tmp_path / "own.py"
    file.write_text(OWN, encoding="utf-8")
    data = {"name": f"{file}:load", "partition": "iid"}
    model = {"name": f"{file}:Encoder", "width": 1.0}
    config = tiny_config(run={"rounds": 1}, data=data, model=model, fleet={"devices": 4})
    folder = tmp_path / "run"
    start(folder, config)
    expected = torch.load(folder / "model.pt", weights_only=True)
    assert any("in_proj_weight" in name for name in expected)
    (folder / "model.pt").unlink()
    found = load_final(folder).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_that_lacks_a_tensor_is_refused(run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    state = torch.load(run / "model.pt", weights_only=True)
    name = next(iter(state))
    torch.save({key: tensor for key, tensor in state.items() if key != name}, cut / "model.pt")
    with pytest.raises(InputError, match=f"does not fit the run's model: .*{name}"):
        load_final(cut)


def test_the_round_is_that_of_the_model_that_was_kept(run, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (kept / "summary.json").write_text(json.dumps(summary | {"kept_round": 2}), encoding="utf-8")
    assert load_final(kept).facts["round"] == "2"


def test_what_cannot_be_exported_is_said_in_one_line(run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "model.pt").write_bytes(b"nothing")
    other = torch.nn.Linear(2, 2).state_dict()
    wrong = tmp_path / "wrong"
    shutil.copytree(run, wrong)
    torch.save({**torch.load(run / "model.pt"), "stem.weight": other["weight"]}, wrong / "model.pt")
    odd = tmp_path / "odd"
    shutil.copytree(run, odd)
    (odd / "summary.json").write_text('{"kept_round": "x"}', encoding="utf-8")
    for folder, form, message in (
        (odd, "onnx", "kept_round = 'x' is not allowed; allowed: a whole number"),
        (run / "config.toml", "onnx", "is not a run folder: it is no folder"),
        (tmp_path / "nowhere", "onnx", "is not a run folder"),
        (run, "pickle", "allowed: state-dict, safetensors, onnx, torchscript"),
        (damaged, "onnx", "model.pt cannot be read"),
        (wrong, "onnx", "model.pt does not fit the run's model"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            export_model(folder, form)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a file in a folder that exists"):
        export_model(run, "state-dict", tmp_path / "no" / "model.pt")
    assert {*EXPORTS} == {"state-dict", "safetensors", "onnx", "torchscript"}


def test_the_tables_of_a_run_are_its_rows(run):
    tables = run_tables(run)
    ours = {"rounds", "clients", "tiers", "layers", "evaluations", "labels", "changes"}
    assert set(tables) == ours
    logged = read_rows(run, "rounds")
    assert [row["virtual_seconds"] for row in tables["rounds"]] == [
        row["virtual_seconds"] for row in logged
    ]
    assert len(tables["clients"]) == len(read_rows(run, "clients"))
    assert tables["clients"][0]["status"] == "ok"


def test_a_format_of_ones_own(run, tmp_path, monkeypatch):
    text = "def parts(model, file):\n    file.write(b'own')\nparts.suffix = '.own'\n"
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path = export_model(run, "own.py:parts").path
    assert path == run / "exported.own"
    assert path.read_bytes() == b"own"
    path.unlink()
    with pytest.raises(InputError, match=r"--format = '.*own\.py:none'"):
        export_model(run, "own.py:none")
