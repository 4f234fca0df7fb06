"""``mest-fed devices``."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mest_fed.catalogue import TABLE_FORMATS
from mest_fed.cli.baseline import RECORDED, RECORDED_LEAN
from mest_fed.cli.device_room import DeviceRoom
from mest_fed.cli.options import Force, check_new_file
from mest_fed.cli.tables import check_format, fill_table, write_table
from mest_fed.devices import DeviceProfile, load_profile, profile_names
from mest_fed.errors import not_allowed
from mest_fed.units import format_bytes


def devices(
    name: Annotated[
        str | None, typer.Argument(help="Profile name or path of a TOML file; all if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help=f"{TABLE_FORMATS.allowed}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for --format; standard output if left out.")
    ] = None,
    force: Force = False,
) -> None:
    """List the device profiles, or show one with the source of every number."""
    if form is not None:
        check_format(form)
        check_new_file(out, force=force)
    elif out is not None:
        raise not_allowed("--out", str(out), f"only beside --format {TABLE_FORMATS.allowed}")
    profiles = [load_profile(name)] if name else [load_profile(each) for each in profile_names()]
    if as_json:
        typer.echo(json.dumps([_with_node(profile) for profile in profiles], indent=2))
        return
    if form is not None:
        write_table([_with_node(profile) for profile in profiles], form, out)
        return
    console = Console()
    if name:
        console.print(_one(profiles[0]))
        said = _room(profiles[0]).in_words()
        console.print(f"\n{said}", width=min(console.width, 100), highlight=False, markup=False)
    elif console.is_terminal:
        console.print(profile_table(profiles, console.width))
    else:  # another program reads it
        rows = [_columns(each) for each in profiles]
        typer.echo("\n".join("\t".join(line) for line in (rows[0], *(it.values() for it in rows))))


def _room(profile: DeviceProfile) -> DeviceRoom:
    return DeviceRoom(profile, profile.budget_bytes)


def _with_node(profile: DeviceProfile) -> dict[str, Any]:
    """Return a profile, and what the real device has left beside a node."""
    return _plain(profile) | {"node": _room(profile).as_table()}


def _plain(profile: DeviceProfile) -> dict[str, Any]:
    plain = {field.name: getattr(profile, field.name) for field in fields(profile)}
    return plain | {"flops": dict(profile.flops), "sources": dict(profile.sources)}


def _columns(profile: DeviceProfile) -> dict[str, str]:
    """Return what the list says of a profile, by heading."""
    return {
        "profile": profile.name,
        "RAM": format_bytes(profile.memory_bytes),
        "budget": format_bytes(profile.budget_bytes),
        "node leaves": _room(profile).short(),
        "lean leaves": _room(profile).short(lean=True),
        "modelled dense GFLOP/s": f"{profile.flops['dense'] / 1e9:.3g}",
        "modelled block GFLOP/s": f"{profile.flops['block'] / 1e9:.3g}",
        "watts": f"{profile.compute_watts:g}",
        "down": f"{format_bytes(profile.download_rate)}/s",
        "up": f"{format_bytes(profile.upload_rate)}/s",
        "device": profile.title,
    }


def profile_table(profiles: list[DeviceProfile], width: int) -> Table:
    """Return the list, without the last columns where the screen is too narrow for them."""
    rows = [_columns(each) for each in profiles]
    table = Table(title="Device profiles", title_justify="left", box=None, header_style="bold")
    fill_table(table, rows, width, left=("profile", "device"))
    table.caption = (
        "Rates are of training, on active weights; devices NAME shows every source. What "
        f"Flower's node with torch ({format_bytes(RECORDED.together)}) leaves, and what a lean "
        f"node ({format_bytes(RECORDED_LEAN)}), is modelled."
    )
    table.caption_justify = "left"
    return table


#: Units of a profile's numbers, as :class:`DeviceProfile` has them.
_UNITS = {
    **dict.fromkeys(("memory_bytes", "system_bytes", "node_bytes", "budget_bytes"), "B"),
    **dict.fromkeys(("memory_rate", "download_rate", "upload_rate"), "B/s"),
    **dict.fromkeys(("latency", "message_seconds"), "s"),
    **dict.fromkeys(("compute_watts", "radio_watts", "idle_watts", "charge_watts"), "W"),
    **{"flops": "FLOP/s", "battery_joules": "J"},
}


def _one(profile: DeviceProfile) -> Table:
    table = Table(title=f"{profile.title} ({profile.name})", title_justify="left", box=None)
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    table.add_column("source", style="dim")
    for key, value in _plain(profile).items():
        if key in ("name", "title", "sources") or value is None:
            continue
        source = profile.sources.get(key, "")
        values = value.items() if isinstance(value, dict) else [("", value)]
        for part, quantity in values:
            number = float(quantity)
            label = f"{key} {part}".strip()
            shown = f"{number:,.4g}" if number < 1e6 else f"{number:,.0f}"
            table.add_row(label, f"{shown} {_UNITS.get(key, '')}".rstrip(), source)
            source = "" if part else source
    return table
