"""Two processes under DistributedDataParallel, against one process on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_parallel_run import trained

SCRIPT = Path(__file__).with_name("data_parallel_run.py")

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what the two processes came to, and the same steps in this one."""
    folder = tmp_path_factory.mktemp("ddp")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", SCRIPT, rank, "2", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        alone = trained(0, 1)
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return [*(torch.load(folder / f"{rank}.pt") for rank in (0, 1)), alone]


@pytest.mark.soak
@pytest.mark.parametrize("name", ["em", "rigl", "growing"])
def test_processes_agree_and_compute_what_one_process_does(found, name):
    first, second, alone = (results[name] for results in found)
    assert list(first) == list(alone)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, alone[key], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(tensor, alone[key]), key


@pytest.mark.soak
def test_another_number_of_active_weights_is_refused_and_training_goes_on(found):
    for results in found[:2]:
        refused = results["refused"]
        assert len(refused["said"]) == len(refused["attempts"])
        assert all("DistributedDataParallel" in line for line in refused["said"])
        assert not any("\n" in line for line in refused["said"])
        assert refused["unchanged"]
