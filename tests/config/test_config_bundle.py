"""What pyproject.toml tells Flower: every key with its default, and what the bundle carries."""

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

from mest_fed.config import RunConfig, to_flat

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FLOWER = PROJECT["tool"]["flwr"]["app"]


def test_flower_knows_every_key_with_its_default():
    flat = flatten_dict(FLOWER["config"])
    assert flat == to_flat(RunConfig())
    # Flower refuses to change a float key to a whole number's type, and the other way round.
    for key, value in to_flat(RunConfig()).items():
        assert type(flat[key]) is type(value), key


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_the_components_lie_in_the_bundle(component):
    module = FLOWER["components"][component].partition(":")[0]
    path = f"{module.replace('.', '/')}.py"
    assert path in bundled()


def test_the_bundle_carries_the_apps_alone():
    files = bundled()
    assert {path.partition("/")[0] for path in files} == {"clients", "server"}
    assert not any("mest_fed" in path for path in files)
    assert all((ROOT / path).is_file() for path in files)


def test_the_name_is_one_that_flower_takes():
    name = PROJECT["project"]["name"]
    assert name.replace("-", "").isalnum()
    assert len(name) <= 32


def bundled():
    """List the files that the include patterns of the bundle match."""
    assert "fab-exclude" not in FLOWER
    return sorted(
        str(path.relative_to(ROOT))
        for pattern in FLOWER["fab-include"]
        for path in ROOT.glob(pattern)
    )
