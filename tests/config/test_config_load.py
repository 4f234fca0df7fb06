"""Reading and writing configurations: what is refused and how the refusal reads."""

import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.catalogue import KNOBS
from mest_fed.config import (
    RunConfig,
    find_named,
    from_flat,
    from_table,
    known_keys,
    named_files,
    read_toml,
    to_flat,
    to_toml,
    with_settings,
)
from mest_fed.errors import InputError
from mest_fed.simulation.settings import resolve
from mest_fed.sparsity import parse_distribution

FLOATS = [key for key, value in to_flat(RunConfig()).items() if isinstance(value, float)]
ODD = {
    "run": {"seed": -7, "rounds": 3},
    "data": {"alpha": 0.1 + 0.2, "path": 'a "quoted" \\ path'},
    "sparsity": {"scheme": "block:8", "method": "rigl", "mutation": "client", "density": 1.0},
    "server": {"central_evaluation": False},
    "fleet": {"mix": {"rpi-4": 1, "rpi-5": 0.5}, "budgets": {"rpi-4": "24MB"}, "devices": 7},
}


def refusal(table, source="my.toml"):
    with pytest.raises(InputError) as caught:
        from_table(table, source)
    text = str(caught.value)
    assert "\n" not in text
    assert source in text
    return text


def test_an_empty_table_gives_the_defaults():
    assert from_table({}, "test") == RunConfig()


def test_an_unknown_key_is_named_with_a_hint():
    text = refusal({"sparsity": {"densty": 0.1}})
    assert "unknown key sparsity.densty (my.toml); did you mean sparsity.density?" in text
    assert "sparsity.scheme" in text


def test_an_unknown_section():
    text = refusal({"sparcity": {"density": 0.1}})
    assert "unknown key sparcity" in text
    assert "sparsity" in text


def test_the_file_of_a_study_is_told_from_a_run_s(tmp_path):
    with pytest.raises(
        InputError, match=r"\(s\.toml\); this is a study, which mest-fed study runs; "
    ):
        from_table({"study": {"preset": "plain"}}, "s.toml")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("run", "rounds", "ten"),
        ("run", "rounds", 2.5),
        ("run", "rounds", [1]),
        ("run", "seed", "x"),
        ("data", "name", 3),
        ("data", "path", ["a"]),
        ("server", "central_evaluation", "perhaps"),
        ("sparsity", "density", "a tenth"),
        ("sparsity", "density", {"a": 1}),
    ],
)
def test_a_wrong_type(section, key, value):
    text = refusal({section: {key: value}})
    assert f"{section}.{key} = {value!r} is not allowed (my.toml); " in text


