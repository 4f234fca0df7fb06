"""Selectors: the contract that all keep, and what each of them prefers."""

import math

import numpy as np
import pytest
from server_parts import StubGrid, capability, small_config, strategy_of, train_messages

from mest_fed.catalogue import SELECTORS
from mest_fed.errors import InputError
from mest_fed.server.checkpoint import restore_strategy, strategy_arrays
from mest_fed.server.selection import (
    Available,
    ClientFeedback,
    SelectionRequest,
    Utility,
)

POPULATION = range(1000, 1200)


class Availability:
    """Nodes that are there, and after how many waits more come."""

    def __init__(self, there, after=None):
        self.there, self.after = set(there), after
        self.asked, self.waits = set(), 0

    def present_nodes(self, node_ids):
        self.asked |= set(node_ids)
        return [node for node in node_ids if node in self.there]

    def wait_for_nodes(self, node_ids):
        self.waits += 1
        if self.after is not None and self.waits >= self.after:
            self.there |= set(node_ids)
        return self.after is not None


class Lazy:
    """Counts which nodes of a population are touched."""

    def __init__(self, size):
        self.size, self.touched = size, set()

    def __len__(self):
        return self.size

    def __getitem__(self, place):
        self.touched.add(place)
        return 1000 + place


def call(nodes=POPULATION, count=10, *, seed=1, number=1, **more):
    return SelectionRequest(nodes, count, number, (seed, number, "cohort"), **more)


def reports(nodes, loss=1.0, seconds=None, examples=10):
    return [ClientFeedback(node, examples, loss, seconds) for node in nodes]


def taught(name, nodes=POPULATION, rounds=6):
    """Return a selector after some rounds in which losses follow the nodes' places."""
    selector = SELECTORS[name]()
    for number in range(1, rounds):
        chosen = selector.select(call(nodes, number=number))
        losses = {node: 1 + nodes.index(node) % 7 for node in chosen}
        told = [ClientFeedback(node, 10, loss, float(loss)) for node, loss in losses.items()]
        selector.learn(number, told)
    return selector


# What every selector keeps


@pytest.fixture(params=SELECTORS)
def name(request):
    return request.param


def test_a_selection_is_of_distinct_nodes_of_the_population(name):
    selector = taught(name)
    for number in range(6, 10):
        chosen = selector.select(call(number=number))
        assert len(set(chosen)) == len(chosen) == 10
        assert set(chosen) <= set(POPULATION)


def test_a_small_population_is_selected_whole(name):
    selector = taught(name, range(5, 9))
    assert sorted(selector.select(call(range(5, 9), number=6))) == [5, 6, 7, 8]


def test_a_selection_follows_seed_and_round(name):
    def drawn(**path):
        return taught(name).select(call(**{"number": 6} | path))

    assert drawn() == drawn()
    assert len({tuple(drawn(seed=s, number=n)) for s, n in [(1, 6), (2, 6), (1, 7)]}) == 3


def test_a_selection_does_not_depend_on_the_ids(name):
    ids = np.random.default_rng(0).permutation(10**6)[: len(POPULATION)].tolist()
    one = taught(name).select(call(number=6))
    other = taught(name, ids).select(call(ids, number=6))
    assert [POPULATION.index(node) for node in one] == [ids.index(node) for node in other]


def test_a_checkpoint_keeps_what_was_learned(name):
    selector, resumed = taught(name), SELECTORS[name]()
    resumed.restore({key: array.copy() for key, array in selector.arrays().items()})
    for number in range(6, 9):
        chosen = selector.select(call(number=number))
        assert resumed.select(call(number=number)) == chosen
        for each in (selector, resumed):
            each.learn(number, reports(chosen, loss=2.0))


def test_a_million_nodes_are_not_touched(name):
    nodes, availability = Lazy(10**6), Availability([])
    SELECTORS[name]().select(call(nodes, 100, availability=availability))
    assert len(nodes.touched) < 20_000


