"""Device profiles, and what a piece of work costs on a device in time and energy.

Profiles need no torch. What a model costs does, and is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from mest_fed.devices.profile import DeviceProfile, load_profile, profile_names, read_profile
from mest_fed.lazy_names import lazy_names

if TYPE_CHECKING:
    from mest_fed.devices.cost import StepWork as StepWork
    from mest_fed.devices.cost import Work as Work
    from mest_fed.devices.cost import download_seconds as download_seconds
    from mest_fed.devices.cost import energy_joules as energy_joules
    from mest_fed.devices.cost import train_seconds as train_seconds
    from mest_fed.devices.cost import upload_seconds as upload_seconds
    from mest_fed.devices.fleet import Assignment as Assignment
    from mest_fed.devices.fleet import assign_devices as assign_devices
    from mest_fed.devices.program_work import program_step_work as program_step_work
    from mest_fed.devices.round_costs import batch_work as batch_work
    from mest_fed.devices.round_costs import round_work as round_work
    from mest_fed.devices.torch_work import forward_flops as forward_flops
    from mest_fed.devices.torch_work import torch_step_work as torch_step_work
    from mest_fed.devices.torch_work import training_flops as training_flops
    from mest_fed.devices.torch_work import training_work as training_work

_HOMES = {
    "mest_fed.devices.cost": (
        *("StepWork", "Work", "download_seconds", "energy_joules", "train_seconds"),
        "upload_seconds",
    ),
    "mest_fed.devices.fleet": ("Assignment", "assign_devices"),
    "mest_fed.devices.program_work": ("program_step_work",),
    "mest_fed.devices.round_costs": ("batch_work", "round_work"),
    "mest_fed.devices.torch_work": (
        *("forward_flops", "torch_step_work", "training_flops", "training_work"),
    ),
}
__all__ = ["DeviceProfile", "load_profile", "profile_names", "read_profile"]
__all__ += sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