def test_a_section_that_is_no_table():
    assert "run = 5 is not allowed (my.toml)" in refusal({"run": 5})


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("run", "rounds", [0, -1]),
        ("run", "checkpoint_every", [0]),
        ("data", "name", ["mnisd", ""]),
        ("data", "partition", ["random"]),
        ("data", "alpha", [0.0, -1.0]),
        ("data", "classes_per_partition", [0]),
        ("data", "options", ["size: 3", "[3]", 3]),
        ("data", "hold_out", [1.0, -0.1]),
        ("data", "augmentation", ["mixup"]),
        ("model", "name", ["vgg16"]),
        ("model", "width", [0.0, 17.0]),
        ("model", "norm", ["layer"]),
        ("sparsity", "method", ["mest"]),
        ("sparsity", "mutation", ["both"]),
        ("sparsity", "scheme", ["blocks", "block:0", "block:x", "Block", "channel:2"]),
        ("sparsity", "density", [0.0, 1e-5, -0.1, 1.0001, 10.0]),
        ("sparsity", "distribution", ["random"]),
        ("sparsity", "period", [0.0, 1.5]),
        ("sparsity", "gradient_weight", [-1.0]),
        ("training", "local_epochs", [0]),
        ("training", "batch_size", [0]),
        ("training", "learning_rate", [0.0, -0.1]),
        ("training", "schedule", ["linear"]),
        ("sparsity", "layers", ["fc:0", "fc:1.1", "fc:x", "fc:0.1, fc:0.2", {"fc": -1}]),
        ("sparsity", "include", [["fc", 1], 3]),
        ("training", "momentum", [1.0, -0.1]),
        ("training", "device", ["gpu"]),
        ("forgetting", "fraction", [1.0, -0.1]),
        ("forgetting", "start", [1.5]),
        ("wire", "upload", ["int4"]),
        ("wire", "download", ["int8"]),
        ("server", "clients_per_round", [0]),
        ("server", "selection", ["oort"]),
        ("server", "min_nodes", [0]),
        ("server", "evaluate_every", [0]),
        ("server", "evaluate_clients_every", [-1]),
        ("server", "optimizer", ["adam"]),
        ("fleet", "devices", [0]),
        ("fleet", "mix", ["", "rpi-4:0", "rpi-4:-1", "rpi-4:x", "rpi-4:1, rpi-4:2", ":3"]),
        ("fleet", "budgets", ["rpi-4:lots", "rpi-4:0", "rpi-4:1MB, rpi-4:2MB"]),
        ("fleet", "deadline", [-1.0]),
        ("behaviour", "availability", ["never"]),
        ("behaviour", "phase_spread", [-0.1, 1.1]),
        ("behaviour", "dropout", [-0.1, 1.0]),
        ("behaviour", "compute_jitter", [-0.1, 3.5]),
        ("behaviour", "stragglers", [-0.1, 1.1]),
        ("behaviour", "straggler_factor", [0.5]),
        ("behaviour", "memory_pressure", [1.0]),
        ("behaviour", "battery_floor", [1.0]),
        ("behaviour", "charging", ["always"]),
        ("behaviour", "plugged", [0.0, 1.1]),
    ],
)
def test_a_value_that_is_not_allowed(section, key, values):
    for value in values:
        text = refusal({section: {key: value}})
        assert f"{section}.{key} = {value!r} is not allowed (my.toml); " in text
        assert len(text.partition("(my.toml); ")[2]) > 10  # says what is


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite(key, value):
    section, _, name = key.partition(".")
    assert f"{key} = {value} is not allowed" in refusal({section: {name: value}})


def test_choices_are_listed():
    text = refusal({"wire": {"upload": "int4"}})
    assert text.endswith(
        "allowed: fp32, fp16, bf16, int8, topk, topk:SHARE, "
        "package.module:attribute, file.py:attribute"
    )
    assert "block:ROWS" in refusal({"sparsity": {"scheme": "blocks"}})


def test_rigl_needs_clients_that_mutate():
    text = refusal({"sparsity": {"method": "rigl"}})
    assert text.startswith("sparsity.method = 'rigl'")
    assert "sparsity.mutation = 'client'" in text
    assert len(text) < 200
    from_table({"sparsity": {"method": "rigl", "mutation": "client"}}, "test")


def test_no_more_nodes_are_waited_for_than_there_are():
    text = refusal({"server": {"min_nodes": 21}, "fleet": {"devices": 20}})
    assert text.startswith("server.min_nodes = 21")
    assert "fleet.devices = 20" in text
    from_table({"server": {"min_nodes": 20}, "fleet": {"devices": 20}}, "test")


@pytest.mark.parametrize(
    ("server", "others", "start", "end"),
    [
        ({"mode": "async"}, {}, "server.mode = 'async'", "sync, buffered, semi-sync"),
        ({"over_selection": 0.5}, {}, "server.over_selection = 0.5", "greater than or equal to 1"),
        ({"period": 0.0}, {}, "server.period = 0.0", "greater than 0"),
    ],
)
def test_modes_that_there_are_not(server, others, start, end):
    table = others | {"server": others.get("server", {}) | server}
    text = refusal(table)
    assert text.startswith(start)
    assert end in text


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().run.rounds = 4


# --set


@pytest.mark.parametrize("text", ["nan", "2", "true", "[1]"])
def test_a_text_that_looks_like_something_else_is_quoted(text):
    """As docs/reference says of ``--set``."""
    quoted, bare = (
        with_settings({}, [f"data.options.mode={it}"])["data"]["options"]["mode"]
        for it in (f'"{text}"', text)
    )
    assert quoted == text
    assert not isinstance(bare, str)


