import json

import pytest
from example_run import example_files, write_files

from mest_fed.errors import InputError
from mest_fed.simulation.report.load import load_run


@pytest.fixture
def contents():
    return example_files(rounds=3, tiers=2, clients_per_round=2)


def message_of(folder):
    with pytest.raises(InputError) as caught:
        load_run(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_finished_run_is_read_whole(tmp_path, contents):
    run = load_run(write_files(tmp_path, contents))
    assert [row.round for row in run.rounds] == [0, 1, 2, 3]
    assert len(run.tasks) == 6
    assert run.summary.tiers[0].parts["activations"] == int(0.52 * 44.1e6)
    assert run.rounds[0].client_accuracy is None
    assert run.rounds[3].client_accuracy.median == run.summary.final_client_accuracy.median
    assert run.config == contents["config"]


def test_keys_that_a_later_version_adds_are_ignored(tmp_path, contents):
    contents["rounds"][1]["new_key"] = 1
    contents["summary"]["new_key"] = {}
    load_run(write_files(tmp_path, contents))


def test_client_accuracy_and_blank_lines_may_be_missing(tmp_path, contents):
    for row in contents["rounds"]:
        del row["client_accuracy"]
    folder = write_files(tmp_path, contents)
    with (folder / "rounds.jsonl").open("a") as file:
        file.write("\n")
    assert all(row.client_accuracy is None for row in load_run(folder).rounds)


def test_a_diverged_loss_is_read_as_missing(tmp_path, contents):
    contents["rounds"][2] |= {"loss": float("nan"), "train_loss": float("inf")}
    row = load_run(write_files(tmp_path, contents)).rounds[2]
    assert row.loss is None
    assert row.train_loss is None


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    assert message_of(tmp_path / "nowhere") == f"run folder {tmp_path / 'nowhere'} does not exist"


@pytest.mark.parametrize("name", ["config.toml", "rounds.jsonl", "clients.jsonl"])
def test_a_missing_file_is_named(tmp_path, contents, name):
    (write_files(tmp_path, contents) / name).unlink()
    assert f"{tmp_path / name} does not exist" in message_of(tmp_path)


def test_a_run_without_summary_is_unfinished_and_can_be_resumed(tmp_path, contents):
    folder = write_files(tmp_path / "my run", contents)
    (folder / "summary.json").unlink()
    assert message_of(folder).endswith("ended before its first checkpoint; begin it anew")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "round-000001.npz").touch()
    message = message_of(folder)
    assert "the run is unfinished" in message
    assert f"`mest-fed simulate --resume --out '{folder}'`" in message


@pytest.mark.parametrize("change", ["absent", "null"])
def test_a_summary_without_final_values_is_no_finished_runs(tmp_path, contents, change):
    if change == "absent":
        del contents["summary"]["final_accuracy"]
    else:
        contents["summary"]["achieved_density"] = None
    message = message_of(write_files(tmp_path, contents))
    key = "final_accuracy" if change == "absent" else "achieved_density"
    assert f"{tmp_path / 'summary.json'} has no value for {key!r}" in message
    assert "it is not a finished run's" in message


def test_rounds_short_of_the_summary_are_missing(tmp_path, contents):
    contents["rounds"].pop()
    message = message_of(write_files(tmp_path, contents))
    assert "ends at round 2, summary.json says 3: rows are missing" in message


def test_no_rounds_at_all_are_missing(tmp_path, contents):
    contents["rounds"] = []
    assert "holds no round" in message_of(write_files(tmp_path, contents))


def test_a_repeated_round_is_refused(tmp_path, contents):
    contents["rounds"].insert(2, contents["rounds"][1])
    assert "round 1 follows round 1" in message_of(write_files(tmp_path, contents))


@pytest.mark.parametrize(
    ("where", "text", "words"),
    [
        (("rounds.jsonl", 2), '{"round": 1, "accu', "not valid JSON"),
        (("clients.jsonl", 4), "[1, 2]", "it is a list; allowed: an object"),
        (("clients.jsonl", 1), "{}", "'round' is missing"),
    ],
)
def test_a_broken_line_is_named(tmp_path, contents, where, text, words):
    name, line = where
    folder = write_files(tmp_path, contents)
    lines = (folder / name).read_text().split("\n")
    lines[line - 1] = text
    (folder / name).write_text("\n".join(lines))
    message = message_of(folder)
    assert message.startswith(f"{folder / name}, line {line}: ")
    assert words in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("accuracy", 1.5), ("density", -0.1), ("bytes_up", "many"), ("virtual_seconds", None)],
)
def test_a_value_out_of_range_is_named(tmp_path, contents, key, value):
    contents["rounds"][1][key] = value
    message = message_of(write_files(tmp_path, contents))
    assert f"line 2: {key} = {value!r}: " in message


def test_an_unknown_status_is_named(tmp_path, contents):
    contents["clients"][0]["status"] = "fine"
    assert "status = 'fine'" in message_of(write_files(tmp_path, contents))


def test_a_broken_tier_is_named(tmp_path, contents):
    contents["summary"]["tiers"][1]["budget_bytes"] = -1
    assert "tiers.1.budget_bytes = -1" in message_of(write_files(tmp_path, contents))


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps("text")])
def test_a_broken_summary_is_named(tmp_path, contents, text):
    (write_files(tmp_path, contents) / "summary.json").write_text(text)
    assert str(tmp_path / "summary.json") in message_of(tmp_path)


def test_bytes_that_are_no_text_and_broken_toml_are_named(tmp_path, contents):
    folder = write_files(tmp_path, contents)
    (folder / "config.toml").write_text("a = ")
    assert message_of(folder).startswith(str(folder / "config.toml"))
    (folder / "config.toml").write_bytes(b"\xff\xfe")
    assert f"{folder / 'config.toml'} cannot be read" in message_of(folder)
    (folder / "config.toml").write_text("\n")
    assert f"{folder / 'config.toml'} is empty" in message_of(folder)
