"""A module that own_nets.py imports."""

CHANNELS = 12
