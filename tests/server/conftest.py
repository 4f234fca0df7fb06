import logging

import pytest

from simulations.flower_internals import claim_identity


@pytest.fixture(autouse=True)
def _server_identity():
    claim_identity(run_id=1)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("server").setLevel(logging.ERROR)
