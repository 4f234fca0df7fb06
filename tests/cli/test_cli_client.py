"""``mest-fed client``: wrong input, what it says, and what it starts."""

import shutil
import socket
import sys
from importlib.resources import files
from zipfile import ZipFile

import pytest
from flwr.common.config import parse_config_args
from tls_files import write_key, write_tls

from mest_fed import cli
from mest_fed.cli.app import FAILED, REFUSED
from mest_fed.cli.baseline import Baseline, ProcessMemory
from mest_fed.cli.node_config import write_node_config
from mest_fed.devices import load_profile
from mest_fed.errors import MestFedError, RefusedError
from mest_fed.system.limits import MemoryLimit

MB = 10**6
BASELINE = Baseline(
    ProcessMemory(270 * MB, 220 * MB, 400 * MB, 30 * MB),
    {"SuperNode": 90 * MB, "SuperExec": 90 * MB},
)


def command(*more, superlink="127.0.0.1:8000", device="rpi-4", partition="0"):
    share = () if partition is None else ("--partition", partition)
    return ("client", "--superlink", superlink, *share, "--device", device, *more)


def insecure(*more, **changes):
    return command("--insecure", *more, **changes)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Weigh nothing, be under no limit, and start nothing."""
    monkeypatch.setattr("mest_fed.cli.client.measure_baseline", lambda _: BASELINE)
    monkeypatch.setattr("mest_fed.cli.node_memory.limit_of_process", lambda: None)
    monkeypatch.setattr("mest_fed.cli.node_memory.memory_of_machine", lambda: 8000 * MB)
    monkeypatch.setattr("mest_fed.cli.client.wait_for_superlink", lambda *_: None)
    started, released = [], []

    def start(job, environment):
        started.append((job, environment))
        raise SystemExit(0)

    def limit(count, *, reserved):
        assert reserved() == 400 * MB
        return MemoryLimit("cgroup v9", count, "counts.", None, lambda: released.append(count))

    monkeypatch.setattr("mest_fed.cli.client.become_supervisor", start)
    monkeypatch.setattr("mest_fed.cli.client.limit_memory", limit)
    return started, released


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (insecure(superlink="127.0.0.1"), ["--superlink = '127.0.0.1'", "HOST:PORT"]),
        (insecure(superlink="http://a:9"), ["--superlink = 'http://a:9'"]),
        (insecure(superlink="a:0"), ["--superlink = 'a:0'"]),
        (insecure(superlink=":8000"), ["--superlink = ':8000'"]),
        (command(), ["neither of them", "--insecure or --root-certificates"]),
        (insecure("--root-certificates", "ca.pem"), ["both of them"]),
        (command("--root-certificates", "ca.pem"), ["--root-certificates = 'ca.pem'", "PEM"]),
        (insecure(partition="-1"), ["--partition = -1", "a whole number from 0"]),
        (insecure(partition=None), ["--partition, --data: neither", "--data PATH"]),
        (insecure("--data", "/no/such"), ["--data = '/no/such'", "that can be read"]),
        (insecure("--auth-key", "key"), ["--insecure beside --auth-key", "--root-certificates"]),
        (insecure("--wait", "-1"), ["--wait = -1.0", "a number of seconds from 0"]),
        (insecure("--wait", "nan"), ["--wait = nan"]),
        (insecure("--", "--superlink", "b:1"), ["--superlink after -- is not allowed"]),
        (insecure("--", "--port=1"), ["--port after -- is not allowed", "--port before --"]),
        (insecure(device="toaster"), ["--device = 'toaster'", "rpi-4"]),
        (insecure(device="none.toml"), ["--device none.toml"]),
        (insecure("--budget", "lots"), ["--budget = 'lots'", "MB"]),
        (insecure("--budget", "0"), ["--budget = '0'"]),
        (insecure("--budget", "1kB"), ["--budget = '1kB'", "4 kB or more: no model trains in"]),
        (insecure("--budget", "-5MB"), ["--budget = '-5MB'"]),
        (insecure("--memory-limit", "900 sheep"), ["--memory-limit = '900 sheep'", "MB"]),
        (insecure("--memory-limit", "0MB"), ["--memory-limit = '0MB'"]),
        (insecure("--memory-limit", "-1"), ["--memory-limit = '-1'"]),
        (insecure("--budget", "9MB", "--memory-limit", "1GB"), ["--budget and --memory-limit"]),
        (insecure("--memory-limit", "1GB", "--margin", "1"), ["--margin = 1.0", "[0, 1)"]),
        (insecure("--memory-limit", "1GB", "--margin", "nan"), ["--margin = nan"]),
        (insecure("--margin", "0.1"), ["--margin = 0.1", "beside --memory-limit"]),
        (insecure("--port", "0"), ["--port = 0", "1 to 65535"]),
        (insecure("--port", "70000"), ["--port = 70000"]),
        (
            insecure("--memory-limit", "500MB"),
            ["--memory-limit = '500 MB'", "more than 505 MB", "480 MB are taken", "5% stay free"],
        ),
    ],
    ids=lambda value: " ".join(value[7:]) if isinstance(value, tuple) else "",
)
def test_wrong_input(fails, machine, arguments, expected):
    line = fails(*arguments)
    for part in expected:
        assert part in line
    assert machine[0] == []


@pytest.mark.parametrize(
    ("name", "content", "allowed"),
    [
        ("a.csv", "", "a file that is not empty"),
        ("a.npz", "rubbish", "this is no archive"),
        ("folder", None, "a folder that is not empty"),
    ],
)
def test_data_is_looked_at_before_anything_is_measured(fails, tmp_path, name, content, allowed):
    place = tmp_path / name
    place.mkdir() if content is None else place.write_text(content)
    line = fails(*insecure("--data", str(place), partition=None))
    assert f"--data = {str(place)!r}" in line
    assert allowed in line


def test_a_port_in_use(fails):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"--port = {port} is not allowed; allowed: one that is free" in fails(
            *insecure("--port", port)
        )


@pytest.mark.soak
def test_more_than_the_process_may_have(fails, monkeypatch):
    monkeypatch.setattr("mest_fed.cli.node_memory.limit_of_process", lambda: 600 * MB)
    line = fails(*insecure("--memory-limit", "700MB"))
    assert "--memory-limit = '700 MB' is not allowed; allowed: at most 600000000 bytes" in line
    line = fails(*insecure("--budget", "91MB"))  # 95% of 600 MB less 480 MB are 90 MB
    assert (
        "--budget = '91 MB' is not allowed; allowed: at most 90 MB, since this process is" in line
    )
    monkeypatch.setattr("mest_fed.cli.node_memory.limit_of_process", lambda: 500 * MB)
    assert "allowed: none, since this process is under a limit of 500 MB" in fails(*insecure())


@pytest.mark.soak
def test_more_than_the_machine_has(fails, monkeypatch):
    monkeypatch.setattr("mest_fed.cli.node_memory.memory_of_machine", lambda: 1000 * MB)
    line = fails(*insecure("--memory-limit", "1001MB"))
    assert "at most 1000000000 bytes, since this machine has 1 GB" in line
    line = fails(*insecure("--budget", "471MB"))
    assert "at most 470 MB, since this machine has 1 GB, 5% of it stay free and the node" in line


@pytest.mark.soak
def test_what_does_not_fit_is_refused_before_a_node_starts(fails, machine):
    line = fails(*insecure(device="rpi-zero-2w"))
    for part in ("has 537 MB", "system takes 110 MB", "with torch takes 480 MB (measured on this"):
        assert part in line
    # 95% of 426.87 MB are 405.53 MB.
    assert (
        "74.5 MB are lacking before training begins, and the budget of 48 MB does not fit" in line
    )
    assert "Allowed: a --device with more memory, --memory-limit BYTES if" in line
    line = fails(*insecure("--budget", "351MB", device="rpi-3b-plus"))
    # 95% of 873.74 MB are 830.05 MB.
    assert "350 MB are left for training, and the budget of 351 MB does not fit" in line
    assert "Allowed: --budget up to 350 MB, a --device with" in line
    assert "--memory-limit = '500 MB'" in fails(*insecure("--memory-limit", "500MB"))
    assert machine[0] == []


def test_a_machine_with_more_memory_than_the_device(starts):
    _, started, *_ = starts(*insecure("--memory-limit", "900MB", device="rpi-zero-2w"))
    assert node_config(started)["memory-limit"] == 900 * MB


def test_without_flower(fails, monkeypatch):
    monkeypatch.setattr("mest_fed.cli.client.shutil.which", lambda *_, **__: None)
    assert "flower-supernode is not on the PATH" in fails(*insecure())


def test_a_limit_that_leaves_nothing_is_released(fails, machine):
    fails(*insecure("--memory-limit", "500MB"))
    assert machine[1] == [500 * MB]


@pytest.fixture
def starts(monkeypatch, capsys, machine):
    """Return a function that runs the command; it returns (what it says, what it starts)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert (caught.value.code, err) == (0, "")
        ((job, environment),) = machine[0]
        return out, job.command, environment, job.limit

    return run


