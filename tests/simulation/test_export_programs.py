"""Programs of models whose code asks for numbers of Python: right for any batch, or refused."""

import io

import pytest
import torch
from torch import nn

from mest_fed.catalogue import EXPORTS
from mest_fed.errors import InputError
from mest_fed.server.export import FinalModel


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.ones(1, 3))
        self.head = nn.Linear(3, 2)


class Len(Own):
    def forward(self, x):
        return self.head(x + self.query.expand(len(x), -1))  # to blame


class Size(Own):
    def forward(self, x):
        return self.head(x + self.query.expand(x.size(0), -1))


class Loop(Own):
    def forward(self, x):
        return torch.stack([self.head(row) for row in x])  # to blame


class Branch(Own):
    def forward(self, x):
        return self.head(x) if x.sum() > 0 else -self.head(x)  # to blame


def written(model, form):
    file = io.BytesIO()
    EXPORTS.build(form, FinalModel(model().eval(), torch.zeros(2, 3), {}), file)
    return file


@pytest.mark.parametrize(
    ("model", "form"),
    [
        (Len, "torchscript"),
        (Loop, "torchscript"),
        (Branch, "torchscript"),
        (Loop, "onnx"),
        (Branch, "onnx"),
    ],
)
def test_a_refusal_names_the_line_to_blame_and_what_to_write(model, form, capfd):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    with pytest.raises(InputError, match=r"x\.size\(0\) for len\(x\), or --format") as caught:
        written(model, form)
    text = str(caught.value)
    assert "\n" not in text
    file, _, line = text.partition(f" ({__file__}")[1:][1].partition(")")[0].rpartition(":")
    assert file == ""
    with open(__file__, encoding="utf-8") as source:
        assert "# to blame" in source.readlines()[int(line) - 1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.torch.jit.load.:DeprecationWarning")
def test_a_size_that_stays_a_tensor_is_exported():
    program = torch.jit.load(io.BytesIO(written(Size, "torchscript").getvalue()))
    assert [len(program(torch.zeros(count, 3))) for count in (1, 2, 5)] == [1, 2, 5]


@pytest.mark.soak
def test_onnx_takes_any_batch_where_the_model_asks_for_its_length():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Len().eval()
    file = io.BytesIO()
    EXPORTS.build("onnx", FinalModel(model, torch.zeros(2, 3), {}), file)
    session = runtime.InferenceSession(file.getvalue())
    assert session.get_inputs()[0].shape == ["batch", 3]
    for count in (1, 2, 5):
        x = torch.arange(3.0 * count).view(count, 3)
        found = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        torch.testing.assert_close(found, model(x).detach(), rtol=1e-5, atol=1e-5)
