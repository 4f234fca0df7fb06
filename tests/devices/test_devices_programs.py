"""Times of compiled steps, by hand."""

from dataclasses import replace

import pytest

from mest_fed.devices import load_profile
from mest_fed.devices.program_cost import (
    AT_RATE,
    BYTES_PER_FLOP,
    OPERATOR_SECONDS,
    STEP_SECONDS,
    program_flops,
    program_seconds,
)
from mest_fed.runtime.program import Buffer, Operator, Program


def step(size):
    """Return relu(x) for a group of two, then a product of two parameters once a batch."""
    buffers = (
        Buffer("x", (2, size), role="input"),
        Buffer("y", (2, size), role="output"),
        Buffer("w", (8, 4), role="parameter"),
        Buffer("v", (6, 4), role="parameter"),
        Buffer("product", (8, 6)),
    )
    operators = (Operator("relu", (0,), (1,)), Operator("linear", (2, 3, -1), (4,)))
    return Program(buffers, operators, (1, 0, 1))


@pytest.mark.parametrize("rate", [AT_RATE, AT_RATE / 10])
def test_an_operator_takes_as_long_as_its_work_or_its_bytes(rate):
    profile = replace(load_profile("rpi-4"), flops={"dense": rate, "block": rate / 2})
    program, slower = step(5), AT_RATE / rate
    assert program_flops(program, 8) == 2 * 8 * 6 * 4
    calls = 4 + 1  # four groups, one update
    moved = 4 * (2 * 4 * 2 * 5) / (BYTES_PER_FLOP * rate)
    product = max(2 * 8 * 6 * 4 / rate, 4 * (8 * 4 + 6 * 4 + 8 * 6) / (BYTES_PER_FLOP * rate))
    expected = moved + product + slower * (calls * OPERATOR_SECONDS + STEP_SECONDS)
    assert program_seconds(profile, program, 8, "block:8") == pytest.approx(expected)