def node_config(started):
    return parse_config_args([started[started.index("--node-config") + 1]])


def test_with_a_limit(starts, machine):
    out, started, environment, limit = starts(*insecure("--memory-limit", "900MB", partition="3"))
    assert out.splitlines() == [
        "memory limit: 900 MB, held by cgroup v9: it counts.",
        "baseline: 480 MB before training (measured on this machine: the process that trains "
        "270 MB, its parent 30 MB, SuperNode 90 MB, SuperExec 90 MB)",
        "budget: up to about 375 MB for training: the limit less 5% margin (unless the run "
        "sets another), the baseline, and what the run's data bring in, measured at its first "
        "message",
    ]
    assert started[0] == shutil.which("flower-supernode", path=environment["PATH"])
    assert started[1:4] == ["--superlink", "127.0.0.1:8000", "--insecure"]
    assert node_config(started) == {
        "partition-id": 3,
        "device": "rpi-4",
        "memory-limit": 900 * MB,
    }
    assert environment["MALLOC_ARENA_MAX"] == "1"
    assert limit == "900MB"
    assert machine[1] == [900 * MB]


def test_each_process_by_itself(starts, monkeypatch):
    # Flower's two processes have an address space of their own to fill.
    def limit(count, *, reserved):
        return MemoryLimit("RLIMIT_AS", count, "bounds.", None, lambda: None)

    monkeypatch.setattr("mest_fed.cli.client.limit_memory", limit)
    out, started, *_ = starts(*insecure("--memory-limit", "500MB", "--margin", "0.1"))
    assert "budget: up to about 180 MB for training: the limit less 10% margin, the" in out
    assert node_config(started)["memory-margin"] == 0.1


