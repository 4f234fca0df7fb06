"""A node that has not read its examples yet takes no part: a run waits for it."""

import time
from typing import Any, cast

from link_parts import node, serve

from mest_fed.link.grid import LinkGrid


def test_a_node_without_examples_is_not_there_yet():
    with serve() as server, node(server.port, "pi-1") as link:
        grid = LinkGrid(server, cast(Any, None))  # what nodes are told is not asked for here
        link.register()
        assert len(server.nodes()) == 1
        assert (grid.get_node_ids(), grid.get_nodes()) == ([], [])
    with serve() as server, node(server.port, "pi-1", examples=3) as link:
        grid = LinkGrid(server, cast(Any, None))
        link.register()
        until = time.monotonic() + 5
        while not grid.get_node_ids() and time.monotonic() < until:
            time.sleep(0.01)
        assert grid.get_node_ids() == [server.nodes()[0].id]
