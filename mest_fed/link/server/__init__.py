"""The server side of the edge link.

:mod:`.edge_server` runs it in a thread and is the first to read: :mod:`.service` answers calls,
:mod:`.sessions` keeps the book of nodes and :mod:`.tasks` what each is due, :mod:`.objects` holds
what they fetch and upload. Above them :mod:`.grid` is Flower's Grid, :mod:`.lean_run` says what a
run is for a lean node, and :mod:`.task_programs` makes its programs.
"""
