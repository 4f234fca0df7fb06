"""What options of several commands share."""

import os
from pathlib import Path

import pytest
import typer

from mest_fed.cli.options import as_typed, newest_run, next_folder
from mest_fed.errors import InputError
from mest_fed.server.folder_names import CONFIG, SUMMARY
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


def test_the_run_that_goes_on_is_the_newest_that_is_not_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run is in the folder runs"):
        newest_run(finished=True)
    for age, name in enumerate(("quickstart-3", "quickstart-2", "other", "quickstart")):
        folder = RunFolder(Path("runs") / name)
        folder.checkpoints.mkdir(parents=True)
        (folder.checkpoints / "round-000000.npz").touch()
        (folder.path / CONFIG).touch()
        os.utime(folder.checkpoints, (1000 - age, 1000 - age))
    (tmp_path / "runs" / "quickstart-3" / SUMMARY).touch()
    (tmp_path / "runs" / "without-checkpoint").mkdir()
    assert newest_run(finished=False) == (Path("runs/quickstart-2"), 3)
    assert newest_run(finished=True) == (Path("runs/quickstart-3"), 4)
    for name in ("quickstart-2", "other", "quickstart"):
        (tmp_path / "runs" / name / SUMMARY).touch()
    with pytest.raises(InputError, match="--rounds N adds rounds to the newest, runs/quickstart-3"):
        newest_run(finished=False)


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        ((), ""),
        (("--quiet", "--workers", "0"), " --workers 0 --quiet"),
        (
            ("--out", "a", "--cells", "x", "--cells=y*", "--quiet"),
            " --cells x --cells 'y*' --quiet",
        ),
    ],
)
def test_the_options_that_were_typed(arguments, typed):
    app, said = typer.Typer(), []

    @app.command()
    def command(
        out: str = "here",
        workers: int | None = None,
        cells: list[str] | None = None,
        quiet: bool = False,
    ) -> None:
        said.append(as_typed("out"))

    app(arguments, standalone_mode=False)
    assert said == [typed]
    assert as_typed() == ""  # of no command
