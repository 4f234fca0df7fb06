"""What ``mest-fed server`` and the keys of an edge link refuse: one line each."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from mest_fed.cli.certificate_folder import make_authority
from mest_fed.errors import InputError
from mest_fed.link.server.opening import LinkSettings, check_link
from mest_fed.system.folder_lock import FolderLock

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
        (
            ("server", *LOOPBACK, "--preset", "plain", "--set", "sparsity.method=heterofl"),
            ["sparsity.method = 'heterofl' gives devices narrower models", "a node with torch"],
        ),
        (("server", "--insecure"), ["--listen = '0.0.0.0:9443'", "allowed: loopback addresses"]),
        (("server", "--insecure", "--listen", "here"), ["--listen = 'here'", "HOST:PORT"]),
        (
            ("server", "--insecure", "--listen", "127.0.0.1:99999"),
            ["HOST:PORT with a port from 1 to 65535, or 0 for any that is free, such as 127"],
        ),
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


def test_settings_that_are_not_the_runs_name_the_option(fails, tmp_path):
    (tmp_path / "config.toml").touch()
    (tmp_path / "checkpoints" / "round-000001").mkdir(parents=True)
    given = ("--preset", "quickstart", "--resume", "--out", str(tmp_path), "--set", "run.rounds=7")
    text = fails("server", *LOOPBACK, *given)
    assert re.search(r"is not allowed with --resume; allowed: \S+, as the run in ", text)
    assert "deployment" not in text


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
    about = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    assert (about["base"], about["changes"][0]["key"]) == ("quickstart", "deployment.folder")
    assert about["command"].startswith("python -m mest_fed server --preset quickstart")


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder, ["localhost"], force=True)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("server.key", "rubbish", "is not a private key in PEM"),
        ("server.key", "authority.key", "is not the key of"),
        ("server.pem", "rubbish", "is not a certificate in PEM"),
        ("authority.pem", "rubbish", "is not a certificate in PEM"),
        ("authority.pem", None, "cannot be read: No such file"),
    ],
)
def test_each_wrong_file_of_the_certificates_is_named(certified, tmp_path, file, content, expected):
    shutil.copytree(certified, tmp_path, dirs_exist_ok=True)
    if content is None:
        (tmp_path / file).unlink()
    else:
        there = certified / content
        (tmp_path / file).write_text(there.read_text() if there.exists() else content)
    with pytest.raises(InputError) as error:
        check_link(LinkSettings("127.0.0.1:0", tmp_path))
    assert f"{tmp_path / file} {expected}" in str(error.value)


def test_what_keeps_an_address_from_being_listened_on_is_said_apart(certified):
    check_link(LinkSettings("127.0.0.1:0", certified, enrol="127.0.0.1:0"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^--listen = '{place}' .*a port that no other"):
            check_link(LinkSettings(place, certified))
        with pytest.raises(InputError, match=f"^--enrol = '{place}' .*a port that no other"):
            check_link(LinkSettings("127.0.0.1:0", certified, enrol=place))
    with pytest.raises(InputError, match=r"192\.0\.2\.7:9' .*an address of this machine"):
        check_link(LinkSettings("192.0.2.7:9", certified))
    with pytest.raises(InputError, match=r"host\.invalid:9' .*a host that this machine knows"):
        check_link(LinkSettings("host.invalid:9", certified))


def test_a_server_that_no_node_would_know_is_said(certified, tmp_path, caplog):
    check_link(LinkSettings("127.0.0.1:0", certified))
    assert not caplog.messages
    make_authority(tmp_path, ["localhost"], force=True)
    shutil.copy(certified / "authority.pem", tmp_path)
    check_link(LinkSettings("127.0.0.1:0", tmp_path))
    assert f"{tmp_path / 'server.pem'} is not signed by authority.pem" in caplog.text


@pytest.mark.parametrize("enrol", ["127.0.0.1:9443", "0.0.0.0:9443"])
def test_enrolment_has_a_port_of_its_own(certified, enrol):
    with pytest.raises(InputError, match=r"^--enrol = .* another port than that of --listen"):
        LinkSettings("127.0.0.1:9443", certified, enrol=enrol)
    LinkSettings("127.0.0.1:9443", certified, enrol="127.0.0.2:9443")


def test_a_folder_in_use_is_said_before_a_port_is_opened(fails, tmp_path):
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    try:
        text = fails("server", *LOOPBACK, "--preset", "quickstart", "--out", str(tmp_path / "run"))
    finally:
        lock.release()
    assert "is in use by another run" in text
    assert "listens" not in text
