"""The table of properties in lora_jax/methods/README.md has the rows, exceptions and reasons of the tests."""

from pathlib import Path

from helpers.property_table import property_table

README = Path(__file__).parents[2] / "lora_jax/methods/README.md"


def test_the_readmes_table_is_what_the_tests_check():
    table = property_table()
    assert table in README.read_text(), f"{README} must have this table:\n\n{table}"
