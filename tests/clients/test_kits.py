"""The kits for devices: their files agree with the package; scripts and the unit are in order."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from mest_fed.link.node.command import parser

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
PI = CLIENTS / "raspberry-pi"
SCRIPTS = sorted(CLIENTS.rglob("*.sh"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def requirements(name):
    lines = (PI / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_device_gets_what_the_edge_link_needs():
    assert requirements("requirements.txt") == EXTRAS["edge"]
    assert set(requirements("requirements-enrol.txt")) <= set(EXTRAS["client"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda it: it.name)
def test_scripts_are_in_order(script):
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck")
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def words_of(path, name):
    """Return the options that a line of a file gives to a node."""
    line = next(it for it in path.read_text().splitlines() if it.startswith(name))
    return re.findall(r"--[a-z-]+", line)


def test_the_unit_and_its_settings_name_options_that_exist():
    known = parser().format_help()
    given = words_of(PI / "mest-fed-node.service", "ExecStart=")
    given += words_of(PI / "node.env.example", "MEST_OPTIONS=")
    assert {"--link", "--data", "--state", "--certificates"} <= set(given)
    assert [option for option in given if option not in known] == []


def test_every_setting_of_the_unit_has_an_example():
    unit = (PI / "mest-fed-node.service").read_text()
    wanted = set(re.findall(r"\$\{?(MEST_\w+)", unit))
    given = set(re.findall(r"^(MEST_\w+)=", (PI / "node.env.example").read_text(), re.MULTILINE))
    assert wanted == given


def test_no_token_is_among_the_options_of_a_process():
    assert "--token" not in (PI / "README.md").read_text()
    assert "# MEST_TOKEN=\n" in (PI / "node.env.example").read_text()
    modes = re.findall(r"(?:chmod|-m) (\d+) .*node\.env\"", (PI / "install.sh").read_text())
    assert modes == ["0600", "0600"]


#: Stands for the Python that builds: it makes an empty wheel, and installs nothing.
BUILDER = """#!/bin/sh
case "$*" in
    *"pip wheel"*)
        while [ "$1" != --wheel-dir ]; do shift; done
        mkdir -p "$2" && touch "$2/mest_fed-0.1.0-cp311-cp311-linux_aarch64.whl" ;;
    *"import mest_fed"*) exit 1 ;;
esac
"""


def test_the_wheel_that_was_built_is_named_though_there_are_others(tmp_path):
    tools, out, root = (tmp_path / name for name in ("tools", "dist", "root"))
    for folder in (tools, out, root):
        folder.mkdir()
    names = ("aarch64-linux-gnu-g++", "debootstrap", "dpkg", "qemu-aarch64-static")
    for name, text in {**dict.fromkeys(names, "#!/bin/sh\n"), "builder": BUILDER}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (root / ".ready").touch()
    other = out / "mest_fed-0.1.0-cp312-abi3-linux_aarch64.whl"
    other.touch()
    where = {"PATH": f"{tools}:/usr/bin:/bin", "ROOT": str(root), "PYTHON": "builder"}
    command = [PI / "build-wheel.sh", out]
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=True)
    built = out / "mest_fed-0.1.0-cp311-cp311-linux_aarch64.whl"
    assert done.stdout.splitlines()[0] == f"wheel: {built}"
    assert sorted(out.iterdir()) == [built, other]


def test_the_unit_is_one(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    text = (PI / "mest-fed-node.service").read_text()
    unit = tmp_path / "mest-fed-node.service"
    # what it runs is not installed here
    unit.write_text(text.replace("/opt/mest-fed/venv/bin/python", "/bin/sh"))
    command = ["systemd-analyze", "verify", "--man=no", unit]
    found = subprocess.run(command, capture_output=True, text=True)
    if "Failed to" in found.stderr and "initialize" in found.stderr:
        pytest.skip("systemd-analyze does not run here")
    assert (found.returncode, found.stderr) == (0, "")
