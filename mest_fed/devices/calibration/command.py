"""The command that calibrates a device, as the standard library's parser has it."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mest_fed.devices.calibration.board import Power, board_name, node_bytes, read_memory
from mest_fed.devices.calibration.board_profile import (
    Calibration,
    PowerDrawn,
    base_for,
    profile_toml,
)
from mest_fed.devices.calibration.link import LinkServer, read_address, time_link
from mest_fed.devices.calibration.python import time_python
from mest_fed.devices.calibration.rates import Measured, fit_rates, products_rate
from mest_fed.devices.calibration.steps import Sample, time_steps
from mest_fed.devices.profile import DeviceProfile, load_profile
from mest_fed.errors import InputError, MestFedError, RefusedError, not_allowed
from mest_fed.system.cgroups import available_cores
from mest_fed.system.files import check_writable, whole_file, writing
from mest_fed.system.power import find_meter
from mest_fed.units import format_bytes, format_seconds

FAILED, WRONG_INPUT, REFUSED, INTERRUPTED = 1, 2, 4, 130
#: A number of threads that takes so many times as long as another is warned of.
_SLOWER = 1.05


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, and where it goes.

    Parameters
    ----------
    out : Path or None
        File of the profile; nothing is written where None.
    like : str or None
        Profile whose figures stand for what is not measured; the board's own if left out.
    threads : int
        Of the profile. One thread and all cores are measured beside it.
    server : str or None
        ``HOST:PORT`` of a ``--serve``, to time the link.
    title : str or None
        Of the profile.
    repeats : int
        Timings of each step.
    least : float
        Seconds of each of them.
    force : bool
        Whether a file that is there is replaced.
    """

    out: Path | None = None
    like: str | None = None
    threads: int = 1
    server: str | None = None
    title: str | None = None
    repeats: int = 5
    least: float = 0.1
    force: bool = False


def calibrate(wanted: Wanted) -> DeviceProfile:
    """Measure this device, say what was found, and write its profile.

    Raises
    ------
    InputError
        If a name, a number or a path is wrong, before anything is measured.
    MestFedError
        If the server of the link is not there.
    """
    cores = available_cores()
    if not 1 <= wanted.threads <= cores:
        raise not_allowed("--threads", wanted.threads, f"1 to {cores}, the cores of this machine")
    out, board = wanted.out, board_name()
    if out is not None and (out.suffix != ".toml" or not out.absolute().parent.is_dir()):
        raise not_allowed("--out", str(out), "a file that ends in .toml, in a folder that exists")
    if out is not None and out.exists() and not wanted.force:
        raise InputError(f"--out: {out} is there already; allowed: --force, which replaces it")
    if out is not None:
        check_writable(out, "--out")
    base = load_profile(wanted.like or base_for(board), "--like")
    address = None if wanted.server is None else read_address(wanted.server, "--server")
    print(f"{board}: what is not measured is as {base.name} has it")
    link = None if address is None else time_link(address)
    memory = read_memory()
    speeds, power = _speeds(wanted, cores)
    _print_fastest(speeds)
    python = time_python(wanted.repeats, wanted.least)
    found = Calibration(
        board=board,
        date=datetime.now(UTC).date().isoformat(),
        speeds=speeds,
        python=python,
        memory=memory,
        node=_node(),
        link=link,
        power=power,
    )
    profile = found.profile("device" if out is None else out.stem, base, wanted.title)
    _print_rest(found)
    if out is None:
        print("no profile was written; --out FILE.toml writes one")
    else:
        _write(out, profile)
    return profile


def _speeds(wanted: Wanted, cores: int) -> tuple[list[Measured], PowerDrawn | None]:
    """Time the steps by the profile's threads, by one and by all, and the power meanwhile.

    The profile's are the first.
    """
    meter, speeds, drawn, compute = find_meter(), [], None, None
    power = None if meter is None else Power(meter)
    for count in dict.fromkeys((wanted.threads, 1, cores)):
        with nullcontext() if power is None else power.watched():
            samples = tuple(time_steps(count, wanted.repeats, wanted.least))
        speeds.append(Measured(count, fit_rates(samples, count), samples))
        _print_speed(speeds[-1])
        if power is not None and compute is None:
            compute = power.watts
    if power is not None and meter is not None and compute is not None:
        with power.watched():
            time.sleep(max(0.2, 10 * wanted.least))
        if compute > 0 and power.watts > 0:
            drawn = PowerDrawn(meter.what, compute, power.watts)
    return speeds, drawn


def _node() -> int | None:
    try:
        return node_bytes()
    except MestFedError as error:
        print(f"a lean node's memory: not measured ({error})")
        return None