@pytest.mark.parametrize("informed", ["available", "utility"])
def test_only_those_who_are_there_are_selected(informed):
    availability = Availability(range(1000, 1200, 3))
    selector = SELECTORS[informed]()
    for number in range(1, 9):
        chosen = selector.select(call(number=number, availability=availability))
        assert len(chosen) == 10
        assert set(chosen) <= availability.there
        selector.learn(number, reports(chosen))


@pytest.mark.parametrize("informed", ["available", "utility"])
def test_time_passes_until_a_device_is_available(informed):
    availability = Availability([], after=3)
    assert len(SELECTORS[informed]().select(call(availability=availability))) == 10
    assert availability.waits == 3


@pytest.mark.parametrize("informed", ["available", "utility"])
def test_without_available_devices_any_is_asked(informed, caplog):
    with caplog.at_level("WARNING", "mest_fed.server.selection.selector"):
        assert len(SELECTORS[informed]().select(call(availability=Availability([])))) == 10
    assert "round 1: no node is there, and none will be" in caplog.text


def test_some_nodes_are_not_to_be_selected(name):
    without = set(range(1000, 1190))
    selector = taught(name)
    for availability in (None, Availability(POPULATION)):
        chosen = selector.select(call(number=6, without=without, availability=availability))
        assert sorted(chosen) == list(range(1190, 1200))
    assert selector.select(call(number=6, without=set(POPULATION))) == []


@pytest.mark.parametrize("informed", ["available", "utility"])
def test_no_time_passes_while_others_are_on_their_way(informed):
    availability = Availability([], after=1)
    assert SELECTORS[informed]().select(call(availability=availability, waits=False)) == []
    assert availability.waits == 0


# Uniform and available


def test_all_nodes_are_equally_likely(name):
    counts = np.zeros(20)
    for seed in range(400):
        counts[SELECTORS[name]().select(call(range(20), 5, seed=seed))] += 1
    # Each is in a quarter of 400 selections: 5 standard deviations of a binomial.
    assert np.abs(counts - 100).max() < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_a_few_who_are_there_are_found_among_many():
    availability = Availability(range(0, 1000, 40))
    chosen = Available().select(call(range(1000), 10, availability=availability))
    assert len(chosen) == 10
    few = Availability([7])
    assert Available().select(call(range(100), 10, availability=few)) == [7]


# Utility


def test_the_utility_is_examples_times_loss_and_slow_nodes_are_worth_less():
    selector = Utility(preferred=0.5)
    selector.learn(
        1,
        [
            ClientFeedback(1, 10, 2.0, 4.0),
            ClientFeedback(2, 40, 1.0, 8.0),
            ClientFeedback(3, 20, 1.0, 2.0),
        ],
    )
    # Of 20, 40 and 20 the 95th percentile is 38; in round 1 nothing is added; T = 4 s.
    assert selector.scores([1, 2, 3], 1) == pytest.approx([20 / 38, (4 / 8) ** 2, 20 / 38])
    # Two rounds later sqrt(0.1 ln 3) is added to each before the penalty.
    late = math.sqrt(0.1 * math.log(3))
    expected = [20 / 38 + late, (1 + late) / 4, 20 / 38 + late]
    assert selector.scores([1, 2, 3], 3) == pytest.approx(expected)


def test_nodes_that_trained_long_ago_come_back():
    selector = Utility()
    selector.learn(1, reports([1]))
    selector.learn(30, reports([2]))
    long_ago, lately = selector.scores([1, 2], 31)
    assert long_ago > lately


def test_the_useful_are_exploited():
    nodes = range(40)
    selector = Utility(explore=0.0, least=0.0)
    selector.learn(1, [ClientFeedback(node, 10, 5.0 if node < 8 else 0.1) for node in nodes])
    chosen = selector.select(call(nodes, 6, number=2))
    assert len(chosen) == 6
    assert max(chosen) < 8


def test_a_share_of_less_than_one_node_is_explored_now_and_then():
    selector = Utility(explore=0.25, least=0.25)
    selector.learn(1, reports(range(1000, 1100)))
    explored = [selector.select(call(count=1, seed=s, number=2))[0] >= 1100 for s in range(300)]
    # Binomial of 300 draws, four standard deviations.
    assert sum(explored) == pytest.approx(75, abs=4 * math.sqrt(300 * 0.25 * 0.75))


