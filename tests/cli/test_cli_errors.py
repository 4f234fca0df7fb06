"""Wrong input on the command line: one line on standard error, status 2, nothing overwritten."""

import subprocess
import sys

import pytest
from cli_output import without_phases

import mest_fed.cli
from mest_fed.cli import main
from mest_fed.cli.app import FAILED, INTERRUPTED, WRONG_INPUT
from mest_fed.errors import MestFedError


def setting(text):
    without_budgets = ("--set", "fleet.budgets=")
    return ("simulate", "--workers", "0", *without_budgets, "--set", text)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("simulate", "--preset", "nothing"), ["--preset = 'nothing'", "quickstart"]),
        (setting("run.round=3"), ["unknown key run.round", "did you mean run.rounds"]),
        (setting("run.rounds=1.5"), ["run.rounds = 1.5", "allowed: a whole number\n"]),
        (setting("run.rounds=many"), ["run.rounds = 'many'", "allowed: a whole number\n"]),
        (setting("rounds=3"), ["--set 'rounds=3'", "section.key=value"]),
        (setting("sparsity.method=mest"), ["sparsity.method = 'mest'", "mest-ems"]),
        (setting("sparsity.scheme=blocks"), ["sparsity.scheme = 'blocks'", "block:ROWS"]),
        (setting("sparsity.density=0"), ["sparsity.density = 0"]),
        (setting("sparsity.density=1.5"), ["sparsity.density = 1.5", "1"]),
        (setting("sparsity.density=nan"), ["sparsity.density = nan"]),
        (setting("training.device=tpu"), ["training.device = 'tpu'", "auto, cpu, cuda"]),
        (setting("training.kernels=fast"), ["training.kernels = 'fast'", "rule, tuned, dense"]),
        (setting("training.kernels=none.json"), ["training.kernels: ", "none.json cannot be read"]),
        (setting("fleet.mix=toaster:1"), ["toaster", "rpi-4"]),
        (setting("fleet.budgets=rpi-4:9kB"), ["rpi-4", "9 kB", "the smallest needs", "bytes"]),
        (setting("fleet.budgets=rpi-4:many"), ["fleet.budgets", "many"]),
        (setting("fleet.devices=5000"), ["fleet.devices = 5000", "1 to 1438"]),
        (setting("server.min_nodes=50"), ["server.min_nodes = 50", "1 to 20"]),
        (setting("data.partition_file=none.npz"), ["data.partition_file = ", "none.npz' cannot"]),
        (("simulate", "--config", "none.toml"), ["no such file: none.toml"]),
        (("simulate", "none.toml"), ["no such file: none.toml"]),
        (("simulate", "a.toml", "--config", "b.toml"), ["CONFIG.toml and --config"]),
        (("simulate", "--out="), ["--out = '' is not allowed"]),
        (("simulate", "--rounds", "3"), ["--rounds 3 is for --resume", "--set run.rounds=3"]),
        (("simulate", "--workers", "99999999"), ["--workers = 99999999", "0 to 4096"]),
        (setting("fleet.devices=99999999999"), ["fleet.devices = 99999999999"]),
        (setting("run.rounds=9999999999"), ["run.rounds = 9999999999"]),
        (("simulate", "--workers", "-1"), ["--workers = -1", "a whole number from 0"]),
        (
            ("simulate", "--preset", "quickstart", "--config", "x.toml"),
            ["--preset and CONFIG"],
        ),
        (("simulate", "--log", "wand"), ["--log = 'wand'", "tensorboard, wandb, mlflow"]),
        (("simulate", "--resume"), ["no run is in the folder runs", "--out"]),
        (("simulate", "--resume", "--preset", "quickstart"), ["--resume takes the run's own"]),
        (("devices", "toaster"), ["device profile = 'toaster'", "rpi-4"]),
        (("devices", "none.toml"), ["none.toml"]),
        (("plan",), ["--budget BYTES, --memory-limit BYTES", "--device NAME", "CONFIG.toml"]),
        (
            ("plan", "--budget", "24MB", "--memory-limit", "1GB"),
            ["--budget and --memory-limit exclude"],
        ),
        (("plan", "--memory-limit", "lots"), ["--memory-limit = 'lots'", "MB"]),
        (("plan", "--budget", "1GB", "--margin", "0.1"), ["--margin = 0.1", "--memory-limit"]),
        (("plan", "--memory-limit", "1GB", "--margin", "1"), ["--margin = 1.0", "[0, 1)"]),
        (("plan", "--preset", "nothing"), ["--preset = 'nothing'", "quickstart"]),
        (("plan", "none.toml"), ["no such file: none.toml"]),
        (("plan", "none.toml", "--preset", "quickstart"), ["exclude each other"]),
        (("plan", "--preset", "quickstart", "--set", "run.round=3"), ["unknown key run.round"]),
        (("plan", "--preset", "quickstart", "--set", "fleet.budgets=rpi-4:9kB"), ["rpi-4", "9 kB"]),
        (
            ("plan", "--preset", "quickstart", "--set", "fleet.budgets=toaster:9MB"),
            ["fleet.budgets names toaster"],
        ),
        (
            ("plan", "--preset", "quickstart", "--set", "fleet.mix=nope.toml:4"),
            ["nope.toml: cannot read it"],
        ),
        (("plan", "--preset", "quickstart", "--picture", "a.svg"), ["beside a --device"]),
        (("plan", "--budget", "1GB", "--prefer", "bits, saved"), ["unknown: bits", "frozen"]),
        (
            ("plan", "--budget", "1GB", "--prefer", "saved"),
            ["missing: release_gradients, micro_batch"],
        ),
        (("plan", "--budget", "1GB", "--picture", "a.pdf"), ["'a.pdf'", ".svg or .png"]),
        (("plan", "--budget", "1GB", "--picture", "/proc/a.svg"), ["'/proc/a.svg'", "be written"]),
        (("plan", "--budget", "1GB", "--picture", "no/a.svg"), ["no/a.svg", "folder that exists"]),
        (("plan", "--budget", "lots"), ["--budget = 'lots'", "MB"]),
        (
            ("plan", "--budget", "9kB"),
            ["--budget = '9 kB'", "the smallest plan needs"],
        ),
        (("plan", "--device", "toaster"), ["--device = 'toaster'"]),
        (("plan", "--budget", "1MB", "--model", "net"), ["--model = 'net' is not allowed"]),
        (("plan", "--budget", "1MB", "--prefer", "all"), ["--prefer = 'all' is not allowed"]),
        (("plan", "--budget", "1GB", "--model", "vgg"), ["vgg", "resnet32"]),
        (("plan", "--budget", "1GB", "--method", "mest"), ["mest", "mest-ems"]),
        (("plan", "--budget", "1GB", "--scheme", "x"), ["scheme = 'x'", "pattern"]),
        (("plan", "--budget", "1GB", "--density", "0"), ["--density = 0.0"]),
        (("plan", "--budget", "1GB", "--density", "1.5"), ["--density = 1.5", "1"]),
        (("plan", "--budget", "1GB", "--density", "nan"), ["density = nan"]),
        (("plan", "--budget", "1GB", "--norm", "layer"), ["layer"]),
        (("plan", "--budget", "1GB", "--width", "0"), ["width = 0"]),
        (("plan", "--budget", "1GB", "--image", "3x32"), ["--image = '3x32'"]),
        (("report", "nowhere"), ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input(fails, arguments, expected):
    line = fails(*arguments)
    for part in expected:
        assert part in line


def test_a_configuration_that_is_not_toml(fails, tmp_path):
    (tmp_path / "wrong.toml").write_text("[run\nrounds = 3\n", encoding="utf-8")
    assert "cannot read wrong.toml" in fails("simulate", "--config", "wrong.toml")


def test_a_configuration_that_is_no_text(fails, tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04\xa3")
    assert "mine.npz is no text; allowed: a TOML file" in fails("simulate", "mine.npz")


def test_a_configuration_with_an_unknown_key(fails, tmp_path):
    (tmp_path / "wrong.toml").write_text("[fleet]\ndevice = 3\n", encoding="utf-8")
    line = fails("simulate", "--config", "wrong.toml")
    assert "unknown key fleet.device (wrong.toml); did you mean fleet.devices?" in line


def test_brackets_are_shown_as_they_are(fails):
    assert "--preset = '[bold]x[/bold]'" in fails("simulate", "--preset", "[bold]x[/bold]")


CIFAR = (*setting("data.name=cifar10"), "--set", "data.path=images")


def test_no_data(fails, tmp_path):
    assert "images" in fails(*CIFAR)
    (tmp_path / "images").mkdir()
    assert "train.parquet" in fails(*CIFAR)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"\0" * 5000])
