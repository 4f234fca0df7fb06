"""Measure a device: what it computes, moves, sends and draws. Needs NumPy and the native runtime.

``steps`` times compiled steps and ``rates`` reads a device's rates off them; ``link`` times
transfers, ``board`` asks the system for memory and power; ``board_profile`` makes a profile of all.
``python -m mest_fed.devices.calibration`` is the command where ``mest-fed`` has no libraries.
"""