def test_the_unknown_are_explored():
    selector = Utility(explore=0.5, decay=1.0)
    selector.learn(1, reports(range(1000, 1020)))
    chosen = selector.select(call(number=2))
    assert sum(node >= 1020 for node in chosen) == 5


def test_the_most_selected_are_left_out_but_not_too_many():
    selector = Utility(explore=0.0, least=0.0, most=2, left_out=0.2)
    selector.learn(1, reports(range(10)))
    for number in (2, 3):
        selector.learn(number, reports([3, 4], loss=9.0))
    chosen = [selector.select(call(range(10), 8, number=4)) for _ in range(3)]
    assert all(sorted(each) == [0, 1, 2, 5, 6, 7, 8, 9] for each in chosen)
    selector.learn(4, reports(range(10)))  # everybody was selected twice or more now
    assert len(selector.select(call(range(10), 8, number=5))) == 8


def test_who_fails_keeps_its_utility_and_stays_unknown_if_it_was():
    selector = Utility()
    selector.learn(1, reports([1], loss=3.0, seconds=2.0))
    selector.learn(2, reports([1, 2], loss=None))
    arrays = selector.arrays()
    assert arrays["node"].tolist() == [1]
    assert (arrays["utility"].item(), arrays["picked"].item()) == (30.0, 2)


def test_a_loss_that_is_no_number_is_not_believed():
    selector = Utility()
    selector.learn(1, [*reports([1], loss=math.nan), *reports([2], loss=math.inf)])
    assert selector.arrays()["node"].tolist() == []


# In a strategy


def test_a_strategy_selects_as_it_is_configured_and_keeps_it_in_checkpoints():
    grid = StubGrid({node: capability(node) for node in range(4)})
    strategy = strategy_of(server={"selection": "utility", "clients_per_round": 2})
    assert isinstance(strategy.cohorts.selector, Utility)
    assert len(train_messages(strategy, grid)) == 2
    strategy.cohorts.selector.learn(1, reports([0, 3], loss=4.0))
    arrays, facts = strategy_arrays(strategy)
    other = strategy_of(server={"selection": "utility", "clients_per_round": 2})
    restore_strategy(other, arrays, facts)
    assert other.cohorts.selector.arrays()["utility"].tolist() == [40.0, 40.0]
    del arrays["selection|last"]
    with pytest.raises(InputError, match="the checkpoint is not of this run"):
        restore_strategy(other, arrays, facts)


def test_who_refuses_is_replaced_by_others():
    refusing = dict.fromkeys(range(0, 20, 2), "no data")
    grid = StubGrid(refusing | {node: capability(node) for node in range(1, 20, 2)})
    grid.get_node_ids = lambda: range(20)
    for known in SELECTORS:
        strategy = strategy_of(server={"selection": known, "clients_per_round": 4})
        chosen = train_messages(strategy, grid)
        assert len(chosen) == 4
        assert all(node % 2 for node in chosen)


def test_every_selector_may_be_configured():
    for known in SELECTORS:
        assert small_config(server={"selection": known}).server.selection == known


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, "None"),
        (["a"], r"\['a'\]"),
        ([1000, 1001, 1002], "3 nodes"),
        ([1000, 1000], "a node twice"),
        ([1, 1000], "node 1;"),
        ([1007], "node 1007;"),
    ],
)
@pytest.mark.parametrize("nodes", [POPULATION, list(POPULATION)])
def test_a_selection_that_was_not_asked_for_is_refused(nodes, chosen, found):
    asked = call(nodes, count=2, without={1007})
    with pytest.raises(InputError, match=f"server.selection chose {found}.*at most 2 distinct"):
        asked.checked(chosen)
    assert asked.checked(np.array([1003, 1001])) == [1003, 1001]


def test_a_strategy_refuses_a_selector_that_chooses_unknown_nodes():
    strategy = strategy_of(server={"clients_per_round": 2})
    strategy.cohorts.selector.select = lambda request: [99]
    with pytest.raises(InputError, match="chose node 99"):
        train_messages(strategy, StubGrid({node: capability(node) for node in range(4)}))
