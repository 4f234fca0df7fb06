"""Programs from outside that were spoilt: one line refuses them, or they run."""

import copy
import json
import random
import resource
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fuzz_cases import bend, bite, spoil, tables

from mest_fed.errors import InputError
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.step import CompiledForward, CompiledStep

#: Bytes of buffers of programs that are run here.
SMALL = 2**22


def is_line(error):
    """Check that an error is one line."""
    text = str(error)
    assert text
    assert text.isprintable(), ascii(text)


def parsed(text):
    """Return the program of a text, or None if one line refuses it."""
    try:
        program = parse_program(text, "step.json")
    except InputError as error:
        is_line(str(error).removeprefix("step.json: "))
        return None
    assert parse_program(program.to_json()) == program
    return program


def numbers(rng, buffer, examples):
    """Draw what a buffer is given: mostly small numbers, now and then none that is allowed."""
    shape = (examples, *buffer.shape[1:]) if buffer.role == "input" else buffer.shape
    if buffer.dtype == "float32":
        drawn = rng.normal(size=shape)
        return drawn if rng.random() < 0.8 else np.where(drawn > 1, np.inf, np.nan)
    least, most = ((-1, 3), (0, 2), (-(2**31), 2**31 - 1))[rng.choice(3, p=(0.3, 0.5, 0.2))]
    drawn = rng.integers(least, most, shape)
    if "slots" in buffer.name and rng.random() < 0.6:
        drawn = np.arange(drawn.size).reshape(shape) - rng.integers(2)
    return drawn.astype(buffer.dtype)


def attempt(work):
    """Return whether something is done; one line may refuse it."""
    try:
        work()
    except InputError as error:
        is_line(error)
        return False
    return True


def run(program, seed):
    """Run a program as what it may be: a step, a forward pass, or operators alone."""
    rng = np.random.default_rng(seed)
    threads, size = int(rng.integers(1, 4)), program.buffers
    done = []

    def train():
        step = CompiledStep(program, threads, np.random.default_rng(0))
        for name in step.arrays:
            step.load(name, numbers(rng, size[program.numbers[name]], 1))
        for groups in (1, 3):
            many = groups * program.examples
            both = [size[program.numbers[it]] for it in (step._input, step._targets)]
            given = [numbers(rng, it, many) for it in both]
            done.append(attempt(lambda given=given: step.step(*given, 0.1)))

    def predict():
        forward = CompiledForward(program, threads)
        buffer = size[program.numbers[forward._input]]
        done.append(attempt(lambda: forward.predict(numbers(rng, buffer, program.examples))))

    def operators():
        arena = plan_arena(program)
        lanes = int(rng.integers(0, 4)) if program.takes_groups else 0
        runtime = Runtime(program, arena.offsets, arena.peak, threads=threads, lanes=lanes)
        for buffer in size:
            if program.numbers[buffer.name] not in arena.offsets:
                examples = buffer.shape[0] if buffer.shape else 1
                runtime.write(buffer.name, numbers(rng, buffer, examples))
        done.append(attempt(runtime.run))
        done.append(attempt(lambda: runtime.groups(1)))

    for what in (train, predict, operators):
        attempt(what)
    return any(done)


def spoilt(seed):
    """Return a text that is no program any more, or another one."""
    rng = random.Random(seed)
    table = copy.deepcopy(rng.choice(tables()))
    kind = seed % 4
    for _ in range(rng.randint(1, 2)):
        (spoil if kind == 0 else bend)(table, rng)
    text = json.dumps(table)
    return bite(text, rng) if kind == 1 else text


def hunt(seeds):
    """Spoil programs and run what is left; return how many were read, and how many ran."""
    read = ran = 0
    for seed in seeds:
        program = parsed(spoilt(seed))
        if program is None:
            continue
        read += 1
        if sum(it.bytes for it in program.buffers) <= SMALL:
            ran += run(program, seed)
    return read, ran


def test_spoilt_programs_are_refused_or_run():
    read, ran = hunt(range(400))
    assert 50 < read < 300
    assert ran > 30


def test_reading_takes_no_memory_of_a_size_that_is_read():
    texts = [spoilt(seed) for seed in range(40)]
    tracemalloc.start()
    try:
        for text in texts:
            parsed(text)
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()


@pytest.mark.soak
def test_many_spoilt_programs_are_refused_or_run():
    read, ran = hunt(range(1000, 60_000))
    assert read > 5000
    assert ran > 2000


@pytest.mark.parametrize("number", range(4))
def test_programs_that_are_not_spoilt_run(number):
    program = parse_program(json.dumps(tables()[number]))
    assert any(run(program, seed) for seed in range(4))


@pytest.mark.parametrize(
    ("name", "role"), [("targets", "state"), ("rates", "parameter"), ("share", "state")]
)
def test_what_a_step_is_given_has_its_role(name, role):
    table = copy.deepcopy(tables()[0])
    (buffer,) = [it for it in table["buffers"] if it["name"] == name]
    buffer["role"] = role
    with pytest.raises(InputError, match=f"the step's {name} = '{role}' is not allowed") as caught:
        CompiledStep(parse_program(json.dumps(table)))
    is_line(caught.value)


@contextmanager
def more_memory(size):
    """Let the process have so many bytes of addresses more than it has, at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("role", ["parameter", "sum", "temporary"])
def test_a_program_that_is_too_large_for_the_machine_is_one_line(role):
    """It is allowed, so it is read; only who runs it needs its memory."""
    table = copy.deepcopy(tables()[0])
    table["buffers"].append(
        {"name": "large", "shape": [2**30], "dtype": "float32", "role": role, "margin": 0}
    )
    large = len(table["buffers"]) - 1
    if role == "temporary":
        table["buffers"].append({**table["buffers"][-1], "name": "larger"})
        table["buffers"][large]["role"] = "parameter"
        relu = {"name": "relu", "inputs": [large], "outputs": [large + 1], "attributes": {}}
        table["operators"].insert(0, relu)
        table["phases"]["forward"] += 1
    program = parse_program(json.dumps(table))
    room = 6 * 2**30 if role == "temporary" else 2**30
    with more_memory(room), pytest.raises(InputError, match="no memory") as caught:
        CompiledStep(program)
    is_line(caught.value)
