import logging

import pytest
from server_parts import NODES, StubGrid, capability, strategy_of

from mest_fed.server.flower_internals import claim_identity


@pytest.fixture(autouse=True)
def _server_identity():
    claim_identity(run_id=1)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("mest_fed.server").setLevel(logging.ERROR)


@pytest.fixture
def grid():
    return StubGrid({node_id: capability(p) for p, node_id in enumerate(NODES)})


@pytest.fixture
def strategy():
    return strategy_of()
