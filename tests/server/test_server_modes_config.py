"""What ``server.mode`` refuses to work with."""

import pytest

from mest_fed.config import from_table
from mest_fed.errors import InputError
from mest_fed.server.modes import check_mode


@pytest.mark.parametrize(
    ("server", "others", "start", "end"),
    [
        (
            {"mode": "buffered", "over_selection": 1.5},
            {},
            "server.over_selection = 1.5 is for synchronous rounds",
            "allowed: 1 (server.mode = 'buffered')",
        ),
        (
            {"mode": "semi-sync"},
            {"sparsity": {"mutation": "client"}},
            "server.mode = 'semi-sync' mixes updates of several masks",
            "allowed: sparsity.mutation = 'server'",
        ),
        (
            {"mode": "buffered", "buffer": 8, "concurrency": 7},
            {"fleet": {"devices": 7}},
            "server.buffer = 8 is never reached",
            "allowed: 1 to 7 (fleet.devices = 7)",
        ),
        (
            {"mode": "semi-sync", "concurrency": 8},
            {"fleet": {"devices": 7}},
            "server.concurrency = 8 is never reached",
            "allowed: 1 to 7 (fleet.devices = 7)",
        ),
    ],
)
def test_modes_that_cannot_work(server, others, start, end):
    with pytest.raises(InputError) as caught:
        check_mode(from_table(others | {"server": server}, "test"))
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


@pytest.mark.parametrize(
    "server", [{"concurrency": 30, "buffer": 30}, {"mode": "semi-sync", "buffer": 30}]
)
def test_what_belongs_to_another_mode_does_not_matter(server):
    check_mode(from_table({"server": server}, "test"))
