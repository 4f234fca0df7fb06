"""The examples of the pages on things of one's own run as they stand there."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mest_fed.catalogue import EXPORTS, TRACKERS, WEIGHTINGS
from mest_fed.config import from_table, named, read_toml, to_flat
from mest_fed.server.export import FinalModel
from mest_fed.simulation.simulate import open_run

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 30  # lines
#: A run whose model and data are small. Three rounds, so that masks mutate.
TINY = {
    "run": {"rounds": 3},
    "model": {"name": "mlp", "options": {"hidden": [16]}},
    "training": {"device": "cpu"},
    "server": {"clients_per_round": 2, "evaluate_clients_every": 0},
    "fleet": {"devices": 6, "mix": "rpi-4:1"},
    "behaviour": {"availability": "always"},
}


def written(page, folder):
    """Write the files of a page into a folder; return the tables of its TOML blocks together."""
    table = {section: dict(keys) for section, keys in TINY.items()}
    said = set()
    for kind, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        assert text.count("\n") <= LONGEST, text
        if kind == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            assert name.endswith(".py")
            (folder / name).write_text(text, encoding="utf-8")
            continue
        (folder / "block.toml").write_text(text, encoding="utf-8")
        for section, keys in read_toml(folder / "block.toml").items():
            again = said & {(section, key) for key in keys}
            assert not again, f"{page} sets {again} twice: the run would try one alone"
            said |= {(section, key) for key in keys}
            table[section] = table.get(section, {}) | keys
    return table


def run(page, tmp_path, observer=None):
    """Run all examples of a page at once; return the configuration and the run folder."""
    config = from_table(written(page, tmp_path), page, tmp_path)
    own = {key for key in named() if str(to_flat(config)[key]).startswith(str(tmp_path))}
    text = (DOCS / page).read_text(encoding="utf-8")
    assert own == {key for key in named() if re.search(rf"^## .*`{key}`", text, re.MULTILINE)}
    folder = open_run("tiny", config, tmp_path / "run", observer=observer).run(workers=0)
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} <= {"ok", "away"}
    assert sum(row["status"] == "ok" for row in rows) >= 3
    return config, folder


@pytest.mark.soak
@pytest.mark.parametrize("page", ["methods.md", "clients.md"])
def test_a_page(page, tmp_path):
    run(page, tmp_path)


@pytest.mark.soak
def test_the_page_on_the_server(tmp_path):
    config, _ = run("server.md", tmp_path)
    # No run here is of a mode that weighs updates.
    assert WEIGHTINGS.build(config.server.weighting, 9) == 3


@pytest.mark.soak
def test_the_page_on_the_fleet(tmp_path):
    written("fleet.md", tmp_path)
    tracker = TRACKERS.build(f"{tmp_path}/my_tracker.py:Best", tmp_path)
    run("fleet.md", tmp_path, tracker)
    assert (tmp_path / "best.txt").read_text() == f"{tracker.best:.4f}\n"
    assert tracker.best > 0.1


def test_the_format_of_an_export(tmp_path):
    written("fleet.md", tmp_path)
    file, layer = io.BytesIO(), nn.Linear(3, 2)
    EXPORTS.build(f"{tmp_path}/my_format.py:npz", FinalModel(layer, torch.zeros(2, 3), {}), file)
    file.seek(0)
    assert np.array_equal(np.load(file)["weight"], layer.weight.detach().numpy())