def _print_fastest(speeds: Sequence[Measured]) -> None:
    """Say which number of threads is fastest, and warn where the profile has a slower one."""
    own, one = speeds[0], next(it for it in speeds if it.threads == 1)
    slowness = {it.threads: it.slowness(one) for it in speeds}
    fastest = min(slowness, key=lambda threads: slowness[threads])
    times = ", ".join(
        f"{_threads(threads)} {slowness[threads]:.2f}" for threads in sorted(slowness)
    )
    print(f"fastest: {_threads(fastest)} (the time of an example against one thread's: {times})")
    print(f"the profile has the rates of {_threads(own.threads)}, as of mest-fed node --threads "
          f"{own.threads}")  # fmt: skip
    if fastest != own.threads and slowness[own.threads] > _SLOWER * slowness[fastest]:
        ratio, few = slowness[own.threads] / slowness[fastest], _threads(own.threads)
        print(
            f"warning: with {few} an example takes {ratio:.2f} times as long as with "
            f"{_threads(fastest)}: --threads {fastest}, here and for mest-fed node, is faster",
            file=sys.stderr,
        )


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _print_speed(found: Measured) -> None:
    threads = _threads(found.threads)
    flops = ", ".join(f"{kind} {rate / 1e9:.3g}" for kind, rate in found.rates.flops.items())
    print(
        f"{threads} (measured): GFLOP/s {flops}; {found.rates.memory_rate / 1e9:.3g} GB/s of "
        f"operators without products; core speed {found.rates.core_speed:.3g}, with weights of "
        f"sparse linear layers {found.rates.gather_speed:.3g}"
    )
    for sample, ratio in zip(found.samples, found.ratios, strict=True):
        beside = "" if found.fitted(sample) else " (not fitted: one group, so one thread)"
        print(f"  {_step(found, sample)}, modelled / measured {ratio:.2f}{beside}")


def _step(found: Measured, sample: Sample) -> str:
    rate = products_rate(found.rates, sample) / 1e9
    took = f"{sample.seconds * 1e3:.3g} ms"
    return f"{sample.case.name}, batch {sample.examples}: {took}, {rate:.3g} GFLOP/s"


def _print_rest(found: Calibration) -> None:
    print(f"one core in Python (measured): {found.python.speed:.2f} of the reference machine")
    if found.memory is not None:
        memory = found.memory
        print(
            f"memory (measured): {format_bytes(memory.total)}, of which "
            f"{format_bytes(memory.taken)} are taken"
        )
    if found.node is not None:
        print(f"a lean node that waits for work (measured: RSS, alone): {format_bytes(found.node)}")
    if found.link is None:
        print("link: not measured (--server HOST:PORT of a mest-fed calibrate --serve)")
    else:
        link = found.link
        print(
            f"link (measured): down {format_bytes(link.download_rate)}/s, up "
            f"{format_bytes(link.upload_rate)}/s, {format_seconds(link.latency)} one way"
        )
    if found.power is None:
        print("power: the system does not tell")
    else:
        power = found.power
        print(
            f"power (measured, {power.what} alone): {power.compute:.3g} W while it trains, "
            f"{power.idle:.3g} W idle"
        )


def _write(path: Path, profile: DeviceProfile) -> None:
    with writing(path, "--out"), whole_file(path) as file:
        file.write(profile_toml(profile).encode())
    load_profile(str(path))
    print(f"profile: {path}")


def serve(address: str) -> None:
    """Answer devices that time their link, until interrupted.

    Raises
    ------
    InputError
        If it is no address to listen on.
    """
    with LinkServer(read_address(address, "--serve", least_port=0)) as server:
        print(f"devices can time their link at port {server.port}; Ctrl-C ends", flush=True)
        server.serve_forever()


class _Parser(argparse.ArgumentParser):
    """Gives wrong options as one line, as all commands do."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(message)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m mest_fed.devices.calibration",
        description="Measure this device and write its profile; needs NumPy alone.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.toml", help="The profile.")
    add("--like", metavar="PROFILE", help="Stands for what is not measured.")
    add("--threads", type=int, default=1, metavar="N", help="Of the profile, as of mest-fed node "
        "(default: 1).")  # fmt: skip
    add("--server", metavar="HOST:PORT", help="Of a --serve, to time the link.")
    add("--serve", metavar="HOST:PORT", help="Answer devices that time their link.")
    add("--title", help="Of the profile; what the system calls the board if left out.")
    add("--force", action="store_true", help="Replace the file of --out.")
    add("--quick", action="store_true", help="A few seconds, and less exact.")
    return parser.parse_args(arguments)


#: Repeats and seconds of each timing under ``--quick``.
QUICK = 3, 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is one line on standard error."""
    try:
        options = _parse(arguments)
        if options.serve is not None:
            serve(options.serve)
            return
        given = (options.out, options.like, options.threads, options.server, options.title)
        how = QUICK if options.quick else ()
        calibrate(replace(Wanted(*given, *how), force=options.force))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except MestFedError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        wrong = isinstance(error, InputError)
        gone = isinstance(error, RefusedError)
        sys.exit(WRONG_INPUT if wrong else REFUSED if gone else FAILED)
