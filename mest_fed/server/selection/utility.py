"""A selector after Oort: nodes of high loss and many examples that answer in time.

Source: Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI'21,
algorithm 1 and equations 1 and 2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.server.selection.selector import (
    OVERDRAW,
    Arrays,
    ClientFeedback,
    SelectionRequest,
    draw_present,
    select_with_retry,
)

Floats = npt.NDArray[np.float64]


@dataclass
class ClientStats:
    """What is known of a node.

    Parameters
    ----------
    utility : float
        Statistical utility when it last trained.
    seconds : float
        How long it then took; NaN where unknown.
    last, picked : int
        Round in which it last trained, and how often it was selected since it first did.
    """

    utility: float
    seconds: float
    last: int
    picked: int


class Utility:
    """Exploits nodes of high utility, and explores nodes that are not known.

    A node's utility is |B| L, times (T / t)^alpha if it takes t > T seconds: |B| is the number of
    its examples and L their mean loss. Oort has |B| sqrt(mean of squared losses); a mean of squares
    does not come with a reply, and L is never above its root. As in Oort, utilities are cut off at
    their 95th percentile, so that none stands out, and sqrt(0.1 ln R / R_i) is added for a node
    that last trained in round R_i; here they are first scaled by the largest, to have one scale.
    T is a quantile of the seconds known; Oort's pacer, which moves it, is left out. Nodes say
    themselves what their loss is: a client that exaggerates it is selected until it is left out.

    Parameters
    ----------
    explore, decay, least : float
        In round R (from 1) the share max(least, explore decay^(R - 1)) of a cohort is unknown.
    alpha : float
        How much being slow counts.
    preferred : float
        Quantile of the seconds known that is T.
    cutoff : float
        Nodes above this share of the last one's utility are selected by chance, in proportion.
    most : int
        After so many selections a node is left out, if not more than ``left_out`` of all known are.
    left_out : float
        Largest share of nodes that is left out.
    """

    def __init__(
        self,
        *,
        explore: float = 0.9,
        decay: float = 0.98,
        least: float = 0.2,
        alpha: float = 2.0,
        preferred: float = 0.5,
        cutoff: float = 0.95,
        most: int = 50,
        left_out: float = 0.3,
    ) -> None:
        self._explore, self._decay, self._least = explore, decay, least
        self._alpha, self._preferred, self._cutoff = alpha, preferred, cutoff
        self._most, self._left_out = most, left_out
        self._known: dict[int, ClientStats] = {}

    def select(self, call: SelectionRequest) -> list[int]:
        """Return ``call.count`` nodes, or those that were found."""
        return select_with_retry(call, lambda generator: self._attempt(call, generator))

    def learn(self, number: int, reports: Iterable[ClientFeedback]) -> None:
        """Take in what came of a round. A node that never answered stays unknown."""
        for report in reports:
            known = self._known.get(report.node_id)
            if known is not None:
                known.picked += 1
            if report.train_loss is None or not math.isfinite(report.train_loss):
                continue
            if known is None:
                known = self._known[report.node_id] = ClientStats(0.0, math.nan, number, 1)
            known.utility = report.examples * max(0.0, report.train_loss)
            known.last = number
            if report.seconds is not None:
                known.seconds = report.seconds

    def arrays(self) -> Arrays:
        """Return what was learned, a column each, by node."""
        rows = sorted(self._known.items())
        return {
            "node": np.array([node for node, _ in rows], np.uint64),
            "utility": np.array([known.utility for _, known in rows], np.float64),
            "seconds": np.array([known.seconds for _, known in rows], np.float64),
            "last": np.array([known.last for _, known in rows], np.int64),
            "picked": np.array([known.picked for _, known in rows], np.int64),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what :meth:`arrays` gave; ValueError or KeyError if it is something else."""
        columns = [
            arrays[name].tolist() for name in ("node", "utility", "seconds", "last", "picked")
        ]
        self._known = {
            int(node): ClientStats(float(utility), float(seconds), int(last), int(picked))
            for node, utility, seconds, last, picked in zip(*columns, strict=True)
        }

    def _attempt(
        self, call: SelectionRequest, generator: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        there, looked_at = draw_present(call, generator)
        share = max(self._least, self._explore * self._decay ** (call.round - 1))
        unknown = [node for node in there if node not in self._known]
        chosen = unknown[: math.floor(share * call.count + generator.random())]
        chosen += self._exploit(call, call.count - len(chosen), generator)
        # Too few are known, or too few are not: any drawn node will do.
        taken = set(chosen)
        rest = [node for node in dict.fromkeys([*unknown, *there]) if node not in taken]
        return chosen + rest[: call.count - len(chosen)], looked_at

    def _exploit(
        self, call: SelectionRequest, count: int, generator: np.random.Generator
    ) -> list[int]:
        """Return up to ``count`` known nodes, likelier the more useful they are."""
        if not self._known or count < 1:
            return []
        everyone = self._not_left_out(call)
        scores = self.scores(everyone, call.round)
        best = np.argsort(-scores, kind="stable")[: OVERDRAW * call.count]
        score_of = {everyone[place]: scores[place] for place in best.tolist()}
        there = call.present(list(score_of))
        if len(there) <= count:
            return there
        found = np.array([score_of[node] for node in there])
        able = found >= self._cutoff * found[count - 1]  # in falling order
        weights = np.where(able, found, 0.0)
        if np.count_nonzero(weights) < count:  # utilities of nought
            return there[:count]
        places = generator.choice(len(there), count, replace=False, p=weights / weights.sum())
        return [there[place] for place in places.tolist()]

    def scores(self, nodes: Sequence[int], number: int) -> Floats:
        """Return the utility of known nodes in a round, on a scale of their own."""
        known = [self._known[node] for node in nodes]
        utility = np.array([each.utility for each in known])
        utility = np.minimum(utility, np.quantile(utility, 0.95)) if len(utility) else utility
        scale = utility.max(initial=0.0)
        scores: Floats = utility / scale if scale > 0 else utility
        last = np.array([each.last for each in known], np.float64)
        scores = scores + np.sqrt(0.1 * math.log(max(1, number)) / last)
        seconds = np.array([each.seconds for each in known])
        if np.isfinite(seconds).any():
            preferred = np.nanquantile(seconds, self._preferred)
            with np.errstate(invalid="ignore", divide="ignore"):
                penalty = (preferred / seconds) ** self._alpha
            scores = np.where(seconds > preferred, scores * penalty, scores)
        return scores

    def _not_left_out(self, call: SelectionRequest) -> list[int]:
        """Return the known nodes that may be selected, but for those picked most."""
        if isinstance(call.nodes, range):
            here = sorted(node for node in self._known if node in call.nodes)
        else:
            here = [node for node in call.nodes if node in self._known]
        tired = [node for node in here if self._known[node].picked >= self._most]
        tired.sort(key=lambda node: -self._known[node].picked)
        out = {*tired[: int(self._left_out * len(here))], *call.without}
        return [node for node in here if node not in out]
