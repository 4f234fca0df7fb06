"""What is said of the configuration's keys is what its checks do."""

import subprocess
import sys

import pytest

from mest_fed.catalogue import VALUE_CODECS
from mest_fed.config import RunConfig, to_flat
from mest_fed.config.reference import config_sections, find_sections
from mest_fed.errors import InputError

KEYS = [key for section in config_sections() for key in section.keys]


def validate(key, value):
    model = type(getattr(RunConfig(), key.section))
    return getattr(model.model_validate({key.name: value}), key.name)


def test_every_key_is_described_once_in_order():
    assert [key.full_name for key in KEYS] == list(to_flat(RunConfig()))
    assert [key.full_name for key in KEYS if not (key.meaning and key.allowed)] == []


def test_a_default_is_allowed_and_is_the_default():
    flat = to_flat(RunConfig())
    assert {key.full_name: validate(key, key.default) for key in KEYS} == flat


@pytest.mark.parametrize("key", [it for it in KEYS if it.names], ids=lambda it: it.full_name)
def test_each_listed_name_is_taken_and_others_are_not(key):
    for name in key.names:
        if ":" not in name:  # those end in what a person fills in
            assert validate(key, name == "true" if key.type == "truth value" else name) is not None
    with pytest.raises(ValueError, match=r"allowed|boolean"):
        validate(key, "no-such-name")


def test_the_codecs_that_send_differences_are_not_listed_for_downloads():
    (section,) = find_sections("wire")
    upload, download, _ = section.keys
    refused = set(upload.names) - set(download.names)
    different = {name for name in VALUE_CODECS if VALUE_CODECS.find(name).differences}
    assert {name.partition(":")[0] for name in refused} == different
    for name in (name.replace("SHARE", "0.5") for name in refused):
        with pytest.raises(ValueError, match="sends differences"):
            validate(download, name)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("server.mode", ["server.mode"]),
        ("life.dropout", ["behaviour.dropout"]),
        ("data.options.length", ["data.options"]),
        ("[wire]", ["wire.upload", "wire.download", "wire.slopes"]),
    ],
)
def test_sections_and_keys_are_found(asked, found):
    assert [key.full_name for section in find_sections(asked) for key in section.keys] == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("sever", "unknown section sever; did you mean server? allowed: run, task, data"),
        ("density", "did you mean sparsity.density?"),
        ("run.seeds", "unknown key run.seeds (config); did you mean run.seed? allowed: run.seed"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(asked, said):
    with pytest.raises(InputError) as caught:
        find_sections(asked)
    assert said in str(caught.value)


def test_the_keys_are_described_without_torch():
    code = "import sys, mest_fed.config.reference as r; r.config_sections(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