def test_corrupt_parquet(fails, tmp_path, tmp_path_factory, content, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    (tmp_path / "images").mkdir()
    for split in ("train", "test"):
        (tmp_path / "images" / f"{split}.parquet").write_bytes(content)
    line = fails(*CIFAR)
    file = tmp_path / "images" / "train.parquet"
    assert f"data.path: {file}: train.parquet is no parquet file" in line


def test_a_folder_in_use(fails, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it", encoding="utf-8")
    line = fails("simulate", "--workers", "0", "--out", "mine")
    assert "--out mine is not empty" in line
    assert "--resume" in line
    assert (folder / "thesis.txt").read_text(encoding="utf-8") == "all of it"


def test_what_goes_wrong_later_has_another_status(fails, monkeypatch):
    def broken():
        raise MestFedError("every node\nrefused")

    monkeypatch.setattr("mest_fed.cli.devices.profile_names", broken)
    assert fails("devices", status=FAILED) == "error: every node refused\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nothing",), "No such command 'nothing'"),
        (("simulate", "--nothing"), "No such option"),
        (("simulate", "--workers", "many"), "'many' is not a valid int"),
        (("simulate", "--client-timeout", "nan"), "a number from 1"),
        (("simulate", "--out", ""), "--out = '' is not allowed"),
        (("plan", "--model", "resnet8", "--image", "3x100000x100000"), "at most 10,000,000"),
        (("plan", "--classes", "100000000"), "100000000 is not in the range"),
        (("simulate", "--set", "run.rounds=true"), "run.rounds = True is not allowed"),
        (("simulate", "--set", "sparsity.density=1e-12"), "sparsity.density = 1e-12"),
        (("simulate", "--set", "fleet.mix=raspberry:3"), "raspberry is no device profile"),
    ],
)
def test_a_wrong_use_of_the_command_line(fails, arguments, expected):
    assert expected in fails(*arguments)


