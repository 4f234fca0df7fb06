"""Live bytes of work whose peak can be counted by hand."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import NoOverhead

from mest_fed.memory.live_bytes import WORK, LiveBytes, in_memory


def counting(overhead=None):
    return LiveBytes(overhead or NoOverhead())


def numbers(count):
    return torch.empty(count, device="meta")


def test_a_chain_of_tensors():
    with counting() as live:
        a = numbers(100)  # 400 bytes
        b = a * 2  # 800
        c = torch.cat([a, b])  # 1600
        del a, b  # 800
        d = c + 1  # 1600 again
        del c, d  # 0
        e = numbers(50)
    assert live.peak == {WORK: 1600}
    live.begin()
    assert live.peak[WORK] == 200
    del e
    live.begin()
    assert live.peak[WORK] == 0


def test_the_peak_is_looked_for_from_a_moment_on():
    with counting() as live:
        large = numbers(1000)
        del large
        live.begin()
        small = numbers(10)
        larger = numbers(20)
        del larger
    assert live.peak[WORK] == 120
    del small


def test_views_and_results_in_place_count_once():
    with counting() as live:
        a = numbers(100)
        parts = [a[:50], a.view(10, 10), a.view(10, 10).t(), *a.split(20)]
        a.mul_(2)
        a.view(10, 10).relu_()
        assert live.peak[WORK] == 400
        whole = a.view(10, 10).t().contiguous()
    assert live.peak[WORK] == 800
    del a, whole
    live.begin()
    assert live.peak[WORK] == 400  # a view holds all of it
    del parts
    live.begin()
    assert live.peak[WORK] == 0


def test_several_results():
    with counting() as live:
        values, places = numbers(100).sort()
        del places
        variance, mean = torch.var_mean(values.view(10, 10), 0)
    assert live.peak[WORK] == 400 + 400 + 800  # what is sorted, values, int64 places
    assert len(variance) == len(mean) == 10


def test_kinds():
    with counting() as live:
        weight, x = numbers(10), numbers(100)
        live.mark([weight], "values")
        live.mark([x], "batch")
        y = x * 2
        live.mark_rest("activations")
        live.begin()
        z = y + 1
        peak = dict(live.peak)
        del y, z
        live.mark([weight, x], "values")
        live.begin()
        after = dict(live.peak)
    assert peak == {"values": 40, "batch": 400, "activations": 400, WORK: 400}
    assert {kind: size for kind, size in after.items() if size} == {"values": 440}


def test_what_was_made_before_is_counted_when_it_is_marked():
    weight = numbers(10)
    with counting() as live:
        live.mark([weight, weight], "values")
    assert live.peak == {"values": 40, WORK: 0}


def test_workspace_counts_while_its_operator_runs():
    seen = []

    class ForAMoment(NoOverhead):
        def while_running(self, name, given, made):
            seen.append((name, len(given), made.shape))
            return 1000 if name == "aten::mul.Tensor" else 0

    with counting(ForAMoment()) as live:
        a = numbers(100)
        b = a * 2  # 800, and 1000 for a moment
        c = b + 1  # 1200
    assert live.peak == {WORK: 1800}
    live.begin()
    assert live.peak == {WORK: 1200}
    assert [name for name, *_ in seen][1:] == ["aten::mul.Tensor", "aten::add.Tensor"]
    assert seen[1][1:] == (2, (100,))
    assert len(c) == 100


def test_what_an_operator_keeps_stays():
    class Keeps(NoOverhead):
        def while_running(self, name, given, made):
            self.kept += 1000 * (name == "aten::mul.Tensor")
            return 0

    with counting(Keeps()) as live:
        a = numbers(100)
        assert live.peak == {WORK: 400}
        b = a * 2
        assert live.peak == {WORK: 1800}
        del a, b
        live.begin()
        assert live.peak == {WORK: 1000}


def test_backward_is_seen_too():
    w = numbers(100).requires_grad_()
    with counting() as live:
        live.mark([w], "values")
        loss = w.exp().sum()  # saves the exponential: 400
        live.mark_rest("activations")
        live.begin()
        loss.backward()
        assert live.peak["activations"] == 404
        # The gradient of the exponential's result is a view of one number; w's gradient is new.
        assert live.peak[WORK] == 4 + 400
        live.mark([w.grad], "gradients")
        del loss
        gc.collect()
        live.begin()
    assert {kind: size for kind, size in live.peak.items() if size} == {
        "values": 400,
        "gradients": 400,
    }


def test_it_ends_with_its_context():
    with counting() as live:
        pass
    numbers(100)
    assert live.peak.total() == 0


@pytest.mark.parametrize(
    ("count", "taken"),
    [(0, 0), (1, 1), (2**16 - 1, 2**16 - 1), (2**16, 17 * 4096), (2**16 + 1, 18 * 4096)],
)
def test_large_blocks_are_whole_pages_and_one(count, taken):
    assert in_memory(count) == taken


@given(st.integers(0, 2**40))
def test_no_block_takes_less_than_its_bytes(count):
    assert count <= in_memory(count) <= count + 2 * 4096
