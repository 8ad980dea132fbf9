"""Campaigns of which only a part runs each time."""

from collections.abc import Iterable
from typing import Any

import pytest


def sometimes(cases: Iterable[str], *always: str) -> list[Any]:
    """Returns `cases` for parametrize; all but those in `always` are marked slow."""
    return [case if case in always else pytest.param(case, marks=pytest.mark.slow) for case in cases]
