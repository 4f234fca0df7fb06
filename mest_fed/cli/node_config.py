"""Flower's node config: scalars, written as ``flower-supernode`` reads them."""

import json
from collections.abc import Mapping


def write_node_config(values: Mapping[str, int | float | str]) -> str:
    """Write a node config in one line, such as ``partition-id=0 device="rpi-4"``.

    Flower takes a text in quotes up to the next quote, and then reads it as TOML: a quote within
    is written as TOML's code for it.
    """
    return " ".join(f"{key}={_scalar(value)}" for key, value in values.items())


def _scalar(value: int | float | str) -> str:
    if not isinstance(value, str):
        return repr(value)
    return (
        json.dumps(value, ensure_ascii=False).replace('\\"', "\\u0022").replace("\x7f", "\\u007f")
    )
