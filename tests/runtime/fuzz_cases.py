"""Programs to spoil, and what is done to them."""

import copy
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from program_cases import linear_step

from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.passes.groups import with_groups
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import DTYPES, ROLES
from mest_fed.runtime.updates import SGD, Adam, with_updates

WINDOW = {"stride": (1, 1), "padding": (1, 1)}
SPARSE = {**WINDOW, "weight_shape": (8, 2, 3, 3), "rows": 4}


class Layers:
    """A forward program in the making."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "float32") -> None:
        self.builder = Builder()
        self.x = self.builder.buffer("input", shape, dtype, role="input")

    def held(self, name: str, *shape: int, dtype: str = "float32", role: str = "parameter") -> int:
        return self.builder.buffer(name, shape, dtype, role=role)

    def put(self, name: str, argument: str = "x", /, **how: Any) -> None:
        inputs = {argument: self.x}
        inputs.update((it, how.pop(it)) for it in OPERATORS[name].inputs if it in how)
        self.x = self.builder.operator(name, inputs, {}, name, **how)[0]

    def forward(self, classes: int = 3) -> Program:
        w = self.held("head", classes, self.builder.buffers[self.x].shape[-1])
        self.put("linear", w=w)
        self.builder.role(self.x, "output")
        return self.builder.end_phase(0).program()


def _norm(layers: Layers, name: str, **how: Any) -> None:
    gamma, beta = layers.held(f"{name}.gamma", 8), layers.held(f"{name}.beta", 8)
    layers.put(name, gamma=gamma, beta=beta, epsilon=1e-5, relu=True, **how)


def planes() -> Program:
    """Groups, planes, granules with room for more, dropout."""
    layers = Layers((2, 2, 5, 4))
    values = layers.held("values", 6, 4)
    slots = layers.held("slots", 6, dtype="int32", role="state")
    layers.put("sparse_conv2d", values=values, slots=slots, **SPARSE)
    _norm(layers, "group_norm", groups=2)
    layers.put("conv2d", w=layers.held("w", 8, 8, 3, 3), groups=1, **WINDOW)
    layers.put(
        "dropout", seed=layers.held("seed", 1, dtype="int64", role="setting"), probability=0.2
    )
    layers.put("global_average_pool")
    step = with_gradients(with_loss(layers.forward(), layers.builder.buffers[layers.x].name))
    return with_planes(with_groups(with_updates(step, SGD(momentum=0.9))))


def batch() -> Program:
    """Statistics of the batch, so that it is one group."""
    layers = Layers((3, 2, 4, 4))
    layers.put("conv2d", w=layers.held("w", 8, 2, 3, 3), groups=1, **WINDOW)
    kept = {it: layers.held(it, 8, role="state") for it in ("running_mean", "running_variance")}
    _norm(layers, "batch_norm", momentum=0.1, **kept)
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    layers.put("max_pool2d", **pool, ceil=False)
    layers.put("global_average_pool")
    step = with_gradients(with_loss(layers.forward(), layers.builder.buffers[layers.x].name))
    return with_updates(step, Adam())


def tokens() -> Program:
    """Indices into a table, and attention."""
    layers = Layers((2, 4), "int64")
    layers.put("embedding", "indices", table=layers.held("table", 5, 6))
    layers.put("add_positions", table=layers.held("positions", 4, 6))
    gamma, beta = layers.held("gamma", 6), layers.held("beta", 6)
    layers.put("layer_norm", gamma=gamma, beta=beta, axes=1, epsilon=1e-5)
    layers.put("attention", "q", k=layers.x, v=layers.x, heads=2, causal=True)
    layers.put("sequence_mean")
    step = with_gradients(with_loss(layers.forward(), layers.builder.buffers[layers.x].name))
    return with_groups(with_updates(step, SGD()))


@cache
def tables() -> tuple[dict[str, Any], ...]:
    return tuple(it().as_table() for it in (linear_step, planes, batch, tokens))


NUMBERS = (-(2**63), -2, -1, 0, 1, 2, 3, 5, 8, 64, 65, 2**31 - 1, 2**31, 2**40, 2**64, 10**30)
OTHERS = (
    True,
    None,
    0.5,
    -1e300,
    1e-320,
    "",
    "a\nb",
    "\ud800",
    "\u2028",
    [],
    {},
    [[1]],
    [2**20] * 8,
)
WORDS = (*ROLES, *DTYPES, *OPERATORS, "int4", "margin", "x" * 300)


def places(table: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all lists and objects of a table, each with a key of it."""
    for key in list(table) if isinstance(table, dict) else range(len(table)):
        yield table, key
        if isinstance(table[key], dict | list):
            yield from places(table[key])


def _other(rng: random.Random, value: Any) -> Any:
    """Draw a value; half of them of the same kind."""
    if type(value) is bool and rng.random() < 0.5:
        return not value
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1))
    if type(value) is float and rng.random() < 0.5:
        return rng.random()
    return rng.choice(rng.choice((NUMBERS, OTHERS, WORDS)))


def spoil(table: dict[str, Any], rng: random.Random) -> None:
    """Change a table at one place, or a list of it."""
    holder, key = rng.choice(list(places(table)))
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(rng.choice(holder)))
    elif kind == 2 and isinstance(holder, list):
        other = rng.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice(WORDS + OTHERS[5:9])] = holder[key]
    else:
        holder[key] = _other(rng, holder[key])


def bend(table: dict[str, Any], rng: random.Random) -> None:
    """Change a table to one that may well be a program."""
    buffer, operator = rng.choice(table["buffers"]), rng.choice(table["operators"])
    kind = rng.randrange(7)
    if kind == 0:
        buffer["role"] = rng.choice(list(ROLES))
    elif kind == 1:
        buffer["margin"] = rng.choice((0, 1, 2, 3, 64))
    elif kind == 2:  # all sizes of one kind
        old, new = rng.randint(1, 8), rng.choice((1, 2, 3, 5, 17, 2**20))
        for one in table["buffers"]:
            one["shape"] = [new if it == old else it for it in one["shape"]]
    elif kind == 3:
        side = operator[rng.choice(("inputs", "outputs"))]
        if side:
            side[rng.randrange(len(side))] = rng.randrange(-1, len(table["buffers"]))
    elif kind == 4:
        first, second = rng.sample(list(table["phases"]), 2)
        table["phases"][first] += 1
        table["phases"][second] -= 1
    elif kind == 5 and operator["attributes"]:
        name = rng.choice(list(operator["attributes"]))
        operator["attributes"][name] = _other(rng, operator["attributes"][name])
    else:
        operators = table["operators"]
        first = rng.randrange(len(operators) - 1)
        operators[first : first + 2] = operators[first + 1], operators[first]


def bite(text: str, rng: random.Random) -> bytes:
    """Return a text that was changed as bytes."""
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw))
        if rng.random() < 0.5:
            raw[at] = rng.choice(b'0123456789-.eE"[]{},:\\ \x00\xff')
        else:
            del raw[at : at + rng.choice((1, 1, 20))]
    return bytes(raw)