def test_with_a_budget(starts):
    out, started, *_ = starts(*insecure("--budget", "24MB", "--port", "1"))
    assert "memory limit: none" in out
    assert "budget: 24 MB for training (--budget); only the plan keeps within it" in out
    assert "1.28 GB are left for training, and the budget of 24 MB fits." in out.splitlines()[-1]
    assert node_config(started) == {"partition-id": 0, "device": "rpi-4", "budget": 24 * MB}
    assert started[started.index("--port") + 1] == "1"


def test_with_a_certificate_a_key_and_neither_limit_nor_budget(starts, tmp_path):
    file = write_tls(tmp_path) / "ca.pem"
    key = write_key(tmp_path / "node")
    out, started, *_ = starts(*command("--root-certificates", str(file), "--auth-key", str(key)))
    assert started[3:5] == ["--root-certificates", str(file)]
    assert started[started.index("--auth-supernode-private-key") + 1] == str(key)
    assert "--insecure" not in started
    assert "rpi-4's own" in out
    assert node_config(started) == {"partition-id": 0, "device": "rpi-4"}


def test_a_devices_own_data(starts, tmp_path, monkeypatch):
    ZipFile(tmp_path / "mine.npz", "w").close()
    monkeypatch.chdir(tmp_path)
    _, started, *_ = starts(*insecure("--data", "mine.npz", partition=None))
    assert node_config(started) == {"data": str(tmp_path / "mine.npz"), "device": "rpi-4"}


def test_the_runs_data_elsewhere(starts, tmp_path):
    (tmp_path / "train.csv").touch()
    _, started, *_ = starts(*insecure("--data", str(tmp_path), partition="2"))
    assert node_config(started) == {"partition-id": 2, "data": str(tmp_path), "device": "rpi-4"}


def test_further_options_of_the_node(starts):
    _, started, *_ = starts(*insecure("--", "--max-retries", "3", "--isolation=subprocess"))
    assert started[-3:] == ["--max-retries", "3", "--isolation=subprocess"]


def test_the_nodes_environment(starts, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    *_, environment, _ = starts(*insecure())
    assert environment["MEST_FED_DEVICE"] == "1"
    assert environment["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1"


def test_a_refusal_has_its_own_status(fails, monkeypatch):
    def refuse(*_):
        raise RefusedError("this machine's clock is 30 s ahead")

    monkeypatch.setattr("mest_fed.cli.client.wait_for_superlink", refuse)
    monkeypatch.setattr("mest_fed.cli.client.measure_baseline", lambda _: pytest.fail("measured"))
    assert "clock is 30 s ahead" in fails(*insecure(), status=REFUSED)  # before all is measured


def test_a_profile_of_ones_own_is_found_from_anywhere(starts, tmp_path, monkeypatch):
    folder = tmp_path / 'it\'s "mine"'
    folder.mkdir()
    text = (files("mest_fed.devices") / "profiles" / "rpi-4.toml").read_text(encoding="utf-8")
    (folder / "d.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    _, started, *_ = starts(*insecure("--budget", "24MB", device="d.toml"))
    assert node_config(started)["device"] == str(folder / "d.toml")
    assert load_profile(node_config(started)["device"]).name == "d"


@pytest.mark.parametrize("text", ["a b", "it's", 'a "b" c', "back\\slash", "tab\there", "€", "x=1"])
def test_texts_in_a_node_config(text):
    values = {"device": text, "partition-id": 7, "memory-margin": 1e-07}
    assert parse_config_args([write_node_config(values)]) == values


def test_processes_that_cannot_be_measured(fails, monkeypatch):
    def broken(_):
        raise MestFedError("flwr-clientapp cannot be imported: no such thing")

    monkeypatch.setattr("mest_fed.cli.client.measure_baseline", broken)
    assert "cannot be imported" in fails(*insecure(), status=FAILED)
