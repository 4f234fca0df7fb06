"""One client's local training: trainer, learning tasks, mutation within a round, data pruning.

Forgetting needs no torch; the rest is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from mest_fed.lazy_names import lazy_names

if TYPE_CHECKING:
    from mest_fed.nn.optimizer_settings import OptimizerSettings as OptimizerSettings
    from mest_fed.schema import LOSS as LOSS
    from mest_fed.schema import Metric as Metric
    from mest_fed.training.compiled_trainer import CompiledTrainer as CompiledTrainer
    from mest_fed.training.forgetting import ForgettingPolicy as ForgettingPolicy
    from mest_fed.training.forgetting import ForgettingState as ForgettingState
    from mest_fed.training.metrics import Metrics as Metrics
    from mest_fed.training.mutation import LocalMutation as LocalMutation
    from mest_fed.training.objective import Objective as Objective
    from mest_fed.training.objective_checks import try_objective as try_objective
    from mest_fed.training.round_mutation import RoundMutation as RoundMutation
    from mest_fed.training.tasks import objective_of as objective_of
    from mest_fed.training.trainer import CLASSIFICATION as CLASSIFICATION
    from mest_fed.training.trainer import EVALUATION_BATCH as EVALUATION_BATCH
    from mest_fed.training.trainer import LocalTrainer as LocalTrainer
    from mest_fed.training.trainer import choose_device as choose_device
    from mest_fed.training.trainer import evaluate as evaluate
    from mest_fed.training.trainer import judge as judge
    from mest_fed.training.trainer import learning_rate as learning_rate

_HOMES = {
    "mest_fed.nn.optimizer_settings": ("OptimizerSettings",),
    "mest_fed.schema": ("LOSS", "Metric"),
    "mest_fed.training.compiled_trainer": ("CompiledTrainer",),
    "mest_fed.training.forgetting": ("ForgettingPolicy", "ForgettingState"),
    "mest_fed.training.mutation": ("LocalMutation",),
    "mest_fed.training.round_mutation": ("RoundMutation",),
    "mest_fed.training.metrics": ("Metrics",),
    "mest_fed.training.objective": ("Objective",),
    "mest_fed.training.objective_checks": ("try_objective",),
    "mest_fed.training.tasks": ("objective_of",),
    "mest_fed.training.trainer": (
        *("CLASSIFICATION", "EVALUATION_BATCH", "LocalTrainer", "choose_device", "evaluate"),
        *("judge", "learning_rate"),
    ),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
