"""The run configuration."""

from mest_fed.config.base import read_options
from mest_fed.config.fleet import FleetConfig, read_fleet
from mest_fed.config.learning import DataSection
from mest_fed.config.load import (
    find_named,
    from_flat,
    from_table,
    known_keys,
    named,
    named_files,
    own_files,
    read_toml,
    to_flat,
    to_toml,
    with_settings,
)
from mest_fed.config.own_errors import own_errors
from mest_fed.config.sections import RunConfig

__all__ = [
    "DataSection",
    "FleetConfig",
    "RunConfig",
    "find_named",
    "from_flat",
    "from_table",
    "known_keys",
    "named",
    "named_files",
    "own_errors",
    "own_files",
    "read_fleet",
    "read_options",
    "read_toml",
    "to_flat",
    "to_toml",
    "with_settings",
]
