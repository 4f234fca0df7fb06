"""What options of several commands share."""

from pathlib import Path

from mest_fed.cli.options import next_folder
from mest_fed.server.run_folder import SUMMARY


def test_a_run_gets_the_next_folder_where_finished_runs_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert next_folder("quickstart") == Path("runs/quickstart")
    for name in ("quickstart", "quickstart-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        # One that is not finished is not passed over: the run says how to go on with it.
        assert next_folder("quickstart").name == name
        (tmp_path / "runs" / name / SUMMARY).touch()
    assert next_folder("quickstart").name == "quickstart-3"