@pytest.mark.parametrize(
    ("settings", "budgets"),
    [
        (["fleet.mix=rpi-5:1"], ""),
        (["fleet.mix=rpi-5:1, rpi-4:2"], "rpi-4:24MB"),
        (["fleet.mix={rpi-4 = 2}"], "rpi-4:24MB"),
        (["fleet.mix=board.toml:4"], "/boards/board.toml:9MB"),  # which may be the same
        (["fleet.mix=rpi-5:1", "fleet.budgets=rpi-4:8MB"], "rpi-4:8MB"),
        (["fleet.budgets=rpi-4:8MB", "fleet.mix=rpi-5:1"], "rpi-4:8MB"),
        (["fleet.devices=3"], "rpi-4:24MB, /boards/board.toml:9MB"),
        (["fleet.mix=rpi-5:"], ""),  # a weight that is wrong is said by the section
    ],
)
def test_a_mix_that_is_set_takes_the_budgets_of_what_it_replaces_along(settings, budgets):
    before = "rpi-4:24MB, /boards/board.toml:9MB"
    table = {"fleet": {"mix": "rpi-4:1, /boards/board.toml:1, rpi-3b-plus:1", "budgets": before}}
    assert with_settings(table, settings)["fleet"]["budgets"] == budgets
    assert table["fleet"]["budgets"] == before


def test_a_budget_of_a_name_that_was_never_in_the_fleet_stays():
    table = {"fleet": {"mix": "rpi-4:1", "budgets": "rpi4:24MB, rpi-4:8MB"}}
    assert with_settings(table, ["fleet.mix=rpi-5:1"])["fleet"]["budgets"] == "rpi4:24MB"
    assert with_settings({}, ["fleet.mix=rpi-5:1"]) == {"fleet": {"mix": "rpi-5:1"}}
    wrong = {"fleet": {"mix": "rpi-4:1", "budgets": 3}}
    assert with_settings(wrong, ["fleet.mix=rpi-5:1"])["fleet"]["budgets"] == 3


def test_settings_are_laid_over_a_table():
    table = {"run": {"rounds": 3, "seed": 9}}
    merged = with_settings(table, ["run.rounds=5", "sparsity.density = 0.05", "model.norm=batch"])
    assert merged == {
        "run": {"rounds": 5, "seed": 9},
        "sparsity": {"density": 0.05},
        "model": {"norm": "batch"},
    }
    assert table == {"run": {"rounds": 3, "seed": 9}}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("run.seed=7", 7),
        ("run.seed=-7", -7),
        ("sparsity.density=1e-1", 0.1),
        ("server.central_evaluation=false", False),
        ("data.path=/a/b", "/a/b"),
        ("data.path='/a b'", "/a b"),
        ('data.path="x=y"', "x=y"),
        ("data.path=x=y", "x=y"),
        ("data.path=", ""),
        ("fleet.mix=rpi-4:1, rpi-5:2", "rpi-4:1, rpi-5:2"),
        ("fleet.mix={rpi-4 = 1, rpi-5 = 2}", {"rpi-4": 1, "rpi-5": 2}),
        ("fleet.budgets=rpi-4:24MB", "rpi-4:24MB"),
    ],
)
def test_forms_of_a_setting(setting, value):
    section, _, key = setting.partition("=")[0].partition(".")
    merged = with_settings({}, [setting])
    assert merged == {section: {key: value}}
    from_table(merged, "--set")


@pytest.mark.parametrize("setting", ["rounds=5", "run.rounds", "run=5", ".rounds=5", "run.=5", ""])
def test_a_setting_of_another_form(setting):
    with pytest.raises(InputError, match=r"--set .* is not allowed; allowed: section\.key=value"):
        with_settings({}, [setting])


def test_a_setting_of_an_unknown_key():
    with pytest.raises(
        InputError, match=r"unknown key run\.round \(--set\); did you mean run\.rounds"
    ):
        with_settings({}, ["run.round=5"])


def test_the_last_setting_wins():
    assert with_settings({}, ["run.rounds=5", "run.rounds=6"]) == {"run": {"rounds": 6}}


