"""Early stopping and the best round's model, on the server."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from server_parts import strategy_of

from mest_fed.errors import InputError
from mest_fed.server.app import CentralEvaluation, Stopped
from mest_fed.server.checkpoint import restore_strategy, strategy_arrays
from mest_fed.server.round_record import RoundRecord
from mest_fed.server.summary import model_sha256


def scaled(strategy, factor):
    """Change the model as a round would: each array is replaced."""
    model = strategy.model
    for tensors in (model.weights, model.dense):
        for name, values in tensors.items():
            tensors[name] = (values * factor).astype(np.float32)


class Told(CentralEvaluation):
    """An evaluation whose values are told."""

    def __init__(self, strategy, values):
        self.seen = []
        super().__init__(strategy.task, strategy, self.seen.append)
        self.values = values

    def _evaluate(self):
        return dict(self.values[self.strategy.record.round])


def play(strategy, losses):
    """Play rounds of told losses; return the evaluation and the model's hash by round."""
    values = [{"accuracy": 1 / (1 + loss), "loss": loss} for loss in losses]
    evaluation, hashes = Told(strategy, values), []
    for number in range(len(losses)):
        strategy.record = RoundRecord(number, strategy.record.density)
        scaled(strategy, 1.01)
        try:
            evaluation(number, ArrayRecord())
        except Stopped:
            break
        finally:
            hashes.append(model_sha256(strategy.model.state()))
    return evaluation, hashes


def test_a_run_stops_after_a_round_that_is_observed():
    strategy = strategy_of(server={"stop_when": "loss <= 0.5"})
    evaluation, _ = play(strategy, [2.0, 1.0, 0.5, 0.4])
    assert [record.round for record in evaluation.seen] == [0, 1, 2]
    assert strategy.progress.stopped == "loss was 0.5 after round 2"


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_model_that_is_kept(keep):
    strategy = strategy_of(server={"keep": keep})
    evaluation, hashes = play(strategy, [2.0, 1.0, 1.5, 3.0])
    evaluation.finish()
    kept = 1 if keep == "best" else 3
    assert model_sha256(strategy.model.state()) == hashes[kept]
    assert bool(strategy.final_metrics) == (keep == "best")
    assert strategy.progress.best.round == 1


def test_the_best_model_survives_a_checkpoint():
    config = {"server": {"keep": "best", "stop_when": "no improvement of loss in 3 rounds"}}
    strategy = strategy_of(**config)
    _, hashes = play(strategy, [2.0, 1.0, 1.5, 3.0])
    again = strategy_of(**config)
    restore_strategy(again, *strategy_arrays(strategy))
    assert again.progress == strategy.progress
    assert again.take_best()
    assert model_sha256(again.model.state()) == hashes[1]


@pytest.mark.parametrize("damage", ["shape", "type", "missing"])
def test_a_damaged_best_model_is_refused(damage):
    strategy = strategy_of(server={"keep": "best"})
    play(strategy, [2.0, 1.0])
    arrays, facts = strategy_arrays(strategy)
    name = next(key for key in arrays if key.startswith("best-dense|"))
    if damage == "missing":
        del arrays[name]
    else:
        spoiled = arrays[name][..., np.newaxis]
        arrays[name] = spoiled if damage == "shape" else arrays[name].astype(np.float64)
    with pytest.raises(InputError, match="the checkpoint is not of this run: the best"):
        restore_strategy(strategy_of(server={"keep": "best"}), arrays, facts)


def test_a_model_above_the_target_is_cut_when_the_run_ends_early():
    strategy = strategy_of(server={"stop_when": "loss <= 0.5"}, sparsity={"method": "mest-ems"})
    group, target = next(iter(strategy.model.targets.items()))
    strategy.model.masks[group] = np.arange(2 * target, dtype=np.int32)  # unstructured
    strategy.record = RoundRecord(1, strategy.model.state().density(strategy.model.spec))
    evaluation = Told(strategy, [{}, {"loss": 0.4}])
    with pytest.raises(Stopped):
        evaluation(1, ArrayRecord())
    assert len(strategy.model.masks[group]) == strategy.model.targets[group]
    assert evaluation.seen[0].density == pytest.approx(0.2, abs=0.02)
