"""Trials of the faults in services.py."""

import pytest
from faults.conftest import assert_held

GROUP = "services"


@pytest.mark.slow
def test_what_must_hold(world, tmp_path, fault, index):
    assert_held(world, fault, index, tmp_path)
