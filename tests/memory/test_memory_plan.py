"""Plans as words and as JSON; and that nothing but a plan is read as one."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.memory import (
    FORMATS,
    RECOMPUTE,
    Footprint,
    MemoryOptions,
    Plan,
    TrainingShape,
    read_plan,
)

PLAN = Plan(
    2_000_000,
    TrainingShape(0.1, "erk", 4, 32, True, MemoryOptions("norms", "fp16", True, 2)),
    Footprint(values=100_000, activations=600_000, runtime=300_000),
)

plans = st.builds(
    lambda density, distribution, sizes, momentum, memory, parts, spare: Plan(
        sum(parts) + spare,
        TrainingShape(
            density, distribution, min(sizes), max(sizes), momentum, MemoryOptions(*memory)
        ),
        Footprint(*parts),
    ),
    st.floats(0, 1, exclude_min=True),
    st.sampled_from(["uniform", "erk"]),
    st.tuples(st.integers(1, 999), st.integers(1, 999)),
    st.booleans(),
    st.tuples(
        st.sampled_from(RECOMPUTE), st.sampled_from(list(FORMATS)), st.booleans(), st.integers(0, 9)
    ),
    st.lists(st.integers(0, 2**50), min_size=len(PLAN.footprint.parts()), max_size=9).map(
        lambda parts: parts[: len(PLAN.footprint.parts())]
    ),
    st.integers(1, 2**50),
)


@given(plans)
def test_there_and_back(plan):
    assert read_plan(plan.as_json()) == plan


def test_the_table_has_what_it_is_made_of():
    table = json.loads(PLAN.as_json())
    assert "\n" not in PLAN.as_json()
    assert table["budget_bytes"] == 2_000_000
    assert table["predicted_peak_bytes"] == 1_000_000 == sum(table["parts"].values())
    assert table["kind"] == "modelled"
    assert {k: table[k] for k in ("recompute", "saved", "release_gradients", "frozen")} == {
        "recompute": "norms",
        "saved": "fp16",
        "release_gradients": True,
        "frozen": 2,
    }


def changed(**values):
    return json.dumps({**PLAN.as_table(), **values})


def parts(**values):
    return {**PLAN.footprint.parts(), **values}


WRONG = {
    "no JSON": ("{", "the plan: not valid JSON: "),
    "nothing": ("", "the plan: not valid JSON: "),
    "a list": ("[1]", "the plan: it is a list; allowed: an object"),
    "a number": ("3", "the plan: it is a number; allowed: an object"),
    "bool for int": (changed(micro_batch=True), "micro_batch = True .* allowed: a whole number"),
    "int for bool": (
        changed(release_gradients=1),
        "release_gradients = 1 .* allowed: true or false",
    ),
    "float for int": (changed(batch=32.0), r"batch = 32\.0 .* allowed: a whole number"),
    "text for number": (changed(density="1"), "density = '1' .* allowed: a number"),
    "bool for number": (changed(density=True), "density = True .* allowed: a number"),
    "number for text": (changed(saved=8), "saved = 8 .* allowed: a text"),
    "null": (changed(recompute=None), "recompute = None .* allowed: a text"),
    "NaN": (changed(density=float("nan")), "NaN is no finite number"),
    "micro-batch above the batch": (changed(micro_batch=33), r"micro_batch = 33 .* 1 to 32"),
    "no density": (changed(density=0), "density = 0 .* allowed: a number in"),
    "unknown format": (changed(saved="fp8"), "saved = 'fp8' .* allowed: fp32, mask"),
    "unknown recomputation": (changed(recompute="all"), "recompute = 'all' .* allowed: none"),
    "negative freezing": (changed(frozen=-1), "frozen = -1 .* a whole number from 0"),
    "no budget": (changed(budget_bytes=0), "budget_bytes = 0 .* a whole number from 1"),
    "budget of a half": (changed(budget_bytes=0.5), r"budget_bytes = 0\.5 .* a whole number"),
    "too little": (changed(budget_bytes=999_999), "parts sum to 1000000 bytes, over its budget"),
    "no parts": (changed(parts=None), "parts = None .* allowed: bytes of activations, batch"),
    "too few parts": (changed(parts={"values": 1}), "parts = .* allowed: bytes of activations"),
    "a part more": (changed(parts=parts(more=1)), "parts = .* allowed: bytes of activations"),
    "negative parts": (changed(parts=parts(wire=-1)), r"parts\.wire = -1 .* number from 0"),
    "half a byte": (changed(parts=parts(wire=0.5)), r"parts\.wire = 0\.5 .* a whole number"),
    "a part that is true": (changed(parts=parts(wire=True)), r"parts\.wire = True .* whole number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_refusals(what):
    text, message = WRONG[what]
    with pytest.raises(InputError, match=message) as caught:
        read_plan(text, "the plan")
    assert str(caught.value).startswith("the plan")
    assert "\n" not in str(caught.value)


#: What is said twice, and what earlier plans have not.
LATER = {"segments": "", "optimizer": "sgd", "proximal": False, "shortfall_bytes": 0}
OPTIONAL = {"kind", "predicted_peak_bytes", *LATER}


@pytest.mark.parametrize("key", sorted(set(PLAN.as_table()) - OPTIONAL))
def test_each_key_is_needed(key):
    table = PLAN.as_table()
    del table[key]
    with pytest.raises(InputError, match=f"plan has no {key}; allowed: what mest-fed plan --json"):
        read_plan(json.dumps(table))


def test_plans_of_earlier_versions_are_read():
    old = {key: value for key, value in PLAN.as_table().items() if key not in LATER}
    old["consume"] = old.pop("release_gradients")
    assert {**read_plan(json.dumps(old)).as_table(), **LATER} == {**PLAN.as_table(), **LATER}
    assert read_plan(json.dumps(old)).as_table().items() >= LATER.items()


def reads_or_refuses(text):
    try:
        plan = read_plan(text)
    except InputError:
        return
    assert plan.footprint.total <= plan.budget


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_whatever_text_arrives_is_refused_in_one_way(text):
    reads_or_refuses(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(PLAN.as_table())), values, max_size=3))
def test_so_is_whatever_stands_in_a_plan(changes):
    reads_or_refuses(changed(**changes))


@given(st.dictionaries(st.sampled_from(sorted(PLAN.footprint.parts())), values, max_size=3))
def test_and_in_its_parts(changes):
    reads_or_refuses(changed(parts=parts(**changes)))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000])
def test_depth_and_length_are_no_way_around(text):
    reads_or_refuses(text)


def test_a_plan_in_words():
    assert PLAN.in_words() == (
        "Trains 10.0% of the sparse weights in batches of 32 taken 4 at a time; predicted peak "
        "1 MB of 2 MB, 60% of it activations. Normalised activations are computed again in "
        "backward; what is kept is kept as fp16; gradients go into the momentum at once; the first "
        "2 blocks are frozen."
    )
    plain = replace(PLAN, shape=TrainingShape(1, "uniform", 8, 8))
    assert plain.in_words().startswith("Trains all of the sparse weights in batches of 8 taken 8")
    assert plain.measures() == []
    least = TrainingShape(1, "uniform", 8, 8, False, MemoryOptions("segments"))
    assert replace(PLAN, shape=least).measures() == [
        "only block inputs are kept, the rest is computed again in backward",
        "no momentum",
    ]
