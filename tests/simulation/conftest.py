"""A session of Ray for the tests of a module."""

import gc
import warnings

import pytest
import ray


@pytest.fixture(scope="module")
def session():
    """Start Ray with two workers' cores, for a whole module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    gc.collect()
