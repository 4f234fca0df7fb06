"""Brings in what a node's first round brings in, before its memory is measured.

Tables of the runtime, ways through the code that nothing has taken yet: what a process holds from
its first round on, whatever it trains. It stands in what the process has in use, and no plan of a
training counts it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.devices.program_work import program_step_work
from mest_fed.link.messages import FIRST, ProgramKind, ProgramRequest
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.store import STATE, Kept, packed, unpacked
from mest_fed.link.node.worker import NodeState
from mest_fed.rng import numpy_generator
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import ABSENT, Buffer, Operator

_EXAMPLES, _WIDTH, _GRANULES = 2, 4, 2
_WEIGHT = {"rows": _WIDTH, "weight_shape": (_WIDTH, _WIDTH)}
_SGD = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}


def warm_up() -> None:
    """Keep a state, and take a step of one sparse layer; nothing comes of it."""
    rng = numpy_generator(0, "warm-up")
    unpacked(packed(Kept(NodeState(), 0, "", None), ""), Path(STATE), "")
    text = _program().to_json().encode()
    programs = NodePrograms(lambda _: {FIRST: text})
    step = programs.step(ProgramRequest(ProgramKind.STEP, _EXAMPLES, ()), _EXAMPLES, rng)
    slots = np.sort(rng.permutation(_WIDTH)[:_GRANULES])
    step.load("slots", slots.astype(np.int32))
    inputs, targets = np.zeros((_EXAMPLES, _WIDTH), np.float32), np.zeros(_EXAMPLES, np.int64)
    step.step(inputs, targets, 0.0)
    program_step_work(step.program)


def _program() -> Program:
    """Return a step of two of a layer's four blocks, with momentum."""
    outputs, values = (_EXAMPLES, _WIDTH), (_GRANULES, _WIDTH)
    buffers = (
        Buffer("input", (_EXAMPLES, _WIDTH), role="input"),
        Buffer("targets", (_EXAMPLES,), "int64", "input"),
        Buffer("share", (1,), role="setting"),
        Buffer("rates", (1,), role="setting"),
        Buffer("values", values, role="parameter"),
        Buffer("slots", (_GRANULES,), "int32", "state"),
        Buffer("momentum", values, role="state"),
        Buffer("outputs", outputs, role="output"),
        Buffer("probabilities", outputs),
        Buffer("loss:group", ()),
        Buffer("loss", (), role="sum"),
        Buffer("outputs:gradient", outputs),
        Buffer("values:gradient:group", values),
        Buffer("values:gradient", values, role="sum"),
    )
    number = {buffer.name: at for at, buffer in enumerate(buffers)}

    def operator(name: str, inputs: str, outputs: str, attributes: Mapping[str, Any]) -> Operator:
        numbers = [
            tuple(number.get(it, ABSENT) for it in each.split()) for each in (inputs, outputs)
        ]
        return Operator(name, numbers[0], numbers[1], attributes)

    forward = (
        operator("sparse_linear", "input values slots -", "outputs", _WEIGHT),
        operator("cross_entropy", "outputs targets share", "loss:group probabilities", {}),
        operator("accumulate", "loss:group", "loss", {}),
    )
    of_outputs, of_values = "outputs:gradient", "values:gradient:group"
    backward = (
        operator("cross_entropy_gradient", "probabilities targets share", of_outputs, {}),
        operator("sparse_linear_values_gradient", f"input slots {of_outputs}", of_values, _WEIGHT),
        operator("accumulate", of_values, "values:gradient", {}),
    )
    update = (operator("sgd", "values:gradient rates values momentum", "", _SGD),)
    operators = (*forward, *backward, *update)
    return Program(buffers, operators, (len(forward), len(backward), len(update)))