@pytest.mark.parametrize("text", ["1\nrounds = 2", "1 # no", "[1, 2", "{"])
def test_a_setting_holds_one_value(text):
    merged = with_settings({}, [f"run.seed={text}"])
    assert list(merged["run"]) == ["seed"]


# Files and flat forms


@pytest.mark.parametrize("table", [{}, ODD])
def test_toml_round_trip(table):
    config = from_table(table, "test")
    assert from_table(tomllib.loads(to_toml(config)), "test") == config


@pytest.mark.parametrize("table", [{}, ODD])
def test_flat_round_trip(table):
    config = from_table(table, "test")
    flat = to_flat(config)
    assert list(flat) == known_keys()
    # what Flower's run config may hold
    assert all(type(value) in (bool, int, float, str) for value in flat.values())
    assert from_flat(flat) == config


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        dict,
        seed=st.integers(-(2**63), 2**63 - 1),
        density=st.floats(1e-4, 1),
        path=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    )
)
def test_any_value_survives_the_files(values):
    config = from_table(
        {
            "run": {"seed": values["seed"]},
            "sparsity": {"density": values["density"]},
            "data": {"path": values["path"]},
        },
        "test",
    )
    assert from_table(tomllib.loads(to_toml(config)), "test") == config
    assert from_flat(to_flat(config)) == config


@pytest.mark.parametrize("key", ["run.round", "rounds", "", "run.rounds.more"])
def test_a_flat_key_that_is_unknown(key):
    with pytest.raises(InputError, match=r"unknown key .*run config"):
        from_flat({key: 1})


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*nothing\.toml"):
        read_toml(tmp_path / "nothing.toml")


