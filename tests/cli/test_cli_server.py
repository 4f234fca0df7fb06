"""What ``mest-fed server`` and the keys of an edge link refuse: one line each."""

import signal
import subprocess
import sys

import pytest

LOOPBACK = ("--insecure", "--listen", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("server",), ["needs --certificates FOLDER (mest-fed certs new)", "--insecure"]),
        (
            ("server", "--insecure", "--certificates", "tls"),
            ["--certificates = 'tls'", "beside --insecure"],
        ),
        (
            ("server", "--insecure", "--enrol", "127.0.0.1:1"),
            ["--enrol = '127.0.0.1:1' is not allowed beside --insecure", "allowed: --insecure al"],
        ),
        (("server", "--insecure"), ["--listen = '0.0.0.0:9443'", "allowed: loopback addresses"]),
        (("server", "--insecure", "--listen", "here"), ["--listen = 'here'", "HOST:PORT"]),
        (("server", "--certificates", "tls", "--enrol", "9444"), ["--enrol = '9444'", "HOST:PORT"]),
        (("server", *LOOPBACK, "--resume"), ["--resume needs --out"]),
        (("server", *LOOPBACK, "--out", __file__), [f"--out = {__file__!r}", "allowed: a folder"]),
        (
            ("server", *LOOPBACK, "--rounds", "2"),
            ["--rounds 2 is for --resume --out FOLDER alone", "--set run.rounds=2"],
        ),
        (
            ("server", *LOOPBACK, "--rounds", "2", "--resume", "--out", "none"),
            ["--resume: no run in none"],
        ),
        (
            ("server", *LOOPBACK, "--set", "deployment.link='127.0.0.1:1'"),
            ["deployment.link = '127.0.0.1:1' is for flwr run; allowed: --listen"],
        ),
        (
            ("server", "--certificates", "tls", "--set", "run.rounds=1"),
            ["tls/server.pem cannot be read: No such file"],
        ),
        (
            ("simulate", "--set", "deployment.link='127.0.0.1:1'"),
            ["deployment.link = '127.0.0.1:1' is for real devices"],
        ),
        *(
            (
                ("simulate", "--set", f"deployment.{key}={value}"),
                [f"deployment.{key} = ", "is not allowed without deployment.link"],
            )
            for key, value in (
                ("link_certificates", "'tls'"),
                ("link_enrol", "'127.0.0.1:1'"),
                ("link_insecure", "true"),
            )
        ),
    ],
)
def test_wrong_input(fails, arguments, expected):
    text = fails(*arguments)
    assert [part for part in expected if part not in text] == [], text


def test_a_run_that_is_over_says_how_it_gets_more_rounds(fails, tmp_path):
    (tmp_path / "config.toml").touch()
    (tmp_path / "summary.json").touch()
    text = fails("server", *LOOPBACK, "--resume", "--out", str(tmp_path))
    assert "is finished (summary.json exists); --rounds N adds rounds" in text


def test_a_folder_that_holds_a_run_is_refused_in_the_commands_own_words(fails, tmp_path):
    (tmp_path / "checkpoints" / "000003").mkdir(parents=True)
    text = fails("server", *LOOPBACK, "--preset", "quickstart", "--out", str(tmp_path))
    assert f"--out = '{tmp_path}' is not allowed" in text
    assert "--resume" in text
    assert "deployment" not in text
    assert "listens" not in text


@pytest.mark.slow
@pytest.mark.net
def test_a_service_that_is_stopped_says_how_to_go_on_and_each_line_stands_once(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mest_fed", "server", "--preset", "quickstart", *LOOPBACK]
    lines = []
    with subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        for line in server.stdout:
            lines.append(line.rstrip())
            if "waiting for nodes: 0 of 1" in line:
                server.send_signal(signal.SIGTERM)
    assert server.returncode == 130
    for text in ("waiting for nodes", "server mutation", "listens on port"):
        assert sum(text in line for line in lines) == 1, lines
    assert any(f"go on with: mest-fed server --resume --out {out}" in line for line in lines)
