"""What the tests that fuzz share: how many examples, the limits that a reader must keep, and damaged content.

``LORA_JAX_FUZZ_EXAMPLES=3000 python -m pytest tests/faults/test_fuzz_data.py`` tries more examples than the default 30.
The examples are the same every time. ``tests/faults/fuzz_by_coverage.py`` searches by coverage.
"""

import copy
import json
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lora_jax.errors import UserError

EXAMPLES = int(os.environ.get("LORA_JAX_FUZZ_EXAMPLES", "30"))
MOST_BYTES = 2**23  # that a small file may make Python allocate
LONGEST_LINE, LONGEST_MESSAGE = 1000, 10_000  # characters; a message has a line for each invalid setting

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=1000,  # milliseconds
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def works_or_is_refused(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `function` returns, or None where it raises a UserError with a message that a user can read.

    Raises:
        AssertionError: If it allocates more than MOST_BYTES, or the message is empty, too long or not for users.
    """
    tracemalloc.start()
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
        assert message and len(message) < LONGEST_MESSAGE, message
        assert max(map(len, message.splitlines())) < LONGEST_LINE, message
        assert "Traceback" not in message and "pydantic" not in message, message
        message.encode()
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_BYTES, f"{peak} bytes"


numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e39, 1e-320, 1e308, -1e308, 0.99999999999, 1e-45]),
)
words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "auto", "none", "2r", "1e-400r", "nan", "inf", "1e5", "true", "null", "two", "../x"]),
    st.sampled_from(["\0", "=1+1", "|", "x" * 5000]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)
# Values of another kind than nearly every setting and field. Each draw is a new object.
_odd_values = st.sampled_from(
    [True, None, 7, 10**400, float("nan"), float("inf"), "x", "\ud800", [], [1], [[]], {}, {"a": []}]
).map(copy.deepcopy)


def _paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all members of a tree of JSON, at any depth."""
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in members for path in [(*prefix, key), *_paths(value, (*prefix, key))]]


@st.composite
def changed(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """Draws a copy of `tree` in which some members are replaced, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(_paths(tree) or [("new",)]))
        owner = tree
        for key in parents:
            owner = owner[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "remove" and tree:
            del owner[last]
        elif action == "add" and isinstance(owner, dict):
            owner[draw(words)] = draw(_odd_values | json_values)
        else:
            owner[last] = draw(_odd_values | json_values)
    return tree


def changed_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Draws the JSON object `content` with other members, or JSON of another kind."""
    return (changed(json.loads(content)) | json_values).map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws `content` cut off, with some bytes changed near its beginning or anywhere, or other bytes altogether."""
    match draw(st.sampled_from(["cut", "flip", "number", "replace", "random"])):
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "random":
            return draw(st.binary(max_size=200))
        case "number":  # a length or a count
            place = draw(st.integers(0, max(0, min(len(content), 2000) - 8)))
            number = draw(st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]))
            return content[:place] + number.to_bytes(8, "little") + content[place + 8 :]
        case "replace":
            for _ in range(draw(st.integers(1, 3))):
                place = draw(st.integers(0, len(content)))
                content = content[:place] + draw(st.binary(max_size=9)) + content[place + draw(st.integers(0, 9)) :]
            return content
    flipped = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        flipped[draw(st.integers(0, min(len(content), 3000) - 1) | st.integers(0, len(content) - 1))] = draw(
            st.integers(0, 255)
        )
    return bytes(flipped)