def test_a_file_is_no_run_folder(fails, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in fails("report", "file")


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-c", "from mest_fed.cli import main; main()"]
    done = subprocess.run(
        [*command, "simulate", "--workers", "0", "--set", "sparsity.density=7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == WRONG_INPUT
    assert done.stdout == ""
    errors = without_phases(done.stderr)
    assert errors.count("\n") == 1
    assert errors.startswith("error: sparsity.density = 7 is not allowed")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_commands_are_imported_is_a_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("mest_fed.cli.app.register_commands", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == INTERRUPTED
    line = "interrupted before the command began; nothing was written\n"
    assert capsys.readouterr() == ("", line)


def test_ctrl_c_within_a_command_is_a_line(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mest_fed.cli.config.Console", interrupted)
    monkeypatch.setattr(sys, "argv", ["mest-fed", "config"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, *capsys.readouterr()) == (INTERRUPTED, "", "interrupted\n")


def test_where_the_library_alone_is_installed_a_line_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(mest_fed.cli, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["mest-fed", "simulate"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (WRONG_INPUT, "", 1)
    assert "'mest-fed[simulation]'" in said.err
    monkeypatch.setattr(sys, "argv", ["mest-fed", "calibrate", "--quick"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (WRONG_INPUT, "", 1)
    assert "run: python -m mest_fed.devices.calibration, which" in said.err
    assert "mest-fed[" not in said.err


_PROBE = (
    "import sys; from mest_fed import cli\n"
    "try: cli.main()\n"
    "except SystemExit as ended: print(ended.code)\n"
    "print(sorted({'torch', 'flwr', 'ray', 'matplotlib', 'grpc'} & set(sys.modules)))"
)


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--set", "run.round=3"),
        ("simulate", "bad.toml"),
        ("study", "bad.toml"),
        ("plan", "--set", "run.round=3"),
        ("plan", "--model", "nothing"),
        ("program", "resnet8", "--set", "run.round=3"),
        ("server", "--insecure", "--listen", "127.0.0.1:0", "--set", "run.rounds=x"),
    ],
)
def test_what_is_wrong_is_said_before_libraries_are_loaded(tmp_path, command):
    (tmp_path / "bad.toml").write_text("[run]\nround = 3\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *command],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "2\n[]\n"
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("width", [50, 60, 80, 100, 130])
def test_help_is_whole_at_any_width(says, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("simulate", "run", "server", "calibrate"):
        text = says(command, "--help")
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert max(map(len, text.splitlines())) <= width
        assert "\\[" not in text
    words = " ".join(says("simulate", "--help").split())
    assert "or the run diverged: the loss of the model" in words
    assert "--client-timeout" in words


def test_a_page_is_replaced_only_with_force(fails, tmp_path):
    (tmp_path / "compare.html").touch()
    line = fails("compare", "a", "b")
    assert "compare.html is there already; allowed: --force, which replaces it, or --out" in line
    assert "run folder a does not exist" in fails("compare", "a", "b", "--force")
    assert "run folder a does not exist" in fails("compare", "a", "b", "--format", "csv")
