"""The run configuration."""

from mest_fed.config.fleet import FleetConfig, read_fleet
from mest_fed.config.load import (
    find_named,
    from_flat,
    from_table,
    known_keys,
    named,
    read_toml,
    to_flat,
    to_toml,
    with_settings,
)
from mest_fed.config.sections import RunConfig

__all__ = [
    "FleetConfig",
    "RunConfig",
    "find_named",
    "from_flat",
    "from_table",
    "known_keys",
    "named",
    "read_fleet",
    "read_toml",
    "to_flat",
    "to_toml",
    "with_settings",
]
