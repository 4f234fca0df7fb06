"""From measurements to a device's profile, each of its figures with a source."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mest_fed.devices.calibration.board import BoardMemory
from mest_fed.devices.calibration.link import LinkRates
from mest_fed.devices.calibration.python import PythonSpeed
from mest_fed.devices.calibration.rates import Measured
from mest_fed.devices.profile import (
    MESSAGE_SECONDS,
    DeviceProfile,
    load_profile,
    profile_names,
    read_profile,
)

#: Share of what system and node leave that training may add, unless another is asked for: such
#: boards have other work.
_BUDGET = 0.25


@dataclass(frozen=True)
class PowerDrawn:
    """Power that was measured.

    Parameters
    ----------
    what : str
        What told it.
    compute, idle : float
        Watts while the profile's threads train, and while nothing is done.
    """

    what: str
    compute: float
    idle: float


@dataclass(frozen=True)
class Calibration:
    """All that was measured of a device; None is what was not.

    Parameters
    ----------
    board : str
        What the system calls it.
    date : str
        Of the measurement.
    speeds : sequence of Measured
        The first one's rates are the profile's; others are told of beside it.
    python : PythonSpeed
        Of one core.
    memory : BoardMemory or None
        Of the system.
    node : int or None
        Resident bytes of a lean node that waits for work.
    link : LinkRates or None
        To a server.
    power : PowerDrawn or None
        Of whatever tells it.
    """

    board: str
    date: str
    speeds: Sequence[Measured]
    python: PythonSpeed
    memory: BoardMemory | None = None
    node: int | None = None
    link: LinkRates | None = None
    power: PowerDrawn | None = None

    def profile(self, name: str, base: DeviceProfile, title: str | None = None) -> DeviceProfile:
        """Return the profile; what was not measured is the base's.

        Parameters
        ----------
        name : str
            Of the profile.
        base : DeviceProfile
            A device like this one.
        title : str, optional
            For people; what the system calls the board if left out.
        """
        figures = _Figures(base)
        figures.table["title"] = title or self.board
        self._add_rates(figures)
        self._add_memory(figures)
        self._add_link(figures)
        self._add_power(figures)
        return read_profile(name, figures.table, f"the profile of {name}: ")

    def _add_rates(self, figures: "_Figures") -> None:
        own, rates = self.speeds[0], self.speeds[0].rates
        steps, threads = sum(map(own.fitted, own.samples)), _threads(own.threads)
        how = f"{steps} compiled steps on {self.board}, {threads}, {self.date}"
        others = "".join(
            f"; {_threads(it.threads)}: dense {it.rates.flops['dense'] / 1e9:.3g} GFLOP/s, block "
            f"{it.rates.flops['block'] / 1e9:.3g}, unstructured "
            f"{it.rates.flops['unstructured'] / 1e9:.3g}"
            for it in self.speeds[1:]
        )
        flops = dict(rates.flops)
        flops["pattern"] = flops["unstructured"]
        flops["channel"] = 0.8 * flops["dense"]
        fit = f"explains each of them within a factor of {own.worst:.2f}"
        if own.worst_beside is not None:
            fit += (
                f", and batches of one group, which have one thread, within {own.worst_beside:.2f}"
            )
        figures.set("flops", {key: _rounded(flops[key]) for key in figures.table["flops"]},
            f"measured: fit to {how}; {fit}{others}; pattern (as unstructured) and channel "
            "(0.80 of dense) are modelled")  # fmt: skip
        figures.set("memory_rate", _rounded(rates.memory_rate), f"measured: fit to {how}")
        figures.set("core_speed", _rounded(rates.core_speed), f"measured: fit to {how}")
        assert rates.gather_speed is not None  # fitted with the others
        figures.set("gather_speed", _rounded(rates.gather_speed), f"measured: fit to {how}")
        figures.set(
            "message_seconds",
            _rounded(MESSAGE_SECONDS / self.python.speed),
            f"modelled: {MESSAGE_SECONDS:g} s of processor time of the reference machine "
            f"(measured, 2026-11-30), and its speed in Python, of which {self.board} has "
            f"{self.python.speed:.2f} (measured, {self.date}); storage is not modelled",
        )

    def _add_memory(self, figures: "_Figures") -> None:
        memory, node = self.memory, self.node
        if memory is not None:
            figures.set("memory_bytes", memory.total, f"measured: MemTotal, {self.date}")
            text = f"measured: MemTotal less MemAvailable while it was calibrated, {self.date}"
            figures.set("system_bytes", memory.taken, text)
        if node is not None:
            text = f"measured: RSS of a lean node that waits for work, {self.date}"
            figures.set("node_bytes", node, text)
        if memory is None:
            return
        left = memory.total - memory.taken - (node or 0)
        beside = "the system and a lean node leave" if node else "the system leaves"
        if left >= memory.total // 100:
            text = f"modelled: a quarter of what {beside}, since such boards have other work"
            figures.set("budget_bytes", int(_BUDGET * left), text)
        else:
            text = f"modelled: a hundredth of the memory, since {beside} less than that"
            figures.set("budget_bytes", memory.total // 100, text)

    def _add_link(self, figures: "_Figures") -> None:
        if self.link is None:
            return
        how = f"over TCP to a server of mest-fed calibrate --serve, {self.date}"
        for key in ("download_rate", "upload_rate"):
            figures.set(key, _rounded(getattr(self.link, key)), f"measured: {how}")
        figures.set("latency", _rounded(self.link.latency), f"measured: half an exchange {how}")

    def _add_power(self, figures: "_Figures") -> None:
        power, base = self.power, figures.base
        if power is None:
            return
        how = f"{power.what} alone, {self.date}"
        train = f"measured: {_threads(self.speeds[0].threads)} of training, {how}"
        figures.set("compute_watts", _rounded(power.compute), train)
        figures.set("idle_watts", _rounded(power.idle), f"measured: nothing runs, {how}")
        more = max(0.0, base.radio_watts - base.idle_watts)
        figures.set(
            "radio_watts",
            _rounded(power.idle + more),
            f"modelled: idle_watts plus {more:.3g} W, as of {base.name}",
        )


class _Figures:
    """The table of a profile, which is a base's until something is measured."""

    def __init__(self, base: DeviceProfile) -> None:
        self.base, self.table = base, base.as_table()
        sources: dict[str, str] = self.table["sources"]
        for key in sources:
            sources[key] = f"modelled: as {base.name}"

    def set(self, key: str, value: Any, source: str) -> None:
        """Set a figure and where it comes from."""
        self.table[key] = value
        self.table["sources"][key] = source


def base_for(board: str) -> str:
    """Return the built-in profile of a board, by what the system calls it; else ``laptop``."""
    titles = {name: load_profile(name).title.partition(" (")[0] for name in profile_names()}
    names = [name for name, title in titles.items() if board.startswith(title)]
    return max(names, key=lambda name: len(titles[name]), default="laptop")


def profile_toml(profile: DeviceProfile) -> str:
    """Return the text of a profile's file."""
    table = profile.as_table()
    tables = {key: table.pop(key) for key in ("flops", "sources")}
    lines = [_line(key, value) for key, value in table.items()]
    for name, values in tables.items():
        lines += ["", f"[{name}]", *(_line(key, value) for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object) -> str:
    # Strings of JSON are strings of TOML, but for one character.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{key} = {text}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
