"""Trials of the faults in signals.py."""

import pytest
from faults.conftest import assert_held

GROUP = "signals"


@pytest.mark.slow
def test_what_must_hold(world, tmp_path, fault, index):
    assert_held(world, fault, index, tmp_path)
