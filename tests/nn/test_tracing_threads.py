"""A trace in one thread does not catch what another thread calls."""

import threading

import torch
from torch import nn

from mest_fed.nn.tracing_threads import ThreadTracer


class Waits(nn.Module):
    def __init__(self, entered, leave):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self._entered, self._leave = entered, leave

    def forward(self, x):
        self._entered.set()
        assert self._leave.wait(10)
        return self.layer(x)


def test_another_thread_calls_a_model_while_one_is_traced():
    entered, leave, graphs = threading.Event(), threading.Event(), []
    model, other = Waits(entered, leave), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    tracing = threading.Thread(target=lambda: graphs.append(ThreadTracer().trace(model)))
    tracing.start()
    assert entered.wait(10)
    try:
        assert other(torch.ones(1, 2)).shape == (1, 3)
        assert other[0].weight.shape == (3, 2)
    finally:
        leave.set()
        tracing.join(10)
    assert [node.op for node in graphs[0].nodes] == ["placeholder", "call_module", "output"]


def test_traces_of_two_threads_leave_modules_as_they_were():
    call = nn.Module.__call__
    threads = [
        threading.Thread(target=lambda: ThreadTracer().trace(nn.Sequential(nn.Linear(2, 2))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__call__ is call
