"""One client's local training: trainer, mutation within a round, data pruning by forgetting."""

from mest_fed.training.forgetting import ForgettingPolicy, ForgettingState
from mest_fed.training.mutation import LocalMutation, RoundMutation
from mest_fed.training.rates import RATES, learning_rate
from mest_fed.training.trainer import (
    EVALUATION_BATCH,
    LocalTrainer,
    OptimizerSettings,
    Tally,
    choose_device,
    evaluate,
)

__all__ = [
    "EVALUATION_BATCH",
    "RATES",
    "ForgettingPolicy",
    "ForgettingState",
    "LocalMutation",
    "LocalTrainer",
    "OptimizerSettings",
    "RoundMutation",
    "Tally",
    "choose_device",
    "evaluate",
    "learning_rate",
]
