import sys

import pytest
from cli_output import without_phases

from mest_fed import cli
from mest_fed.cli.app import WRONG_INPUT


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command in an empty folder and returns its one line.

    A run's command says before what it does.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=WRONG_INPUT):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["mest-fed", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == status
        assert out == ""
        assert err.endswith("\n")
        err = without_phases(err)
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == 0
        assert without_phases(err) == ""
        assert list(tmp_path.iterdir()) == []
        return out

    return run
