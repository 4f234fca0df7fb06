"""Instructions on their way, as a checkpoint holds them: what is sent to many is written once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from mest_fed.nn import ModelSpec, SparseState
from mest_fed.wire import check_masks, encode
from mest_fed.wire.records import to_record
from mest_fed.wire.size import content_bytes
from server.modes.flight import Flight
from server.roster import Node

Sections = dict[str, Mapping[str, np.ndarray]]

_HEADERS = "headers"
_PARTS = ("sent-masks", "sent-values", "sent-dense")
#: Sections of a checkpoint that are checked here.
FLIGHT_SECTIONS = (_HEADERS, *_PARTS)


def write_flights(
    flights: Sequence[tuple[Flight, float, int]],
) -> tuple[Sections, list[dict[str, Any]]]:
    """Return flights as arrays, which are shared with them, and as JSON-able facts.

    The encoded values are not written: they are those of the state that was sent.

    Parameters
    ----------
    flights : sequence of tuple
        Each with its start and its number, as the grid knows them.
    """
    states: dict[int, tuple[int, SparseState]] = {}
    headers: dict[bytes, int] = {}
    facts = []
    for flight, start, number in flights:
        order = dict(flight.content.config_records["mest"])
        header = order.pop("header")
        assert isinstance(header, bytes)
        facts.append(
            {
                "node": asdict(flight.node),
                "round": flight.round,
                "start": start,
                "number": number,
                "order": order,
                "header": headers.setdefault(header, len(headers)),
                "sent": states.setdefault(id(flight.sent), (len(states), flight.sent))[0],
            }
        )
    sections: Sections = {
        _HEADERS: {str(n): np.frombuffer(header, np.uint8) for header, n in headers.items()}
    }
    for place, state in states.values():
        for part, tensors in zip(_PARTS, (state.masks, state.values, state.dense), strict=True):
            sections[f"{part}:{place}"] = tensors
    return sections, facts


def read_flights(
    sections: Mapping[str, Mapping[str, np.ndarray]],
    facts: Sequence[Mapping[str, Any]],
    spec: ModelSpec,
    values: str,
) -> list[tuple[Flight, float, int]]:
    """Return the flights that :func:`write_flights` wrote.

    Parameters
    ----------
    sections : mapping of str to mapping
        Arrays by section and name; other sections may stand beside.
    facts : sequence of mapping
        One for each flight.
    spec : ModelSpec
        Of the model.
    values : str
        Value codec of instructions.

    Raises
    ------
    KeyError, TypeError, ValueError, WireError
        If they are not flights of this model.
    """
    states: dict[int, tuple[SparseState, Any]] = {}
    flights = []
    for fact in facts:
        place = int(fact["sent"])
        if place not in states:
            state = SparseState(*(dict(sections.get(f"{part}:{place}", {})) for part in _PARTS))
            check_masks(state.masks, spec)
            payload, _ = encode(state, spec, values=values)
            states[place] = state, to_record(payload).array_records["arrays"]
        state, arrays = states[place]
        header = sections[_HEADERS][str(fact["header"])].tobytes()
        order = ConfigRecord({"header": header, **fact["order"]})
        content = RecordDict({"arrays": arrays, "mest": order})
        node, start = Node(**fact["node"]), float(fact["start"])
        flight = Flight(node, int(fact["round"]), start, content, state, content_bytes(content))
        flights.append((flight, start, int(fact["number"])))
    return flights
