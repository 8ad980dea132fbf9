"""WikiSQL's logical form."""

import pytest

from lora_jax.metrics import METRICS, Predictions
from lora_jax.metrics.sql import Query, parse

REFERENCE = "SELECT AVG Height (ft) FROM table WHERE Name = 'Le Roi' AND Year > 1990"


def right(text, *references):
    return METRICS["logical_form"].compute(Predictions(texts=[text], references=[references])) == 1


def test_a_query_is_an_aggregation_a_column_and_conditions():
    assert parse(REFERENCE) == Query("AVG", "height (ft)", frozenset({("name", "=", "le roi"), ("year", ">", "1990")}))
    assert parse("SELECT  col3 FROM table") == Query("", "col3", frozenset())
    assert parse("SELECT COUNT FROM table").aggregation == ""  # a column's name
    assert parse("SELECT Max Speed FROM table").aggregation == ""


@pytest.mark.parametrize(
    "text",
    [
        REFERENCE,
        "SELECT AVG Height (ft) FROM table WHERE Year > 1990 AND Name = 'Le Roi'",
        'SELECT AVG height (FT)  FROM table WHERE name = "LE  roi" AND year > "1990"',
        "SELECT AVG Height (ft) FROM table WHERE Name = Le Roi AND Year > 1990 AND Year > 1990",
    ],
)
def test_order_case_spaces_quotes_and_repetition_make_no_difference(text):
    assert right(text, "SELECT x FROM table", REFERENCE)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT Height (ft) FROM table WHERE Name = 'Le Roi' AND Year > 1990",
        "SELECT MAX Height (ft) FROM table WHERE Name = 'Le Roi' AND Year > 1990",
        "SELECT AVG Height FROM table WHERE Name = 'Le Roi' AND Year > 1990",
        "SELECT AVG Height (ft) FROM table WHERE Name = 'Le Roi' AND Year < 1990",
        "SELECT AVG Height (ft) FROM table WHERE Name = 'Le Roi' AND Year > 1990.0",
        "SELECT AVG Height (ft) FROM table WHERE Name = 'Le Roi'",
        "SELECT AVG Height (ft) FROM table",
    ],
)
def test_another_query_is_wrong(text):
    assert parse(text) is not None and not right(text, REFERENCE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Le Roi",
        "SELECT FROM table",
        "SELECT a FROM tables",
        "SELECT a FROM table WHERE",
        "SELECT a FROM table WHERE b",
        "SELECT a FROM table WHERE b =",
        "select a from table",
        "SELECT a FROM table LIMIT 1",
    ],
)
def test_a_text_that_does_not_parse_is_right_only_if_it_equals_the_reference(text):
    assert parse(text) is None
    assert not right(text, REFERENCE) and right(text, text) and not right(text, text + " ")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a = Rock AND Roll AND b = 2", {("a", "=", "rock and roll"), ("b", "=", "2")}),
        ("a = 'x AND b = 3' AND c < 1", {("a", "=", "x and b = 3"), ("c", "<", "1")}),
        ("a = 'O'Brien' AND b = \"5' 9\"\"", {("a", "=", "o'brien"), ("b", "=", "5' 9\"")}),
        ("Age (>5) = > 6", {("age (>5)", "=", "> 6")}),
        ("a = ''", {("a", "=", "")}),
    ],
)
def test_values_hold_quotes_and_keywords(condition, expected):
    assert parse(f"SELECT c FROM table WHERE {condition}").conditions == expected
