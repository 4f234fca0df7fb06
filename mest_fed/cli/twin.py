"""``mest-fed calibrate --compare``: real rounds beside what the devices' profiles predict."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mest_fed.devices import (
    DeviceProfile,
    Work,
    download_seconds,
    load_profile,
    train_seconds,
    upload_seconds,
)
from mest_fed.devices.cost import WORK_METRICS
from mest_fed.errors import InputError
from mest_fed.run_rows.rounds import ClientReport, ClientRow
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import Run
from mest_fed.units import format_bytes, format_seconds, plural


@dataclass(frozen=True)
class Pair:
    """Predicted and measured values of one thing, round by round.

    Parameters
    ----------
    predicted, measured : tuple of float
        Of the same length, one or more; the measured ones above zero.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Predicted over measured, of each round."""
        return [a / b for a, b in zip(self.predicted, self.measured, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of them."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of them; of one round its own."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class DeviceTwin:
    """A real device beside its twin.

    Parameters
    ----------
    partition : int
        Its number in the run.
    name : str
        What people know it by: its share of the run's data, or its place among the devices with
        examples of their own, and what it called itself.
    profile : DeviceProfile
        By which it is predicted.
    rounds : Pair
        Seconds from an instruction to its reply, as the server sees them.
    own : Pair or None
        Seconds of the device itself, without sending; None where it does not tell them.
    peak : Pair or None
        Bytes that training added, at most over all rounds: of the plan, and measured.
    """

    partition: int
    name: str
    profile: DeviceProfile
    rounds: Pair
    own: Pair | None
    peak: Pair | None


def compare_with_twins(run: Run, device: str | None = None) -> list[DeviceTwin]:
    """Return each device of a deployed run beside its twin.

    Parameters
    ----------
    run : Run
        Of real devices.
    device : str, optional
        Profile by which all devices are predicted; each by its own if left out.

    Raises
    ------
    InputError
        If no device reported its work, or a profile is unknown.
    """
    by_device: dict[int, list[ClientRow]] = {}
    for row in run.tasks:
        done = row.status is TaskStatus.OK and row.train_seconds > 0
        if done and row.reported is not None:
            by_device.setdefault(row.partition, []).append(row)
    if not by_device:
        raise InputError(
            f"{run.folder}: no row holds what a device reported of itself; allowed: a run of "
            "mest-fed server, or of a SuperLink, in which devices trained"
        )
    process = bool(run.setting("behaviour", "process_per_message"))
    names = _names(by_device, int(str(run.setting("fleet", "devices"))))
    profiles = _profiles([rows[0].device for rows in by_device.values()], device)
    return [
        _twin(rows, (names[number], profiles[rows[0].device]), run.summary.scheme, process)
        for number, rows in sorted(by_device.items())
    ]


def _names(by_device: Mapping[int, Sequence[ClientRow]], shares: int) -> dict[int, str]:
    """Return what people know devices by, beside their numbers, which may have ten digits."""
    names, own = {}, 0
    for number, rows in sorted(by_device.items()):
        own += number >= shares
        which = f"partition {number}" if number < shares else f"own data {own}"
        names[number] = f"{which}, {rows[0].device}"
    return names


def _twin(
    rows: Sequence[ClientRow], known: tuple[str, DeviceProfile], scheme: str, process: bool
) -> DeviceTwin:
    name, profile = known
    own, whole, told = [], [], []
    for row in rows:
        said = row.reported
        assert said is not None
        work = Work(**{name: getattr(said, name) for name in WORK_METRICS.values()})
        took = download_seconds(profile, row.bytes_down) + train_seconds(profile, work, scheme)
        own.append(took)
        # A lean node stays loaded; it is the one that tells its own seconds.
        started = profile.message_seconds if process and said.seconds is None else 0.0
        whole.append(took + started + upload_seconds(profile, row.bytes_up))
        told.append(said.seconds)
    seconds = [each for each in told if each]
    return DeviceTwin(
        rows[0].partition,
        name,
        profile,
        Pair(tuple(whole), tuple(row.train_seconds for row in rows)),
        Pair(tuple(own), tuple(seconds)) if len(seconds) == len(own) else None,
        _peak([row.reported for row in rows if row.reported is not None]),
    )


def _peak(reports: Sequence[ClientReport]) -> Pair | None:
    """Return the largest peaks: a round that finds its memory there from before adds little."""
    predicted = max((it.predicted_peak_bytes or 0.0 for it in reports), default=0.0)
    measured = max((it.measured_peak_bytes or 0.0 for it in reports), default=0.0)
    return Pair((predicted,), (measured,)) if predicted and measured else None


def _profiles(names: Sequence[str], given: str | None) -> dict[str, DeviceProfile]:
    """Return the profile of each kind of device: the given one, or each one's own."""
    if given is not None:
        return dict.fromkeys(names, load_profile(given, "--device"))
    found, unknown = {}, []
    for name in dict.fromkeys(names):
        try:
            found[name] = load_profile(name)
        except InputError:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"{plural(len(unknown), 'device')} called {', '.join(unknown)}: no built-in profile; "
            "allowed: --device PROFILE beside --compare, such as the file that mest-fed calibrate "
            "wrote, by which all devices are predicted then"
        )
    return found


def print_comparison(folder: Path, device: str | None) -> None:
    """Print a deployed run's devices beside their twins.

    Raises
    ------
    InputError
        If the folder is of no such run; see :func:`compare_with_twins`.
    """
    run = load_run(folder, unfinished=True)
    if not isinstance(run, Run):
        raise InputError(f"{folder} is the run of a Flower app; allowed: one of real devices")
    twins = compare_with_twins(run, device)
    table = Table(
        title=f"{folder}: predicted (modelled) against measured", title_justify="left", box=None
    )
    table.add_column("device", overflow="fold")
    table.add_column("rounds", no_wrap=True)
    for heading in ("predicted", "measured", "ratio", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for twin in twins:
        table.add_row(f"{twin.name}, as {twin.profile.name}")
        for what, pair, form in (
            ("round", twin.rounds, format_seconds),
            ("its own part", twin.own, format_seconds),
            ("peak", twin.peak, format_bytes),
        ):
            if pair is not None:
                rounds = "all" if what == "peak" else str(len(pair.measured))
                table.add_row(
                    f"  {what}", rounds,
                    form(statistics.median(pair.predicted)),
                    form(statistics.median(pair.measured)),
                    f"{pair.ratio:.2f}",
                    "{:.2f} to {:.2f}".format(*pair.quartiles),
                )  # fmt: skip
    console = Console(highlight=False)
    console.width = max(console.width, 80)
    console.print(table)
    console.print(
        "round: from the instruction to the reply, as the server sees it. its own part: receiving "
        "and training, by the device's clock. Seconds and ratios are medians over rounds; the peak "
        "is the largest that training added.",
        style="dim",
    )
