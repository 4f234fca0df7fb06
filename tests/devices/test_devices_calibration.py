"""Calibration: its programs, the fit of rates, transfers, power, and the profile that comes out."""

import gzip
import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from mest_fed.cli.baseline import RECORDED_LEAN
from mest_fed.devices import Work, load_profile
from mest_fed.devices.calibration import command
from mest_fed.devices.calibration.board import BoardMemory, Power, node_bytes, read_memory
from mest_fed.devices.calibration.board_profile import (
    Calibration,
    PowerDrawn,
    base_for,
    profile_toml,
)
from mest_fed.devices.calibration.link import LinkRates, LinkServer, read_address, time_link
from mest_fed.devices.calibration.python import PythonSpeed, time_python
from mest_fed.devices.calibration.rates import Measured, fit_rates
from mest_fed.devices.calibration.steps import CASES, PROGRAMS, Sample, programs
from mest_fed.devices.cost import MachineRates, train_seconds
from mest_fed.devices.program_work import program_step_work
from mest_fed.errors import InputError, MestFedError
from mest_fed.runtime import native_table
from mest_fed.system.power import PowerMeter, find_meter
from mest_fed.training.calibration_programs import calibration_programs

needs_runtime = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
BOARD = MachineRates({"dense": 8e9, "block": 5e9, "unstructured": 3e9}, 4e9, 0.2, gather_speed=0.1)


def samples_of(rates, noise=0.0):
    """Return the steps as a board of these rates would take them."""
    rng, found = np.random.default_rng(1), []
    for case in CASES:
        work = program_step_work(programs()[case.name][0]).of_batch(case.group, case.group)
        scheme = "block" if case.scheme == "dense" else case.scheme
        seconds = train_seconds(rates, work, scheme) * (1 + noise * rng.uniform(-1, 1))
        found.append(Sample(case, case.group, work, seconds, 0.0))
    return tuple(found)


def test_the_programs_in_the_package_are_those_that_their_script_makes():
    file = resources.files("mest_fed.devices.calibration") / PROGRAMS
    packed = file.read_bytes()
    assert len(packed) < 300_000
    assert json.loads(gzip.decompress(packed)) == json.loads(json.dumps(calibration_programs()))


def test_rates_are_those_that_the_steps_were_made_of():
    found = fit_rates(samples_of(BOARD))
    for kind, rate in BOARD.flops.items():
        assert found.flops[kind] == pytest.approx(rate, rel=0.02)
    assert found.memory_rate == pytest.approx(BOARD.memory_rate, rel=0.05)
    assert found.core_speed == pytest.approx(BOARD.core_speed, rel=0.02)
    assert found.gather_speed == pytest.approx(BOARD.gather_speed, rel=0.02)


def test_noise_moves_rates_by_little():
    samples = samples_of(BOARD, noise=0.05)
    measured = Measured(1, fit_rates(samples), samples)
    assert measured.worst < 1.1
    assert measured.rates.flops["dense"] == pytest.approx(8e9, rel=0.1)


def test_a_batch_of_one_group_counts_for_one_thread_alone():
    """What it takes with more threads says nothing of steps that have a group for each."""
    samples = [
        it if it.case.spreads else replace(it, seconds=it.seconds / 5) for it in samples_of(BOARD)
    ]
    assert fit_rates(samples, 4).core_speed == pytest.approx(0.2, rel=0.02)
    assert fit_rates(samples, 1).core_speed > 0.3


def calibration(**changes):
    samples = samples_of(BOARD)
    speeds = [Measured(count, fit_rates(samples, count), samples) for count in (4, 1)]
    found = Calibration("Raspberry Pi 4 Model B Rev 1.4", "2026-12-01", speeds, PythonSpeed(0.0268))
    return replace(found, **changes)


def test_what_is_not_measured_is_the_bases(tmp_path):
    base = load_profile("rpi-4")
    found = calibration().profile("my-board", base)
    assert found.title == "Raspberry Pi 4 Model B Rev 1.4"
    assert found.sources["flops"].startswith("measured: fit to 10 compiled steps on Raspberry Pi 4")
    assert "one thread: dense 8" in found.sources["flops"]
    assert found.flops["channel"] == pytest.approx(0.8 * found.flops["dense"], rel=0.001)
    for key in ("memory_bytes", "download_rate", "idle_watts", "availability", "system_bytes"):
        assert getattr(found, key) == getattr(base, key)
        assert found.sources[key] == "modelled: as rpi-4"
    assert found.message_seconds == pytest.approx(6.5 / 0.25)
    assert found.python_time == pytest.approx(4)
    assert found.node_bytes is None
    (tmp_path / "my-board.toml").write_text(profile_toml(found))
    assert load_profile(str(tmp_path / "my-board.toml")) == found


