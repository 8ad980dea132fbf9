"""Logical form accuracy of generated SQL, for WikiSQL (Zhong et al., arXiv 1709.00103)."""

import dataclasses
import re

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.answers import normalize, right_texts
from lora_jax.metrics.metric import Predictions

_QUERY = re.compile(r"SELECT (?:(MAX|MIN|COUNT|SUM|AVG) )?(.+?) FROM table(?: WHERE (.+))?")
# A value in quotes may hold what would end one without: it ends at a quote before the next condition or the end.
_CONDITION = re.compile(r"""(.+?) ([=<>]) (?:'(.*?)'|"(.*?)"|(.+?))(?: AND (?=(?:(?! AND ).)+? [=<>] .)|$)""")


@dataclasses.dataclass(frozen=True)
class Query:
    """The logical form of a WikiSQL query. Column names and values are in lower case, with single spaces.

    Attributes:
      aggregation: MAX, MIN, COUNT, SUM or AVG; "" for none.
      column: the selected column.
      conditions: (column, operator, value) of each condition; the operator is =, < or >.
    """

    aggregation: str
    column: str
    conditions: frozenset[tuple[str, str, str]]


def logical_form(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns 1 for each text that is the same query as one of its references, else 0.

    Two texts are the same query if they are equal, or if `parse` reads both and finds the same aggregation, column and
    set of conditions. This is ``Query.__eq__`` of salesforce/WikiSQL (``lib/query.py``), unordered, on texts that name
    columns where that has their numbers.
    """
    return right_texts(predictions, _same)


def parse(text: str) -> Query | None:
    """Returns the query that a text writes; None if it writes none.

    The form is that of WikiSQL's library, ``SELECT AVG col FROM table WHERE a = 'x' AND b > 3``: keywords in capital
    letters, no aggregation or one of five, no WHERE or conditions joined by AND, values with or without quotes. The
    order of conditions, repeated conditions, quotes around a value, case and repeated spaces make no difference.
    Values are compared as strings: 3 and 3.0 differ. An AND without a column and operator before the next AND belongs
    to a value.
    """
    query = _QUERY.fullmatch(" ".join(text.split()))
    if query is None:
        return None
    aggregation, column, where = query.groups(default="")
    conditions, end = set(), 0
    while end < len(where):
        found = _CONDITION.match(where, end)
        if found is None:
            return None
        name, operator, *values = found.groups(default="")
        conditions.add((normalize(name), operator, normalize("".join(values))))
        end = found.end()
    return Query(aggregation, normalize(column), frozenset(conditions))


def _same(text: str, reference: str) -> bool:
    return text == reference or ((query := parse(text)) is not None and query == parse(reference))
