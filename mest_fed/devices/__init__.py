"""Device profiles, and what a piece of work costs on a device in time and energy."""

from mest_fed.devices.cost import (
    Work,
    download_seconds,
    energy_joules,
    forward_flops,
    train_seconds,
    training_flops,
    training_work,
    upload_seconds,
)
from mest_fed.devices.fleet import Assignment, assign_devices
from mest_fed.devices.profile import DeviceProfile, load_profile, profile_names

__all__ = [
    "Assignment",
    "DeviceProfile",
    "Work",
    "assign_devices",
    "download_seconds",
    "energy_joules",
    "forward_flops",
    "load_profile",
    "profile_names",
    "train_seconds",
    "training_flops",
    "training_work",
    "upload_seconds",
]
