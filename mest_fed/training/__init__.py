"""One client's local training: trainer, learning tasks, mutation within a round, data pruning."""

from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.schema import LOSS, Metric
from mest_fed.training.compiled_trainer import CompiledTrainer
from mest_fed.training.forgetting import ForgettingPolicy, ForgettingState
from mest_fed.training.mutation import LocalMutation, RoundMutation
from mest_fed.training.objective import Metrics, Objective, try_objective
from mest_fed.training.tasks import objective_of
from mest_fed.training.trainer import (
    CLASSIFICATION,
    EVALUATION_BATCH,
    LocalTrainer,
    choose_device,
    evaluate,
    judge,
    learning_rate,
)

__all__ = [
    "CLASSIFICATION",
    "EVALUATION_BATCH",
    "LOSS",
    "CompiledTrainer",
    "ForgettingPolicy",
    "ForgettingState",
    "LocalMutation",
    "LocalTrainer",
    "Metric",
    "Metrics",
    "Objective",
    "OptimizerSettings",
    "RoundMutation",
    "choose_device",
    "evaluate",
    "judge",
    "learning_rate",
    "objective_of",
    "try_objective",
]
