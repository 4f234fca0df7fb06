"""``mest-fed node``: wrong options and certificates are one line and their exit status."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from edge_processes import free_port
from link_parts import QUICK, SOON, Authority, node, serve

from mest_fed.errors import BudgetError, InputError, RefusedError
from mest_fed.link.node import channel, command
from mest_fed.link.node.tls import NodeTls
from mest_fed.link.protocol import Refusal
from mest_fed.runtime import native_table


@pytest.fixture
def says(capsys, monkeypatch, tmp_path, authority):
    """Return a function that runs the command; it returns its status and its last line."""
    monkeypatch.chdir(tmp_path)
    Path("authority.pem").write_bytes(authority.pem)
    np.savez("own.npz", inputs=np.zeros((2, 1)), targets=np.zeros(2, int))
    monkeypatch.setattr(command, "_Stop", lambda: lambda: True)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mest-fed node", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("error: ") for line in lines) <= 1
        return ended.value.code, lines[-1]

    return run


LINK = ("--link", "127.0.0.1:1", "--data", "own.npz", "--state", "state")
ENROL = ("--token", "x", "--authority", "authority.pem", "--give-up", "0.3", "--enrol")
OTHER = ("--state", "other", "--budget", "1MB")
PLAIN = (*LINK, "--insecure", "--device", "rpi-4", "--give-up", "0.2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "--link"),
        (("--nonsense", *PLAIN), "--nonsense"),
        ((*PLAIN, "--threads", "0"), "--threads"),
        ((*PLAIN, "--threads", "many"), "--threads"),
        ((*PLAIN, "--partition", "-1"), "--partition"),
        ((*PLAIN, "--give-up", "0"), "--give-up"),
        ((*PLAIN, "--give-up", "nan"), "--give-up"),
        ((*PLAIN, "--budget", "much"), "--budget"),
        ((*PLAIN, "--budget", "1MB", "--memory-limit", "1GB"), "exclude"),
        (
            (*PLAIN, "--memory-limit", "200"),
            "not counted, and to be added: what",
        ),
        ((*PLAIN, "--memory-limit", "5MB"), "are taken before training (measured)"),
        ((*PLAIN, "--name", ""), "name"),
        ((*PLAIN, "--train-when", "sunny"), "--train-when"),
        (
            (*PLAIN, "--train-when", "battery:101"),
            "'battery:101' is not allowed; allowed: 0 to",
        ),
        ((*PLAIN, "--train-when", "cool:151"), "'cool:151' is not allowed; allowed: 0 to 150"),
        ((*PLAIN, "--name", "a name"), "--name = 'a name' is no name"),
        ((*PLAIN, "--device", "toaster"), "--device = 'toaster' is not allowed; allowed: auto"),
        ((*PLAIN, "--link", "10.0.0.1:9443"), "loopback"),
        ((*PLAIN, "--link", "nothing"), "--link = 'nothing' is not allowed; allowed: HOST:PORT"),
        ((*PLAIN, "--link", "127.0.0.1:0"), "HOST:PORT with a port from 1 to 65535, such as"),
        ((*PLAIN, "--link", ""), "--link = '' is not allowed"),
        ((*PLAIN, "--state", ""), "--state = '' is not allowed"),
        ((*PLAIN, "--enrol", "x"), "--enrol = 'x' is not allowed; allowed: HOST:PORT"),
        ((*PLAIN, "--data", ""), "--data = '' is not allowed"),
        ((*PLAIN, "--data", "none.npz"), "--data = 'none.npz' is not allowed"),
        ((*LINK, "--insecure", "--device", "auto"), "--device = 'auto' finds no profile"),
        ((*LINK, "--device", "rpi-4"), "no certificate"),
        ((*LINK, "--device", "rpi-4", "--certificates", "none"), "cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line(says, arguments, text):
    status, line = says(*arguments)
    assert status == 2
    assert line.startswith("error: ")
    assert text in line


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ((), "--token TOKEN, or the variable MEST_TOKEN; and --authority FILE"),
        (("--authority", "authority.pem"), "--token TOKEN, or the variable MEST_TOKEN"),
        (("--token", "x"), "--authority FILE"),
    ],
)
def test_what_enrolment_lacks_is_named_alone(says, monkeypatch, given, lacks):
    monkeypatch.delenv("MEST_TOKEN", raising=False)
    said = says(*LINK, "--device", "rpi-4", "--enrol", "127.0.0.1:1", *given)
    assert said == (2, f"error: --enrol needs {lacks}")


def test_a_token_may_stand_in_the_environment(monkeypatch):
    """Arguments stand in the list of processes, for all to read."""
    given = [*LINK, "--enrol", "127.0.0.1:1"]
    monkeypatch.setenv("MEST_TOKEN", "x")
    assert command.parser().parse_args(given).token == "x"
    assert command.parser().parse_args([*given, "--token", "y"]).token == "y"
    monkeypatch.delenv("MEST_TOKEN")
    assert command.parser().parse_args(given).token is None


def test_a_folder_of_another_process_is_refused(says, tmp_path):
    claim = (
        "from mest_fed.link.node.store import NodeFolder; from pathlib import Path; import sys; "
    )
    claim += "NodeFolder(Path(sys.argv[1])).claim(); print(1, flush=True); sys.stdin.read()"
    state = tmp_path / "shared"
    command = [sys.executable, "-c", claim, str(state)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "1\n"
        status, line = says(*PLAIN, "--state", str(state))
        other.stdin.close()
    assert status == 2
    assert f"--state = '{state}' is not allowed" in line
    assert "another process works in this one" in line
    assert says(*PLAIN, "--state", str(state))[0] == 4  # it has ended: no server is there


def test_a_server_that_is_gone_for_too_long_is_status_4(says):
    status, line = says(*PLAIN[:1], f"127.0.0.1:{free_port()}", *PLAIN[2:])
    assert status == 4
    assert line.startswith("error: no server answers at 127.0.0.1:")


def test_an_unknown_host_is_named(says):
    status, line = says(*LINK[2:4], *OTHER, "--link", "none.invalid:1", *ENROL, "none.invalid:2")
    assert status == 4
    assert "--enrol: this machine knows no host 'none.invalid'" in line


def test_enrolment_without_its_library_is_one_line(says, monkeypatch):
    for name in [each for each in sys.modules if each.startswith("mest_fed.link.certificates")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    status, line = says(*LINK[:4], *OTHER, *ENROL, "127.0.0.1:2")
    assert status == 2
    assert "--enrol needs cryptography, which is not installed; run: pip install" in line


def test_nodes_of_one_host_name_come_back_apart(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        channel, "pauses_of", lambda own, of=channel.pauses_of: drawn.append(of(own)) or drawn[-1]
    )

    def pauses(certificate, name="raspberrypi", **more):
        tls = None if certificate is None else NodeTls(certificate, b"", b"")
        drawn.clear()
        channel.Channel("127.0.0.1:9", name, tls=tls, patience=channel.Patience(), **more)
        return [drawn[0].uniform(0, 1) for _ in range(4)]

    assert pauses(b"one") == pauses(b"one")
    assert pauses(b"one") != pauses(b"two")
    assert pauses(b"", alone=b"one request") != pauses(b"", alone=b"another")
    assert pauses(None) != pauses(None, "another")


def test_a_pause_ends_when_another_call_is_answered(monkeypatch):
    """The node counts as present from then on, and would sleep while it is given work."""
    asleep, tried = threading.Event(), []

    def call():
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise Refusal("UNAVAILABLE", "the server is gone")
        return "answered"

    with (
        serve() as server,
        node(server.port, patience=replace(SOON, first=1e6, longest=1e6, altogether=1e6)) as link,
    ):
        link._session.stop()
        monkeypatch.setattr(link._channel, "_random", random.Random(0))
        monkeypatch.setattr(channel.log, "warning", lambda *_: asleep.set())
        waiting = threading.Thread(target=link._channel.insist, args=(call,), daemon=True)
        waiting.start()
        assert asleep.wait(10)
        waiting.join(0.2)
        assert waiting.is_alive()
        link.register()
        waiting.join(10)
        assert not waiting.is_alive()
    assert len(tried) == 2


def test_a_server_of_enrolments_that_is_not_there_is_asked_again(says, caplog):
    status, line = says(*LINK[:4], *OTHER, *ENROL, f"127.0.0.1:{free_port()}")
    assert status == 4
    assert "--enrol: no server answers at 127.0.0.1:" in line
    assert any("next attempt in" in each.message for each in caplog.records)


def test_a_node_without_tls_is_told_that_the_server_has_it_and_the_other_way(
    says, authority, tmp_path
):
    with serve(authority.server()) as server:
        status, line = says("--link", f"127.0.0.1:{server.port}", *PLAIN[2:])
        assert status == 2
        assert f"--insecure: the server at 127.0.0.1:{server.port} speaks TLS" in line
        status, line = says(*LINK[:4], *OTHER, *ENROL, f"127.0.0.1:{server.port}")
        assert status == 2
        assert "demands a certificate: it is where nodes work" in line
    with serve() as server:
        own = ("--state", "third", "--budget", "1MB")
        status, line = says(*LINK[:4], *own, *ENROL, f"127.0.0.1:{server.port}")
    assert status == 2
    assert f"the server at 127.0.0.1:{server.port} does not speak TLS" in line


def test_the_words_are_the_servers_or_plain_ones_never_those_of_grpc(caplog):
    briefly = replace(SOON, altogether=1.0)  # for the server that has gone
    with node((server := serve()).port, patience=briefly) as link:
        link.register()
        threading.Timer(0.3, server.__exit__, (None, None, None)).start()
        with pytest.raises(RefusedError, match=r"^the server at 127.0.0.1:\d+ is gone$"):
            link._channel.insist(lambda: link._session.call(link.wait), patient=1.0)
        link._session.stop()
    said = [each.getMessage() for each in caplog.records if each.name == "mest_fed.link"]
    assert any(each.startswith("the run has ended") for each in said), said
    assert not any("alling" in each or "Failed" in each for each in said), said


@pytest.mark.parametrize("fault", ["authority", "expired", "stranger", "key"])
def test_a_wrong_certificate_is_one_line(says, authority, tmp_path, fault):
    stranger = Authority()
    tls = {
        "authority": lambda: authority.node("pi", believes=stranger.pem),
        "expired": lambda: authority.node("pi", days=-1),
        "stranger": lambda: stranger.node("pi", believes=authority.pem),
        "key": lambda: authority.node("pi"),
    }[fault]()
    key = stranger.node("pi").key if fault == "key" else tls.key
    files = {"node.pem": tls.certificate, "node.key": key, "authority.pem": tls.authority}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with serve(authority.server()) as server:
        link = (
            "--link",
            f"127.0.0.1:{server.port}",
            *LINK[2:],
            "--device",
            "rpi-4",
            "--give-up",
            "9",
        )
        status, line = says(*link, "--certificates", str(tmp_path))
        assert server.nodes() == []
    assert status == 2, line
    expected = {
        "authority": "the certificate of the server",
        "expired": "refuses the node's certificate: it is not valid at the server's time, or",
        "stranger": "refuses the node's certificate: it is not valid at the server's time, or",
        "key": "do not fit together",
    }
    assert expected[fault] in line


#: When a server's certificate is valid -> the status, and what is said.
OTHER_TIMES = {
    "not yet": ({"begins": 1}, 4, "not yet valid, by this device's clock: "),  # set later, perhaps
    "no more": ({"days": -1}, 2, "has expired, by this device's clock: "),
}


@pytest.mark.parametrize("enrols", [False, True])
@pytest.mark.parametrize("when", OTHER_TIMES)
def test_a_certificate_of_another_time_may_be_a_wrong_clock(says, authority, caplog, when, enrols):
    (server, expected, line), tmp_path = OTHER_TIMES[when], Path.cwd()
    tls, options = authority.node("pi"), ("--give-up", "3", "--device", "rpi-4")
    files = {"node.pem": tls.certificate, "node.key": tls.key, "authority.pem": tls.authority}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with serve(authority.server(**server)) as edge:
        address = f"127.0.0.1:{edge.port}"
        if enrols:
            options += ("--enrol", address, "--token", "t", "--state", str(tmp_path / "state"))
            options += ("--authority", str(tmp_path / "authority.pem"))
        else:
            options += ("--certificates", str(tmp_path))
        status, said = says("--link", address, *LINK[2:], *options)
    assert status == expected, said
    assert line in said
    attempts = [each for each in caplog.messages if line in each and "next attempt" in each]
    assert (len(attempts) > 0) == (expected == 4)


def test_a_node_without_the_compiled_runtime_takes_no_part(says, monkeypatch):
    monkeypatch.setattr(native_table, "_module", None)
    native_table.module.cache_clear()
    with serve() as server:
        status, line = says("--link", f"127.0.0.1:{server.port}", *PLAIN[2:], "--device", "rpi-4")
        assert server.nodes() == []
    native_table.module.cache_clear()
    assert status == 2
    assert "without its compiled runtime; allowed: a wheel" in line


def test_options_of_who_a_node_is_that_are_not_used_are_said(says, authority, tmp_path, caplog):
    caplog.set_level("INFO", "mest_fed.node")
    tls, state = authority.node("pi"), tmp_path / "state"
    state.mkdir()
    for place in (tmp_path, state):
        for name, data in zip(("node.pem", "node.key"), (tls.certificate, tls.key), strict=True):
            (place / name).write_bytes(data)
        (place / "authority.pem").write_bytes(tls.authority)
    link = ("--link", "127.0.0.1:9", *LINK[2:], "--device", "rpi-4", "--give-up", "0.1")
    other = ("--state", str(tmp_path / "other"))
    says(*link, *other, "--certificates", str(tmp_path), "--name", "shed")
    assert "--name is not used: the certificate says who this node is" in caplog.messages
    says(*link, "--state", str(state), "--enrol", "127.0.0.1:9", "--token", "used")
    assert any("--enrol, --token and --name are not used" in each for each in caplog.messages)


def test_a_budget_that_fits_no_plan_is_status_2(says):
    def refuses(_):
        raise BudgetError("memory budget = 1 kB fits no plan")

    with serve(describe=refuses, limits=QUICK) as server:
        link = ("--link", f"127.0.0.1:{server.port}", *PLAIN[2:])
        status, line = says(*link, "--budget", "1kB")
    assert status == 2
    assert "fits no plan" in line


@pytest.mark.parametrize("needs", [7_000_000, 0])
def test_a_limit_that_is_too_tight_names_one_that_is_enough(says, monkeypatch, needs):
    held = SimpleNamespace(kind="nothing")
    monkeypatch.setattr(command, "limit_memory", lambda _: nullcontext(held))

    def refuses(_):
        if not needs:
            raise InputError("a lean node has no torch")
        raise BudgetError("memory budget = 9 GB fits no plan", needs)

    with serve(describe=refuses, limits=QUICK) as server:
        link = ("--link", f"127.0.0.1:{server.port}", *PLAIN[2:])
        status, line = says(*link, "--memory-limit", "9GB")
    assert status == 2
    assert ("--memory-limit = '9 GB' is not allowed; allowed: at least" in line) == (needs > 0)
    assert ("the smallest plan needs 7 MB (modelled), 5% stay free, and 4% " in line) == (needs > 0)
    assert ("a lean node has no torch" in line) == (needs == 0)


def test_a_run_that_cannot_be_described_is_status_2_and_not_asked_for_again(says, caplog):
    asked = []

    def raises(node):
        asked.append(node.description.name)
        raise AttributeError("a user's own data set has no examples")

    caplog.set_level("INFO", "mest_fed.link")
    with serve(describe=raises, limits=QUICK) as server:
        status, line = says("--link", f"127.0.0.1:{server.port}", *PLAIN[2:])
    assert status == 2
    assert "cannot describe this run: AttributeError: a user's own data set" in line
    assert len(asked) == 1
    said = [line for line in caplog.messages if "Register refused: INVALID_ARGUMENT" in line]
    assert len(said) == 1
    assert re.match(r"node \S+ \(ipv4:127\.0\.0\.1:\d+\): ", said[0])
    assert "session is not known" not in caplog.text


def test_signals_have_their_status(monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted; no round waits")

    def stopped():
        raise SystemExit(command.TERMINATED)

    monkeypatch.setattr(command, "run", stopped)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 143
    assert capsys.readouterr().err.startswith("stopped by SIGTERM; no round waits")
