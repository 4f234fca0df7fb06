"""The edge link: a gRPC protocol of our own by which lean nodes take part in a federation.

``mest_link.proto`` is the protocol, and the first to read. :mod:`.messages` has its messages as
plain objects with their limits, :mod:`.codec` writes and reads them, and :mod:`.description` is
what a node is told of a run. Then there are the two sides: :mod:`mest_fed.link.server`
and :mod:`mest_fed.link.node`. :mod:`.certificates` says who is who.
"""
