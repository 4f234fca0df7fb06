"""One client's local training: trainer, mutation within a round, data pruning by forgetting."""

from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.training.forgetting import ForgettingPolicy, ForgettingState
from mest_fed.training.mutation import LocalMutation, RoundMutation
from mest_fed.training.trainer import (
    EVALUATION_BATCH,
    LocalTrainer,
    Metrics,
    choose_device,
    evaluate,
    learning_rate,
)

__all__ = [
    "EVALUATION_BATCH",
    "ForgettingPolicy",
    "ForgettingState",
    "LocalMutation",
    "LocalTrainer",
    "Metrics",
    "OptimizerSettings",
    "RoundMutation",
    "choose_device",
    "evaluate",
    "learning_rate",
]
