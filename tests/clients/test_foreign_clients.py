"""The conformance series: a client of generated code meets all of it, a poor one does not."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clients" / "conformance"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """What protoc makes of the protocol, and nothing else."""
    out = tmp_path_factory.mktemp("generated")
    options = ["-I", ROOT / "mest_fed" / "link", f"--python_out={out}", f"--grpc_python_out={out}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *map(str, options), "mest_link.proto"]
    subprocess.run(command, check=True)
    return out


def client_of(generated, source, port, name, *more):
    """Run a client where no mest_fed is to be had."""
    program = (
        "import sys; sys.modules['mest_fed'] = None; sys.path[:0] = sys.argv[1:2]; "
        "file, sys.argv = sys.argv[2], sys.argv[2:]; "
        "exec(compile(open(file).read(), file, 'exec'))"
    )
    command = [sys.executable, "-c", program, generated, source, f"127.0.0.1:{port}", name, *more]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, cwd="/")


def series(*options):
    command = [sys.executable, FOLDER / "server.py", "--wait", "20", *options]
    found = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    port = re.fullmatch(r"listening on 127.0.0.1:(\d+)\n", found.stdout.readline()).group(1)
    return found, int(port)


def ended(process, seconds):
    """Wait for the end of a process; kill it otherwise."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.net
def test_a_client_of_generated_code_meets_all(generated):
    server, port = series()
    client = client_of(generated, FOLDER / "client.py", port, "kotlin")
    said = ended(server, 90)
    lines = said.splitlines()
    assert [it for it in lines if not it.startswith("met")] == ["0 requirements are not met"]
    assert len(lines) == 13
    assert server.returncode == 0
    ended(client, 10)
    assert client.returncode == 0


@pytest.mark.net
@pytest.mark.soak
def test_it_does_so_with_certificates(generated, tmp_path):
    tls = tmp_path / "tls"
    for command in (["new", tls, "--host", "localhost"], ["node", tls, "phone"]):
        say = [sys.executable, "-m", "mest_fed", "certs", *command]
        subprocess.run(list(map(str, say)), check=True, capture_output=True)
    server, port = series("--certificates", tls)
    client = client_of(generated, FOLDER / "client.py", port, "phone", tls / "nodes" / "phone")
    assert "0 requirements are not met" in ended(server, 90)
    ended(client, 10)


@pytest.mark.net
@pytest.mark.soak
@pytest.mark.parametrize(
    ("right", "wrong", "requirement"),
    [
        ("offset=len(data))", "offset=0); data.clear()", "goes on with a fetch"),
        ("byte ^ 0x5A", "byte ^ 0x5B", "trains"),
        ('self.unary("Leave", ', "str(", "leaves"),
    ],
)
def test_a_poor_client_is_found_out(generated, tmp_path, right, wrong, requirement):
    source = (FOLDER / "client.py").read_text()
    assert right in source
    poor = tmp_path / "poor.py"
    poor.write_text(source.replace(right, wrong))
    server, port = series()
    client = client_of(generated, poor, port, "poor")
    try:
        said = ended(server, 240)
    finally:
        client.kill()
        client.wait()
    unmet = [it for it in said.splitlines() if it.startswith("NOT MET")]
    assert any(requirement in it for it in unmet), said
    assert server.returncode == 1


@pytest.mark.parametrize(
    ("path", "arguments", "line"),
    [
        (True, (), "0 arguments; allowed: HOST:PORT NAME [CERTIFICATES]"),
        (True, ("127.0.0.1:1", "me", "none"), "none/authority.pem cannot be read: No such file"),
        (False, ("127.0.0.1:1", "me"), "there is no module mest_link_pb2; docs/foreign-clients.md"),
    ],
)
def test_what_a_client_lacks_is_one_line(generated, tmp_path, path, arguments, line):
    environment = {"PYTHONPATH": str(generated)} if path else {}
    command = [sys.executable, str(FOLDER / "client.py"), *arguments]
    how = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    done = subprocess.run(command, env=environment, cwd=tmp_path, **how)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(FOLDER / "server.py"), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --port {port}: Address already in use")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
