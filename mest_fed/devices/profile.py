"""Device profiles: one TOML file a device, read strictly."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mest_fed.catalogue import SCHEMES
from mest_fed.errors import InputError, not_allowed

_ORIGINS = ("measured: ", "data sheet: ", "modelled: ")


def check_keys(
    where: str, table: object, keys: Sequence[str], optional: Sequence[str] = ()
) -> None:
    """Raise InputError unless ``table`` is a table with these keys, and perhaps optional ones."""
    if not isinstance(table, Mapping):
        raise not_allowed(where.removesuffix("."), table, f"a table with {', '.join(keys)}")
    for key in table:
        if key not in (*keys, *optional):
            known = ", ".join((*keys, *optional))
            raise InputError(f"{where}{key} is not a known key; known: {known}")
    for key in keys:
        if key not in table:
            raise InputError(f"{where}{key} is missing")


def check_sources(where: str, table: object, keys: Sequence[str]) -> None:
    """Raise InputError unless every key has a source that says what kind of figure it is."""
    check_keys(where, table, keys)
    assert isinstance(table, Mapping)
    for key, value in table.items():
        if not text(where + key, value).startswith(_ORIGINS):
            kinds = " or ".join(repr(origin) for origin in _ORIGINS)
            raise not_allowed(where + key, value, f"a text that begins with {kinds}")


def text(key: str, value: object) -> str:
    """Return a text that is not empty, or raise InputError."""
    if not isinstance(value, str) or not value.strip():
        raise not_allowed(key, value, "a text")
    return value


def positive_int(key: str, value: object) -> int:
    """Return a positive whole number, or raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise not_allowed(key, value, "a positive whole number")
    return value


def positive_number(key: str, value: object) -> float:
    """Return a positive finite number, or raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise not_allowed(key, value, "a positive number")
    if not math.isfinite(value) or value <= 0:
        raise not_allowed(key, value, "a positive number")
    return float(value)


#: Seconds of one core of the reference machine, nearly all of them in Python, until the process
#: that Flower's node starts for a message can work on it (measured,
#: ``benchmarks/node_messages.py``).
MESSAGE_SECONDS = 6.5

#: Kinds of work that a profile gives a rate for: dense layers, and one for each built-in scheme.
WORK_KINDS = ("dense", *filter(SCHEMES.is_builtin, SCHEMES))

_RATES = (
    *("memory_rate", "core_speed", "message_seconds"),
    *("download_rate", "upload_rate", "latency", "compute_watts", "radio_watts", "idle_watts"),
)
#: Rates that a profile may leave out.
_FURTHER_RATES = ("gather_speed",)
_BATTERY = ("battery_joules", "charge_watts")
#: What of the memory is taken before training, where a profile says so.
_TAKEN = ("system_bytes", "node_bytes")
_MEASURES = ("memory_bytes", "budget_bytes", "flops", *_RATES, "availability")


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device. All figures but the data sheet's are modelled or measured: see sources.

    Parameters
    ----------
    name : str
        Short name: the file's name without ``.toml``.
    title : str
        Name for people.
    memory_bytes : int
        RAM of the device.
    system_bytes : int or None
        What firmware and operating system take of it. None for a device of which no profile says
        what a process of its own has, such as a phone.
    node_bytes : int or None
        What a lean node takes before it trains (RSS). None where that was not measured.
    budget_bytes : int
        Default training budget: bytes that training may add to the process. A simulation takes it
        as it is; whether it fits beside a node of today on the real device is another question
        (``system_bytes``, and ``mest-fed devices NAME``).
    flops : mapping of str to float
        Kind of work (:data:`WORK_KINDS`) -> floating-point operations a second that training
        reaches, 2 for each multiply-add, on active weights only.
    memory_rate : float
        Bytes a second that operators without products read and write.
    core_speed : float
        Speed of one core with small calls, as a multiple of the reference machine's
        (:data:`mest_fed.devices.cost.REFERENCE`).
    message_seconds : float
        Seconds until the process that Flower's node starts for each message can work on it.
    download_rate, upload_rate : float
        Bytes a second.
    latency : float
        Seconds, one way.
    compute_watts, radio_watts, idle_watts : float
        Power of the whole device while it trains, while it sends or receives, while it waits.
    availability : float
        Probability in (0, 1] that the device is there when it is sampled.
    sources : mapping of str to str
        Field -> where its figure comes from, beginning with ``measured:``, ``data sheet:`` or
        ``modelled:``.
    gather_speed : float or None
        Speed of one core with the weights of sparse linear layers, as a multiple of the reference
        machine's. None where nobody timed it: then it goes by ``core_speed``.
    battery_joules, charge_watts : float or None
        What a full battery holds, and the power that the device gets while it is plugged in. None
        for a device on mains power.
    """

    name: str
    title: str
    memory_bytes: int
    budget_bytes: int
    flops: Mapping[str, float]
    memory_rate: float
    core_speed: float
    message_seconds: float
    download_rate: float
    upload_rate: float
    latency: float
    compute_watts: float
    radio_watts: float
    idle_watts: float
    availability: float
    sources: Mapping[str, str]
    gather_speed: float | None = None
    battery_joules: float | None = None
    charge_watts: float | None = None
    system_bytes: int | None = None
    node_bytes: int | None = None

    @property
    def python_time(self) -> float:
        """Time that one core takes in Python, as a multiple of the reference machine's."""
        return self.message_seconds / MESSAGE_SECONDS

    def as_table(self) -> dict[str, Any]:
        """Return the profile as its file would have it, for :func:`read_profile`."""
        table = {field.name: getattr(self, field.name) for field in fields(self)}
        del table["name"]
        table |= {"flops": dict(self.flops), "sources": dict(self.sources)}
        return {key: value for key, value in table.items() if value is not None}


