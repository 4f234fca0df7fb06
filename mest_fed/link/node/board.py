"""What board a node runs on, as far as the system tells."""

from pathlib import Path

#: How a device tree names boards -> profile; the first that fits.
_BOARDS = (
    ("Raspberry Pi Zero 2", "rpi-zero-2w"),
    ("Raspberry Pi 3 Model B Plus", "rpi-3b-plus"),
    ("Raspberry Pi 4", "rpi-4"),
    ("Raspberry Pi 5", "rpi-5"),
    ("NVIDIA Jetson Nano", "jetson-nano"),
)
#: Their folder.
_PROFILES = Path(__file__).parents[2] / "devices" / "profiles"


def profiles() -> list[str]:
    """Return the names of the built-in profiles; nothing is loaded to read them."""
    return sorted(file.stem for file in _PROFILES.glob("*.toml"))


def board_of(root: Path = Path("/")) -> str | None:
    """Return the profile of this board; None where the system does not tell, or names another."""
    try:
        model = (root / "proc/device-tree/model").read_bytes().rstrip(b"\0").decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return next((profile for name, profile in _BOARDS if model.startswith(name)), None)
