"""The budget that a client works out from its memory limit."""

import pytest
from client_parts import context_of, small_config, task_of
from flwr.app import RecordDict

from mest_fed.client import capability as budget
from mest_fed.client.capability import budget_of, capability_of
from mest_fed.errors import InputError
from mest_fed.server.flower_internals import context_state_from_bytes, context_state_to_bytes

CONFIG = small_config()
MB = 10**6


@pytest.fixture
def system(monkeypatch):
    """Return what the system reports: [bytes charged, limit that holds]."""
    reported = [400 * MB, None]
    monkeypatch.setattr(budget, "usage", lambda: reported[0])
    monkeypatch.setattr(budget, "limit_of_process", lambda: reported[1])
    return reported


def left(state=None, **node):
    context = context_of(CONFIG, state=RecordDict() if state is None else state, **node)
    return budget_of(task_of(CONFIG), context, "rpi-4")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"memory-limit": 900 * MB}, 455 * MB),
        ({"memory-limit": "900MB", "memory-margin": 0.1}, 410 * MB),
        ({"memory-limit": 900 * MB, "memory-margin": 0}, 500 * MB),
    ],
)
def test_what_a_limit_leaves(system, node, expected):
    assert left(**node) == expected


def test_the_limit_that_really_holds(system):
    system[1] = 800 * MB
    assert left(**{"memory-limit": 900 * MB, "memory-margin": 0}) == 400 * MB
    system[1] = 1000 * MB
    assert left(**{"memory-limit": 900 * MB, "memory-margin": 0}) == 500 * MB


def test_it_is_worked_out_once(system):
    node, state = {"memory-limit": 900 * MB}, RecordDict()
    assert left(state, **node) == 455 * MB
    system[0] = 500 * MB
    # The next message may come to another process, which gets the state from Flower's node.
    state = context_state_from_bytes(context_state_to_bytes(state))
    assert left(state, **node) == 455 * MB
    # Another limit is another budget.
    assert left(state, **node, **{"memory-margin": 0.1}) == 310 * MB
    assert left(state, **{"memory-limit": 1000 * MB}) == 450 * MB


def test_the_plan_keeps_within_it(system):
    context = context_of(CONFIG, **{"memory-limit": 900 * MB})
    fits = capability_of(task_of(CONFIG), context)
    assert fits.budget == fits.plan.budget == 455 * MB
    needed = fits.plan.footprint.total
    system[0] = 855 * MB - needed + 1
    tight = capability_of(task_of(CONFIG), context_of(CONFIG, **{"memory-limit": 900 * MB}))
    assert tight.plan.footprint.total <= tight.budget == needed - 1


def test_the_first_step_comes_before_the_measure(system, monkeypatch):
    called = []
    monkeypatch.setattr(budget, "warm_up", lambda _: called.append("warm"))
    monkeypatch.setattr(budget, "usage", lambda: called.append("measured") or 1)
    left(**{"memory-limit": 900 * MB})
    assert called == ["warm", "measured"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"memory-limit": "much"}, "memory-limit = 'much'"),
        ({"memory-limit": 0}, "memory-limit = '0'"),
        ({"memory-limit": -5}, "memory-limit = '-5'"),
        ({"memory-limit": 900 * MB, "memory-margin": 1.0}, r"memory-margin = 1.0 .* \[0, 1\)"),
        ({"memory-limit": 900 * MB, "memory-margin": -0.1}, "memory-margin = -0.1"),
        ({"memory-limit": 900 * MB, "memory-margin": "5%"}, "memory-margin = '5%'"),
        ({"memory-limit": 900 * MB, "budget": "9MB"}, "exclude each other"),
    ],
)
def test_nonsense(system, node, message):
    with pytest.raises(InputError, match=message):
        left(**node)


def test_a_limit_that_is_too_tight_names_one_that_is_enough(system):
    context = context_of(CONFIG, **{"memory-limit": 410 * MB})
    with pytest.raises(InputError, match="at least 438 MB: 400 MB are taken before training"):
        capability_of(task_of(CONFIG), context)
    capability_of(task_of(CONFIG), context_of(CONFIG, **{"memory-limit": 438 * MB}))


def test_a_client_without_a_limit_measures_nothing(monkeypatch):
    monkeypatch.setattr(budget, "usage", None)
    state = RecordDict()
    assert left(state, budget="90MB") == 90 * MB
    assert len(state) == 0
