import pytest

from mest_fed.server.flower_internals import claim_identity


@pytest.fixture(autouse=True)
def _server_identity():
    claim_identity(run_id=1)
