import pytest
from link_parts import Authority


@pytest.fixture(scope="session")
def authority():
    return Authority()