@pytest.mark.parametrize("content", [b"[run", b"run.rounds = 3\nrun = 4"])
def test_a_file_that_is_not_toml(tmp_path, content):
    path = tmp_path / "wrong.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*wrong\.toml"):
        read_toml(path)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"wrong\.toml is no text; allowed: a TOML file"):
        read_toml(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_toml(tmp_path)


def test_layers_as_lists_and_tables():
    table = {"include": ["encoder.*", "fc"], "exclude": "a, b", "layers": {"fc": 0.3, "a*": 1}}
    config = from_table({"sparsity": {**table, "distribution": "erk"}}, "test")
    sparsity = config.sparsity
    assert sparsity.included == ("encoder.*", "fc")
    assert sparsity.excluded == ("a", "b")
    assert sparsity.layers == "fc:0.3, a*:1"
    assert parse_distribution(sparsity.densities) == ("erk", {"fc": 0.3, "a*": 1.0})
    assert from_flat(to_flat(config)) == config
    assert from_table(tomllib.loads(to_toml(config)), "test") == config


def test_the_mix_and_the_budgets_as_mappings():
    fleet = from_table(ODD, "test").fleet
    assert fleet.mix == "rpi-4:1, rpi-5:0.5"
    assert fleet.weights == {"rpi-4": 1.0, "rpi-5": 0.5}
    assert fleet.budget_bytes == {"rpi-4": 24_000_000}
    assert from_table({"fleet": {"mix": "rpi-4"}}, "test").fleet.weights == {"rpi-4": 1.0}
    path = from_table({"fleet": {"mix": "my/board.toml:2"}}, "test").fleet
    assert path.weights == {"my/board.toml": 2.0}


def test_keys_of_earlier_versions_are_read_with_a_line_each(tmp_path, caplog):
    path = tmp_path / "old.toml"
    path.write_text(
        "[life]\ndropout = 0.5\nstragglers = 0.5\n[memory]\nconsume = true\n", encoding="utf-8"
    )
    config = from_table(read_toml(path), "old.toml")
    assert (config.behaviour.dropout, config.memory.release_gradients) == (0.5, True)
    assert [record.getMessage() for record in caplog.records] == [
        "life is now called behaviour (old.toml)",
        "memory.consume is now called memory.release_gradients (old.toml)",
    ]


def test_a_setting_under_an_old_name_replaces_the_value(caplog):
    table = with_settings({"behaviour": {"dropout": 0.5}}, ["life.dropout=0.25"])
    assert from_table(table, "test").behaviour.dropout == 0.25
    assert caplog.messages == ["life.dropout is now called behaviour.dropout (--set)"]


@pytest.mark.parametrize(
    ("table", "both"),
    [
        (
            {"memory": {"consume": True, "release_gradients": False}},
            "memory.consume and memory.release_gradients",
        ),
        (
            {"life": {"dropout": 0.1}, "behaviour": {"dropout": 0.2}},
            "life.dropout and behaviour.dropout",
        ),
        (
            {"behaviour": {"dropout": 0.2}, "life": {"dropout": 0.1}},
            "behaviour.dropout and life.dropout",
        ),
    ],
)
def test_a_key_under_both_names_is_refused_as_typed(table, both):
    with pytest.raises(InputError, match=rf"^{re.escape(both)} are the same key \(test\)"):
        from_table(table, "test")


def test_an_old_name_of_a_knob_is_read_with_a_line(caplog):
    order = "consume, micro_batch, recompute, saved, density, frozen, momentum"
    config = from_table({"memory": {"prefer": order}}, "test")
    assert config.memory.preference[0] == "release_gradients"
    line = "memory.prefer: consume is now called release_gradients (test)"
    assert caplog.messages == [line]


def test_an_order_of_knobs_takes_references_from_the_files_folder(tmp_path):
    (tmp_path / "own.py").write_text("def knob(limits): ...\n", encoding="utf-8")
    order = ", ".join([*KNOBS, "own.py:knob"])
    config = from_table({"memory": {"prefer": order}}, "test", tmp_path)
    assert config.memory.preference == (*KNOBS, f"{tmp_path / 'own.py'}:knob")
    assert named_files(config) == [tmp_path / "own.py"]
    find_named(config)
    wrong = from_table({"memory": {"prefer": order.replace(":knob", ":none")}}, "test", tmp_path)
    with pytest.raises(InputError, match="has no attribute 'none'"):
        find_named(wrong)


@pytest.mark.parametrize("key", ["task.options", "data.options", "model.options"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN is no finite number"),
        ("[1]", "it is a list"),
    ],
)
def test_a_table_as_text_is_strict_json(key, text, reason):
    with pytest.raises(InputError, match=rf"^{key} = .*allowed: a table .*{reason}"):
        from_table({key.partition(".")[0]: {"options": text}}, "--set")


PATHS = {
    "data": {"name": "csv", "path": "mine.csv", "partition_file": "mine.npz"},
    "training": {"kernels": "mine.json"},
    "behaviour": {"availability": "trace", "trace": "mine.csv"},
}


@pytest.mark.parametrize(
    "key", ["data.path", "data.partition_file", "training.kernels", "behaviour.trace"]
)
def test_a_path_in_a_file_is_relative_to_the_file(key, tmp_path):
    section, _, name = key.partition(".")
    file = PATHS[section][name]
    assert to_flat(from_table(PATHS, "test", tmp_path))[key] == str(tmp_path / file)
    assert to_flat(from_table(PATHS, "test"))[key] == file


def test_profiles_in_a_file_are_relative_to_the_file(tmp_path):
    fleet = {"mix": {"mine/board.toml": 2, "rpi-4": 1}, "budgets": "mine/board.toml:8MB"}
    found = from_table({"fleet": fleet}, "test", tmp_path).fleet
    board = str(tmp_path / "mine" / "board.toml")
    assert found.weights == {board: 2.0, "rpi-4": 1.0}
    assert found.budget_bytes == {board: 8_000_000}


def test_paths_of_settings_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    file = tmp_path / "conf" / "run.toml"
    file.parent.mkdir()
    file.write_text('[behaviour]\navailability = "trace"\ntrace = "mine.csv"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    _, config = resolve(None, Path("conf/run.toml"), ["fleet.mix=board.toml:1"])
    assert config.behaviour.trace == str(file.parent / "mine.csv")
    assert config.fleet.mix == f"{tmp_path / 'board.toml'}:1"


def test_a_loader_gets_its_path_as_it_is(tmp_path):
    table = {"data": {"name": "my_data.py:load", "path": "hub://mine"}}
    assert from_table(table, "test", tmp_path).data.path == "hub://mine"