@lru_cache
def profile_names() -> tuple[str, ...]:
    """Return the names of the built-in profiles, sorted."""
    names = (entry.name[:-5] for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(names))


def load_profile(name_or_path: str, key: str = "device profile") -> DeviceProfile:
    """Load a device profile.

    Parameters
    ----------
    name_or_path : str
        A built-in name, or the path of a file that ends in ``.toml``.
    key : str
        What gave it, for error messages.

    Raises
    ------
    InputError
        If there is no such profile or file, or the file is not a correct profile.
    """
    if name_or_path.endswith(".toml"):
        return _read(Path(name_or_path), f"{key} {name_or_path}")
    if name_or_path not in profile_names():
        allowed = f"{', '.join(profile_names())}, or the path of a .toml file"
        raise not_allowed(key, name_or_path, allowed)
    return _built_in(name_or_path)


def profile_name(name_or_path: str) -> str:
    """Return the ``name`` of the profile that :func:`load_profile` would load."""
    return Path(name_or_path).stem if name_or_path.endswith(".toml") else name_or_path


@lru_cache
def _built_in(name: str) -> DeviceProfile:
    """Return a built-in profile; a simulated fleet asks for it at each message."""
    return _read(_folder() / f"{name}.toml", f"device profile {name}")


def _folder() -> Traversable:
    return resources.files("mest_fed.devices") / "profiles"


def _read(file: Traversable, where: str) -> DeviceProfile:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot read it ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not a TOML file ({error})") from error
    return read_profile(profile_name(file.name), table, f"{where}: ")


def read_profile(name: str, table: Mapping[str, Any], where: str) -> DeviceProfile:
    """Check the table of a profile and build it.

    Parameters
    ----------
    name : str
        Of the profile.
    table : mapping of str to any
        What its file says, or :meth:`DeviceProfile.as_table`.
    where : str
        Begins each error.

    Raises
    ------
    InputError
        If it is no correct profile.
    """
    battery = _battery(table, where)
    taken = {key: positive_int(where + key, table[key]) for key in _TAKEN if key in table}
    further = {k: positive_number(where + k, table[k]) for k in _FURTHER_RATES if k in table}
    optional = (*_FURTHER_RATES, *_BATTERY, *_TAKEN)
    keys = [field.name for field in fields(DeviceProfile) if field.name not in optional]
    check_keys(where, table, keys[1:], optional)
    flops, sources = table["flops"], table["sources"]
    check_keys(where + "flops.", flops, WORK_KINDS)
    check_sources(where + "sources.", sources, [*_MEASURES, *further, *taken, *battery])
    memory = positive_int(where + "memory_bytes", table["memory_bytes"])
    budget = positive_int(where + "budget_bytes", table["budget_bytes"])
    if budget > memory:
        raise not_allowed(where + "budget_bytes", budget, f"at most memory_bytes = {memory}")
    for key, size in taken.items():
        if size >= memory:
            raise not_allowed(where + key, size, f"less than memory_bytes = {memory}")
    availability = positive_number(where + "availability", table["availability"])
    if availability > 1:
        raise not_allowed(where + "availability", availability, "a number in (0, 1]")
    rates = {kind: positive_number(f"{where}flops.{kind}", flops[kind]) for kind in WORK_KINDS}
    return DeviceProfile(
        name=name,
        title=text(where + "title", table["title"]),
        memory_bytes=memory,
        budget_bytes=budget,
        flops=MappingProxyType(rates),
        availability=availability,
        sources=MappingProxyType(dict(sources)),
        **{key: positive_number(where + key, table[key]) for key in _RATES},
        gather_speed=further.get("gather_speed"),
        system_bytes=taken.get("system_bytes"),
        node_bytes=taken.get("node_bytes"),
        battery_joules=battery.get("battery_joules"),
        charge_watts=battery.get("charge_watts"),
    )


def _battery(table: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return what the table says of a battery, if anything: then all of it."""
    given = [key for key in _BATTERY if key in table]
    battery = {key: positive_number(where + key, table[key]) for key in given}
    if len(battery) == 1:
        missing = next(key for key in _BATTERY if key not in battery)
        raise InputError(f"{where}{missing} is missing; {given[0]} is given")
    return battery
