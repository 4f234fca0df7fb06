"""A selector of your own: the devices that have trained least often come first."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from mest_fed import ClientFeedback, SelectionRequest


class LeastTrained:
    """Selects so that all devices train about equally often; ties are drawn."""

    def __init__(self) -> None:
        self.trained: Counter[int] = Counter()

    def select(self, call: SelectionRequest) -> list[int]:
        """Return the nodes that train in this round."""
        there = call.present(list(call.drawn(call.generator())))  # in random order
        return sorted(there, key=lambda node: self.trained[node])[: call.count]

    def learn(self, number: int, reports: Iterable[ClientFeedback]) -> None:
        """Count the nodes whose update came, in round ``number``."""
        self.trained.update(each.node_id for each in reports if each.train_loss is not None)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps."""
        return {
            "nodes": np.array(list(self.trained), np.int64),
            "times": np.array(list(self.trained.values()), np.int64),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what a checkpoint kept."""
        nodes, times = arrays["nodes"].tolist(), arrays["times"].tolist()
        self.trained = Counter(dict(zip(nodes, times, strict=True)))
