"""``python -m mest_fed.devices.calibration``: calibrates a device that has NumPy alone."""

from mest_fed.devices.calibration.command import main

main()
