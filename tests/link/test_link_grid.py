"""Flower's grid over the edge link: which nodes it says are there."""

from link_parts import node, serve

from mest_fed.link.messages import NodeDescription
from mest_fed.link.server.grid import LinkGrid


def test_a_node_is_there_when_it_has_read_its_examples():
    with serve() as server, node(server.port, "pi-7") as link:
        grid = LinkGrid(server, run=None)  # nothing is sent
        registration = link.register()
        assert [it.id for it in server.nodes()] == [registration.node_id]
        assert grid.get_node_ids() == []
        assert grid.get_nodes() == []
        link.register(NodeDescription("pi-7", examples=40))
        assert grid.get_node_ids() == [registration.node_id]
        assert [it.node_id for it in grid.get_nodes()] == [registration.node_id]
