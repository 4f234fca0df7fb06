"""The lean node: trains compiled programs. Needs NumPy and gRPC alone.

:mod:`.command` is its command line, and :mod:`.runner` the first to read: it waits for
instructions by :mod:`.transport` and has :mod:`.worker` carry them out: :mod:`.rounds` trains,
:mod:`.model` is the model in the memory of :mod:`.programs`. :mod:`.store` survives a loss of
power.
"""
