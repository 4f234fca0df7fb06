"""Devices' behaviour in virtual time: when they are there, how long they take, what they spend."""
