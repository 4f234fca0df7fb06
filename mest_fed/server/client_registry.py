"""The nodes of the fleet: who takes part, who is drawn, and which mask each of them knows."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from logging import getLogger
from time import sleep
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from mest_fed.errors import MestFedError
from mest_fed.rng import in_random_order, numpy_generator
from mest_fed.schema import FailureKind
from mest_fed.server.exchange import Awaited, absence_of
from mest_fed.server.grids import others_may_come
from mest_fed.server.node import Node, query_messages, read_node, seen_nodes
from mest_fed.units import format_bytes, format_seconds, number_of

log = getLogger(__name__)

_POLL_SECONDS = 1.0
#: Seconds after which a line says again what is waited for.
_SAY_AGAIN_SECONDS = 60.0
#: Seconds for which a run waits for the answers of its first nodes. Later answers are taken, too.
QUERY_SECONDS = 120.0
#: So many nodes that join at one time are named one by one.
_NAMED = 4
#: Of a fleet that numbers its nodes, so many are remembered: those that were drawn last. One that
#: is forgotten is asked again who it is, and is sent the mask again.
REMEMBERED = 10_000

Draw = Callable[[int, Collection[int]], list[int]]


class ClientRegistry:
    """Knows the nodes of a grid, and keeps knowing which mask each of them has.

    Node ids say nothing of who holds which partition, so all nodes are asked before the first draw.
    But ids that come as a ``range`` are in the order of the partitions, as those of a simulated
    fleet are: then only nodes that are drawn are asked.

    Real devices come and go. One that comes during the run is asked, and takes part once it has
    answered; no round waits for that. One that went away is forgotten, and asked anew when it is
    back. A partition is of one node at a time: another that claims it waits until that one is away.

    Parameters
    ----------
    densities : iterable of float
        The densities that a plan may have; a node that claims another is left out.

    Attributes
    ----------
    nodes : dict of int to Node
        The nodes that take part.
    known_mask : dict of int to bytes
        Hash of the mask set that a node holds.
    first_wait : float
        Seconds until as many nodes took part as the first round needs.
    """

    def __init__(self, densities: Iterable[float]) -> None:
        self.densities = tuple(densities)
        self.nodes: dict[int, Node] = {}
        self.known_mask: dict[int, bytes] = {}
        self.first_wait = 0.0
        self._refused: dict[int, str] = {}
        self._waiting: dict[int, Node] = {}
        self._queries = Awaited[int]()
        self._activations: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._numbered: range | None = None
        self._grid: Grid | None = None

    def refresh(self, grid: Grid, min_nodes: int, patience: float = math.inf) -> None:
        """Look who is there, and wait until ``min_nodes`` take part, or for so many seconds.

        Raises
        ------
        MestFedError
            If so many were asked when the run began, all of them refused to take part, and no
            others can come.
        """
        self._grid = grid
        seen, begins, say_again = -1, not self.nodes, 0.0
        start = time.monotonic()
        end = start + patience
        while True:
            ids = grid.get_node_ids()
            self._numbered = ids if isinstance(ids, range) else None
            if self._numbered is None:
                activations, self._names = seen_nodes(grid, ids)
                self._ask_all(activations, min_nodes)
            there = len(self.nodes if self._numbered is None else self._numbered)
            if there >= min_nodes or time.monotonic() >= end:
                self.first_wait = self.first_wait or time.monotonic() - start
                return
            all_refused = min_nodes <= len(self._activations) == len(self._refused)
            if begins and all_refused and not others_may_come(grid):
                raise MestFedError(f"every node refused to take part: {self._common_reason()}")
            if there != seen or time.monotonic() >= say_again:
                bound = f", or in {format_seconds(patience)}" if patience < math.inf else ""
                advice = "" if begins else f"; the run goes on when they are there{bound}"
                refused = f"; {len(self._refused)} refused to take part" if self._refused else ""
                log.info("waiting for nodes: %d of %d%s%s", there, min_nodes, refused, advice)
                say_again = time.monotonic() + _SAY_AGAIN_SECONDS
            seen = there
            sleep(_POLL_SECONDS)

    def forget(self) -> None:
        """Forget all nodes: those of a run that is resumed are others, or hold nothing any more."""
        self.nodes, self.known_mask, self._refused, self._waiting = {}, {}, {}, {}
        self._activations = {}

    def rivals(self, partitions: Collection[int]) -> set[int]:
        """Return the nodes that hold these partitions now, where ids do not say so."""
        if self._numbered is not None or not partitions:
            return set()
        return {node.node_id for node in self.nodes.values() if node.partition in partitions}

    def sample(self, count: int, *path: int | str, without: Collection[int] = ()) -> list[Node]:
        """Draw up to ``count`` nodes, the same for the same path whatever their ids.

        Others are drawn in the place of those that refuse to take part.

        Parameters
        ----------
        count : int
            How many are wanted.
        *path : int or str
            The run's seed, then what the draw is for.
        without : collection of int
            Ids of nodes that are not to be drawn.

        Raises
        ------
        MestFedError
            If all could be drawn, but only nodes were that refuse to take part.
        """
        seed, *rest = path
        ids = self.in_order()

        def draw(wanted: int, out: Collection[int]) -> list[int]:
            numbers = in_random_order(len(ids), numpy_generator(int(seed), *rest))
            drawn = (ids[number] for number in numbers if ids[number] not in out)
            return list(islice(drawn, wanted))

        return self.gather(count, draw, without)

    def gather(self, count: int, draw: Draw, without: Collection[int] = ()) -> list[Node]:
        """Draw up to ``count`` nodes that take part; others in the place of those that refuse.

        Parameters
        ----------
        count, without : int, collection of int
            As for :meth:`sample`.
        draw : callable
            Returns so many node ids, or fewer, none of which is in a collection.

        Raises
        ------
        MestFedError
            If only nodes were drawn that refuse to take part.
        """
        chosen, refused = dict[int, Node](), set[int]()
        # Where nearly all refuse, a draw must not ask a million.
        while len(chosen) < count and len(refused) <= 10 * count:
            asked = draw(count - len(chosen), {*without, *chosen, *refused})
            found = self._nodes_of(asked)
            chosen |= found
            if len(found) == len(asked):
                break
            refused |= set(asked) - found.keys()
        if refused and not chosen and not without:
            raise MestFedError(
                f"all {len(refused)} nodes that were drawn refused to take part; see the log"
            )
        return sorted(chosen.values(), key=_place)

    def in_order(self) -> Sequence[int]:
        """Return the ids that are drawn from, in the order of the partitions."""
        if self._numbered is not None:
            return self._numbered
        return [node.node_id for node in sorted(self.nodes.values(), key=_place)]

    def _nodes_of(self, node_ids: list[int]) -> dict[int, Node]:
        """Return those of some nodes that take part; ask who is not known."""
        unknown = [i for i in node_ids if i not in self.nodes and i not in self._refused]
        found = {i: self.nodes.pop(i) for i in node_ids if i in self.nodes}
        self.nodes |= found  # at the end, as those that were used last
        found |= self._query(unknown)
        if self._numbered is not None:
            tables: list[dict[int, Any]] = [self.nodes, self._refused, self.known_mask]
            for table in tables:
                for node_id in list(islice(table, max(0, len(table) - REMEMBERED))):
                    del table[node_id]
        return found

    def _ask_all(self, present: dict[int, str], min_nodes: int) -> None:
        """Forget who went away or began anew, take late answers, and ask who is new."""
        seen = self._activations
        anew = {i for i, since in present.items() if i in seen and seen[i] != since}
        tables: list[dict[int, Any]] = [self.nodes, self.known_mask, self._refused, self._waiting]
        for table in tables:
            for node_id in [i for i in table if i in anew or i not in present]:
                del table[node_id]
        self._activations = present
        waiting = set(self._waiting)
        self._resolve_claims()
        for node_id in waiting - self._waiting.keys():
            log.info("node %s takes part now: its partition is free", self._label(node_id))
        if self._grid is not None and (names := self._queries.names()):
            self._admit(self._grid.pull_messages(names))
        known = self.nodes.keys() | self._refused.keys() | self._waiting.keys()
        asked = set(self._queries.rest()) - anew
        # No round waits for a newcomer.
        patience = 0.0 if len(self.nodes) >= min_nodes else QUERY_SECONDS
        self._query(sorted(present.keys() - known - asked), timeout=patience)

    def _query(self, node_ids: list[int], timeout: float | None = None) -> dict[int, Node]:
        """Ask nodes who they are; return those that answer in time and take part."""
        if not node_ids or self._grid is None:
            return {}
        messages = query_messages(node_ids)
        self._queries.add(zip(messages, node_ids, strict=True))
        return self._admit(self._grid.send_and_receive(messages, timeout=timeout))

    def _admit(self, replies: Iterable[Message]) -> dict[int, Node]:
        """Take in nodes by their answers; return those that take part."""
        found = {}
        refused = dict[str, list[int]]()
        for reply in replies:
            node_id = self._queries.take(reply)
            absence = absence_of(reply)
            if absence is FailureKind.NO_REPLY and node_id is not None:
                self._queries.await_again(reply, node_id)
            if absence is not None or node_id is None:
                continue  # one that went away is asked again when it is back
            try:
                name = self._names.get(node_id, "")
                found[node_id] = read_node(node_id, reply, name, self.densities)
            except (KeyError, TypeError, ValueError, OverflowError, MestFedError) as error:
                self._refused[node_id] = str(error)
                refused.setdefault(str(error), []).append(node_id)
        for reason, nodes in refused.items():
            one = len(nodes) == 1
            first = self._label(nodes[0])
            who = f"node {first} does" if one else f"{len(nodes)} nodes (one is {first}) do"
            log.warning("%s not take part: %s", who, reason)
        if self._numbered is not None:
            self.nodes |= found
            return found
        self._waiting |= found
        holders = self._resolve_claims()
        for node_id in found.keys() & self._waiting.keys():
            log.warning(
                "node %s does not take part: it claims partition %d, which node %s holds",
                self._label(node_id),
                found[node_id].partition,
                self._label(holders[found[node_id].partition]),
            )
        joined = {node_id: node for node_id, node in found.items() if node_id in self.nodes}
        _say_who_joined(list(joined.values()))
        return joined

    def _label(self, node_id: int) -> str:
        return self._names.get(node_id) or str(node_id)

    def _common_reason(self) -> str:
        """Return the reason of all nodes that refused, or where their reasons are."""
        reasons = set(self._refused.values())
        return reasons.pop() if len(reasons) == 1 else "see the log for their reasons"

    def _resolve_claims(self) -> dict[int, int]:
        """Give each partition that no node holds to the first that claims it; return who holds."""
        holders = {node.partition: node.node_id for node in self.nodes.values()}
        for node_id, node in list(self._waiting.items()):
            if holders.setdefault(node.partition, node_id) == node_id:
                self.nodes[node_id] = self._waiting.pop(node_id)
        return holders


def _say_who_joined(nodes: Sequence[Node]) -> None:
    """Log nodes that take part from now on: each of a few, or how many."""
    if len(nodes) > _NAMED:
        log.info("%d nodes take part", len(nodes))
        return
    for node in nodes:
        log.info(
            "node %s takes part: %s, partition %d, %s, %s to train in",
            node.name or node.node_id,
            node.device,
            node.partition,
            number_of(node.examples, "example"),
            format_bytes(node.budget),
        )


def _place(node: Node) -> tuple[int, int]:
    return node.partition, node.node_id
