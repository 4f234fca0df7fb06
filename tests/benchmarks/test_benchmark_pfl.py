"""The benchmark against pfl-research: which contestants of ours take part."""

import pytest
from pfl_cifar10 import chosen, main, parse

from mest_fed.errors import InputError


@pytest.fixture
def data(tmp_path):
    (tmp_path / "train.parquet").touch()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "engines"),
    [([], ["compiled"]), (["--engine", "torch", "compiled"], ["torch", "compiled"])],
)
def test_engines(data, arguments, engines):
    methods = ("dense", "MEST-EM&S, 90% sparse")
    wanted = [f"{method}, {engine}" for method in methods for engine in engines]
    assert chosen(parse(["--data", data, *arguments])) == wanted


def test_wrong_input_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="--engine"):
        parse(["--data", data, "--engine", "magic"])
    with pytest.raises(InputError, match="a folder with train and test"):
        main(["--data", str(tmp_path / "none")])
