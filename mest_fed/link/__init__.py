"""The edge link: a gRPC protocol of our own by which lean nodes take part in a federation.

``mest_link.proto`` is the protocol, and the first to read. :mod:`.messages` has its messages as
plain objects, with their limits; :mod:`.codec` writes and reads them. On the server
:mod:`.sessions` keeps the book of nodes, :mod:`.objects` what they fetch and upload,
:mod:`.service` answers calls, and :mod:`.server` runs it all in a thread. A node has
:mod:`.transport`, which needs gRPC alone.
"""
