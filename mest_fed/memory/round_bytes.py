"""Bytes of a client's round beside its steps: the model, messages, and the inputs of a batch."""

from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.memory.training_setup import TrainingSetup

#: What a client's round takes beside a compiled step and the arrays of its messages: their records
#: and bytes, decoding and encoding, the order of the examples. Measured as the rest in rounds of
#: three small nets, 0.08 to 0.24 MB (docs/figures.md).
ROUND = 200_000

#: What a mutation takes for each granule of the largest mask, active or not: a slot and a score for
#: it, the ranking of scores, which are active (measured: 19.5 bytes).
MUTATION = 20

#: Numbers of a random direction that are drawn at a time, where training is by forward passes.
PERTURBED_AT_ONCE = 2**13

FLOAT = 4
INDEX = 4


def model_bytes(trace: ModelTrace, active: dict[str, int]) -> dict[str, int]:
    """Count the model itself, with so many active granules by layer."""
    sparse = sum(FLOAT * count * trace.spec.layouts[name].width for name, count in active.items())
    return {
        "values": sparse + trace.dense_parameters + trace.buffers,
        "index": sum(INDEX * count for count in active.values()),
    }


def wire_bytes(trace: ModelTrace, active: dict[str, int], setting: TrainingSetup) -> int:
    """Charge a message and the state that it carries.

    With feedback what was owed, what is owed now and the change between them stand beside it.
    """
    if not setting.messages:
        return 0
    layouts = trace.spec.layouts
    values = sum(FLOAT * count * layouts[name].width for name, count in active.items())
    masks = sum(INDEX * active[layers[0]] for layers in trace.spec.groups.values())
    state = values + masks + trace.dense_parameters
    return 2 * (state + trace.buffers) + (3 * state if setting.feedback else 0)


def sent_bytes(trace: ModelTrace, active: dict[str, int], setting: TrainingSetup) -> int:
    """Charge the state that a client sends, and its message."""
    if not setting.messages or setting.forward_only:  # which charges them as workspace
        return 0
    return 2 * sum(model_bytes(trace, active).values())


def input_bytes(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape, made: int) -> int:
    """Charge the inputs of a batch, of which so many are made at a time."""
    if not setting.messages:  # whole batches are given
        return trace.image * shape.batch
    numbers = trace.image // trace.input_dtype.itemsize
    return setting.held * numbers * shape.batch + trace.image * made


def beside_passes(trace: ModelTrace, active: dict[str, int]) -> int:
    """Return what stands beside forward passes, where nothing else hides it.

    The state that is sent, and its message, stand beside those that were received. In other
    training gradients and momentum are gone then.
    """
    return 2 * sum(model_bytes(trace, active).values())


def padding_bytes(trace: ModelTrace, active: dict[str, int]) -> int:
    """Return what it takes to know which values are padding, and to find that out."""
    kept, most = 0.0, 0
    for name, count in active.items():
        layout = trace.spec.layouts[name]
        places = layout.num_granules * layout.width
        if places > layout.num_weights:
            values = count * layout.width
            kept += 8 * values * (1 - layout.num_weights / places)
            most = max(most, 9 * values)  # a position each, and whether it is one
    return round(kept) + most


def largest_mask(trace: ModelTrace) -> int:
    """Return the granules of the largest mask group."""
    spec = trace.spec
    return max((spec.group_layout(group).num_granules for group in spec.groups), default=0)