def test_what_is_measured_says_so(tmp_path):
    found = calibration(
        memory=BoardMemory(1_000_000_000, 200_000_000),
        node=50_000_000,
        link=LinkRates(9e6, 3e6, 0.004),
        power=PowerDrawn("the battery's flow", 4.0, 1.5),
    ).profile("b", load_profile("phone-low"), 'a "board"')
    assert (found.memory_bytes, found.system_bytes) == (1_000_000_000, 200_000_000)
    assert (found.node_bytes, found.budget_bytes) == (50_000_000, 750_000_000 // 4)
    assert (found.download_rate, found.upload_rate, found.latency) == (9e6, 3e6, 0.004)
    base = load_profile("phone-low")
    assert (found.compute_watts, found.idle_watts) == (4.0, 1.5)
    assert found.radio_watts == pytest.approx(1.5 + base.radio_watts - base.idle_watts)
    assert found.battery_joules == base.battery_joules
    measured = {key for key, text in found.sources.items() if text.startswith("measured: ")}
    assert measured == {
        "memory_bytes", "system_bytes", "node_bytes", "flops", "memory_rate", "core_speed",
        "gather_speed", "download_rate", "upload_rate", "latency", "compute_watts", "idle_watts",
    }  # fmt: skip
    (tmp_path / "b.toml").write_text(profile_toml(found))
    assert load_profile(str(tmp_path / "b.toml")).title == 'a "board"'


def test_a_server_of_the_link_that_is_not_there_is_status_4(capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SystemExit) as ended:
        command.main(["--quick", "--server", address])
    assert ended.value.code == 4
    assert f"--server {address}: Connection refused" in capsys.readouterr().err


def test_python_is_timed_by_what_a_node_does_in_it():
    found = time_python(3, 0.01)
    assert 0.02 < found.speed < 20
    assert PythonSpeed(2 * found.seconds).speed == pytest.approx(found.speed / 2)


def test_a_board_that_is_full_has_a_budget_still():
    found = calibration(memory=BoardMemory(10**9, 10**9 - 1)).profile("b", load_profile("laptop"))
    assert found.budget_bytes == 10**7


@pytest.mark.parametrize(
    ("board", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "rpi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "rpi-5"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "rpi-zero-2w"),
        ("AMD EPYC 7B13", "laptop"),
    ],
)
def test_a_board_has_the_base_that_is_called_so(board, name):
    assert base_for(board) == name


@pytest.fixture
def server():
    with LinkServer(("127.0.0.1", 0)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_link_is_timed_over_loopback(server):
    found = time_link(("127.0.0.1", server.port), seconds=0.02)
    assert found.download_rate > 1e6
    assert found.upload_rate > 1e6
    assert 0 < found.latency < 0.1


@pytest.mark.parametrize("request_", [b"D" + b"\xff" * 8, b"X" + bytes(7) + b"\1", b"U" + bytes(8)])
def test_a_request_for_too_much_is_not_answered(server, request_):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as peer:
        peer.sendall(request_)
        assert peer.recv(1) == b""


def test_a_link_without_a_server_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(MestFedError, match=rf"^--server 127.0.0.1:{port}: .*--serve run there\?$"):
        time_link(("127.0.0.1", port))
    with pytest.raises(InputError, match="HOST:PORT"):
        read_address("somewhere", "--server")
    with pytest.raises(InputError, match=r"with a port from 1 to 65535, such as"):
        read_address("127.0.0.1:0", "--server")
    with pytest.raises(InputError, match=r"1 to 65535, or 0 for any that is free, such as"):
        read_address("127.0.0.1:65536", "--serve", 0)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def test_power_is_told_by_counters_or_a_battery_that_discharges(tmp_path):
    assert find_meter(tmp_path) is None
    battery = tmp_path / "sys/class/power_supply/BAT0"
    for name, text in {"type": "Battery", "status": "Charging", "current_now": 500_000}.items():
        write(battery / name, text)
    write(battery / "voltage_now", 4_000_000)
    assert find_meter(tmp_path) is None
    write(battery / "status", "Discharging")
    meter = find_meter(tmp_path)
    assert (meter.what, meter.watts()) == ("the battery's flow", 2.0)
    power = Power(meter)
    with power.watched():
        pass
    assert power.watts == 2.0
    for name, joules in (("intel-rapl:0", 3), ("intel-rapl:1", 4), ("intel-rapl:0:0", 9)):
        write(tmp_path / f"sys/class/powercap/{name}/energy_uj", joules * 1_000_000)
    assert find_meter(tmp_path).joules() == 7.0


def test_counters_give_the_mean_power():
    told = iter((10.0, 12.0))
    power = Power(PowerMeter("x", joules=lambda: next(told)))
    with power.watched():
        threading.Event().wait(0.1)
    assert 2.0 < power.watts <= 20.0


def test_memory_is_what_the_system_says(tmp_path):
    write(tmp_path / "meminfo", "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\n")
    assert read_memory(tmp_path) == BoardMemory(1_024_000, 409_600)
    assert read_memory(tmp_path / "none") is None


def test_a_nodes_memory_is_that_of_a_fresh_process():
    with pytest.raises(MestFedError, match="no_such_module"):
        node_bytes(("no_such_module",))
    assert 5e6 < node_bytes(("json",)) < node_bytes(("numpy",)) < 2e8
    # What a node alone on its machine takes, as devices are judged by where none was measured.
    assert node_bytes() == pytest.approx(RECORDED_LEAN, rel=0.25)


@needs_runtime
def test_a_device_is_calibrated_without_torch(tmp_path):
    """In a process of its own, which must not come to have torch or Flower."""
    code = (
        "import sys; from mest_fed.devices.calibration.command import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'flwr', 'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    )
    options = ["--out", "here.toml", "--like", "rpi-4", "--threads", "1", "--quick"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("profile: here.toml\n[]\n")
    assert "the profile has the rates of one thread, as of mest-fed node --threads 1" in done.stdout
    found = load_profile(str(tmp_path / "here.toml"))
    assert found.flops["dense"] > found.flops["unstructured"] > 1e8
    assert 0.01 < found.core_speed < 50
    assert found.node_bytes > 10**7


def test_the_fastest_number_of_threads_is_told_and_a_slower_one_is_warned_of(capsys):
    samples = samples_of(BOARD)
    slow = [replace(it, seconds=3 * it.seconds, examples=2 * it.examples) for it in samples]
    own = Measured(2, fit_rates(slow, 2), tuple(slow))
    one = Measured(1, fit_rates(samples), samples)
    assert own.slowness(one) == pytest.approx(1.5)
    command._print_fastest([own, one])
    out, err = capsys.readouterr()
    assert "fastest: one thread" in out
    assert "the profile has the rates of 2 threads" in out
    assert "with 2 threads an example takes 1.50 times as long as with one thread" in err
    command._print_fastest([one, own])
    assert capsys.readouterr().err == ""


def test_the_step_that_was_not_fitted_is_told_of():
    samples = [it if it.case.spreads else replace(it, seconds=9 * it.seconds)
               for it in samples_of(BOARD)]  # fmt: skip
    measured = Measured(4, fit_rates(samples, 4), tuple(samples))
    assert measured.worst < 1.1
    assert measured.worst_beside == pytest.approx(9, rel=0.05)
    assert Measured(1, fit_rates(samples), tuple(samples)).worst_beside is None
    text = calibration(speeds=[measured]).profile("b", load_profile("rpi-4")).sources["flops"]
    assert "fit to 10 compiled steps" in text
    assert (
        f"batches of one group, which have one thread, within {measured.worst_beside:.2f}" in text
    )


def test_wrong_options_are_one_line(tmp_path, capsys):
    there = tmp_path / "there.toml"
    there.touch()
    for options, line in (
        (["--out", str(tmp_path / "x.txt")], "ends in .toml"),
        (["--out", str(tmp_path / "no" / "x.toml")], "in a folder that exists"),
        (["--out", str(there)], "there.toml is there already; allowed: --force"),
        (["--out", "/proc/x.toml"], "'/proc/x.toml' is not allowed; allowed: a file that can be"),
        (["--threads", "9999"], "--threads = 9999 is not allowed"),
        (["--like", "toaster"], "--like = 'toaster' is not allowed"),
        (["--server", "x"], "--server = 'x' is not allowed"),
        (["--frequency", "1"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(options)
        out, error = capsys.readouterr()
        assert out == ""  # nothing was measured
        assert (caught.value.code, error.count("\n")) == (2, 1)
        assert line in error


def test_work_is_of_the_scheme_of_its_step():
    dense, block = samples_of(BOARD)[0], samples_of(BOARD)[2]
    assert dense.work.sparse_flops == 0 < block.work.sparse_flops
    assert isinstance(block.work, Work)
