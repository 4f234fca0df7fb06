"""What options of several commands share."""

from pathlib import Path

from mest_fed.cli.options import next_folder
from mest_fed.server.folder_names import SUMMARY
from mest_fed.server.run_folder import RunFolder


def test_a_run_gets_the_next_folder_where_other_runs_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert next_folder("quickstart") == Path("runs/quickstart")
    for name in ("quickstart", "quickstart-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        assert next_folder("quickstart").name == name
        (tmp_path / "runs" / name / SUMMARY).touch()
    (tmp_path / "runs" / "quickstart-3").touch()
    assert next_folder("quickstart").name == "quickstart-4"


def test_a_run_that_goes_on_or_was_stopped_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "quickstart")
    folder.begin("")
    assert next_folder("quickstart").name == "quickstart-2"
    folder.release()  # as a kill in the first seconds does
    assert next_folder("quickstart").name == "quickstart"
    folder.checkpoints.mkdir()
    (folder.checkpoints / "round-000000.npz").touch()
    assert next_folder("quickstart").name == "quickstart-2"
