import pytest
from cgroup_trees import GroupCalls, Machine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a machine without control groups; this process is number 42 on it."""
    monkeypatch.setattr("mest_fed.system.cgroups.os", GroupCalls)
    return Machine(tmp_path)
